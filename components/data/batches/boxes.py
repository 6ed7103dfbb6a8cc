"""Boxes of the manifest on the canvas of the training, and boxes of the canvas back in pixels of their picture.

Arrays of boxes are those of `components.records.boxes`.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.data.batches.geometry import Placement, place
from components.domain.canvas import Fit
from components.records.boxes import NONE, read_objects, to_targets

Targets = NDArray[np.float32]
Boxes = NDArray[np.floating]
Floats = NDArray[np.float64]


def fit_boxes(targets: Boxes, size: tuple[int, int], canvas: tuple[int, int], fit: Fit) -> Boxes:
    """(M, 6) in a picture of (width, height) to the canvas (height, width), where the picture lies on it."""
    scale, shift = _find_scale(place(size, canvas, fit), size)
    moved = targets.copy()
    moved[:, :4] = targets[:, :4] * scale + shift
    return moved


def restore_boxes(found: Floats, placement: Placement, size: tuple[int, int]) -> Floats:
    """(K, 6) on the canvas to pixels of the picture of (width, height), clipped to it.

    What lies outside of the picture alone becomes a row of class NONE. So do boxes that only differed outside of it:
    of those that are equal, the first remains.
    """
    scale, shift = _find_scale(placement, size)
    moved = found.copy()
    moved[:, :4] = np.clip((found[:, :4] - shift) / scale, 0, np.array(size * 2))
    moved[(moved[:, 2] <= moved[:, 0]) | (moved[:, 3] <= moved[:, 1]), 4] = NONE
    repeated = np.ones(len(moved), np.bool_)
    repeated[np.unique(moved[:, :5], axis=0, return_index=True)[1]] = False
    moved[repeated, 4] = NONE
    return moved


def load_boxes(manifest: pl.DataFrame, canvas: tuple[int, int], fit: Fit, classes: tuple[str, ...]) -> Targets:
    """(N, M, 6) the objects of every row, on the canvas, filled up to the most that a picture has and one at least."""
    rows = [
        fit_boxes(to_targets(read_objects(objects), classes), (width, height), canvas, fit)
        for objects, width, height in manifest.select("objects", "width", "height").iter_rows()
    ]
    return pad_boxes(rows)


def pad_boxes(rows: list[Boxes]) -> Targets:
    """Arrays (M, 6) of any length as one (N, M, 6)."""
    most = max((len(row) for row in rows), default=0)
    padded = np.full((len(rows), max(most, 1), 6), NONE, np.float32)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return padded


def _find_scale(placement: Placement, size: tuple[int, int]) -> tuple[Floats, Floats]:
    """What x0, y0, x1, y1 are multiplied by, and what is added then."""
    left, top, right, bottom = placement.box
    scale = np.array([(right - left) / size[0], (bottom - top) / size[1]] * 2)
    return scale, np.array([left, top] * 2, np.float64)
