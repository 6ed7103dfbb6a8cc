"""Paints the shapes of annotations into class maps, and makes the rows of the painted pictures."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from components.data.annotations.boxes import EDGE
from components.data.annotations.columns import read_size
from components.data.annotations.shapes import Shape, cover, require_inside_picture
from components.data.manifest import Row
from components.records.maps import IGNORE, Painting, Regions
from components.records.objects import Mask
from components.records.reasons import Reason

Drawn = tuple[Row, Mapping[str, int]]  # a row, and counts for the notes

SHAPES_CLIPPED = f"shapes up to {EDGE} pixels over the edge of their picture, clipped"
UNSEEN = "shapes too small to cover the centre of a pixel, which show nothing"
NOTHING = "pictures whose annotation shows nothing but background"
AS_BACKGROUND = "pictures without any annotation, taken as background"
LEFT_OUT = (
    "pictures without any annotation, left out (if they show background, write `unannotated: background` in `task`)"
)
NO_ANNOTATION = "no annotation; if that means background, write `unannotated: background` in `task`"
OVERLAP = {
    "later": "pixels on which shapes of different classes overlap (the later one counts)",
    "smaller": "pixels on which shapes of different classes overlap (the smaller one counts)",
}


@dataclass(frozen=True)
class Painted:
    """A picture's regions, and counts for the notes of its reading."""

    regions: Regions
    notes: Mapping[str, int] = field(default_factory=dict)


def paint(shapes: Sequence[Shape], size: tuple[int, int], painting: Painting) -> Painted:
    """The regions of a picture of `size` (width, height) that shows these shapes, in the order of their file.

    Raises ValueError for a shape that cannot be painted: it lies outside of the picture, or has no area.
    """
    names = list(dict.fromkeys(shape.name for shape in shapes if shape.name is not None))
    if len(names) >= IGNORE - 1:
        raise ValueError(f"{len(names)} classes in one picture, of at most {IGNORE - 2}")
    numbers: dict[str | None, int] = {None: IGNORE} | {name: number for number, name in enumerate(names, 1)}
    notes = Counter({SHAPES_CLIPPED: sum(require_inside_picture(shape, size) for shape in shapes)})
    areas = [int(cover(shape, size).pixels.sum()) for shape in shapes]
    notes[UNSEEN] += areas.count(0)
    ordered = list(shapes)
    if painting.overlap == "smaller":
        ordered = [shapes[place] for place in sorted(range(len(shapes)), key=lambda place: -areas[place])]
    canvas = np.zeros(size[::-1], np.uint8)  # 0: no shape
    contested: Mask = np.zeros(size[::-1], np.bool_)
    for shape in ordered:
        covered = cover(shape, size)
        below, number = canvas[covered.window], numbers[shape.name]
        if number != IGNORE:
            contested[covered.window] |= covered.pixels & (below != 0) & (below != IGNORE) & (below != number)
        below[covered.pixels] = number
    notes[OVERLAP[painting.overlap]] += int(contested.sum())
    notes[NOTHING] += not canvas.any()
    if painting.background is None:
        canvas[canvas == 0] = IGNORE
    return Painted(Regions.of(canvas, (painting.background or "", *names)), dict(+notes))


# Pictures


def paint_row(
    path: str,
    shapes: Sequence[Shape],
    raw: Path,
    painting: Painting,
    source: str,
    *,
    stated: tuple[int, int] | None = None,
    columns: Mapping[str, str | None] | None = None,
) -> Drawn:
    """The row of a picture and counts for the notes. A shape that cannot be painted becomes the row's problem.

    A row without regions is one whose picture has no size, or another one than the annotation states; validation
    reports both.
    """
    row = Row(path=path, stated_size=stated, columns=columns or {})
    size = read_size(raw / path)
    if size is None or stated not in (None, size):
        return row, {}
    try:
        painted = paint(shapes, size, painting)
    except ValueError as error:
        return Row(path=path, columns=row.columns, problem=_unfit(source, error)), {}
    return Row(path=path, regions=painted.regions, stated_size=stated, columns=row.columns), painted.notes


def _unfit(source: str, error: ValueError) -> Reason:
    return Reason(f"shapes of the picture in {source}", str(error), "Correct or remove the shape.")


def take_unannotated(
    paths: Iterable[str], raw: Path, painting: Painting, columns: Mapping[str, Mapping[str, str | None]] | None = None
) -> tuple[list[Row], dict[str, str], dict[str, int]]:
    """Pictures without any annotation as rows of background, or as ignored ones, each with the counts for the notes."""
    listed = list(paths)
    if not listed:
        return [], {}, {}
    if painting.unannotated == "leave_out":
        return [], dict.fromkeys(listed, NO_ANNOTATION), {LEFT_OUT: len(listed)}
    rows = [paint_row(path, (), raw, painting, path, columns=(columns or {}).get(path))[0] for path in listed]
    return rows, {}, {AS_BACKGROUND: len(listed)}


def paint_all(
    draw: Callable[[str], tuple[Row, Mapping[str, int]]], paths: Sequence[str]
) -> tuple[list[Row], Counter[str]]:
    """Draw pictures in threads; the rows in the order of `paths`, and the sum of the counts."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        drawn = list(pool.map(draw, paths))
    notes = Counter[str]()
    for _, counts in drawn:
        notes.update(counts)
    return [row for row, _ in drawn], notes
