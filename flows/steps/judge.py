"""The flows' part of a verdict: scoring jobs, events, and turns around `components.promotion.contest`.

The flows `retrain` and `promote` both call `settle_challenger`; nothing here depends on which of them does.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from components.domain.domain import Domain
from components.models.adapter import load_meta
from components.promotion import versions
from components.promotion.contest import Contest
from components.promotion.gates.base import Context, Decision
from components.promotion.gates.licences import check_licences
from components.promotion.licences import trace_licences, trace_version
from components.promotion.versions import Version
from components.records.jobs import Result, load_predictions
from components.records.licences import Chain
from components.records.outcomes import Finding
from components.tracking.store import Store
from flows.plan import Plan
from flows.processes.training import spawn_job
from flows.progress import report
from flows.server.events import emit_promoted
from flows.server.turns import promotion_turn


@dataclass(frozen=True)
class Approval:
    """A person's agreement, and why."""

    by: str
    reason: str

    def __str__(self) -> str:
        return f"{self.by}: {self.reason}"


def settle_challenger(
    store: Store, plan: Plan, scored: Result, challenger: Version, approval: Approval | None = None
) -> tuple[Decision, Version | None]:
    """Judge the challenger, whose own predictions are `scored`, and let the verdict take effect.

    Returns the decision and the champion there is now.
    """
    contest = Contest(
        workspace=plan.workspace,
        store=store,
        challenger=challenger,
        context=gather_evidence(plan, scored, challenger, approval),
        score=lambda champion: load_predictions(score_version(plan, champion).folder, "test"),
        data_version=plan.version.md5,
        git_commit=plan.code,
        who=None if approval is None else approval.by,
        turn=partial(promotion_turn, plan.domain.name),
        again=partial(report, "note", text="The champion moved meanwhile: judging against the new one."),
    )
    decision, champion = contest.settle()
    if decision is None:
        return describe_champion(challenger.version, check_licences(contest.context)), champion
    if decision.verdict == "PROMOTE" and champion is not None:
        emit_promoted(champion)
    return decision, champion


def gather_evidence(plan: Plan, scored: Result, challenger: Version, approval: Approval | None) -> Context:
    """The challenger's side of the evidence: its answers for the test images, its lineage, and what serving takes."""
    return Context(
        domain=plan.domain,
        challenger=load_predictions(scored.folder, "test"),
        champion=None,
        adapter_bytes=scored.adapter_bytes,
        manifest=plan.load_manifest(),
        validation=plan.load_validation(),
        lineage=_trace(plan, scored, challenger),
        licences=trace_challenger(plan, scored, challenger),
        serving=_measure_serving(plan, challenger),
        version=challenger.version,
        approved=str(approval or ""),
        trained=bool(scored.backbone["trained"]),
    )


def trace_challenger(plan: Plan, scored: Result, challenger: Version) -> Chain:
    """The licences of its backbone, its data and the code. scored: its training here, or a score of its adapter."""
    trained = scored.folder / "adapter"
    if not trained.is_dir():
        return trace_version(plan.workspace, challenger, plan.domain)
    return trace_licences(load_meta(trained).origin, plan.domain, plan.version.md5)


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


def describe_champion(version: int, licences: Finding | None = None) -> Decision:
    """The decision on a challenger that is the champion already: there is nothing to judge.

    licences: what their gate finds of it now; a warning where it would be rejected today.
    """
    outside = licences is not None and licences.verdict == "REJECT"
    warnings = (f"The champion would not be promoted today. {licences.reason}",) if licences and outside else ()
    return Decision(
        verdict="PROMOTE", reason=f"Version {version} is the champion already.", findings=(), warnings=warnings
    )


def score_version(plan: Plan, version: Version) -> Result:
    """A registered version's predictions on the plan's held-out images."""
    adapter = versions.fetch_adapter(version, plan.workspace.adapters)
    return spawn_job(plan.create_score_job(adapter, score_folder(plan, version.version)), f"version-{version.version}")


def score_folder(plan: Plan, version: int) -> Path:
    return plan.scores / f"version-{version}"
