"""Shapes of annotations: polygons, ellipses and bitmaps, and which pixels of a picture they cover.

A pixel belongs to a shape if its centre does: pixel (column, row) has its centre at (column + .5, row + .5), and (0, 0)
is the picture's upper left corner. A ring that crosses itself is filled by the even-odd rule; several parts of one
shape are united. Two rings that share an edge neither overlap nor leave a gap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.data.annotations.boxes import EDGE
from components.records.objects import Mask

Ints = NDArray[np.int64]
Ring = NDArray[np.float64]  # (points, 2), x and y in pixels


@dataclass(frozen=True)
class Bitmap:
    """Pixels (h, w) whose upper left corner lies at (x, y) of the picture."""

    pixels: Mask
    x: int = 0
    y: int = 0

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the picture."""
        height, width = self.pixels.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)


@dataclass(frozen=True)
class Ellipse:
    """Centre and radii in pixels, turned clockwise by `angle` degrees."""

    x: float
    y: float
    across: float
    down: float
    angle: float = 0.0


Part = Ring | Bitmap | Ellipse


@dataclass(frozen=True)
class Shape:
    """One annotated object. name: its class; None for pixels to ignore. where: its place in the file, for messages."""

    name: str | None
    parts: tuple[Part, ...]
    where: str = "a shape"


def ring_of(values: Sequence[float]) -> Ring:
    """A ring from `x1 y1 x2 y2 ...`. Raises ValueError for an odd number of values."""
    if len(values) % 2:
        raise ValueError(f"{len(values)} values, which are no pairs of x and y")
    return np.array(values, np.float64).reshape(-1, 2)


def box_ring(x0: float, y0: float, x1: float, y1: float, angle: float = 0.0) -> Ring:
    """A box as a ring, turned clockwise by `angle` degrees around its centre."""
    ring = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)
    if not angle:
        return ring
    centre, turn = ring.mean(axis=0), np.deg2rad(angle)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    turned: Ring = centre + (ring - centre) @ matrix
    return turned


def extent_of(shape: Shape) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 around all parts of a shape."""
    corners = np.array([_extent(part) for part in shape.parts])
    low, high = corners.min(axis=0), corners.max(axis=0)
    return float(low[0]), float(low[1]), float(high[2]), float(high[3])


def is_box(shape: Shape) -> bool:
    """Whether a shape is one upright box, and not only inside of it."""
    if len(shape.parts) > 1 or not isinstance(ring := shape.parts[0], np.ndarray) or len(ring) != 4:
        return False
    return bool((ring == np.roll(ring, 1, axis=0)).any(axis=1).all())


def _extent(part: Part) -> tuple[float, float, float, float]:
    if isinstance(part, Bitmap):
        rows, columns = np.flatnonzero(part.pixels.any(axis=1)), np.flatnonzero(part.pixels.any(axis=0))
        if not len(rows):
            return part.x, part.y, part.x, part.y
        return part.x + columns[0], part.y + rows[0], part.x + columns[-1] + 1, part.y + rows[-1] + 1
    if isinstance(part, Ellipse):
        turn = np.deg2rad(part.angle)
        wide = float(np.hypot(part.across * np.cos(turn), part.down * np.sin(turn)))
        high = float(np.hypot(part.across * np.sin(turn), part.down * np.cos(turn)))
        return part.x - wide, part.y - high, part.x + wide, part.y + high
    return *part.min(axis=0).tolist(), *part.max(axis=0).tolist()


def require_inside_picture(shape: Shape, size: tuple[int, int]) -> bool:
    """Whether a shape exceeds its picture by no more than EDGE pixels. Raises ValueError if it is no legal shape."""
    require_legal(shape)
    x0, y0, x1, y1 = extent_of(shape)
    if min(x0, y0) < -EDGE or x1 > size[0] + EDGE or y1 > size[1] + EDGE:
        extent = ", ".join(f"{value:.6g}" for value in (x0, y0, x1, y1))
        raise ValueError(f"{shape.where}: from {extent} (x0, y0, x1, y1) in a picture of {size[0]} x {size[1]} pixels")
    return bool(min(x0, y0) < 0 or x1 > size[0] or y1 > size[1])


def require_legal(shape: Shape) -> None:
    """Raise ValueError for a shape without area, or with coordinates that are no numbers."""
    for part in shape.parts:
        if isinstance(part, Bitmap):
            if part.pixels.ndim != 2 or not part.pixels.any():
                raise ValueError(f"{shape.where}: a mask without a pixel")
        elif isinstance(part, Ellipse):
            _require_ellipse(part, shape.where)
        else:
            _require_ring(part, shape.where)


def _require_ring(ring: Ring, where: str) -> None:
    if not np.isfinite(ring).all():
        raise ValueError(f"{where}: a coordinate that is not a finite number")
    if len(ring) < 3:
        raise ValueError(f"{where}: {len(ring)} point{'s' if len(ring) != 1 else ''}, of at least 3")
    apart = ring - ring[0]
    far = apart[np.abs(apart).sum(axis=1).argmax()]
    aside = np.abs(apart[:, 0] * far[1] - apart[:, 1] * far[0]).max()
    if aside <= 1e-9 * (far @ far):  # shares of a size are no exact numbers
        raise ValueError(f"{where}: no area, because all its points lie on one line")


def _require_ellipse(part: Ellipse, where: str) -> None:
    if not np.isfinite([part.x, part.y, part.across, part.down, part.angle]).all():
        raise ValueError(f"{where}: a coordinate that is not a finite number")
    if min(part.across, part.down) <= 0:
        raise ValueError(f"{where}: no area, because a radius is not above 0")


# Pixels


def cover(shape: Shape, size: tuple[int, int]) -> Bitmap:
    """The pixels of a shape that lie in a picture of `size` (width, height)."""
    covers = [_cover_part(part, size) for part in shape.parts]
    if len(covers) == 1:
        return covers[0]
    left, top = min(each.x for each in covers), min(each.y for each in covers)
    right = max(each.x + each.pixels.shape[1] for each in covers)
    bottom = max(each.y + each.pixels.shape[0] for each in covers)
    union = Bitmap(np.zeros((bottom - top, right - left), np.bool_), left, top)
    for each in covers:
        rows, columns = each.window
        union.pixels[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] |= each.pixels
    return union


def _cover_part(part: Part, size: tuple[int, int]) -> Bitmap:
    if isinstance(part, Bitmap):
        left, top = max(0, -part.x), max(0, -part.y)
        return Bitmap(part.pixels[top : size[1] - part.y, left : size[0] - part.x], max(part.x, 0), max(part.y, 0))
    return _cover_ellipse(part, size) if isinstance(part, Ellipse) else _cover_ring(part, size)


def _cover_ellipse(part: Ellipse, size: tuple[int, int]) -> Bitmap:
    x0, y0, x1, y1 = _extent(part)
    left, top = max(0, int(x0)), max(0, int(y0))
    columns = np.arange(left, min(size[0], int(np.ceil(x1)))) + 0.5 - part.x
    rows = (np.arange(top, min(size[1], int(np.ceil(y1)))) + 0.5 - part.y)[:, None]
    turn = np.deg2rad(part.angle)
    along = (columns * np.cos(turn) + rows * np.sin(turn)) / part.across
    aside = (rows * np.cos(turn) - columns * np.sin(turn)) / part.down
    return Bitmap(along**2 + aside**2 <= 1, left, top)


def _cover_ring(ring: Ring, size: tuple[int, int]) -> Bitmap:
    """Even-odd: an edge flips, in each row whose centres it crosses, all pixels with centres right of the crossing."""
    edge, row, column = _find_crossings(ring, size)
    if not len(edge):
        return Bitmap(np.zeros((0, 0), np.bool_))
    left, top = int(column.min()), int(row.min())
    flips = np.zeros((int(row.max()) + 1 - top, int(column.max()) + 1 - left), np.uint8)
    np.bitwise_xor.at(flips, (row - top, column - left), 1)
    return Bitmap(np.bitwise_xor.accumulate(flips, axis=1)[:, :-1].astype(np.bool_), left, top)


def _find_crossings(ring: Ring, size: tuple[int, int]) -> tuple[Ints, Ints, Ints]:
    """For each crossing of an edge with a row of centres: the edge, the row, and the first column right of it."""
    width, height = size
    ends = np.roll(ring, -1, axis=0)
    down = (ring[:, 1] <= ends[:, 1])[:, None]  # edges go downwards, so that neighbours compute the same crossings
    (x0, y0), (x1, y1) = np.where(down, ring, ends).T, np.where(down, ends, ring).T
    first, last = (np.clip(np.ceil(y - 0.5), 0, height).astype(np.int64) for y in (y0, y1))
    rows = last - first
    edge = np.repeat(np.arange(len(ring)), rows)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows, rows) + first[edge]
    x = x0[edge] + (row + 0.5 - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    return edge, row, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
