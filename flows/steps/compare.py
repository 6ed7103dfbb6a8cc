"""`tessera compare`: what each tuner of a retrain reached and cost, over its seeds; as rows, and as one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl

from components.errors import PromotionError
from components.files import whole_file
from components.promotion.statistics import Interval, bootstrap, bootstrap_difference, score
from components.records import load_predictions
from components.tasks import Task, create_task
from components.tasks.base import Evidence
from components.tracking import outcomes
from components.tracking.pages import render_ends
from components.tracking.store import Store
from components.workspace import Workspace
from flows.plan import Plan, load_checked_domain

PICTURE = "comparison.png"


def compare(workspace: Workspace, name: str) -> dict[str, Any]:
    """The outcome of the last retrain, with the path of its picture."""
    domain = load_checked_domain(workspace, name)
    last = outcomes.load_last_result(Store.open(workspace), name)
    if last is None or "tuners" not in last:
        found = "none" if last is None else "one by an older version of Tessera"
        hint = f"Run `tessera retrain {name}` first."
        raise PromotionError(f"comparison of {name}", expected="a finished retrain", found=found, hint=hint)
    return last | {"picture": str(draw_picture(last, create_task(domain), workspace.runs(name) / PICTURE))}


def summarise_tuners(
    plan: Plan, rows: Sequence[Mapping[str, Any]], searches: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One line per tuner, the best on validation first. rows: as `describe_result` makes them.

    `over_linear` is the gain over the linear probe (the best one on validation where there are several) with its
    interval and a sentence; None for that probe itself, and for all where the candidates have none.
    """
    tuners = [_summarise(plan, [row for row in rows if row["tuner"] == tuner.label]) for tuner in plan.tuners]
    for line, tuner in zip(tuners, plan.tuners, strict=True):
        line["kind"] = tuner.kind
        line["options"] = tuner.model_dump(mode="json", exclude={"kind", "name"})
        record = searches.get(tuner.label)
        line["search"] = None if record is None else {key: record[key] for key in record if key != "tuner"}
    ranked = sorted(tuners, key=lambda line: -line["val"])
    baseline = next((line["tuner"] for line in ranked if line["kind"] == "linear"), None)
    for line in ranked:
        line["over_linear"] = (
            None if baseline in (None, line["tuner"]) else _compare(plan, rows, line["tuner"], baseline)
        )
    return ranked


def _compare(plan: Plan, rows: Sequence[Mapping[str, Any]], tuner: str, baseline: str) -> dict[str, Any]:
    """The paired difference on the test images, over drawn groups; each with what all its seeds said."""
    ours, theirs = (_gather(plan, [row for row in rows if row["tuner"] == label]) for label in (tuner, baseline))
    gain = bootstrap_difference(ours, theirs, plan.domain.gates.confidence)
    text = f"{tuner} over {baseline} {gain.value:+.3f}, interval {render_ends(gain.to_dict(), '+')}: {name_gain(gain)}"
    return gain.to_dict() | {"baseline": baseline, "text": text}


def name_gain(gain: Interval) -> str:
    if gain.is_above(0):
        return "surely better"
    return "surely worse" if gain.is_below(0) else "not surely better"


def _load_answers(rows: Sequence[Mapping[str, Any]]) -> list[pl.DataFrame]:
    """Test predictions of every seed."""
    return [load_predictions(Path(row["folder"]), "test") for row in rows]


def _gather(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> Evidence:
    return create_task(plan.domain).mean_evidence(_load_answers(rows), plan.domain.classes)


def _summarise(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over the seeds, and its interval: a group is drawn with what every seed said of it."""
    task, classes = create_task(plan.domain), plan.domain.classes
    test = bootstrap(_gather(plan, rows), plan.domain.gates.confidence)
    seeds = [task.class_evidence(answers, classes) for answers in _load_answers(rows)]
    first = rows[0]
    return {
        "tuner": first["tuner"],
        "selected": any(row["selected"] for row in rows),
        "seeds": [row["seed"] for row in rows],
        "val": fmean(row["val"] for row in rows),
        "test": test.to_dict() | {"seeds": [row["test"]["value"] for row in rows]},
        "class_scores": {name: fmean(score(seed[name]) for seed in seeds) for name in seeds[0]},
        "seconds": round(fmean(row["seconds"] for row in rows), 3),
        **{key: first[key] for key in ("trainable_params", "head_params", "share", "adapter_bytes")},
    }


def draw_picture(outcome: Mapping[str, Any], task: Task, path: Path) -> Path:
    """Draw an outcome's tuners into a PNG; returns its path."""
    from components.reports.pictures import draw_comparison

    with whole_file(path) as partial:
        figure = draw_comparison(outcome["tuners"], task, describe_outcome(outcome, task))
        figure.savefig(partial, format="png", dpi=120)
    return path


def describe_outcome(outcome: Mapping[str, Any], task: Task) -> str:
    """The picture's title: what was compared, on what, and what the intervals are of."""
    seeds = outcome["tuners"][0]["seeds"]
    number = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of {len(seeds)} seeds"
    return (
        f"{outcome['domain']} on {outcome['backbone']['name']}: {task.metric_words} on the test groups, {number}\n"
        f"bars: intervals by bootstrap over groups; dots: seeds; data version {outcome['data_version'][:12]}"
    )
