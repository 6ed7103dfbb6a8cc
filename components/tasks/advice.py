"""What a new domain of dense answers begins with: a canvas by the sizes of its pictures, and minutes of training."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from components.records.boxes import LabelledBox

PATCH = 16  # pixels, of a usual backbone
BATCH, TRAIN_SHARE = 8, 0.6  # usual pictures per step, and share of the pictures in train
EPOCHS = (10, 100)
VARIED = 1.5  # times that widths over heights differ, from which on squashing would distort


def advise_training(pictures: int, steps: int, batch: int = BATCH) -> dict[str, Any]:
    """Small batches, and as many epochs as take about so many steps."""
    epochs = round(steps * batch / max(TRAIN_SHARE * pictures, batch))
    return {"epochs": int(np.clip(epochs, *EPOCHS)), "warmup_epochs": 1, "batch_size": batch}


def advise_canvas(sizes: Sequence[tuple[int, int]], side: float) -> tuple[int | list[int], bool]:
    """`img_size` for pictures of these widths and heights, and whether their shapes vary.

    It has the usual shape of the pictures and at most side * side pixels, and is not larger than they are; it is square
    where shapes vary. Its sides are whole patches.
    """
    width, height = np.median(np.array(sizes, np.float64), axis=0)
    low, high = np.quantile([wide / tall for wide, tall in sizes], [0.1, 0.9])
    scale = min(1.0, side / np.sqrt(width * height))
    if high > VARIED * low:
        return _round_side(scale * np.sqrt(width * height)), True
    sides = [_round_side(scale * length) for length in (height, width)]
    return sides[0] if sides[0] == sides[1] else sides, False


def _round_side(side: float) -> int:
    """The nearest multiple of a patch, two patches at least."""
    return max(2, round(float(side) / PATCH)) * PATCH


def measure_classes(sizes: Sequence[tuple[int, int]], objects: Sequence[Sequence[LabelledBox]]) -> dict[str, float]:
    """The root of the area of each class's middle object, as a share of that of its picture (width, height)."""
    shares: dict[str, list[float]] = {}
    for (width, height), shown in zip(sizes, objects, strict=False):
        for label, (x0, y0, x1, y1), kind in shown:
            if kind == "object":
                shares.setdefault(label, []).append(math.sqrt((x1 - x0) * (y1 - y0) / (width * height)))
    return {label: float(np.median(found)) for label, found in shares.items()}
