"""A trained candidate or a search's trial as a run of MLflow, and how to find it again."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.domain.domain import Domain
from components.models.adapter import load_meta
from components.records import HEAT_FILE, JOB_FILE, Result, Rung, load_predictions
from components.reports.pictures import draw_confusion, draw_curves, draw_samples
from components.tracking.artifacts import RESULT_FILE, TRAINING
from components.tracking.live import Live, Point
from components.tracking.pages import NOTE, describe_candidate
from components.tracking.runs import inherit_tags, log_dataset
from components.tracking.store import (
    MOST_PARAMS,
    TAG,
    create_tags,
    flatten,
    log_metrics,
    log_points,
    match_tags,
    refusals,
    set_tags,
)


def log_trial(
    run_id: str, number: int, rungs: Sequence[Rung], own: Mapping[str, Any], points: Sequence[Point] = ()
) -> None:
    """What a trial of a search has scored so far, as a finished run.

    own: the options the search chose. points: epochs the run lacks.

    Options and rungs are tags, written at once: they are there whole or not at all.
    """
    import mlflow
    from mlflow.entities import Param

    last = rungs[-1]
    told = [rung.model_dump(mode="json", exclude={"tuner"}) for rung in rungs]
    chosen = ", ".join(f"{key} {value}" for key, value in own.items())
    note = f"Trial {number}: **{last.score:.3f}** on validation after {last.epochs} epochs, with {chosen}. {last.error}"
    numbers = {
        "search/score": last.score,
        "search/epochs": last.epochs,
        "search/seconds": sum(r.seconds for r in rungs),
    }
    with refusals():
        client = mlflow.MlflowClient()
        params = flatten({"tuner": last.tuner, "seed": last.seed})
        client.log_batch(run_id, params=[Param(key, value) for key, value in params.items()])
        log_points(client, run_id, points)
        log_metrics(client, run_id, numbers, step=last.epochs, when=int(time.time() * 1000))
        tags = create_tags(options=json.dumps(last.tuner), rungs=json.dumps(told))
        set_tags(client, run_id, tags | {NOTE: note.strip()})
        client.set_terminated(run_id, "FINISHED")


def find_trial(domain: str, key: str, parent: str | None = None) -> tuple[str, tuple[Rung, ...]] | None:
    """Run and rungs of the trial with this `trial_key`, the latest where there are more.

    parent: only that of this retrain; else what earlier ones left, too.
    """
    import mlflow

    with refusals():
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(domain)
        if experiment is None:
            return None
        condition = match_tags(parent, role="trial", candidate_key=key)
        found = client.search_runs([experiment.experiment_id], condition, order_by=["attributes.start_time DESC"])
    for run in found:
        tags = run.data.tags
        if f"{TAG}rungs" in tags:
            options = json.loads(tags[f"{TAG}options"])
            return str(run.info.run_id), tuple(Rung(tuner=options, **rung) for rung in json.loads(tags[f"{TAG}rungs"]))
    return None


def log_candidate(
    parent: str,
    domain: Domain,
    result: Result,
    row: Mapping[str, Any],
    raw: Path,
    live: Live | None = None,
    key: str = "",
) -> str:
    """One trained candidate as a finished child run; `row` is its line of the table, with the test interval.

    live: has the run that was open while it was trained, and what that run lacks; without one a run is made.
    key: its `candidate_key`, by which `find_candidate` finds the run.
    """
    import mlflow

    with refusals():
        client = mlflow.MlflowClient()
        above = client.get_run(parent)
        tags = _create_candidate_tags(above, domain, result, row) | create_tags(candidate_key=key)
        ended = int(time.time() * 1000)
        points = [] if live is None else live.missing
        if live is None or live.run_id is None:
            started = ended - int(result.seconds * 1000)  # so that MLflow's duration is the training's
            name = f"{result.label} · seed {result.seed}"
            created = client.create_run(above.info.experiment_id, start_time=started, tags=tags, run_name=name)
            run_id, points = str(created.info.run_id), _spread(result.history, (started, ended))
        else:
            run_id = live.run_id
            set_tags(client, run_id, tags)
        status = "FAILED"
        try:
            log_points(client, run_id, points)
            _log_numbers(client, run_id, domain, result, row, ended)
            _log_files(client, run_id, domain, result, raw)
            log_dataset(client, run_id, domain.name, above.data.tags[f"{TAG}data_version"])
            status = "FINISHED"
        finally:
            client.set_terminated(run_id, status, end_time=ended)
        return run_id


def find_candidate(domain: str, key: str, parent: str | None = None, adapter_sha256: str = "") -> str | None:
    """The finished run of the candidate with this `candidate_key`; the latest where there are more.

    parent: only that of this retrain; else what earlier ones left, too. adapter_sha256: only one with these weights.
    """
    import mlflow

    with refusals():
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(domain)
        if experiment is None:
            return None
        weights = {"adapter_sha256": adapter_sha256} if adapter_sha256 else {}
        condition = match_tags(parent, role="candidate", candidate_key=key, **weights)
        condition += " AND attributes.status = 'FINISHED'"
        newest = ["attributes.start_time DESC"]
        runs = client.search_runs([experiment.experiment_id], condition, max_results=1, order_by=newest)
    return str(runs[0].info.run_id) if runs else None


def load_test_score(run_id: str) -> dict[str, float] | None:
    """A candidate's score on test with its interval, as its run has them; None where that run is gone or has none."""
    import mlflow
    from mlflow.exceptions import MlflowException

    keys = {"value": "", "low": "_low", "high": "_high"}
    with refusals():
        try:
            metrics = mlflow.MlflowClient().get_run(run_id).data.metrics
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
    found = {key: metrics.get(f"test/balanced_accuracy{ending}") for key, ending in keys.items()}
    return {key: value for key, value in found.items() if value is not None} or None


def _create_candidate_tags(above: Any, domain: Domain, result: Result, row: Mapping[str, Any]) -> dict[str, str]:
    backbone = result.backbone
    own = create_tags(
        role="candidate",
        tuner=result.label,
        seed=str(result.seed),
        split_sha256=result.split_sha256,
        backbone=str(backbone["name"]),
        backbone_sha256=str(backbone["sha256"]),
        backbone_trained=str(backbone["trained"]).lower(),
        adapter_sha256=result.adapter_sha256,
    )
    note = describe_candidate(domain, result, row)
    return own | inherit_tags(above) | {"mlflow.parentRunId": above.info.run_id, NOTE: note}


def _log_numbers(client: Any, run_id: str, domain: Domain, result: Result, row: Mapping[str, Any], ended: int) -> None:
    """Parameters and the final metrics. MLflow compares by the parameters that sort first and differ."""
    from mlflow.entities import Param

    tuner = load_meta(result.folder / "adapter").tuner.model_dump(mode="json")
    shared = domain.model_dump(mode="json", include={"training", "augmentation"})
    environment = ", ".join(f"{key} {value}" for key, value in result.environment.items())
    own = {"candidate": result.label, "seed": result.seed, "tuner": tuner, "img_size": result.backbone["img_size"]}
    entries = [Param(key, value) for key, value in flatten(own | shared | {"environment": environment}).items()]
    for start in range(0, len(entries), MOST_PARAMS):
        client.log_batch(run_id, params=entries[start : start + MOST_PARAMS])
    final, epochs = result.metrics | summarise_row(row), {key for epoch in result.history for key in epoch}
    # A millisecond after the last epoch: at one step and time MLflow would show the greater value, not the later one.
    curves = {key: final[key] for key in final if key in epochs}
    log_metrics(client, run_id, curves, step=len(result.history), when=ended + 1)
    # What is measured once is of step 0: of that MLflow draws a bar a run, else a dot at the last epoch.
    log_metrics(client, run_id, {key: final[key] for key in final if key not in epochs}, step=0, when=ended + 1)


def summarise_row(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a table line that are no metrics of the training: the interval and the costs."""
    test = row["test"]
    costs = {
        "trainable_params": row["trainable_params"],
        "head_params": row["head_params"],
        "share_of_backbone": row["share"],
        "training_seconds": row["seconds"],
        "adapter_bytes": row["adapter_bytes"],
    }
    ends = {f"test/balanced_accuracy_{end}": test[end] for end in ("low", "high") if test[end] is not None}
    return {
        "val/balanced_accuracy": row["val"],
        "test/balanced_accuracy": test["value"],
        **ends,
        **{f"cost/{key}": float(value) for key, value in costs.items()},
    }


def _spread(history: Sequence[Mapping[str, float]], span: tuple[int, int]) -> list[Point]:
    """A point an epoch, their times spread over the training."""
    whole = span[1] - span[0]
    return [
        Point(int(row["epoch"]), span[0] + whole * number // len(history), {k: row[k] for k in row if k != "epoch"})
        for number, row in enumerate(history, start=1)
    ]


def _log_files(client: Any, run_id: str, domain: Domain, result: Result, raw: Path) -> None:
    """The adapter, its predictions, and the pictures."""
    client.log_artifacts(run_id, str(result.folder / "adapter"), "adapter")
    client.log_artifact(run_id, str(result.folder / "predictions.parquet"))
    client.log_artifact(run_id, str(result.folder / HEAT_FILE))
    for path in (result.folder / RESULT_FILE, result.folder / JOB_FILE):
        if path.exists():
            client.log_artifact(run_id, str(path), TRAINING)
    test = load_predictions(result.folder, "test")
    title = f"{domain.name}: {result.label}, seed {result.seed}, test split"
    client.log_figure(run_id, draw_confusion(test, domain.classes, title), "pictures/confusion_matrix.png")
    if result.history:
        best = int(result.metrics["best_epoch"])
        client.log_figure(run_id, draw_curves(result.history, best, title), "pictures/learning_curves.png")
    client.log_figure(run_id, draw_samples(test, raw, title), "pictures/samples.png")
