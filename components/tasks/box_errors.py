"""Kinds of error of answered boxes, by what fixing them would gain (TIDE, arXiv 2008.08115).

Shapes: K answered boxes, M objects.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from components.records.boxes import NONE
from components.tasks.box_answers import Answers
from components.tasks.box_matches import (
    HALF,
    IOUS,
    NEAR,
    OBJECT,
    Flags,
    Floats,
    Ints,
    is_ignored,
    is_right,
    match_boxes,
)
from components.tasks.box_scores import average_precision, trace_curves

WRONG = ("localisation", "class", "duplicate", "background", "both")
FIXABLE = WRONG[:2]


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
