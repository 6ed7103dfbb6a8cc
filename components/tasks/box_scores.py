"""What answered boxes of many pictures are worth: average precision, its evidence, and free-response curves.

Boxes are ranked by confidence over all pictures. Equal confidences stay in the order of the pictures.

Shapes: K answered and M annotated boxes, N pictures, C classes, G groups, R resamples, J boxes that are right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from components.records.boxes import MOST_FOUND
from components.tasks.base import Uncounted, renumber_groups
from components.tasks.box_answers import Answers, read_answers
from components.tasks.box_matches import (
    EVERY,
    HALF,
    IOUS,
    Flags,
    Floats,
    Ints,
    is_ignored,
    is_right,
)

RECALLS = np.linspace(0.0, 1.0, 101)  # the floats of COCO, at which precision is read
TINY = np.spacing(1.0)  # as COCO adds it to the number of boxes
CHUNK = 1_000_000  # weights of boxes handled at once: some 8 MB per array


# Average precision


@dataclass(frozen=True)
class Curve:
    """The answered boxes of one class that count at one IoU, the most confident first.

    groups: (K,) below G. right: (K,). objects: (G,) how many there are to find.
    """

    groups: Ints
    right: Flags
    objects: Floats

    def only(self, place: Ints, number: int) -> "Curve":
        """Of some groups alone; place: (G,) their new numbers below `number`, or NONE."""
        mine, objects = place[self.groups], np.zeros(number)
        objects[place[place >= 0]] = self.objects[place >= 0]
        return Curve(mine[mine >= 0], self.right[mine >= 0], objects)


def trace_curves(
    answers: Answers,
    masks: Ints,
    groups: Ints,
    numbers: Sequence[int],
    places: Sequence[int],
    area: tuple[float, float] = EVERY,
) -> list[Curve]:
    """One per class that there is anything to find of and threshold of the IoU. masks: (K,) as `match_boxes` has them,
    for objects of the same area. groups: (N,) of pictures. numbers: the classes. places: in IOUS."""
    total, counted = int(groups.max(initial=-1)) + 1, answers.find_counted(area)
    curves = []
    for number in numbers:
        targets = counted & (answers.targets[:, 4] == number)
        if not targets.any():
            continue
        objects = np.bincount(groups[answers.of_targets[targets]], minlength=total).astype(np.float64)
        mine = np.flatnonzero(answers.found[:, 4] == number)
        mine = mine[np.argsort(-answers.found[mine, 5], kind="stable")]
        for place in places:
            kept = mine[~is_ignored(masks[mine], place)]
            curves.append(Curve(groups[answers.of_found[kept]], is_right(masks[kept], place), objects))
    return curves


def average_precision(curve: Curve, weights: Floats) -> Floats:
    """(R, G) how often each group counts, whole numbers -> (R,) as pycocotools has it for pictures that are copied so
    often: the mean over RECALLS of the greatest precision at that recall or a higher one. Not a number without an
    object.

    Copies of one box stay together. Precision falls with each wrong box and rises with each right one, so that the
    greatest ones are those after right ones, and only these are computed.
    """
    objects, right = weights @ curve.objects, np.flatnonzero(curve.right)
    scores = np.where(objects > 0, 0.0, np.nan)
    step = max(1, CHUNK // max(len(curve.groups), 1))
    for start in range(0, len(weights) if len(right) else 0, step):
        rows = slice(start, start + step)
        by_box = weights[rows].take(curve.groups, axis=1)
        hits = np.cumsum(by_box[:, right], axis=1)
        precision = hits / (np.cumsum(by_box, axis=1)[:, right] + TINY)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        scores[rows] += _read_precision(hits, best, objects[rows])
    return scores


def _read_precision(hits: Floats, best: Floats, objects: Floats) -> Floats:
    """(R,) the mean of precision at RECALLS. hits: (R, J) right boxes down to each right one; best: (R, J) the greatest
    precision from there on; objects: (R,)."""
    total = np.maximum(objects, 1)[:, None]
    need = np.ceil(RECALLS * total)  # right boxes with which a recall is reached, by the very quotients of COCO
    need -= (need - 1) / total >= RECALLS
    need += need / total < RECALLS
    width = hits.shape[1]
    apart = np.arange(len(hits))[:, None] * (total.max() + 1)  # so that all rows together are one rising list
    places = np.searchsorted((hits + apart).ravel(), (need + apart).ravel()).reshape(need.shape)
    places -= np.arange(len(hits))[:, None] * width
    reached = places < width
    values = np.take_along_axis(best, np.minimum(places, width - 1), axis=1)
    means: Floats = np.where(reached, values, 0.0).sum(axis=1) / len(RECALLS)
    return means


@dataclass(frozen=True)
class CurveEvidence(Uncounted):
    """Evidence of the mean of the average precisions of some curves: each is sorted and matched once, whatever the
    weights. A class without an object in a resample is left out of that resample's mean; the score of a resample
    without any is not a number.
    """

    groups: Ints
    number: int
    curves: tuple[Curve, ...]

    def only(self, groups: Ints) -> "CurveEvidence":
        place = renumber_groups(groups, self.number)
        mine = place[self.groups]
        curves = tuple(curve.only(place, len(groups)) for curve in self.curves)
        return CurveEvidence(mine[mine >= 0], len(groups), curves)

    def scores(self, weights: Floats) -> Floats:
        sums, known = np.zeros(len(weights)), np.zeros(len(weights))
        for curve in self.curves:
            scores = average_precision(curve, weights)
            sums += np.nan_to_num(scores)
            known += ~np.isnan(scores)
        means: Floats = np.divide(sums, known, out=np.full(len(weights), np.nan), where=known > 0)
        return means


def score_precision(answers: Answers, masks: Ints, classes: int, area: tuple[float, float] = EVERY) -> Floats:
    """(C, T) average precision of each class at IOUS, not a number where there is no object of the class."""
    scores = np.full((classes, len(IOUS)), np.nan)
    groups = np.zeros(answers.number, np.int64)
    for number in range(classes):
        for place, curve in enumerate(trace_curves(answers, masks, groups, [number], range(len(IOUS)), area)):
            scores[number, place] = average_precision(curve, np.ones((1, 1)))[0]
    return scores


def score_classes(precision: Floats, classes: Sequence[str]) -> dict[str, float]:
    """(C, T) -> map50, map, and both of each class that has an object."""
    known = [k for k in range(len(classes)) if not np.isnan(precision[k, HALF])]
    return {
        "map50": float(precision[known, HALF].mean()) if known else 0.0,
        "map": float(precision[known].mean()) if known else 0.0,
        **{f"ap50/{classes[k]}": float(precision[k, HALF]) for k in known},
        **{f"ap/{classes[k]}": float(precision[k].mean()) for k in known},
    }


# Free-response curves


@dataclass(frozen=True)
class Froc:
    """Free-response curve (Bunch et al. 1978) of all classes together, at an IoU of one half, from no box shown down to
    all. false_alarms: (S,) wrong boxes per picture, rising. recall: (S,) share of the objects that are found."""

    false_alarms: Floats
    recall: Floats

    def recall_at(self, false_alarms: float) -> float:
        """The recall with at most so many false alarms per picture."""
        return float(self.recall[self.false_alarms <= false_alarms].max())


def trace_froc(frame: pl.DataFrame, classes: Sequence[str]) -> Froc:
    """Of a frame of predictions. Boxes of equal confidence are shown together."""
    return draw_froc(read_answers(frame, classes))


def draw_froc(answers: Answers) -> Froc:
    """Of all boxes that were answered, however many a picture has."""
    masks = answers.match(most=MOST_FOUND)
    kept = np.flatnonzero(~is_ignored(masks))
    kept = kept[np.argsort(-answers.found[kept, 5], kind="stable")]
    right = is_right(masks[kept])
    ends = np.flatnonzero(np.diff(answers.found[kept, 5], append=-1.0))
    objects = max(int(answers.find_counted().sum()), 1)
    wrong, found = (np.append(0, np.cumsum(each)[ends]) for each in (~right, right))
    return Froc(wrong / max(answers.number, 1), found / objects)
