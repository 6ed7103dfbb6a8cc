"""One candidate: trained, logged to MLflow and Prefect while it runs, and described as its row of the table.

What is here runs where the training runs: in the retrain flow's own process, or on a worker (flows/steps/dispatch.py).
"""

from collections.abc import Sequence
from statistics import fmean

from components.promotion.evidence import score_frame
from components.records.jobs import Job, Result, load_predictions, load_result
from components.records.outcomes import BackboneRow, TrainedCandidate
from components.tasks import create_task
from components.tracking import artifacts, candidates, runs
from components.tracking.store import Store
from flows.plan import Plan
from flows.processes.training import spawn_job
from flows.steps.estimate import count_images
from flows.steps.follow import follow_epochs, logging_epochs, progress_bar


def find_trained(store: Store, plan: Plan, parent: str, job: Job, fresh: bool) -> tuple[Result | None, str | None]:
    """The result of a candidate that was trained before and its run, from disk or MLflow; None for what is missing.

    fresh: only what this retrain, whose run is `parent`, has trained itself.
    """
    key, own = plan.candidate_key(job.tuner, job.seed), parent if fresh else None
    result = load_result(job.folder)
    if result is not None:
        return result, candidates.find_candidate(store, plan.domain.name, key, own, result.adapter_sha256)
    run_id = candidates.find_candidate(store, plan.domain.name, key, own)
    return None if run_id is None else artifacts.fetch_candidate(store, run_id, job.folder), run_id


def train_job(store: Store, plan: Plan, parent: str, name: str, job: Job, fresh: bool) -> TrainedCandidate:
    """Train in a child process and log it as a child run of `parent`; returns the candidate's row.

    What was trained before is not trained again. A training that ends after another worker has logged the same weights
    is not logged: the order was sent again because nothing was heard of this worker.
    """
    epochs, reporter, label = plan.domain.training.epochs, None, name.rpartition("-s")[0]
    tags = {"candidate_key": plan.candidate_key(job.tuner, job.seed), "train_images": str(count_images(plan))}
    result, run_id = find_trained(store, plan, parent, job, fresh)
    if result is None:
        facts = {"role": "candidate", "tuner": label, "seed": str(job.seed)}

        def open_run() -> tuple[str, tuple[int, ...]]:
            return runs.start_child(store, parent, f"{label} · seed {job.seed}", **facts, **tags), ()

        with (
            progress_bar(f"{plan.domain.name}-{name}", name) as show,
            logging_epochs(store, name, open_run) as reporter,
            follow_epochs(name, epochs, show),
        ):
            result = spawn_job(job, name)
        _, run_id = find_trained(store, plan, parent, job, fresh)
    if run_id is None:
        row = describe_result(plan, result)
        run_id = candidates.log_candidate(store, parent, plan.domain, result, row, job.raw, reporter, **tags)
        return row.model_copy(update={"run_id": run_id})
    if reporter is not None and reporter.run_id is not None:
        why = f"run {run_id} is of the same candidate and was finished before"
        runs.end_child(store, reporter.run_id, "KILLED", why)
    return take_over(store, plan, parent, result, run_id)


def take_over(store: Store, plan: Plan, parent: str, result: Result, run_id: str) -> TrainedCandidate:
    """The row of a candidate that has a run already, which gets the scores by the gates of today and this parent."""
    row = describe_result(plan, result)
    candidates.log_evaluation(store, run_id, plan.domain, result, row)
    runs.adopt_child(store, parent, run_id)
    return row.model_copy(update={"run_id": run_id})


def describe_result(plan: Plan, result: Result) -> TrainedCandidate:
    """One candidate as the table, `--json` and the report show it; the run's id is still missing."""
    test = score_frame(load_predictions(result.folder, "test"), plan.domain)
    return TrainedCandidate(
        tuner=result.label,
        seed=result.seed,
        val=result.metrics[f"val/{create_task(plan.domain).metric}"],
        test=test.to_score(),
        trainable_params=result.trainable_params,
        head_params=result.head_params,
        share=result.share,
        seconds=result.seconds,
        adapter_bytes=result.adapter_bytes,
        adapter_sha256=result.adapter_sha256,
        calibration=result.calibration,
        memory=result.memory,
        selected=False,
        backbone=BackboneRow(**{key: result.backbone[key] for key in ("name", "sha256", "trained")}),
        folder=result.folder,
    )


def select_candidate(rows: Sequence[TrainedCandidate]) -> tuple[TrainedCandidate, ...]:
    """The rows, one of which is marked as selected.

    It is of the tuner with the best mean validation score over its seeds, the smaller one on a tie; then its best seed.
    """
    tuners = {row.tuner: [other for other in rows if other.tuner == row.tuner] for row in rows}
    seeds = max(tuners.values(), key=lambda seeds: (fmean(row.val for row in seeds), -seeds[0].trainable_params))
    best = max(seeds, key=lambda row: (row.val, -row.seed))
    return tuple(row.model_copy(update={"selected": row is best}) for row in rows)
