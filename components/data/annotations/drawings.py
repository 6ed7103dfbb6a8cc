"""Drawings: what an annotation file says of one picture by shapes, as crops, labels, boxes, or as its class map."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from components.data.annotations.objects import EXTENTS, BoxMark, place_boxes
from components.data.annotations.painting import Drawn, paint_all, paint_row
from components.data.annotations.shapes import Part, Shape, extent_of, is_box, require_legal
from components.data.manifest import Reading, Row, Wanted
from components.records.maps import Painting
from components.records.reasons import Reason

EMPTY = "annotated as a picture without any object"
IGNORED = "shapes whose label the layout's `ignore` names"
TAGS = "labels of whole pictures (flags or tags), which say nothing of pixels, crops or boxes"


@dataclass(frozen=True)
class Mark:
    """One drawn shape. read: its parts; raises ValueError for a form that has no area. group: marks of one object."""

    label: str
    where: str
    read: Callable[[], tuple[Part, ...]]
    group: str | None = None


@dataclass(frozen=True)
class Drawing:
    """What one file says of one picture. tags: labels of the whole picture. annotated: the file lists it as done."""

    picture: str
    source: str
    marks: Sequence[Mark] = ()
    tags: Sequence[str] = ()
    stated: tuple[int, int] | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    annotated: bool = True


def read_drawings(drawings: Iterable[Drawing], raw: Path, wanted: Wanted, ignore: Sequence[str]) -> Reading:
    """Rows of drawings: one per crop, or one per picture with all labels, its objects or its regions, as wanted.

    ignore: labels that are left out; as objects or regions, they are ignored.
    """
    found = [replace(one, tags=[tag for tag in one.tags if tag not in ignore]) for one in drawings]
    notes = Counter({IGNORED: sum(mark.label in ignore for one in found for mark in one.marks)})
    if wanted.painting is not None:
        notes[TAGS] += sum(len(one.tags) for one in found)
        rows, counts = _paint(found, raw, wanted.painting, ignore)
        return Reading(rows, notes=dict(+(notes + counts)))
    if wanted.boxed:
        notes[TAGS] += sum(len(one.tags) for one in found)
        rows, counts = _place(found, raw, wanted, ignore)
        return Reading(rows, notes=dict(+(notes + counts)))
    if wanted.many:
        return Reading([_label_all(one, ignore) for one in found], notes=dict(+notes))
    rows, ignored = list[Row](), dict[str, str]()
    for one in found:
        crops = _crop(one, ignore)
        notes[TAGS] += len(one.tags) if one.marks else 0
        rows += crops
        ignored |= {} if crops else {one.picture: EMPTY}
    return Reading(rows, ignored, dict(+notes))


def _row(drawing: Drawing, **facts: Any) -> Row:
    return Row(path=drawing.picture, stated_size=drawing.stated, columns=drawing.columns, **facts)


def _label_all(drawing: Drawing, ignore: Sequence[str]) -> Row:
    labels = [*drawing.tags, *(mark.label for mark in drawing.marks)]
    return _row(drawing, labels=[label for label in labels if label not in ignore])


# Crops


def _crop(drawing: Drawing, ignore: Sequence[str]) -> list[Row]:
    """One row per object, cropped by its extent; of a picture without shapes, one row with its only tag."""
    if not drawing.marks and drawing.tags:
        if len(drawing.tags) == 1:
            return [_row(drawing, label=drawing.tags[0])]
        hint = "Correct the annotation, or choose the task multilabel."
        problem = Reason(f"one label of the picture in {drawing.source}", ", ".join(drawing.tags[:6]), hint)
        return [_row(drawing, problem=problem)]
    rows = []
    for marks in _join([mark for mark in drawing.marks if mark.label not in ignore]):
        try:
            box = _extent(marks)
        except ValueError as error:
            rows.append(_row(drawing, problem=_explain(drawing, error)))
        else:
            rows.append(_row(drawing, label=marks[0].label, crop=box))
    return rows


def _join(marks: Sequence[Mark]) -> list[list[Mark]]:
    """Marks by object: those of one label and group are parts of one object."""
    objects: dict[tuple[str, str], list[Mark]] = {}
    for number, mark in enumerate(marks):
        key = f"group {mark.group}" if mark.group is not None else str(number)
        objects.setdefault((mark.label, key), []).append(mark)
    return list(objects.values())


def _extent(marks: Sequence[Mark]) -> tuple[int, int, int, int]:
    shape = _shape(marks, frozenset())
    require_legal(shape)
    x0, y0, x1, y1 = extent_of(shape)
    return math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)


# Boxes


def _place(
    drawings: Sequence[Drawing], raw: Path, wanted: Wanted, ignore: Sequence[str]
) -> tuple[list[Row], Counter[str]]:
    """One row per picture with its objects."""
    rows, notes = list[Row](), Counter[str]()
    for drawing in drawings:
        row, marks, extents = _row(drawing), list[BoxMark](), 0
        try:
            for each in _join(drawing.marks):
                shape = _shape(each, frozenset())
                require_legal(shape)
                marks += _mark(shape, f"{drawing.source}, {shape.where}", wanted, ignore)
                extents += not is_box(shape)
        except ValueError as error:
            row = replace(row, problem=_explain(drawing, error))
        row, counts = place_boxes(row, marks, raw, wanted)
        rows.append(row)
        notes.update(counts)
        notes[EXTENTS] += 0 if row.problem else extents
    return rows, notes


def _mark(shape: Shape, where: str, wanted: Wanted, ignore: Sequence[str]) -> list[BoxMark]:
    """The box of an object. One to ignore says nothing of its class, and is a crowd of each."""
    box, label = extent_of(shape), str(shape.name)
    if label in ignore:
        return [BoxMark(name, box, where, "crowd") for name in wanted.classes]
    return [BoxMark(label, box, where)]


def _explain(drawing: Drawing, error: ValueError) -> Reason:
    return Reason(f"shapes with an area in {drawing.source}", str(error), "Correct or remove the shape.")


# Regions


def _paint(
    drawings: Sequence[Drawing], raw: Path, painting: Painting, ignore: Sequence[str]
) -> tuple[list[Row], Counter[str]]:
    by_picture = {one.picture: one for one in drawings}

    def draw(picture: str) -> Drawn:
        drawing = by_picture[picture]
        row = _row(drawing)
        if not (drawing.marks or drawing.annotated):
            return row, {}
        # the later of two shapes counts, parts or not; the smaller of two objects is measured as a whole
        objects = _join(drawing.marks) if painting.overlap == "smaller" else [[mark] for mark in drawing.marks]
        return paint_row(row, lambda _: [_shape(each, ignore) for each in objects], raw, painting, drawing.source)

    return paint_all(draw, list(by_picture))


def _shape(marks: Sequence[Mark], ignore: Sequence[str] | frozenset[str]) -> Shape:
    """The shape of an object. Raises ValueError, with its place, for a form that has no area."""
    parts = list[Part]()
    for mark in marks:
        try:
            parts += mark.read()
        except ValueError as error:
            raise ValueError(f"{mark.where}: {error}") from None
    label = marks[0].label
    return Shape(None if label in ignore else label, tuple(parts), marks[0].where)
