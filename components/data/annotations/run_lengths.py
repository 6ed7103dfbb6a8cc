"""Run lengths in a table to regions: one line per picture and class, with `start length start length ...`.

Starts count pixels down the columns from 1, as in competitions on Kaggle (`EncodedPixels`). An empty cell says that the
picture shows nothing of the class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from components.data.annotations.painting import Drawn, paint_all, paint_row
from components.data.annotations.shapes import Bitmap, Shape
from components.data.manifest import Row
from components.records.maps import Painting
from components.records.objects import Mask

Cell = tuple[str, str | None, str]  # the class, its run lengths, and their place in the table


def paint_runs(
    rows: Sequence[Row], cells: Sequence[tuple[str | None, str]], raw: Path, painting: Painting
) -> tuple[list[Row], Mapping[str, int]]:
    """One row per picture with its regions, and counts for the notes. cells: run lengths and place of each row."""
    first, found = dict[str, Row](), dict[str, list[Cell]]()
    for row, (text, where) in zip(rows, cells, strict=True):
        kept = first.setdefault(row.path, replace(row, label=None))
        if row.problem and not kept.problem:
            first[row.path] = replace(kept, problem=row.problem)
        found.setdefault(row.path, []).append((row.label or "", text, where))

    def draw(path: str) -> Drawn:
        if first[path].problem:
            return first[path], {}
        return paint_row(
            first[path], lambda size: list(_shapes_of(found[path], size)), raw, painting, found[path][0][2]
        )

    return paint_all(draw, list(first))


def _shapes_of(cells: Sequence[Cell], size: tuple[int, int]) -> Sequence[Shape]:
    return [Shape(name, (Bitmap(decode_runs(text, size)),), where) for name, text, where in cells if text]


def decode_runs(text: str, size: tuple[int, int]) -> Mask:
    """The mask (H, W) of `start length ...` in a picture of `size` (width, height).

    Raises ValueError for text in another form, and for runs that overlap or lie outside of the picture.
    """
    width, height = size
    parts = text.split()
    if len(parts) % 2 or not all(part.isdecimal() and len(part) < 12 for part in parts):
        raise ValueError(f"run lengths {text[:40]!r}, which are no pairs of start and length")
    numbers = np.array(parts, np.int64)
    starts, ends = numbers[::2] - 1, numbers[::2] - 1 + numbers[1::2]
    if (starts < 0).any() or (numbers[1::2] < 1).any() or (starts[1:] < ends[:-1]).any():
        raise ValueError("run lengths that overlap, are not in order, or count from 0")
    if ends.size and ends[-1] > width * height:
        raise ValueError(f"run lengths to pixel {ends[-1]:,} of {width * height:,} ({width} x {height})")
    steps = np.zeros(width * height + 1, np.int64)
    np.add.at(steps, starts, 1)
    np.add.at(steps, ends, -1)
    mask: Mask = np.cumsum(steps[:-1]).astype(np.bool_).reshape(width, height).T
    return mask
