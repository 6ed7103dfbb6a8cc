"""What answered boxes of many pictures are worth: average precision, free-response curves, kinds of error, confusion.

Boxes are ranked by confidence over all pictures. Equal confidences stay in the order of the pictures.

Shapes: K answered and M annotated boxes, N pictures, C classes, G groups, R resamples, J boxes that are right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from components.errors import PromotionError
from components.records.boxes import KINDS, NONE
from components.tasks.base import number_names
from components.tasks.box_matches import (
    EVERY,
    HALF,
    IOUS,
    OBJECT,
    Boxes,
    Flags,
    Floats,
    Ints,
    is_ignored,
    is_right,
    match_boxes,
    measure_areas,
    measure_overlaps,
    sort_found,
)

RECALLS = np.linspace(0.0, 1.0, 101)  # the floats of COCO, at which precision is read
TINY = np.spacing(1.0)  # as COCO adds it to the number of boxes
NEAR = 0.1  # the IoU from which on a box that is not right is at an object all the same (TIDE's background threshold)
CHUNK = 1_000_000  # weights of boxes handled at once: some 8 MB per array
WRONG = ("localisation", "class", "duplicate", "background", "both")
FIXABLE = WRONG[:2]
Outcome = Literal["found", "ignored", "other class", "duplicate", "misplaced", "false"]
Fate = Literal["found", "ignored", "other class", "misplaced", "missed"]


# Many pictures


class Picture(NamedTuple):
    """One picture of many: the place of its answered boxes and these, the place of its annotated ones and these, and
    (K, M) how far each two overlap."""

    mine: slice
    found: Floats
    theirs: slice
    targets: Floats
    overlaps: Floats


@dataclass(frozen=True)
class Answers:
    """What was answered for N pictures, beside what they show.

    found: (K, 6), the most confident first within a picture. targets: (M, 6). of_found: (K,) and of_targets: (M,) the
    number of each one's picture, rising.
    """

    found: Floats
    of_found: Ints
    targets: Floats
    of_targets: Ints
    number: int

    @staticmethod
    def of(found: Sequence[Boxes], targets: Sequence[Boxes]) -> "Answers":
        """One array (K, 6) and one (M, 6) per picture; rows that fill up are left out."""
        rows = [sort_found(each) for each in found]
        truths = [each[each[:, 4] != NONE].astype(np.float64) for each in targets]
        places = [np.repeat(np.arange(len(some)), [len(each) for each in some]) for some in (rows, truths)]
        empty = np.zeros((0, 6))
        return Answers(
            np.concatenate([empty, *rows]), places[0], np.concatenate([empty, *truths]), places[1], len(rows)
        )

    @cached_property
    def pictures(self) -> "list[Picture]":
        numbers = np.arange(self.number + 1)
        ends, bounds = np.searchsorted(self.of_found, numbers), np.searchsorted(self.of_targets, numbers)
        pictures = []
        for picture in range(self.number):
            mine, theirs = slice(*ends[picture : picture + 2]), slice(*bounds[picture : picture + 2])
            found, targets = self.found[mine], self.targets[theirs]
            pictures.append(Picture(mine, found, theirs, targets, measure_overlaps(found, targets)))
        return pictures

    def match(self, area: tuple[float, float] = EVERY) -> Ints:
        """(K,) bit masks, as `match_boxes` has them."""
        masks = np.zeros(len(self.found), np.int64)
        for picture in self.pictures:
            masks[picture.mine], _ = match_boxes(picture.found, picture.targets, picture.overlaps, area)
        return masks

    def find_counted(self, area: tuple[float, float] = EVERY) -> Flags:
        """(M,) objects of this size that count."""
        sizes = measure_areas(self.targets)
        counted: Flags = (self.targets[:, 5] == OBJECT) & (sizes >= area[0]) & (sizes <= area[1])
        return counted


def read_answers(frame: pl.DataFrame, classes: Sequence[str]) -> Answers:
    """Of the columns `found` and `objects` of a frame of predictions. Raises PromotionError for an unknown class."""
    found, of_found = _read_rows(frame["found"], classes)
    targets, of_targets = _read_rows(frame["objects"], classes)
    return Answers(found, of_found, targets, of_targets, frame.height)


def _read_rows(column: pl.Series, classes: Sequence[str]) -> tuple[Floats, Ints]:
    lengths = column.list.len()
    rows = column.filter(lengths > 0).explode()
    table = np.zeros((len(rows), 6))
    if len(rows):
        fields = rows.struct
        table[:, :4] = fields.field("box").explode().to_numpy().reshape(-1, 4)
        table[:, 4] = number_names(fields.field("label"), classes)
        if "confidence" in fields.fields:
            table[:, 5] = fields.field("confidence").to_numpy()
        else:
            table[:, 5] = [KINDS.index(kind) for kind in fields.field("kind")]
    return table, np.repeat(np.arange(len(column)), lengths.to_numpy())


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
class CurveEvidence:
    """Evidence of the mean of the average precisions of some curves: each is sorted and matched once, whatever the
    weights. A class without an object in a resample is left out of that resample's mean; the score of a resample
    without any is not a number.
    """

    groups: Ints
    number: int
    curves: tuple[Curve, ...]

    @property
    def own(self) -> Floats | None:
        return None  # it is no function of sums over groups

    @property
    def shared(self) -> Floats | None:
        return None

    def only(self, groups: Ints) -> "CurveEvidence":
        place = np.full(self.number, NONE, np.int64)
        place[groups] = np.arange(len(groups))
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
    return draw_froc(read_answers(frame, classes), read_masks(frame))


def draw_froc(answers: Answers, masks: Ints) -> Froc:
    """masks: (K,) as `match_boxes` has them."""
    kept = np.flatnonzero(~is_ignored(masks))
    kept = kept[np.argsort(-answers.found[kept, 5], kind="stable")]
    right = is_right(masks[kept])
    ends = np.flatnonzero(np.diff(answers.found[kept, 5], append=-1.0))
    objects = max(int(answers.find_counted().sum()), 1)
    wrong, found = (np.append(0, np.cumsum(each)[ends]) for each in (~right, right))
    return Froc(wrong / max(answers.number, 1), found / objects)


def read_masks(frame: pl.DataFrame) -> Ints:
    """(K,) the column `matches` of a frame of predictions."""
    column = frame["matches"]
    return column.filter(column.list.len() > 0).explode().to_numpy().astype(np.int64)


# One picture as people see it


@dataclass(frozen=True)
class Shown:
    """What each shown box is (K,), what became of each object (M,), and the object that each box is at (K,), or NONE.

    A box is `found` where it is right at an IoU of one half, `ignored` where it is at a region to ignore; `other
    class` where it overlaps, as much, an object of another class that no right box has found; `duplicate` where it
    overlaps, as much, an object that has been taken; `misplaced` where it overlaps an object of its class that is not
    found by NEAR or more; else `false`.
    """

    boxes: tuple[Outcome, ...]
    objects: tuple[Fate, ...]
    partners: Ints


def match_shown(found: Boxes, targets: Boxes) -> Shown:
    """found: (K, 6) the boxes that are shown, in any order, without rows that fill up. targets: (M, 6)."""
    order = np.argsort(-found[:, 5], kind="stable")
    rows = found[order].astype(np.float64)
    overlaps = measure_overlaps(rows, targets)
    masks, _ = match_boxes(rows, targets, overlaps, most=len(rows))
    right, ignored = is_right(masks), is_ignored(masks)
    same, counted = rows[:, 4, None] == targets[:, 4], targets[:, 5] == OBJECT
    boxes: list[Outcome] = ["false"] * len(rows)
    objects: list[Fate] = ["missed" if each else "ignored" for each in counted]
    partners = np.full(len(rows), NONE, np.int64)

    def take(box: int, allowed: Flags, least: float, outcome: Outcome, fate: Fate | None) -> bool:
        """The free object that the box overlaps most, among those allowed; the last of equal ones, as COCO has it."""
        shares = np.where(allowed, overlaps[box], -1.0)
        best = len(shares) - 1 - int(shares[::-1].argmax()) if len(shares) else NONE
        if best == NONE or shares[best] < least:
            return False
        boxes[box], partners[box] = outcome, best
        if fate is not None:
            objects[best] = fate
        return True

    for box in range(len(rows)):
        if right[box]:
            take(box, same[box] & counted & (np.array(objects) == "missed"), IOUS[HALF], "found", "found")
        elif ignored[box]:
            boxes[box] = "ignored"
            take(box, same[box] & ~counted, IOUS[HALF], "ignored", None)
    left = [box for box in range(len(rows)) if boxes[box] == "false"]
    left = [b for b in left if not take(b, ~same[b] & counted & _are(objects, "missed"), IOUS[HALF],
                                        "other class", "other class")]  # fmt: skip
    left = [b for b in left if not take(b, counted & _are(objects, "found", "other class"), IOUS[HALF],
                                        "duplicate", None)]  # fmt: skip
    for box in left:
        take(box, same[box] & counted & _are(objects, "missed"), NEAR, "misplaced", "misplaced")
    back = np.argsort(order)
    return Shown(tuple(boxes[place] for place in back), tuple(objects), partners[back])


def _are(objects: Sequence[Fate], *fates: Fate) -> Flags:
    return np.isin(np.array(objects, dtype=object), fates)


def tabulate(shown: Shown, found: Boxes, targets: Boxes, classes: int) -> Ints:
    """(C + 1, C + 1) objects (rows) and shown boxes (columns) of one picture by class, the last one being none: right
    boxes and those of another class are in the cell of both; other objects are missed, and other boxes false alarms.
    What is ignored is left out."""
    table = np.zeros((classes + 1, classes + 1), np.int64)
    for outcome, partner, row in zip(shown.boxes, shown.partners, found, strict=True):
        if outcome in ("found", "other class"):
            table[int(targets[partner, 4]), int(row[4])] += 1
        elif outcome != "ignored":
            table[classes, int(row[4])] += 1
    for fate, row in zip(shown.objects, targets, strict=True):
        if fate in ("missed", "misplaced"):
            table[int(row[4]), classes] += 1
    return table


def count_confusion(frame: pl.DataFrame, classes: Sequence[str]) -> Ints:
    """(C + 1, C + 1) of a frame of predictions, as `tabulate` has it."""
    table: Ints = read_confusion(frame, classes).sum(axis=0)
    return table


def read_confusion(frame: pl.DataFrame, classes: Sequence[str]) -> Ints:
    """(N, C + 1, C + 1) of each picture. Raises PromotionError where it is of another number of classes."""
    size = len(classes) + 1
    if strange := sorted(set(frame["confusion"].list.len()) - {size**2}):
        raise PromotionError(
            "predictions",
            expected=f"{size**2} numbers per image in the column confusion",
            found=", ".join(map(str, strange)),
            hint="Score the model again with the classes of the present domain.yaml.",
        )
    return frame["confusion"].explode().to_numpy().astype(np.int64).reshape(frame.height, size, size)


def count_errors(frame: pl.DataFrame, classes: Sequence[str]) -> Ints:
    """(N, C) how many more objects of each class were shown than there are; what is ignored is left out."""
    confusion = read_confusion(frame, classes)
    errors: Ints = confusion[:, :, :-1].sum(axis=1) - confusion[:, :-1].sum(axis=2)
    return errors


# Two models


def compare_answers(then: Answers, now: Answers) -> str:
    """How far two models' boxes of the same pictures are apart, as the end of a sentence. Boxes belong together, each
    with the one of its class that it overlaps most, where that is one half or more."""
    lost, most, gap, both = 0, 0.0, 0.0, len(then.found) + len(now.found)
    for ones, others in zip((each.found for each in then.pictures), (each.found for each in now.pictures), strict=True):
        truth = np.column_stack([others[:, :5], np.full(len(others), float(OBJECT))])
        overlaps = np.where(ones[:, 4, None] == others[:, 4], measure_overlaps(ones, truth), 0.0)
        free = np.ones(len(others), bool)
        for box, shares in enumerate(overlaps):
            shares = np.where(free, shares, 0.0)
            if not len(shares) or shares.max() < IOUS[HALF]:
                lost += 1
                continue
            other = int(shares.argmax())
            free[other] = False
            most = max(most, float(np.abs(ones[box, :4] - others[other, :4]).max()))
            gap = max(gap, abs(float(ones[box, 5] - others[other, 5])))
        lost += int(free.sum())
    alone = f"{lost} of {both} boxes are one model's alone, the others" if lost else "boxes"
    return f"{alone} differ by at most {most:.2g} pixels, and confidences by {gap:.2g}"


# Kinds of error


def score_errors(answers: Answers, masks: Ints) -> dict[str, float]:
    """How much mAP50 would gain if each kind of error alone were fixed (TIDE, arXiv 2008.08115).

    A wrong box is of the first kind that fits: `localisation`, at an object of its class with an IoU from NEAR to one
    half; `class`, at an object of another class with one half or more; `duplicate`, at an object of its class
    that a more confident box has found; `background`, at no object with more than NEAR; `both`, at one of another
    class in between. An object is `missed` where no box finds it and none of the first two kinds is at it.

    Fixed means: a box of the first two kinds becomes right if it is the most confident one at an object that no box
    finds; other wrong boxes are removed; missed objects do not count, and a class of which none is left is perfect.
    """
    kinds, partners, found = _find_kinds(answers, masks)
    classes = np.unique(answers.targets[answers.find_counted(), 4]).astype(np.int64).tolist()
    before, scores = _average(answers, masks, classes), {}
    for kind in WRONG:
        mine = kinds == WRONG.index(kind)
        saved = np.zeros(len(kinds), bool)
        if kind in FIXABLE:
            first = np.flatnonzero(mine)
            first = first[~found[partners[first]]]
            saved[first[np.unique(partners[first], return_index=True)[1]]] = True
        rows, kept = answers.found.copy(), ~mine | saved
        rows[saved, 4] = answers.targets[partners[saved], 4]
        better = replace(answers, found=rows[kept], of_found=answers.of_found[kept])
        scores[kind] = _average(better, np.where(saved, 1 << HALF, masks)[kept], classes) - before
    near = np.isin(kinds, [WRONG.index(kind) for kind in FIXABLE])
    known = found | (answers.targets[:, 5] != OBJECT)
    known[partners[near]] = True
    fewer = replace(answers, targets=answers.targets[known], of_targets=answers.of_targets[known])
    return scores | {"missed": _average(fewer, masks, classes) - before}


def _find_kinds(answers: Answers, masks: Ints) -> tuple[Ints, Ints, Flags]:
    """(K,) the place of each wrong box's kind in WRONG, NONE for others; (K,) the object that it is at; and (M,) which
    objects are found."""
    kinds, partners = np.full(len(masks), NONE), np.zeros(len(masks), np.int64)
    found = np.zeros(len(answers.targets), bool)
    for mine, rows, theirs, targets, overlaps in answers.pictures:
        counted = targets[:, 5] == OBJECT
        _, taken = match_boxes(rows, targets, overlaps)
        found[theirs] = counted & (taken & 1 << HALF > 0)
        same = rows[:, 4, None] == targets[:, 4]
        for box in np.flatnonzero(~is_right(masks[mine]) & ~is_ignored(masks[mine])):
            ours, others = (np.where(each & counted, overlaps[box], 0.0) for each in (same[box], ~same[box]))
            kind, shares = _name_kind(ours, others)
            kinds[mine.start + box] = WRONG.index(kind)
            partners[mine.start + box] = theirs.start + int(shares.argmax()) if len(shares) else 0
    return kinds, partners, found


def _name_kind(ours: Floats, others: Floats) -> tuple[str, Floats]:
    """The kind of a wrong box, and the overlaps by which it is at an object; (M,) overlaps with objects of its class,
    and with others."""
    own, other = ours.max(initial=0.0), others.max(initial=0.0)
    if NEAR <= own <= IOUS[HALF]:
        return "localisation", ours
    if other >= IOUS[HALF]:
        return "class", others
    if own > IOUS[HALF]:
        return "duplicate", ours
    return ("background" if other <= NEAR else "both"), others


def _average(answers: Answers, masks: Ints, classes: Sequence[int]) -> float:
    """mAP50 of these classes, 1 for one without an object; 0 where there is no class."""
    curves = trace_curves(answers, masks, np.zeros(answers.number, np.int64), classes, [HALF])
    total = sum(float(average_precision(curve, np.ones((1, 1)))[0]) for curve in curves)
    return (total + len(classes) - len(curves)) / max(len(classes), 1)
