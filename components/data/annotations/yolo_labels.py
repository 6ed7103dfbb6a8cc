"""YOLO's label files: the lines of one picture, `class cx cy width height` in shares of its size, or outlines."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from components.data.annotations.shapes import extent_of, require_legal
from components.data.annotations.yolo_shapes import read_polygon
from components.records.reasons import Reason

OVER = 0.1  # share by which a box may exceed its picture here; `clip_boxes` and validation check the pixels later
SLACK = 1e-4  # share by which rounding to few digits can exceed 1
#: What a line with another number of values than 5 means.
FORMS = {
    6: "a box with a confidence (six numbers), as a model predicts it",
    9: "an oriented box or an outline of four corners (nine numbers)",
}
OUTLINE, KEYPOINTS = "an outline (a polygon, as segmentation has it)", "a box with keypoints (pose)"


class Line(NamedTuple):
    """One line of a label file. shares: centre and size in shares of the picture. outline: it is a polygon's extent."""

    name: str
    shares: tuple[float, float, float, float]
    number: int
    outline: bool = False


@dataclass(frozen=True)
class Labels:
    """One label file. form: what its lines are, if Tessera does not read them; problem: why the file is unfit."""

    objects: list[Line] = field(default_factory=list)
    form: str | None = None
    problem: Reason | None = None


def read_labels(file: Path, names: Mapping[int, str], *, outlines: bool = False) -> Labels:
    """outlines: whether lines of at least three points are polygons, whose extent is the box."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError):
        return Labels(problem=_unfit("lines of numbers", "other bytes than text"))
    objects = list[Line]()
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        if outlines and _is_outline(parts):
            found = _read_outline(parts, number, names)
        elif len(parts) == 5:
            found = _read_box(parts, number, names)
        else:
            form = FORMS.get(len(parts)) or (OUTLINE if _is_outline(parts) else None)
            form = form or (KEYPOINTS if len(parts) >= 8 else None)
            what = form or f"{len(parts)} values"
            return Labels(form=form, problem=_unfit("`class cx cy width height`", f"{what} in line {number}"))
        if isinstance(found, Reason):
            return Labels(problem=found)
        objects.append(found)
    return Labels(objects)


def _is_outline(parts: Sequence[str]) -> bool:
    return len(parts) % 2 == 1 and len(parts) >= 7


def holds_outline(file: Path) -> bool:
    """Whether a line is an outline and no oriented box: it has another number of points than four."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError):  # `read_labels` reports it
        return False
    return any(_is_outline(parts) and len(parts) != 9 for parts in map(str.split, lines))


def _read_outline(parts: list[str], number: int, names: Mapping[int, str]) -> Line | Reason:
    try:
        shape = read_polygon(parts, f"line {number}", names, (1, 1))
        require_legal(shape)
    except ValueError as error:
        return _unfit("a class number and at least three points", str(error))
    x0, y0, x1, y1 = extent_of(shape)
    return Line(str(shape.name), ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), number, outline=True)


def _read_box(parts: list[str], number: int, names: Mapping[int, str]) -> Line | Reason:
    values = [float(part) if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", part) else None for part in parts]
    name, why = _name_of(parts[0], values[0], names)
    shares = [value for value in values[1:] if value is not None]
    if len(shares) < 4 or not all(-SLACK <= share <= 1 + OVER * (place > 1) for place, share in enumerate(shares)):
        why = ("a class number and four numbers from 0 to 1", " ".join(parts))
    elif min(shares[2:]) <= 0:
        why = why or ("a box with width and height", " ".join(parts))
    if why:
        return _unfit(why[0], f"{why[1][:80]} in line {number}")
    return Line(name, (shares[0], shares[1], shares[2], shares[3]), number)


def _unfit(expected: str, found: str) -> Reason:
    return Reason(expected, found, "Correct the label file.")


def _name_of(text: str, value: float | None, names: Mapping[int, str]) -> tuple[str, tuple[str, str] | None]:
    """The name of a class number, and, where there is none, what was expected and found."""
    if value is None or not math.isfinite(value) or value != int(value) or int(value) not in names:
        return "", (f"one of the class numbers {', '.join(map(str, sorted(names)[:20]))}", f"class {text[:40]}")
    return names[int(value)], None
