"""Predictions of the test split as evidence: the score of one model, and the paired difference of two."""

import hashlib

import polars as pl

from components.domain.domain import Domain
from components.errors import PromotionError
from components.promotion.gates.base import Context
from components.promotion.statistics import Interval, bootstrap, bootstrap_difference
from components.tasks import create_task
from components.tasks.base import Evidence

_SCORED: dict[str, Interval] = {}  # by the sha256 of predictions, task, classes and confidence


def score_frame(frame: pl.DataFrame, domain: Domain) -> Interval:
    """The task's metric over a frame of predictions, with its interval at the domain's confidence.

    Each set of predictions is resampled once per process: the table of candidates, the comparison of tuners, the gates
    and the model card ask for the same score.
    """
    images = frame.sort("id")
    asked = f"{create_task(domain).model_dump_json()} {domain.classes} {domain.gates.confidence}"
    key = hashlib.sha256(asked.encode() + images.write_ipc(None).getvalue()).hexdigest()
    if key not in _SCORED:
        _SCORED[key] = bootstrap(measure(images, domain), domain.gates.confidence)
    return _SCORED[key]


def compare_frames(challenger: pl.DataFrame, champion: pl.DataFrame, domain: Domain) -> Interval:
    """Challenger minus champion in the task's metric, over frames of the same images in any order."""
    return bootstrap_difference(measure(challenger, domain), measure(champion, domain), domain.gates.confidence)


def measure(frame: pl.DataFrame, domain: Domain) -> Evidence:
    """Evidence of the task's metric, images in the order of their ids. Raises PromotionError for an unknown class."""
    return create_task(domain).evidence(frame.sort("id"), domain.classes)


def require_evidence(context: Context) -> None:
    """Raise PromotionError unless both models answered the same images of the test split, in the same groups."""
    ours, theirs = context.challenger, context.champion
    if ours.is_empty() or set(ours["split"]) != {"test"}:
        raise PromotionError(
            f"challenger of {context.domain.name}",
            expected="predictions of the test split alone",
            found=f"{ours.height} rows of {', '.join(sorted(set(ours['split']))) or 'no split'}",
            hint="Filter the predictions to the test split; give the domain test groups where there are none.",
        )
    same = ["id", "group", *create_task(context.domain).columns()]
    if theirs is not None and not ours.select(same).sort("id").equals(theirs.select(same).sort("id")):
        shared = _count_shared(ours.select(same), theirs.select(same))
        raise PromotionError(
            f"champion of {context.domain.name}",
            expected=f"predictions for the same {ours.height} test images, labels and groups as the challenger",
            found=f"{theirs.height} rows, of which {shared} agree",
            hint="Score the champion again on the present test split.",
        )


def _count_shared(ours: pl.DataFrame, theirs: pl.DataFrame) -> int:
    """How many rows both frames have, by all columns; they are lists and mappings in part, which no join takes."""
    known = dict(zip(theirs["id"], theirs.iter_rows(), strict=True))
    return sum(known.get(row[0]) == row for row in ours.iter_rows())
