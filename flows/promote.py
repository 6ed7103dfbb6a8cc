"""Gate and promote: challenger and champion scored on the same test images, and the alias moved if the gates agree."""

from dataclasses import dataclass
from datetime import UTC, datetime, time
from functools import partial
from pathlib import Path
from typing import Any

from components import tracking
from components.data import versioning
from components.errors import PromotionError
from components.promotion import ledger, registry
from components.promotion.gates import Context, Decision, decide
from components.promotion.registry import Judgement, Version
from components.training.job import Result, load_predictions
from components.workspace import Workspace
from flows.events import tell_promoted
from flows.plan import Plan, create_plan, hash_code, load_checked_domain
from flows.progress import report
from flows.train_candidate import run_job
from flows.turns import promotion_turn


@dataclass(frozen=True)
class Approval:
    """A person's word."""

    by: str
    reason: str

    def __str__(self) -> str:
        return f"{self.by}: {self.reason}"


def open_registry(workspace: Workspace, name: str) -> None:
    """Connect, and end a promotion that was killed between its writes."""
    tracking.connect(workspace)
    if not registry.is_moving(name):
        return
    with promotion_turn(name):
        registry.mend_move(workspace, name)
    champion = registry.load_version(name, registry.CHAMPION)
    if champion is not None:  # whoever was killed may not have told
        tell_promoted(champion)


def promote(
    workspace: Workspace, name: str, version: int | None = None, approval: Approval | None = None
) -> dict[str, Any]:
    """Judge a version (the challenger when none is named) against the present champion; promote it if it passes."""
    report("stage", title="find the versions")
    plan = create_plan(workspace, name)
    open_registry(workspace, name)
    challenger = _find_challenger(name) if version is None else registry.require_version(name, version)
    champion = registry.load_version(name, registry.CHAMPION)
    if champion is None or champion.version != challenger.version:
        report("stage", title="score both on the same test images")
        versioning.refresh(workspace, name)
        scored = score_version(plan, challenger)
        decision, _ = contest(plan, scored, challenger, approval)
    else:
        decision = describe_champion(challenger.version)
    return describe_history(name) | {"verdict": decision.verdict, "reason": decision.reason}


def _find_challenger(name: str) -> Version:
    found = registry.load_version(name, registry.CHALLENGER)
    if found is None:
        raise PromotionError(
            f"promotion in {name}",
            expected="a registered challenger",
            found="none",
            mend=f"Train one with `tessera retrain {name}`.",
        )
    return found


def approve(workspace: Workspace, name: str, version: int, approval: Approval) -> dict[str, Any]:
    """A person agrees to a version: what the other gates say is asked again, for the champion may be another by now.

    Raises PromotionError where the domain asks for no approval, or nobody gives one.
    """
    if not (approval.by.strip() and approval.reason.strip()):
        raise PromotionError(
            f"approval of {name} version {version}",
            expected="who agrees, and why",
            found=f"--by {approval.by!r} --reason {approval.reason!r}",
            mend="Give both: the ledger keeps them.",
        )
    if not load_checked_domain(workspace, name).gates.approval:
        raise PromotionError(
            f"approval of {name} version {version}",
            expected="a domain that asks for approval",
            found="`gates.approval: false` in its domain.yaml",
            mend=f"Set it to true, or give `tessera promote {name} {version}`.",
        )
    return promote(workspace, name, version, approval)


def rollback(workspace: Workspace, name: str, reason: str) -> dict[str, Any]:
    """Champion and previous change places."""
    open_registry(workspace, name)
    with promotion_turn(name):
        champion = registry.rollback(workspace, name, reason)
    registry.describe_model(name)
    tell_promoted(champion)
    return describe_history(name) | {"verdict": None, "reason": f"rolled back to version {champion.version}"}


def contest(
    plan: Plan, scored: Result, challenger: Version, approval: Approval | None = None
) -> tuple[Decision, Version | None]:
    """Judge the challenger and let the verdict take effect, both anew where somebody moved the champion in between.

    A verdict that moves nothing is recorded too, for it was a look at the test set all the same. Returns the decision
    and the champion there is now.
    """
    name, decisions = plan.domain.name, list[Decision]()

    def judge_against(champion: Version | None) -> Judgement:
        if decisions:
            report("note", text="The champion moved meanwhile: judging against the new one.")
        decisions.append(judge(plan, scored, challenger, champion, str(approval or "")))
        return _record(plan, challenger, decisions[-1], approval)

    turn = partial(promotion_turn, name)
    judgement, champion = registry.contest(plan.workspace, name, challenger.version, judge_against, turn)
    if judgement is None:
        return describe_champion(challenger.version), champion
    registry.describe_model(name)
    if judgement.verdict == "PROMOTE" and champion is not None:
        tell_promoted(champion)
    return decisions[-1], champion


def judge(plan: Plan, scored: Result, challenger: Version, champion: Version | None, approved: str = "") -> Decision:
    """The gates' decision on the test images, where the champion is scored afresh; `scored` is the challenger's."""
    rival = None if champion is None else load_predictions(score_version(plan, champion).folder, "test")
    frame = load_predictions(scored.folder, "test")
    pair = (None if champion is None else champion.version, challenger.version)
    context = Context(
        domain=plan.domain,
        challenger=frame,
        champion=rival,
        adapter_bytes=scored.adapter_bytes,
        manifest=plan.load_manifest(),
        validation=plan.load_validation(),
        lineage=_trace(plan, scored, challenger),
        serving=_measure_serving(plan, challenger),
        version=challenger.version,
        approved=approved,
        looks=ledger.count_looks(ledger.load_records(plan.domain.name), pair, frame["group"].n_unique()),
        trained=bool(scored.backbone["trained"]),
    )
    return decide(context)


def _measure_serving(plan: Plan, challenger: Version) -> dict[str, float]:
    """By a process that does nothing but load and answer, where a gate has a limit for it."""
    gates = plan.domain.gates
    if gates.max_latency_ms is None and gates.max_memory_mb is None:
        return {}
    return score_version(plan, challenger).metrics


def _trace(plan: Plan, scored: Result, challenger: Version) -> dict[str, str]:
    """What the version was made from, by its own record; an empty text is unknown."""
    backbone = scored.backbone
    return {
        "data_version": challenger.data_version,
        "split_sha256": scored.split_sha256,
        "backbone": str(backbone.get("name", "")),
        "backbone_sha256": str(backbone.get("sha256", "")),
        "adapter_sha256": challenger.adapter_sha256,
        "run_id": challenger.run_id,
        "code_sha256": hash_code(),
        "environment": ", ".join(f"{key} {value}" for key, value in scored.environment.items()),
        "test_images": plan.version.md5,
    }


def describe_champion(version: int) -> Decision:
    """What is said of a challenger that is the champion already: nothing is to be judged."""
    return Decision(verdict="PROMOTE", reason=f"Version {version} is the champion already.", findings=())


def score_version(plan: Plan, version: Version) -> Result:
    """A registered version's predictions on the plan's held-out images."""
    adapter = registry.fetch_adapter(version, plan.workspace.adapters)
    folder = plan.folder / f"version-{version.version}"
    return run_job(plan.create_score_job(adapter, folder), f"version-{version.version}")


def _record(plan: Plan, challenger: Version, decision: Decision, approval: Approval | None) -> Judgement:
    """What a record says of the judgement it rests on, which is kept before it; who approved it answers for it."""
    text = ledger.write_evidence(decision.model_dump(mode="json"))
    evidence = ledger.hash_text(text)
    tracking.log_evidence(challenger.run_id, evidence, text)
    groups = next((int(found.evidence["groups"]) for found in decision.findings if "groups" in found.evidence), 0)
    return Judgement(
        reason=decision.reason,
        verdict=decision.verdict,
        evidence_sha256=evidence,
        data_version=plan.version.md5,
        git_commit=plan.code,
        test_groups=groups,
        who=None if approval is None else approval.by,
    )


def find_champion_at(name: str, when: str) -> dict[str, Any]:
    """Who was champion at a moment, an ISO date (its end) or time, in UTC where it names no zone.

    Raises PromotionError for a text that is neither, and for a day that is yet to come.
    """
    now = datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(when)
        if "T" not in when and " " not in when:
            moment = datetime.combine(moment.date(), time.max.replace(microsecond=0))
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        found = "" if moment.date() <= now.date() else "a day that is yet to come"
    except ValueError:
        found = "neither"
    if found:
        raise PromotionError(
            f"--at {when!r}",
            expected="a past date or time such as 2026-11-24 or 2026-11-24T15:30+01:00",
            found=found,
            mend="Write it in that form.",
        )
    record = ledger.find_champion(ledger.load_records(name), moment)
    return {"at": min(moment, now).isoformat(timespec="seconds"), "champion_at": record and record.to_version}


def verify_ledger(name: str, export: Path | None) -> dict[str, Any]:
    """What is wrong with the ledger; export: an earlier one, which it must still begin with."""
    try:
        lines = export.read_text(encoding="utf-8").splitlines() if export else []
    except (OSError, UnicodeDecodeError) as error:
        raise PromotionError(
            f"--against {export}",
            expected=f"a file that `tessera ledger export {name} FILE` wrote",
            found=str(error),
            mend="Name that file.",
        ) from None
    problems = ledger.verify_records(name, lines)
    return {"domain": name, "records": len(ledger.load_texts(name)), "problems": list(problems)}


def export_ledger(name: str, file: Path) -> dict[str, Any]:
    """Write the records as they are stored, a line a record."""
    texts = [text for _, text in sorted(ledger.load_texts(name).items())]
    try:
        file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    except OSError as error:
        raise PromotionError(
            f"ledger of {name}",
            expected=f"a file that can be written at {file}",
            found=str(error),
            mend="Name a file in a folder that exists.",
        ) from None
    return {"domain": name, "records": len(texts), "file": str(file.resolve())}


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
