"""Paints the shapes of annotations into class maps, and makes the rows of the painted pictures."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from components.data.annotations.boxes import EDGE
from components.data.annotations.column_cells import read_size
from components.data.annotations.shapes import Shape, cover, require_inside_picture
from components.data.manifest import Row
from components.records.maps import IGNORE, Painting, Regions
from components.records.objects import Mask
from components.records.reasons import Reason

Drawn = tuple[Row, Mapping[str, int]]  # a row, and counts for the notes

SHAPES_CLIPPED = f"shapes up to {EDGE} pixels over the edge of their picture, clipped"
UNSEEN = "shapes too small to cover the centre of a pixel, which show nothing"
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
    if painting.background is None:
        canvas[canvas == 0] = IGNORE
    return Painted(Regions.of(canvas, (painting.background or "", *names)), dict(+notes))


# Pictures


def paint_row(
    row: Row,
    parse: Callable[[tuple[int, int]], Sequence[Shape]],
    raw: Path,
    painting: Painting,
    source: str,
) -> Drawn:
    """The row with the regions of its picture, or with a problem, and counts for the notes.

    parse: the shapes in a picture of this width and height; a ValueError of it is what is wrong with a shape. source:
    the annotation file.
    """
    size = read_size(raw / row.path)
    if size is None:
        problem = Reason("an image that can be decoded", "a file without a size", "Export it again, or remove it.")
        return replace(row, problem=problem), {}
    if row.stated_size not in (None, size):
        return replace(row, problem=_wrong_size(row, size)), {}
    try:
        painted = paint(parse(size), size, painting)
    except ValueError as error:
        problem = Reason(f"shapes that can be painted in {source}", str(error), "Correct or remove the shape.")
        return replace(row, problem=problem), {}
    return replace(row, regions=painted.regions), painted.notes


def _wrong_size(row: Row, size: tuple[int, int]) -> Reason:
    width, height = row.stated_size or size
    expected = f"a picture of {width} x {height} pixels, as its annotation says"
    hint = "Annotate the picture as it is shown, or put back the one that was annotated."
    return Reason(expected, f"{size[0]} x {size[1]}", hint)


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
