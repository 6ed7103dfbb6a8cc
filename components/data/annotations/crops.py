"""Crops from instance-id masks: a square around each instance, and squares of background without instances."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.data.sources.images import FORMATS, Box

MIN_CROP = 24  # pixels: a smaller crop shows no surroundings of the instance


def read_ids(path: Path) -> NDArray[np.int64]:
    """The id of every pixel, (H, W). Raises ValueError for a mask with several channels or with float values."""
    with Image.open(path, formats=FORMATS) as opened:
        ids = np.asarray(opened)
    if ids.ndim != 2 or ids.dtype.kind not in "uib":
        raise ValueError(f"an image of mode {opened.mode}")
    return ids.astype(np.int64)


def find_boxes(ids: NDArray[np.int64]) -> list[Box]:
    """Boxes (x0, y0, x1, y1; ends exclusive) of every id except 0, in the order of the ids."""
    y, x = np.nonzero(ids)
    unique, number = np.unique(ids[y, x], return_inverse=True)
    low = np.full((unique.size, 2), max(ids.shape), dtype=np.int64)
    high = np.zeros((unique.size, 2), dtype=np.int64)
    np.minimum.at(low, number, np.stack([x, y], axis=1))
    np.maximum.at(high, number, np.stack([x, y], axis=1) + 1)
    return [(int(a), int(b), int(c), int(d)) for (a, b), (c, d) in zip(low, high, strict=True)]


def square_around(box: Box, width: int, height: int) -> Box:
    """A square with 1.5 times the box's longer side, shifted to lie inside the picture."""
    x0, y0, x1, y1 = box
    side = min(max(round(1.5 * max(x1 - x0, y1 - y0)), MIN_CROP), width, height)
    left = min(max((x0 + x1 - side) // 2, 0), width - side)
    top = min(max((y0 + y1 - side) // 2, 0), height - side)
    return left, top, left + side, top + side


def draw_background(ids: NDArray[np.int64], sides: Iterable[int], digest: str, tries: int = 256) -> list[Box]:
    """For each side length, a square without any instance, if `tries` random places contain one.

    The places depend only on the file's sha256 (`digest`), so a picture always gives the same crops.
    """
    rng = np.random.default_rng(int(digest[:16], 16))
    height, width = ids.shape
    filled = np.pad(np.cumsum(np.cumsum(ids != 0, axis=0, dtype=np.int64), axis=1), ((1, 0), (1, 0)))
    crops = []
    for side in sides:
        x, y = rng.integers(0, width - side + 1, tries), rng.integers(0, height - side + 1, tries)
        inside = filled[y + side, x + side] - filled[y, x + side] - filled[y + side, x] + filled[y, x]
        if (free := np.flatnonzero(inside == 0)).size:
            left, top = int(x[free[0]]), int(y[free[0]])
            crops.append((left, top, left + side, top + side))
    return list(dict.fromkeys(crops))
