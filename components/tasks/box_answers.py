"""What was answered for many pictures, beside what they show.

Shapes: K answered and M annotated boxes, N pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import polars as pl

from components.records.boxes import KINDS, NONE
from components.tasks.base import number_names
from components.tasks.box_matches import (
    EVERY,
    HALF,
    IOUS,
    MOST_SCORED,
    OBJECT,
    Boxes,
    Flags,
    Floats,
    Ints,
    match_boxes,
    measure_areas,
    measure_overlaps,
    sort_found,
)


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

    def match(self, area: tuple[float, float] = EVERY, most: int = MOST_SCORED) -> Ints:
        """(K,) bit masks, as `match_boxes` has them."""
        masks = np.zeros(len(self.found), np.int64)
        for picture in self.pictures:
            masks[picture.mine], _ = match_boxes(picture.found, picture.targets, picture.overlaps, area, most)
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


def read_masks(frame: pl.DataFrame) -> Ints:
    """(K,) the column `matches` of a frame of predictions."""
    column = frame["matches"]
    return column.filter(column.list.len() > 0).explode().to_numpy().astype(np.int64)


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
