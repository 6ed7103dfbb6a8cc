"""One candidate: trained, told to MLflow and Prefect while it goes on, and described as its row of the table.

What is here runs where the training runs: in the retrain flow's own process, or on a worker (flows/steps/dispatch.py).
"""

from collections.abc import Sequence
from typing import Any

from components.promotion.evidence import score_frame
from components.records import Job, Result, load_predictions, load_result
from components.tracking import candidates, runs
from flows.plan import Plan
from flows.processes.training import run_job
from flows.steps.follow import follow_epochs, live_run, progress_bar


def train_job(plan: Plan, parent: str, name: str, job: Job) -> dict[str, Any]:
    """Train in a child process and log it as a child run of `parent`; returns the candidate's row.

    A job that is finished is not trained again, only logged; nor is it logged where another worker was faster, to whom
    the order went because nothing was heard of this one.
    """
    epochs, live, label = plan.domain.training.epochs, None, name.rpartition("-s")[0]
    result = load_result(job.folder)
    if result is None:
        facts = {"role": "candidate", "tuner": label, "seed": str(job.seed)}

        def open_run() -> tuple[str, tuple[int, ...]]:
            return runs.start_child(parent, f"{label} · seed {job.seed}", **facts), ()

        with (
            progress_bar(f"{plan.domain.name}-{name}", name) as show,
            live_run(name, open_run) as live,
            follow_epochs(name, epochs, show),
        ):
            result = run_job(job, name)
    row = describe_result(plan, result)
    run_id = candidates.find_candidate(plan.domain.name, plan.fingerprint, label, job.seed, parent)
    if run_id is None:
        run_id = candidates.log_candidate(parent, plan.domain, result, row, job.raw, live)
    elif live is not None and live.run_id is not None:
        runs.end_child(live.run_id, "KILLED", f"run {run_id} is of the same candidate and was finished before")
    return row | {"run_id": run_id}


def describe_result(plan: Plan, result: Result) -> dict[str, Any]:
    """One candidate as the table, `--json` and the report show it."""
    test = score_frame(load_predictions(result.folder, "test"), plan.domain)
    return {
        "tuner": result.label,
        "seed": result.seed,
        "val": result.metrics["val/balanced_accuracy"],
        "test": test.to_dict(),
        "trainable_params": result.trainable_params,
        "head_params": result.head_params,
        "share": result.share,
        "seconds": result.seconds,
        "adapter_bytes": result.adapter_bytes,
        "adapter_sha256": result.adapter_sha256,
        "calibration": result.calibration,
        "selected": False,
        "backbone": {key: result.backbone[key] for key in ("name", "sha256", "trained")},
        "folder": str(result.folder),
    }


def select_candidate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The tuner with the best mean validation score over its seeds, the smaller one on a tie; then its best seed."""
    tuners = {row["tuner"]: [other for other in rows if other["tuner"] == row["tuner"]] for row in rows}
    best = max(tuners.values(), key=lambda seeds: (_mean_val(seeds), -seeds[0]["trainable_params"]))
    return max(best, key=lambda row: (row["val"], -row["seed"]))


def _mean_val(seeds: Sequence[dict[str, Any]]) -> float:
    return float(sum(row["val"] for row in seeds)) / len(seeds)
