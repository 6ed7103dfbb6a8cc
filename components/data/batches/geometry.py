"""Where a picture lies on the canvas that a network sees, and the way back to the picture's own size.

    placement = place((640, 480), (256, 256), "letterbox")   # box (0, 32, 256, 224)
    pixels = fit_image(picture, (256, 256), "letterbox")     # (256, 256, 3) uint8
    classes = fit_map(class_map, (256, 256), "letterbox")    # (256, 256) uint8, IGNORE where the canvas is grey
    answer = restore(logits, placement, (480, 640))          # (C, 64, 64) -> (C, 480, 640) float32

`squash` fills the canvas and gives up the picture's aspect. `letterbox` keeps the aspect: the picture lies in the
middle, in whole pixels, and GREY fills the rest. Sizes are (width, height) as Pillow has them; canvases and shapes of
arrays are (height, width).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.data.sources.images import Box, Upright
from components.domain.canvas import Fit
from components.records.maps import IGNORE, ClassMap

Pixels = NDArray[np.uint8]
Floats32 = NDArray[np.float32]

#: Of letterbox: the middle of 0 to 255. Every backbone's normalisation brings it near 0, where a pixel says least, and
#: it does not depend on the backbone, so backbones share the decoded pixels.
GREY = 128
BAND = 1 << 22  # numbers that `restore` computes at a time


@dataclass(frozen=True)
class Placement:
    """box: x0, y0, x1, y1 of the picture on the canvas, in whole pixels. canvas: (height, width)."""

    box: Box
    canvas: tuple[int, int]


def place(size: tuple[int, int], canvas: tuple[int, int], fit: Fit) -> Placement:
    """Where a picture of (width, height) lies. Its shorter side keeps at least one pixel."""
    rows, columns = canvas
    if fit == "squash":
        return Placement((0, 0, columns, rows), canvas)
    scale = min(columns / size[0], rows / size[1])
    width, height = (max(1, round(side * scale)) for side in size)
    left, top = (columns - width) // 2, (rows - height) // 2
    return Placement((left, top, left + width, top + height), canvas)


def find_canvas(size: tuple[int, int], canvas: tuple[int, int], fit: Fit) -> tuple[float, float, float, float]:
    """Where the canvas lies in the pixels of a picture of (width, height): x0, y0, x1, y1, beyond its edges where the
    picture is letterboxed."""
    left, top, right, bottom = place(size, canvas, fit).box
    across, down = size[0] / (right - left), size[1] / (bottom - top)
    return -left * across, -top * down, (canvas[1] - left) * across, (canvas[0] - top) * down


def fit_image(picture: Upright, canvas: tuple[int, int], fit: Fit, crop: Box | None = None) -> Pixels:
    """The picture, or the part of it in `crop`, on the canvas: (height, width, 3) uint8."""
    rows, columns = canvas
    if fit == "squash":
        return np.asarray(picture.shrink((columns, rows), "RGB", crop))
    size = picture.size if crop is None else (crop[2] - crop[0], crop[3] - crop[1])
    left, top, right, bottom = place(size, canvas, fit).box
    whole = Image.new("RGB", (columns, rows), (GREY, GREY, GREY))
    whole.paste(picture.shrink((right - left, bottom - top), "RGB", crop), (left, top))
    return np.asarray(whole)


def fit_map(classes: ClassMap, canvas: tuple[int, int], fit: Fit) -> ClassMap:
    """(H, W) class map on the canvas: every pixel has the class of the picture at its centre, or IGNORE around it."""
    height, width = classes.shape
    left, top, right, bottom = place((width, height), canvas, fit).box
    whole = np.full(canvas, IGNORE, np.uint8)
    whole[top:bottom, left:right] = classes[_centres(height, bottom - top)][:, _centres(width, right - left)]
    return whole


def restore(array: NDArray[np.floating], placement: Placement, shape: tuple[int, int]) -> Floats32:
    """(C, h, w) of the canvas, at any resolution, to the picture's own (height, width): (C, height, width) float32.

    The padding is cut, and what remains is resized bilinearly between the centres of its pixels.
    """
    whole = np.empty((len(array), *shape), np.float32)
    for top, band in restore_bands(array, placement, shape):
        whole[:, top : top + band.shape[1]] = band
    return whole


def restore_bands(
    array: NDArray[np.floating], placement: Placement, shape: tuple[int, int]
) -> Iterator[tuple[int, Floats32]]:
    """What `restore` returns, from top to bottom in bands (C, rows, width), each with its first row.

    For pictures whose answer is reduced to classes before the next band: a band has about four million numbers.
    """
    channels, (height, width) = len(array), shape
    x0, y0, x1, y1 = placement.box
    rows = _find_cells(array.shape[1], (y0, y1), placement.canvas[0], height)
    columns = _find_cells(array.shape[2], (x0, x1), placement.canvas[1], width)
    wide = _blend(array.astype(np.float32, copy=False), columns, axis=2)
    step = max(BAND // max(channels * width, 1), 1)
    for top in range(0, height, step):
        yield top, _blend(wide, rows.cut(top, top + step), axis=1)


def _centres(length: int, wanted: int) -> NDArray[np.int64]:
    """The places among `length` pixels that lie under the centres of `wanted` pixels, in exact integers."""
    return (2 * np.arange(wanted, dtype=np.int64) + 1) * length // (2 * wanted)


class _Cells(NamedTuple):
    """Where pixels lie among the cells of one axis: before and behind each centre, and the weight of the latter."""

    before: NDArray[np.int64]
    behind: NDArray[np.int64]
    weight: Floats32

    def cut(self, start: int, end: int) -> "_Cells":
        return _Cells(self.before[start:end], self.behind[start:end], self.weight[start:end])


def _find_cells(length: int, part: tuple[int, int], side: int, wanted: int) -> _Cells:
    """For `wanted` pixels of a part of a canvas's side, which is divided into `length` cells, in exact integers.

    Only cells that the part touches are read, so that nothing of the padding is.
    """
    first, last = part[0] * length // side, -(-part[1] * length // side) - 1
    numbers = 2 * np.arange(wanted, dtype=np.int64) + 1
    # (start + number * (end - start) / (2 * wanted)) * length / side - 1 / 2, over one denominator
    whole = 2 * wanted * side
    centres = length * (2 * wanted * part[0] + numbers * (part[1] - part[0])) - wanted * side
    centres = np.clip(centres, first * whole, last * whole)
    before = centres // whole
    return _Cells(before, np.minimum(before + 1, last), (centres % whole / whole).astype(np.float32))


def _blend(array: Floats32, cells: _Cells, axis: int) -> Floats32:
    """Linear interpolation between the cells of one axis."""
    weight = cells.weight[:, None] if axis == 1 else cells.weight
    low = np.take(array, cells.before, axis)
    mixed: Floats32 = low + (np.take(array, cells.behind, axis) - low) * weight
    return mixed
