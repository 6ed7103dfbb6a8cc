"""Lines of a table to labelled boxes: one row per picture, with the boxes of all its lines."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from components.data.annotations.objects import BoxMark, place_boxes
from components.data.manifest import Row, Wanted
from components.records.fields import Corners
from components.records.reasons import Reason


@dataclass(frozen=True)
class BoxLine:
    """One line. row: its picture and columns. labels: one for all boxes, or one per box; none where the cell is empty.

    boxes: None where the cell of the box is empty. where: the table and the line, for messages.
    """

    row: Row
    labels: Sequence[str]
    boxes: Sequence[Corners] | None
    where: str


@dataclass
class _Picture:
    row: Row
    marks: list[BoxMark] = field(default_factory=list)


def place_lines(lines: Sequence[BoxLine], raw: Path, wanted: Wanted) -> tuple[list[Row], Mapping[str, int]]:
    """One row per picture with its objects, in the order of the lines, and counts for the notes.

    A line without a box says that its picture shows no object: its label is empty, or none that has a box in another
    line (`No finding`).
    """
    boxed = {label for line in lines if line.boxes is not None for label in line.labels}
    found, notes = dict[str, _Picture](), Counter[str]()
    for line in lines:
        picture = found.setdefault(line.row.path, _Picture(line.row))
        row = picture.row
        problem = row.problem or line.row.problem or _find_problem(line, boxed) or _find_conflict(row, line)
        picture.row = replace(row, columns=_join(row.columns, line.row.columns), problem=problem)
        if problem:
            continue
        if line.boxes is None:
            notes.update(map(_name_empty, line.labels))
            continue
        labels = line.labels if len(line.labels) == len(line.boxes) else [line.labels[0]] * len(line.boxes)
        picture.marks += [BoxMark(label, box, line.where) for label, box in zip(labels, line.boxes, strict=True)]
    rows = list[Row]()
    for picture in found.values():
        row, counts = place_boxes(picture.row, picture.marks, raw, wanted)
        rows.append(row)
        notes.update(counts)
    return rows, +notes


def _name_empty(label: str) -> str:
    return f"lines labelled {label!r}, which never has a box: pictures without any object"


def _join(one: Mapping[str, str | None], other: Mapping[str, str | None]) -> dict[str, str | None]:
    return {name: one.get(name) or other.get(name) for name in (*one, *other)}


def _find_problem(line: BoxLine, boxed: set[str]) -> Reason | None:
    if line.boxes is None:
        hint = "Write the box, or empty the label if the picture shows nothing."
        missing = [label for label in line.labels if label in boxed]
        return Reason(f"a box of {missing[0]!r}", f"an empty cell in {line.where}", hint) if missing else None
    if len(line.labels) not in (1, len(line.boxes)):
        expected = "one label for all boxes of a cell, or one per box"
        found = f"{len(line.labels)} labels and {len(line.boxes)} boxes in {line.where}"
        return Reason(expected, found, "Correct the line.")
    return None


def _find_conflict(row: Row, line: BoxLine) -> Reason | None:
    """The problem of a line that says another group, slice or split of its picture than the lines before it."""
    for name, value in line.row.columns.items():
        before = row.columns.get(name)
        if before and value and before != value:
            found = f"{before} and {value} (in {line.where})"
            return Reason(f"one value of {name!r} per picture", found, "Correct the column.")
    return None
