"""Labelled boxes of a picture: checks and clips what an annotation says, and decides on pictures without annotation."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from components.data.annotations.boxes import CLIPPED, EDGE
from components.data.annotations.column_cells import read_size
from components.data.annotations.regions import AS_BACKGROUND, LEFT_OUT, UNANNOTATED
from components.data.manifest import Reading, Row, Wanted
from components.records.boxes import Kind, LabelledBox
from components.records.fields import Corners
from components.records.reasons import Reason

DUST = 0.05  # pixels by which rounding to few digits exceeds an edge, which is not worth a note
DIFFICULT = "objects marked difficult, ignored in training and scoring"
CROWD = "regions of many objects or of none to judge (crowd, ignore), ignored in training and scoring"
EXTENTS = "outlines and masks, whose extent is the box"
SHOWS_NOTHING = "pictures without any object, which count as background"
NOTED: Mapping[Kind, str] = {"difficult": DIFFICULT, "crowd": CROWD}
CORRECT = "Correct or remove the box."


class BoxMark(NamedTuple):
    """One annotated box as its file says it. where: the file and the place in it, for messages."""

    label: str
    box: Corners
    where: str
    kind: Kind = "object"


def place_boxes(row: Row, marks: Sequence[BoxMark], raw: Path, wanted: Wanted) -> tuple[Row, Mapping[str, int]]:
    """The row of a picture with its objects, or with a problem, and counts for the notes.

    A box that exceeds the picture by up to EDGE pixels is clipped. The picture has a problem with a box that exceeds it
    further, has no area, or repeats another one of its label. Validation reports a picture that cannot be decoded, and
    one whose size is not the stated one.
    """
    if row.problem:
        return row, {}
    if problem := _find_flat(marks) or _find_twice(marks, wanted.rename):
        return replace(row, problem=problem), {}
    kinds = {mark.where: mark.kind for mark in marks if mark.kind in NOTED}  # a region of all classes counts once
    notes = Counter(NOTED[kind] for kind in kinds.values())
    size = read_size(raw / row.path) if marks else None
    if size is None or row.stated_size not in (None, size):
        return replace(row, objects=[LabelledBox(mark.label, mark.box, mark.kind) for mark in marks]), notes
    objects = []
    for mark in marks:
        box = _clip(mark.box, size)
        if box is None:
            expected = f"a box inside its picture of {size[0]} x {size[1]} pixels"
            return replace(row, problem=Reason(expected, f"{_show(mark.box)} in {mark.where}", CORRECT)), {}
        notes[CLIPPED] += max(abs(one - other) for one, other in zip(box, mark.box, strict=True)) > DUST
        objects.append(LabelledBox(mark.label, box, mark.kind))
    return replace(row, objects=objects), +notes


def _find_flat(marks: Sequence[BoxMark]) -> Reason | None:
    for mark in marks:
        x0, y0, x1, y1 = mark.box
        if not (all(map(math.isfinite, mark.box)) and x0 < x1 and y0 < y1):
            return Reason("a box with an area", f"{_show(mark.box)} in {mark.where}", CORRECT)
    return None


def _find_twice(marks: Sequence[BoxMark], rename: Mapping[str, str]) -> Reason | None:
    """The problem of a box that another one of its class repeats: as two objects they would count twice."""
    first: dict[tuple[str, Corners], BoxMark] = {}
    for mark in marks:
        other = first.setdefault((rename.get(mark.label, mark.label), mark.box), mark)
        if other is not mark:
            found = f"{_show(mark.box)} ({mark.label}) in {other.where} and in {mark.where}"
            return Reason("each object once", found, "Remove one of the two boxes.")
    return None


def _clip(box: Corners, size: tuple[int, int]) -> Corners | None:
    """The box inside a picture of `size` (width, height); None where it exceeds it by more than EDGE pixels."""
    x0, y0, x1, y1 = map(float, box)
    if min(x0, y0) < -EDGE or x1 > size[0] + EDGE or y1 > size[1] + EDGE:
        return None
    cut = max(x0, 0.0), max(y0, 0.0), min(x1, float(size[0])), min(y1, float(size[1]))
    return cut if cut[0] < cut[2] and cut[1] < cut[3] else None


def _show(box: Corners) -> str:
    return f"x0, y0, x1, y1 = {', '.join(f'{value:.6g}' for value in box)}"


# Pictures without objects


def settle_objects(reading: Reading, unannotated: str) -> Reading:
    """Decide on the pictures of which the reader returned neither objects nor a problem, and count what was decided.

    unannotated: such pictures are left out (`leave_out`), or show no object (`background`).
    """
    rows, ignored, notes = list[Row](), dict(reading.ignored), Counter(reading.notes)
    for row in reading.rows:
        silent = row.problem is None and row.objects is None
        if silent and unannotated != "background":
            ignored[row.path] = str(UNANNOTATED)
            notes[LEFT_OUT] += 1
            continue
        settled = replace(row, objects=()) if silent else row
        notes[AS_BACKGROUND] += silent
        notes[SHOWS_NOTHING] += settled.objects is not None and not settled.objects
        rows.append(settled)
    return Reading(rows, ignored, dict(+notes))
