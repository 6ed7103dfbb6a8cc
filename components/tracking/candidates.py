"""A trained candidate or a trial of a search as a run of MLflow, and how to find it again."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from components.domain.domain import Domain
from components.models.adapter import load_meta
from components.records.jobs import JOB_FILE, SALIENCY_FILE, Result, Rung, load_predictions
from components.records.outcomes import CandidateRow, Score
from components.reports import box_figures
from components.reports.answers import describe_classes
from components.reports.pictures import draw_curves, draw_mistakes, draw_samples
from components.reports.words import ByClass
from components.tasks import create_task
from components.tasks.base import BoxTask, DenseTask, Task
from components.tracking.artifacts import RESULT_FILE, TRAINING
from components.tracking.live import EpochReporter
from components.tracking.pages import NOTE, describe_candidate
from components.tracking.runs import PARENT_TAG, inherit_tags
from components.tracking.store import TAG_PREFIX, Point, Store, create_tags, flatten, match_tags

MOST_TABLE = 6000  # characters of a table in a description, which may have 8000


def log_trial(
    store: Store,
    run_id: str,
    number: int,
    rungs: Sequence[Rung],
    own: Mapping[str, Any],
    points: Sequence[Point] = (),
) -> None:
    """Log the scores of a trial of a search so far, as a finished run.

    own: the options the search chose. points: epochs the run lacks.

    Options and rungs are tags, written at once: they are there whole or not at all.
    """
    last = rungs[-1]
    records = [rung.model_dump(mode="json", exclude={"tuner"}) for rung in rungs]
    chosen = ", ".join(f"{key} {value}" for key, value in own.items())
    note = f"Trial {number}: **{last.score:.3f}** on validation after {last.epochs} epochs, with {chosen}. {last.error}"
    numbers = {
        "search/score": last.score,
        "search/epochs": last.epochs,
        "search/seconds": sum(r.seconds for r in rungs),
    }
    store.log_params(run_id, flatten({"tuner": last.tuner, "seed": last.seed}))
    store.log_metrics(run_id, [*points, Point.now(last.epochs, numbers)])
    tags = create_tags(options=json.dumps(last.tuner), rungs=json.dumps(records))
    store.set_tags(run_id, tags | {NOTE: note.strip()})
    with store.client() as client:
        client.set_terminated(run_id, "FINISHED")


def find_trial(store: Store, domain: str, key: str, parent: str | None = None) -> tuple[str, tuple[Rung, ...]] | None:
    """Run and rungs of the trial with this `trial_key`; the latest where there are more.

    parent: only that of this retrain; without it, those of earlier ones too.
    """
    condition = match_tags(parent, role="trial", candidate_key=key)
    for run in store.search_runs(domain, condition, order_by=["attributes.start_time DESC"]):
        tags = run.data.tags
        if f"{TAG_PREFIX}rungs" in tags:
            options, rungs = (json.loads(tags[f"{TAG_PREFIX}{name}"]) for name in ("options", "rungs"))
            return str(run.info.run_id), tuple(Rung(tuner=options, **rung) for rung in rungs)
    return None


def log_candidate(
    store: Store,
    parent: str,
    domain: Domain,
    result: Result,
    row: CandidateRow,
    raw: Path,
    reporter: EpochReporter | None = None,
    **tags: str,
) -> str:
    """Log one trained candidate as a finished child run; returns its id.

    row: its line of the table, with the interval of the score on the test images. reporter: has the run that was open
    while it was trained, and the epochs which that run lacks; without one a run is created.
    tags: candidate_key, by which `find_candidate` finds the run, and train_images, which `find_cost` reads.
    """
    with store.client() as client:
        above = client.get_run(parent)
        task = create_task(domain)
        note = describe_candidate(domain, result, row, task, _tabulate_classes(task, domain, result))
        named = _create_candidate_tags(above, result) | {NOTE: note} | create_tags(**tags)
        ended = int(time.time() * 1000)
        points = [] if reporter is None else reporter.missing
        if reporter is None or reporter.run_id is None:
            started = ended - int(result.seconds * 1000)  # so that MLflow's duration is the training's
            name = f"{result.label} · seed {result.seed}"
            created = client.create_run(above.info.experiment_id, start_time=started, tags=named, run_name=name)
            run_id, points = str(created.info.run_id), _spread(result.history, (started, ended))
        else:
            run_id = reporter.run_id
            store.set_tags(run_id, named)
        status = "FAILED"
        try:
            store.log_metrics(run_id, points)
            summary = count_costs(domain, result) | summarise_row(row, task.metric)
            _log_numbers(store, run_id, domain, result, summary, ended)
            _log_files(client, run_id, domain, result, raw)
            store.log_dataset(run_id, domain.name, above.data.tags[f"{TAG_PREFIX}data_version"])
            status = "FINISHED"
        finally:
            client.set_terminated(run_id, status, end_time=ended)
        return run_id


def find_candidate(
    store: Store, domain: str, key: str, parent: str | None = None, adapter_sha256: str = ""
) -> str | None:
    """The finished run of the candidate with this `candidate_key`; the latest where there are more.

    parent: only that of this retrain; without it, those of earlier ones too. adapter_sha256: only one with these
    weights.
    """
    weights = {"adapter_sha256": adapter_sha256} if adapter_sha256 else {}
    condition = match_tags(parent, role="candidate", candidate_key=key, **weights)
    condition += " AND attributes.status = 'FINISHED'"
    runs = store.search_runs(domain, condition, max_results=1, order_by=["attributes.start_time DESC"])
    return str(runs[0].info.run_id) if runs else None


class Cost(NamedTuple):
    """What one training took: seconds for so many epochs of so many training images."""

    seconds: float
    epochs: int
    images: int


def find_cost(store: Store, tuner: str, domain: str, backbone: str) -> Cost | None:
    """Cost of the latest training of a tuner: of this domain, else of another one on the same backbone."""
    condition = match_tags(role="candidate", tuner=tuner) + " AND attributes.status = 'FINISHED'"
    condition += f" AND tags.`{TAG_PREFIX}train_images` != '0'"  # where they are recorded
    newest: dict[str, Any] = {"max_results": 1, "order_by": ["attributes.start_time DESC"]}
    found = store.search_runs(domain, condition, **newest)
    if not found and "'" not in backbone:  # a path that MLflow's filters cannot name
        alike = f"{condition} AND {match_tags(backbone=backbone)}"
        with store.client() as client:
            experiments = [item.experiment_id for item in client.search_experiments()]
            found = client.search_runs(experiments, alike, **newest)
    if not found:
        return None
    data = found[0].data
    seconds, images = data.metrics["cost/training_seconds"], data.tags[f"{TAG_PREFIX}train_images"]
    return Cost(seconds, int(data.params["training.epochs"]), int(images))


def load_test_score(store: Store, run_id: str, metric: str) -> Score | None:
    """A candidate's score on test with its interval; None where MLflow no longer has that run, or it has no score."""
    run = store.read_or_none(lambda client: client.get_run(run_id))
    if run is None:
        return None
    value, low, high = (run.data.metrics.get(f"test/{metric}{ending}") for ending in ("", "_low", "_high"))
    return None if value is None else Score(value=value, low=low, high=high)


def load_backbone_sha256(store: Store, run_id: str) -> str:
    """The hash of the backbone that a candidate stands on; '' where MLflow no longer has that run."""
    run = store.read_or_none(lambda client: client.get_run(run_id))
    return "" if run is None else str(run.data.tags.get(f"{TAG_PREFIX}backbone_sha256", ""))


def _create_candidate_tags(above: Any, result: Result) -> dict[str, str]:
    backbone = result.backbone
    origin = load_meta(result.folder / "adapter").origin
    own = create_tags(
        role="candidate",
        tuner=result.label,
        seed=str(result.seed),
        split_sha256=result.split_sha256,
        backbone=str(backbone["name"]),
        backbone_sha256=str(backbone["sha256"]),
        backbone_trained=str(backbone["trained"]).lower(),
        backbone_licence=origin.backbone_licence,
        data_licence=origin.data_licence,
        adapter_sha256=result.adapter_sha256,
    )
    return own | inherit_tags(above) | {PARENT_TAG: above.info.run_id}


def _log_numbers(
    store: Store, run_id: str, domain: Domain, result: Result, summary: Mapping[str, float], ended: int
) -> None:
    """Log parameters and final metrics. MLflow compares by the parameters that sort first and differ."""
    meta = load_meta(result.folder / "adapter")
    tuner = meta.tuner.model_dump(mode="json")
    shared = domain.model_dump(mode="json", include={"training", "augmentation"})
    environment = ", ".join(f"{key} {value}" for key, value in result.environment.items())
    own = {"candidate": result.label, "seed": result.seed, "tuner": tuner, "img_size": result.backbone["img_size"]}
    own |= {"decision": meta.decision.model_dump(mode="json")} if meta.decision else {}
    store.log_params(run_id, flatten(own | shared | {"environment": environment}))
    final, epochs = {**result.metrics, **summary}, {key for epoch in result.history for key in epoch}
    curves = {key: value for key, value in final.items() if key in epochs}
    # Step 0 for what is measured once: MLflow draws it as a bar per run, not as a dot at the last epoch.
    single = {key: value for key, value in final.items() if key not in epochs}
    # A millisecond after the last epoch: at one step and time MLflow would show the greater value, not the later one.
    store.log_metrics(run_id, [Point(len(result.history), ended + 1, curves), Point(0, ended + 1, single)])


def log_evaluation(store: Store, run_id: str, domain: Domain, result: Result, row: CandidateRow) -> None:
    """Log again what depends on the gates of today: the interval and the costs of a candidate trained before."""
    numbers = summarise_row(row, create_task(domain).metric)
    today = count_costs(domain, result) | {key: value for key, value in numbers.items() if key.startswith("test/")}
    store.log_metrics(run_id, [Point.now(0, today)])


def count_costs(domain: Domain, result: Result) -> dict[str, float]:
    """Mean cost per image of each held-out split, `val/cost` and `test/cost`; nothing where no costs are set."""
    if not domain.gates.costs:
        return {}
    task, frames = create_task(domain), {split: load_predictions(result.folder, split) for split in ("val", "test")}
    costs = {split: task.costs(frame, domain.gates, domain.classes)[0] for split, frame in frames.items()}
    return {f"{split}/cost": float(cost.mean()) for split, cost in costs.items()}


def summarise_row(row: CandidateRow, metric: str) -> dict[str, float]:
    """The numbers of a table line that are no metrics of the training: the scores with their interval, the costs."""
    costs = {
        "trainable_params": row.trainable_params,
        "head_params": row.head_params,
        "share_of_backbone": row.share,
        "training_seconds": row.seconds,
        "adapter_bytes": row.adapter_bytes,
    }
    bounds = {"low": row.test.low, "high": row.test.high}
    return {
        f"val/{metric}": row.val,
        f"test/{metric}": row.test.value,
        **{f"test/{metric}_{end}": bound for end, bound in bounds.items() if bound is not None},
        **{f"cost/{key}": float(value) for key, value in costs.items()},
    }


def _spread(history: Sequence[Mapping[str, float]], span: tuple[int, int]) -> list[Point]:
    """One point per epoch, their times spread over the training."""
    whole = span[1] - span[0]
    return [
        Point(int(row["epoch"]), span[0] + whole * number // len(history), {k: row[k] for k in row if k != "epoch"})
        for number, row in enumerate(history, start=1)
    ]


def _tabulate_classes(task: Task, domain: Domain, result: Result) -> str:
    """How each class was answered on test; nothing where answers are labels."""
    if not isinstance(task, DenseTask):
        return ""
    known = ByClass(thresholds=load_thresholds(domain, result))
    return describe_classes(load_predictions(result.folder, "test"), task, domain.classes, known, most=MOST_TABLE)


def load_thresholds(domain: Domain, result: Result) -> dict[str, float]:
    """The confidence from which on each class is shown; nothing where answers are no boxes."""
    boxes = isinstance(create_task(domain), BoxTask)
    return load_meta(result.folder / "adapter").thresholds if boxes else {}


def _log_files(client: Any, run_id: str, domain: Domain, result: Result, raw: Path) -> None:
    """Log the adapter, its predictions, and the pictures."""
    client.log_artifacts(run_id, str(result.folder / "adapter"), "adapter")
    client.log_artifact(run_id, str(result.folder / "predictions.parquet"))
    client.log_artifact(run_id, str(result.folder / SALIENCY_FILE))
    for path in (result.folder / RESULT_FILE, result.folder / JOB_FILE):
        if path.exists():
            client.log_artifact(run_id, str(path), TRAINING)
    test = load_predictions(result.folder, "test")
    title = f"{domain.name}: {result.label}, seed {result.seed}, test split"
    task = create_task(domain)
    client.log_figure(run_id, draw_mistakes(test, task, domain.classes, title), "pictures/mistakes.png")
    if result.history:
        best = int(result.metrics["best_epoch"])
        client.log_figure(run_id, draw_curves(result.history, best, title), "pictures/learning_curves.png")
    if isinstance(task, BoxTask):
        client.log_figure(
            run_id, box_figures.draw_curves(test, task, domain.classes, title), "pictures/false_alarms.png"
        )
    client.log_figure(run_id, draw_samples(test, task, domain.classes, raw, title), "pictures/samples.png")
