"""What became of each shown box and of each object, as people see it, and their confusion by class.

Shapes: K shown boxes and M objects of a picture, N pictures, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from components.errors import PromotionError
from components.records.boxes import NONE
from components.tasks.box_matches import (
    HALF,
    IOUS,
    NEAR,
    OBJECT,
    Boxes,
    Flags,
    Ints,
    is_ignored,
    is_right,
    match_boxes,
    measure_overlaps,
)

Outcome = Literal["found", "ignored", "other class", "duplicate", "misplaced", "false"]
Fate = Literal["found", "ignored", "other class", "misplaced", "missed"]


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

    def take(box: int, allowed: Flags, least: float, outcome: Outcome, fate: Fate | None) -> None:
        """The free object that the box overlaps most, among those allowed; the last of equal ones, as COCO has it."""
        shares = np.where(allowed, overlaps[box], -1.0)
        best = len(shares) - 1 - int(shares[::-1].argmax()) if len(shares) else NONE
        if best == NONE or shares[best] < least:
            return
        boxes[box], partners[box] = outcome, best
        if fate is not None:
            objects[best] = fate

    for box in range(len(rows)):
        if right[box]:
            take(box, same[box] & counted & _are(objects, "missed"), IOUS[HALF], "found", "found")
        elif ignored[box]:
            boxes[box] = "ignored"
            take(box, same[box] & ~counted, IOUS[HALF], "ignored", None)
    half = IOUS[HALF]
    for box in _list_false(boxes):
        take(box, ~same[box] & counted & _are(objects, "missed"), half, "other class", "other class")
    for box in _list_false(boxes):
        take(box, counted & _are(objects, "found", "other class"), half, "duplicate", None)
    for box in _list_false(boxes):
        take(box, same[box] & counted & _are(objects, "missed"), NEAR, "misplaced", "misplaced")
    back = np.argsort(order)
    return Shown(tuple(boxes[place] for place in back), tuple(objects), partners[back])


def _list_false(boxes: Sequence[Outcome]) -> list[int]:
    return [box for box, outcome in enumerate(boxes) if outcome == "false"]


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


def measure_f1(confusion: Ints) -> float:
    """Of one picture, over all classes; 1 where there is neither an object nor a shown box."""
    right, objects, shown = confusion[:-1, :-1].trace(), confusion[:-1].sum(), confusion[:, :-1].sum()
    return float(2 * right / (objects + shown)) if objects + shown else 1.0


def score_shown(confusion: Ints, classes: Sequence[str], pictures: int) -> dict[str, float]:
    """Of shown boxes, from (C + 1, C + 1) objects and boxes; of each class that has an object, too."""
    right = confusion.diagonal()[:-1]
    objects, shown = confusion[:-1].sum(axis=1), confusion[:, :-1].sum(axis=0)
    return {
        "recall": float(right.sum() / max(objects.sum(), 1)),
        "precision": float(right.sum() / max(shown.sum(), 1)),
        "f1": float(2 * right.sum() / max(objects.sum() + shown.sum(), 1)),
        "missed": float((objects - right).sum() / max(pictures, 1)),
        "false_alarms": float((shown - right).sum() / max(pictures, 1)),
        **{f"recall/{name}": float(right[k] / objects[k]) for k, name in enumerate(classes) if objects[k]},
        **{f"precision/{name}": float(right[k] / max(shown[k], 1)) for k, name in enumerate(classes) if objects[k]},
    }
