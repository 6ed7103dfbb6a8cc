"""LabelMe: one JSON file per picture with its shapes, in versions 3 to 5."""

import base64
import binascii
import io
import json
import math
import posixpath
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components.data.annotations.boxes import is_number
from components.data.annotations.drawings import Drawing, Mark, read_drawings
from components.data.annotations.guessing import refuse_layout, require_folder
from components.data.annotations.pairing import choose_picture, claimed_twice, find_beside, find_named
from components.data.annotations.shapes import Bitmap, Ellipse, Part, box_ring, ring_of
from components.data.annotations.tree import Index, walk_files
from components.data.manifest import Reading, Row, Wanted
from components.data.sources.images import UNDECODABLE, brief
from components.data.sources.names import SUFFIXES
from components.domain.layouts import Labelme
from components.records.reasons import Reason

NAME = "`imagePath`"
BY_STEM = "annotation files whose `imagePath` names no picture, taken by their own name"
OTHERS = "JSON files without `shapes`, which are not of LabelMe, passed over"
NO_AREA = {"line": "a line", "linestrip": "a line strip", "point": "a point", "points": "points"}


def read_labelme(layout: Labelme, raw: Path, wanted: Wanted) -> Reading:
    """One row per object, cropped by its extent; one row per picture where all labels, boxes or regions are wanted.

    The picture of a file is the one that `imagePath` names, or the one with the file's stem.
    """
    images, annotations = require_folder(raw, layout.images, layout), require_folder(raw, layout.annotations, layout)
    pictures = [path for path in walk_files(raw, images) if path.lower().endswith(SUFFIXES)]
    others = {_stem(path) for path in walk_files(raw) if path.lower().endswith(SUFFIXES)} - set(map(_stem, pictures))
    found = [path for path in walk_files(raw, annotations) if path.lower().endswith(".json")]
    files = [path for path in found if _stem(path) not in others]  # beside a picture of another folder
    if not pictures or not files:
        refuse_layout(raw, layout, f"images in {layout.images!r} and .json files in {layout.annotations!r}", "none")
    index, notes = Index(pictures, images), Counter[str]()
    rows, drawings = list[Row](), dict[str, list[Drawing]]()
    for path in files:
        read = _read_file(path, raw, index, annotations, notes)
        if isinstance(read, Row):
            rows.append(read)
        elif read:
            drawings.setdefault(read.picture, []).append(read)
    if not drawings and not rows:
        refuse_layout(raw, layout, f"LabelMe files (.json with `shapes`) in {layout.annotations!r}", "none")
    twice = {
        picture: claimed_twice(picture, [one.source for one in several], NAME)
        for picture, several in drawings.items()
        if len(several) > 1
    }
    rows += [Row(path=picture, problem=problem) for picture, problem in twice.items()]
    reading = read_drawings([each[0] for each in drawings.values() if len(each) == 1], raw, wanted, layout.ignore)
    named = {row.path for row in rows} | drawings.keys()
    problem = Reason("an annotation file of the same name", "none", "Add it, or remove the picture.")
    dense = wanted.boxed or wanted.painting is not None  # the task decides on pictures without annotation
    missing = [Row(path=path, problem=None if dense else problem) for path in pictures if path not in named]
    return Reading(reading.rows + rows + missing, reading.ignored, dict(+(notes + Counter(reading.notes))))


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


def _read_file(path: str, raw: Path, index: Index, annotations: str, notes: Counter[str]) -> Drawing | Row | None:
    """What a file draws; a row with a problem if it cannot be read; None for JSON that is not LabelMe's."""
    beside = find_beside(path, annotations, index)
    try:
        content = json.loads((raw / path).read_bytes())
        if not isinstance(content, dict) or "shapes" not in content:
            if not beside:
                notes[OTHERS] += 1
                return None
            raise ValueError("no list `shapes`")
        marks, flags = _read_marks(content["shapes"]), _read_flags(content.get("flags"))
        named = content.get("imagePath")
        named = named.strip() if isinstance(named, str) else ""
        for text in (named, *flags, *(mark.label for mark in marks)):
            text.encode()  # raises ValueError for lone surrogates, which no table can hold
    except (ValueError, RecursionError) as error:
        problem = Reason(f"a LabelMe file {path}", brief(error), "Export it again, or correct it.")
        return Row(path=next(iter(beside), path), problem=problem)
    picture, why = choose_picture(named, beside, path, index, NAME)
    if why:
        return Row(path=next(iter(beside), path), problem=why)
    notes[BY_STEM] += bool(named and not find_named(named, index))
    return Drawing(picture, path, marks, flags, _read_size(content))


def _read_flags(flags: object) -> list[str]:
    return [str(name) for name, state in flags.items() if state is True] if isinstance(flags, Mapping) else []


def _read_size(content: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = content.get("imageWidth"), content.get("imageHeight")
    stated = all(type(side) is int and 0 < side < 10**6 for side in (width, height))
    return (width, height) if stated else None  # type: ignore[return-value]


def _read_marks(shapes: object) -> list[Mark]:
    """The shapes of a file; what is wrong with their points is found where they are read. Raises ValueError."""
    if not isinstance(shapes, list):
        raise ValueError("`shapes` that is not a list")
    marks = []
    for number, shape in enumerate(shapes):
        if not isinstance(shape, dict):
            raise ValueError(f"shapes[{number}] that is not an object")
        label = shape.get("label")
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"shapes[{number}] without a label")
        group = shape.get("group_id")
        where = f"shapes[{number}] ({label.strip()[:40]})"
        marks.append(Mark(label.strip(), where, partial(_read_parts, shape), None if group is None else str(group)))
    return marks


def _read_parts(shape: Mapping[str, Any]) -> tuple[Part, ...]:
    """The area of a shape. Raises ValueError for one without, and for points that are no points."""
    kind = shape.get("shape_type") or "polygon"
    if kind in NO_AREA:
        raise ValueError(f"{NO_AREA[kind]}, which has no area")
    points = shape.get("points")
    if not isinstance(points, list) or not all(_is_point(point) for point in points):
        raise ValueError("`points` that is not a list of [x, y]")
    ring = ring_of([float(value) for point in points for value in point])
    if kind == "polygon" or (kind == "rectangle" and len(ring) == 4):
        return (ring,)
    if kind not in ("rectangle", "circle", "mask"):
        raise ValueError(f"a shape_type {str(kind)[:40]!r}, which is not read")
    if len(ring) != 2:
        raise ValueError(f"a {kind} of {len(ring)} points, not 2")
    (x0, y0), (x1, y1) = ring.tolist()
    if kind == "circle":  # its centre, and a point on it
        radius = math.hypot(x1 - x0, y1 - y0)
        return (Ellipse(x0, y0, radius, radius),)
    if kind == "mask":
        return (_read_mask(shape.get("mask"), (x0, y0), (x1, y1)),)
    return (box_ring(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)),)


def _is_point(point: object) -> bool:
    return isinstance(point, list) and len(point) == 2 and all(is_number(value) for value in point)


def _read_mask(text: object, first: tuple[float, float], last: tuple[float, float]) -> Bitmap:
    """A mask as PNG in base64, whose corners lie on the pixels `first` and `last`. Raises ValueError."""
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
        with Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
            pixels = np.asarray(opened)
    except (Image.DecompressionBombError, binascii.Error, *UNDECODABLE):
        raise ValueError("a `mask` that is not a PNG in base64") from None
    if pixels.ndim != 2:
        raise ValueError(f"a `mask` in mode {opened.mode}, not one channel")
    sides = tuple(int(end) - int(start) + 1 for start, end in zip(first, last, strict=True))
    if any(abs(side - found) > 1 for side, found in zip(sides, pixels.shape[::-1], strict=True)):
        raise ValueError(
            f"a `mask` of {pixels.shape[1]} x {pixels.shape[0]} pixels in a box of {sides[0]} x {sides[1]}"
        )
    return Bitmap(pixels != 0, int(first[0]), int(first[1]))
