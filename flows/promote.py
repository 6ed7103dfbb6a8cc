"""Gate and promote: challenger and champion scored on the same test images, and the alias moved if the gates agree."""

from datetime import UTC, datetime, time
from typing import Any

from components.data import versioning
from components.errors import PromotionError
from components.promotion import ledger, registry
from components.promotion.gates import Context, Decision, decide
from components.promotion.registry import Version
from components.training.job import Result, load_predictions
from components.workspace import Workspace
from flows.plan import Plan, create_plan
from flows.progress import report
from flows.train_candidate import run_job


def promote(workspace: Workspace, name: str, version: int | None = None) -> dict[str, Any]:
    """Judge a version (the challenger when none is named) against the present champion; promote it if it passes."""
    from components import tracking

    report("stage", title="find the versions")
    plan = create_plan(workspace, name)
    tracking.connect(workspace)
    wanted = registry.CHALLENGER if version is None else version
    challenger = registry.load_version(name, wanted)
    if challenger is None:
        raise PromotionError(
            f"promotion in {name}",
            expected="a registered challenger" if version is None else f"version {version}",
            found="none",
            mend=f"Train one with `tessera retrain {name}`; `tessera history {name}` lists what was promoted.",
        )
    champion = registry.load_version(name, registry.CHAMPION)
    if champion is not None and champion.version == challenger.version:
        reason = f"Version {champion.version} is the champion already."
        return describe_history(name) | {"verdict": "PROMOTE", "reason": reason}
    report("stage", title="score both on the same test images")
    versioning.refresh(workspace, name)
    decision = judge(plan, score_version(plan, challenger), challenger, champion)
    if decision.verdict == "PROMOTE":
        move_champion(plan, challenger, None if champion is None else champion.version, decision)
    return describe_history(name) | {"verdict": decision.verdict, "reason": decision.reason}


def rollback(workspace: Workspace, name: str, reason: str) -> dict[str, Any]:
    """Champion and previous change places."""
    from components import tracking

    tracking.connect(workspace)
    champion = registry.rollback(workspace, name, reason)
    return describe_history(name) | {"verdict": None, "reason": f"rolled back to version {champion.version}"}


def judge(plan: Plan, scored: Result, challenger: Version, champion: Version | None) -> Decision:
    """The gates' decision on the plan's test images, where the champion is scored afresh; `scored` is the challenger.

    A verdict that moves nothing is written into the ledger at once, for it was a look at the test set all the same.
    """
    rival = None if champion is None else load_predictions(score_version(plan, champion).folder, "test")
    frame = load_predictions(scored.folder, "test")
    pair = (None if champion is None else champion.version, challenger.version)
    context = Context(
        domain=plan.domain,
        challenger=frame,
        champion=rival,
        adapter_bytes=scored.adapter_bytes,
        looks=ledger.count_looks(ledger.load_records(plan.domain.name), pair, frame["group"].n_unique()),
        trained=bool(scored.backbone["trained"]),
    )
    decision = decide(context)
    if decision.verdict != "PROMOTE":
        registry.record_judgement(
            plan.workspace, plan.domain.name, challenger.version, expected=pair[0], **_evidence(plan, decision)
        )
    return decision


def score_version(plan: Plan, version: Version) -> Result:
    """A registered version's predictions on the plan's held-out images."""
    adapter = registry.fetch_adapter(version, plan.workspace.adapters)
    folder = plan.folder / f"version-{version.version}"
    return run_job(plan.create_score_job(adapter, folder), f"version-{version.version}")


def move_champion(plan: Plan, challenger: Version, expected: int | None, decision: Decision) -> None:
    """Compare and set, with the evidence's hash in the ledger; `expected` is the champion that was judged against."""
    registry.set_champion(
        plan.workspace,
        plan.domain.name,
        challenger.version,
        expected=expected,
        **_evidence(plan, decision),
    )


def _evidence(plan: Plan, decision: Decision) -> dict[str, Any]:
    """What a record says of the judgement it rests on."""
    groups = next((int(found.evidence["groups"]) for found in decision.findings if "groups" in found.evidence), 0)
    return {
        "reason": decision.reason,
        "verdict": decision.verdict,
        "evidence_sha256": ledger.hash_evidence(decision.model_dump(mode="json")),
        "data_version": plan.version.md5,
        "git_commit": plan.code,
        "test_groups": groups,
    }


def find_champion_at(name: str, when: str) -> dict[str, Any]:
    """Who was champion at a moment, an ISO date (its end) or time, in UTC where it names no zone.

    Raises PromotionError for a text that is neither.
    """
    try:
        moment = datetime.fromisoformat(when)
    except ValueError:
        raise PromotionError(
            f"--at {when}",
            expected="a date or time such as 2026-11-24 or 2026-11-24T15:30+01:00",
            found="neither",
            mend="Write it in that form.",
        ) from None
    if "T" not in when and " " not in when:
        moment = datetime.combine(moment.date(), time.max)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    record = ledger.find_champion(ledger.load_records(name), moment)
    return {"at": moment.isoformat(), "champion_at": None if record is None else record.to_version}


def mark_unchanged(name: str, known: dict[str, Any]) -> dict[str, Any]:
    """An earlier retrain's outcome as the answer now; the champion may have moved since."""
    champion = registry.load_version(name, registry.CHAMPION)
    return known | {"status": "unchanged", "champion_version": None if champion is None else champion.version}


def describe_history(name: str) -> dict[str, Any]:
    """What `history`, `promote` and `rollback` print."""
    champion = registry.load_version(name, registry.CHAMPION)
    records = [
        {
            "number": record.number,
            "when": record.when,
            "who": record.who,
            "action": record.action,
            "previous": record.from_version,
            "version": record.to_version,
            "verdict": record.verdict or None,
            "reason": record.reason,
            "data_version": record.data_version,
            "git_commit": record.git_commit,
            "evidence_sha256": record.evidence_sha256,
            "test_groups": record.test_groups,
        }
        for record in ledger.load_records(name)
    ]
    return {
        "domain": name,
        "verdict": None,
        "champion_version": None if champion is None else champion.version,
        "records": records,
        "ledger_problems": list(ledger.verify_records(name)),
    }
