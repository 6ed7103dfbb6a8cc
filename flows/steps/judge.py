"""A verdict: challenger and champion scored on the same test images, and the alias moved if the gates agree.

The flows `retrain` and `promote` both call `settle_challenger`; nothing here knows which of them, or any flow at all.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from components.domain.domain import Domain
from components.promotion import contest, ledger, versions
from components.promotion.contest import Judgement
from components.promotion.gates.base import Context, Decision
from components.promotion.gates.decide import decide
from components.promotion.versions import Version
from components.records import Result, load_predictions
from components.tracking import artifacts
from components.tracking.store import Store
from flows.plan import Plan
from flows.processes.training import spawn_job
from flows.progress import report
from flows.server.events import emit_promoted
from flows.server.turns import promotion_turn


@dataclass(frozen=True)
class Approval:
    """A person's word."""

    by: str
    reason: str

    def __str__(self) -> str:
        return f"{self.by}: {self.reason}"


def settle_challenger(
    store: Store, plan: Plan, scored: Result, challenger: Version, approval: Approval | None = None
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
        return _record(store, plan, challenger, decisions[-1], approval)

    turn = partial(promotion_turn, name)
    judgement, champion = contest.judge_until_settled(plan.workspace, name, challenger.version, judge_against, turn)
    if judgement is None:
        return describe_champion(challenger.version), champion
    contest.describe_model(name)
    if judgement.verdict == "PROMOTE" and champion is not None:
        emit_promoted(champion)
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


def limits_serving(domain: Domain) -> bool:
    """Whether a gate has a limit for what serving takes of this machine."""
    return domain.gates.max_latency_ms is not None or domain.gates.max_memory_mb is not None


def _measure_serving(plan: Plan, challenger: Version) -> dict[str, float]:
    """By a process that does nothing but load and answer."""
    return score_version(plan, challenger).metrics if limits_serving(plan.domain) else {}


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
        "code_sha256": plan.sources.training,
        "environment": ", ".join(f"{key} {value}" for key, value in scored.environment.items()),
        "test_images": plan.version.md5,
    }


def describe_champion(version: int) -> Decision:
    """What is said of a challenger that is the champion already: nothing is to be judged."""
    return Decision(verdict="PROMOTE", reason=f"Version {version} is the champion already.", findings=())


def score_version(plan: Plan, version: Version) -> Result:
    """A registered version's predictions on the plan's held-out images."""
    adapter = versions.fetch_adapter(version, plan.workspace.adapters)
    return spawn_job(plan.create_score_job(adapter, score_folder(plan, version.version)), f"version-{version.version}")


def score_folder(plan: Plan, version: int) -> Path:
    return plan.scores / f"version-{version}"


def _record(store: Store, plan: Plan, challenger: Version, decision: Decision, approval: Approval | None) -> Judgement:
    """What a record says of the judgement it rests on, which is kept before it; who approved it answers for it."""
    text = ledger.write_evidence(decision.model_dump(mode="json"))
    evidence = ledger.hash_text(text)
    artifacts.log_evidence(store, challenger.run_id, evidence, text)
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
