"""The beginning of a retrain: what is new since the last one, and what that will cost, before anything is done."""

from dataclasses import dataclass, replace

from components.data.store.pipeline import Stages
from components.models.tuners import Tuner
from components.records.jobs import Rung, load_result, load_rung
from components.records.outcomes import New, Outcome
from components.tracking import candidates, outcomes, runs
from components.tracking.store import Store
from components.training.search import Trial, search_tuner
from flows.plan import Plan
from flows.steps.estimate import Estimate, Part, estimate
from flows.steps.history import mark_unchanged


@dataclass(frozen=True)
class Beginning:
    """A retrain before its first step. known: the outcome of an earlier one with the same key, as the answer now."""

    plan: Plan
    stages: Stages
    new: New
    estimate: Estimate
    known: Outcome | None = None

    def describe(self) -> str:
        """What is new and what that will cost, in two sentences."""
        parts = (["the data"] if self.new.data else []) + list(self.new.candidates)
        listed = f"{', '.join(parts)}, the verdict" if parts else "the verdict alone, as all candidates are known"
        return f"New: {listed}. {self.estimate.text}"


def begin(plan: Plan, force: bool, stages: Stages | None = None) -> Beginning:
    """What this retrain has to do. stages: the data stages, where they have begun already."""
    store = Store.open(plan.workspace)
    stages = stages or plan.create_stages()
    plan = know_manifest(store, plan, stages)
    known = outcomes.find_retrain(store, plan.domain.name, plan.verdict_key) if plan.verdict_key and not force else None
    if known is not None:
        begun = Beginning(plan, stages, New(data=False, candidates=(), verdict=False), Estimate(0.0, ""))
        answer = mark_unchanged(plan.domain.name, known)
        return replace(begun, known=answer.model_copy(update={"new": begun.new, "estimate_seconds": 0.0}))
    parts = list_parts(plan) if force or not plan.verdict_key else list_unknown(store, plan)
    new = New(data=not plan.verdict_key, candidates=tuple(part.name for part in parts), verdict=True)
    return Beginning(plan, stages, new, estimate(store, plan, parts))


def know_manifest(store: Store, plan: Plan, stages: Stages) -> Plan:
    """The plan with all its keys where its manifest is known, without running a data stage.

    It is known where the stages are proven to change nothing, or where an earlier run recorded what they made of the
    same images, settings and code.
    """
    if stages.fresh:
        return plan.settle()
    known = runs.find_manifest(store, plan.domain.name, plan.manifest_key)
    return plan if known is None else plan.with_manifest(known)


def list_parts(plan: Plan) -> list[Part]:
    """Every search and every training of the plan."""
    searches = [Part(tuner) for tuner in plan.tuners] if plan.domain.search else []
    return [*searches, *(Part(tuner, seed) for tuner in plan.tuners for seed in plan.domain.training.seeds)]


def list_unknown(store: Store, plan: Plan) -> list[Part]:
    """The searches and trainings whose results are neither on disk nor in MLflow."""
    unknown = []
    for tuner in plan.tuners:
        found = find_searched(store, plan, tuner) if plan.domain.search else tuner
        if found is None:
            unknown += list_parts(replace(plan, tuners=(tuner,)))
            continue
        unknown += [
            Part(found, job.seed)
            for job in replace(plan, tuners=(found,)).create_jobs().values()
            if load_result(job.folder) is None
            and candidates.find_candidate(store, plan.domain.name, plan.candidate_key(job.tuner, job.seed)) is None
        ]
    return unknown


def find_searched(store: Store, plan: Plan, tuner: Tuner) -> Tuner | None:
    """What the search of a candidate has chosen; None where one of its trials is not known."""
    if plan.domain.search is None:
        raise ValueError("the domain asks for no search")

    def look(trial: Trial, epochs: int) -> Rung:
        rung = load_rung(plan.create_trial_job(tuner, trial, epochs).folder, epochs)
        if rung is None:
            stored = candidates.find_trial(store, plan.domain.name, plan.trial_key(tuner, trial.tuner))
            rung = next((rung for rung in stored[1] if rung.epochs == epochs), None) if stored else None
        if rung is None:
            raise LookupError(f"trial {trial.number} is not known to epoch {epochs}")
        return rung

    try:
        return search_tuner(tuner, plan.domain.search, plan.domain.training, look, lambda _: None).tuner
    except LookupError:
        return None
