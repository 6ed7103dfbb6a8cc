"""Boxes of annotations: checks their numbers, and clips boxes that exceed their picture by a little."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

from components.data.annotations.column_cells import read_size
from components.data.manifest import Reading, Row
from components.data.sources.images import Box

EDGE = 2  # pixels by which rounding, and counting from 1 instead of 0, can exceed an edge
CLIPPED = f"boxes up to {EDGE} pixels over the edge of their picture, clipped"


def clip_boxes(reading: Reading, raw: Path) -> Reading:
    """Clip boxes that exceed their picture by up to EDGE pixels, and count them in the reading's notes.

    The size is the one that the annotation states (validation compares it with the picture's), else the picture's own.
    A box that exceeds it further stays as it is, and validation refuses it.
    """
    sizes: dict[str, tuple[int, int] | None] = {}
    notes = Counter(reading.notes)
    rows = [_clip_row(row, raw, sizes, notes) for row in reading.rows]
    return replace(reading, rows=rows, notes=dict(notes))


def _clip_row(row: Row, raw: Path, sizes: dict[str, tuple[int, int] | None], notes: Counter[str]) -> Row:
    written = [*([row.crop] if row.crop else []), *row.boxes]
    if not written or row.problem:
        return row
    size = row.stated_size
    if size is None:
        if row.path not in sizes:
            sizes[row.path] = read_size(raw / row.path)
        size = sizes[row.path]
    if size is None:  # validation reports why the picture has no size
        return row
    clipped = [clip(box, *size) for box in written]
    if clipped == written:
        return row
    notes[CLIPPED] += sum(one != other for one, other in zip(clipped, written, strict=True))
    return replace(row, crop=clipped[0] if row.crop else None, boxes=clipped[1:] if row.crop else clipped)


def clip(box: Box, width: int, height: int) -> Box:
    """The box clipped to the picture where it exceeds it by at most EDGE pixels; else the box unchanged."""
    x0, y0, x1, y1 = box
    if min(x0, y0) < -EDGE or x1 > width + EDGE or y1 > height + EDGE:
        return box
    cut = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    return cut if cut[0] < cut[2] and cut[1] < cut[3] else box


def is_number(value: object) -> bool:
    """Whether `value` is a finite number below 1e9 (as a number or as text), so that it can be a pixel coordinate."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(value)) and abs(float(value)) < 1e9  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False
