"""`tessera compare`: what each tuner of a retrain reached and cost, over its seeds; as rows, and as one picture."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import polars as pl

from components.errors import PromotionError
from components.models.tuners import Tuner
from components.promotion.statistics import Interval, bootstrap, bootstrap_difference, score
from components.records.jobs import load_predictions
from components.records.outcomes import Comparison, Gain, SearchedTuner, SeedScores, TrainedCandidate, TunerRow
from components.reports.compare import PICTURE, draw_picture
from components.reports.words import render_ends
from components.tasks import create_task
from components.tasks.base import Evidence
from components.tracking import outcomes
from components.tracking.store import Store
from components.workspace import Workspace
from flows.plan import Plan, load_checked_domain


def compare(workspace: Workspace, name: str) -> Comparison:
    """The outcome of the last retrain, with the path of its picture."""
    domain = load_checked_domain(workspace, name)
    last = outcomes.load_last_result(Store.open(workspace), name)
    if last is None or not last.tuners:
        found = "none" if last is None else "one by an older version of Tessera"
        hint = f"Run `tessera retrain {name}` first."
        raise PromotionError(f"comparison of {name}", expected="a finished retrain", found=found, hint=hint)
    picture = draw_picture(last, create_task(domain), workspace.runs(name) / PICTURE)
    return Comparison(**dict(last), picture=picture)


def summarise_tuners(
    plan: Plan, rows: Sequence[TrainedCandidate], searches: Mapping[str, SearchedTuner]
) -> tuple[TunerRow, ...]:
    """One row per tuner, the best on validation first.

    The baselines are the linear probe, the best one on validation where there are several, and the task's control.
    """
    tuners = {tuner.label: tuner for tuner in plan.tuners}
    seeds = {label: [row for row in rows if row.tuner == label] for label in tuners}
    means = {label: fmean(row.val for row in seeds[label]) for label in tuners}
    ranked = sorted(tuners, key=lambda label: -means[label])

    def compare_with(kind: str | None, label: str) -> Gain | None:
        baseline = next((other for other in ranked if tuners[other].kind == kind), None)
        if baseline is None or label == baseline:
            return None
        return _compare(plan, label, seeds[label], baseline, seeds[baseline])

    control = create_task(plan.domain).control
    return tuple(
        _summarise(
            plan,
            tuners[label],
            seeds[label],
            searches.get(label),
            over_linear=compare_with("linear", label),
            over_control=compare_with(control, label),
        )
        for label in ranked
    )


def _compare(
    plan: Plan, tuner: str, rows: Sequence[TrainedCandidate], baseline: str, others: Sequence[TrainedCandidate]
) -> Gain:
    """The paired difference on the test images, over drawn groups; each with what all its seeds said."""
    gain = bootstrap_difference(_gather(plan, rows), _gather(plan, others), plan.domain.gates.confidence)
    text = f"{tuner} over {baseline} {gain.value:+.3f}, interval {render_ends(gain, '+')}: {name_gain(gain)}"
    return Gain(value=gain.value, low=gain.low, high=gain.high, groups=gain.groups, baseline=baseline, text=text)


def name_gain(gain: Interval) -> str:
    if gain.is_above(0):
        return "surely better"
    return "surely worse" if gain.is_below(0) else "not surely better"


def _load_answers(rows: Sequence[TrainedCandidate]) -> list[pl.DataFrame]:
    """Test predictions of every seed."""
    return [load_predictions(row.folder, "test") for row in rows]


def _gather(plan: Plan, rows: Sequence[TrainedCandidate]) -> Evidence:
    return create_task(plan.domain).mean_evidence(_load_answers(rows), plan.domain.classes)


def _summarise(
    plan: Plan,
    tuner: Tuner,
    rows: Sequence[TrainedCandidate],
    search: SearchedTuner | None,
    **gains: Gain | None,
) -> TunerRow:
    """The mean over the seeds, and its interval: a group is drawn with what every seed said of it."""
    task, classes = create_task(plan.domain), plan.domain.classes
    test = rows[0].test  # of one seed, whose score with its interval is in its row
    if len(rows) > 1:
        test = bootstrap(_gather(plan, rows), plan.domain.gates.confidence).to_score()
    seeds = [task.class_evidence(answers, classes) for answers in _load_answers(rows)]
    first = rows[0]
    return TunerRow(
        tuner=tuner.label,
        kind=tuner.kind,
        selected=any(row.selected for row in rows),
        seeds=tuple(row.seed for row in rows),
        val=fmean(row.val for row in rows),
        test=SeedScores(**dict(test), seeds=tuple(row.test.value for row in rows)),
        class_scores={name: fmean(score(seed[name]) for seed in seeds) for name in seeds[0]},
        seconds=round(fmean(row.seconds for row in rows), 3),
        trainable_params=first.trainable_params,
        head_params=first.head_params,
        share=first.share,
        adapter_bytes=first.adapter_bytes,
        options=tuner.model_dump(mode="json", exclude={"kind", "name"}),
        search=None if search is None else search.to_row(),
        **gains,
    )
