"""Which answered boxes are right: overlaps, and the matching of COCO.

As pycocotools' `COCOeval.evaluateImg`: boxes are taken from the most confident one down, and each takes the free object
of its class that it overlaps most. What takes a region to ignore is neither right nor wrong. Boxes as in
`components.records.boxes`.

Shapes: K answered boxes and M annotated ones of one picture, T = 10 thresholds of the IoU.
"""

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.records.boxes import KINDS, NONE

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Boxes = NDArray[np.floating[Any]]

IOUS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())  # the floats of COCO
HALF = 0  # the place of an IoU of one half among them
EVERY = (0.0, 1e10)  # square pixels
MOST_SCORED = 100  # answered boxes of a class in a picture that scores count, as in COCO
#: Sizes of objects by area in square pixels of the picture, both ends included, as COCO has them.
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
OBJECT, CROWD = KINDS.index("object"), KINDS.index("crowd")
_ALL = (1 << len(IOUS)) - 1


def measure_areas(boxes: Boxes) -> Floats:
    """(K, 4 or more) -> (K,) square pixels."""
    corners = boxes.astype(np.float64)
    areas: Floats = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    return areas


def measure_overlaps(found: Boxes, targets: Boxes) -> Floats:
    """(K, 6) and (M, 6) -> (K, M) intersection over union; over the answered box's own area where the target is a
    crowd, because a box on one of many is no mistake."""
    ones, others = found.astype(np.float64), targets.astype(np.float64)
    width = np.minimum(ones[:, None, 2], others[:, 2]) - np.maximum(ones[:, None, 0], others[:, 0])
    height = np.minimum(ones[:, None, 3], others[:, 3]) - np.maximum(ones[:, None, 1], others[:, 1])
    shared = np.where((width > 0) & (height > 0), width * height, 0.0)
    areas = measure_areas(found)[:, None]
    either = np.where(others[:, 5] == CROWD, areas, areas + measure_areas(targets) - shared)
    shares: Floats = np.divide(shared, either, out=np.zeros_like(shared), where=shared > 0)
    return shares


def sort_found(found: Boxes) -> Floats:
    """(K, 6) without rows that fill up, the most confident first; equal ones keep their order."""
    rows = found[found[:, 4] != NONE].astype(np.float64)
    ranked: Floats = rows[np.argsort(-rows[:, 5], kind="stable")]
    return ranked


def match_boxes(
    found: Floats, targets: Boxes, overlaps: Floats, area: tuple[float, float] = EVERY, most: int = MOST_SCORED
) -> tuple[Ints, Ints]:
    """(K,) what each answered box is at the T thresholds, as a bit mask: bit t says that it is right at IOUS[t], bit
    T + t that it is ignored there; it is wrong where it is neither. And (M,) at which
    thresholds each target is taken: bit t says that a box takes it at IOUS[t].

    found: (K, 6), as `sort_found` returns them. overlaps: (K, M). area: objects of another size are ignored, and so are
    answered boxes of another size that are not right. most: so many boxes of a class count, the others are ignored.
    """
    masks = np.zeros(len(found), np.int64)
    (low, high), areas = area, measure_areas(targets)
    regions = targets[:, 5] != OBJECT
    ignored = regions | (areas < low) | (areas > high)
    order = np.argsort(ignored, kind="stable")
    beyond = _find_beyond(found, most)
    close = (overlaps >= IOUS[0]) & (found[:, 4, None] == targets[None, :, 4]) & ~beyond[:, None]
    places = zip(*(axis.tolist() for axis in np.nonzero(close[:, order])), strict=True)
    options: dict[int, list[tuple[float, int]]] = {}
    for row, place in places:
        options.setdefault(row, []).append((float(overlaps[row, order[place]]), int(order[place])))
    taken, shared, skipped = [0] * len(targets), regions.tolist(), ignored.tolist()
    for row, choices in options.items():
        masks[row] = _take(choices, taken, shared, skipped)
    sizes = measure_areas(found)
    outside = (sizes < low) | (sizes > high)
    masks[outside] |= (~(masks[outside] | masks[outside] >> len(IOUS)) & _ALL) << len(IOUS)
    masks[beyond] = _ALL << len(IOUS)
    return masks, np.array(taken, np.int64)


def is_right(masks: Ints, place: int = HALF) -> Flags:
    """(K,) whether boxes are right at IOUS[place]."""
    return (masks >> place & 1) > 0


def is_ignored(masks: Ints, place: int = HALF) -> Flags:
    """(K,) whether boxes are ignored at IOUS[place]."""
    return (masks >> (len(IOUS) + place) & 1) > 0


def _take(choices: Sequence[tuple[float, int]], taken: list[int], shared: list[bool], skipped: list[bool]) -> int:
    """The bit mask of one box; choices: overlap and number of each object, those to ignore last. `taken` has the
    thresholds at which an object is taken, as bits, and is changed."""
    if len(choices) == 1:  # as mostly
        ((overlap, number),) = choices
        free = -1 if shared[number] else ~taken[number]
        mask = ((1 << bisect.bisect_right(IOUS, overlap)) - 1) & free
        taken[number] |= mask
        return mask << len(IOUS) if skipped[number] else mask
    mask, most = 0, max(overlap for overlap, _ in choices)
    for place, iou in enumerate(IOUS):
        least, best, bit = iou, NONE, 1 << place
        if most < least:
            break
        for overlap, number in choices:
            if taken[number] & bit and not shared[number]:
                continue
            if best != NONE and skipped[number] and not skipped[best]:
                break
            if overlap >= least:
                least, best = overlap, number
        if best != NONE:
            taken[best] |= bit
            mask |= bit << len(IOUS) if skipped[best] else bit
    return mask


def _find_beyond(found: Floats, most: int) -> Flags:
    """(K,) boxes after the first so many of their class."""
    beyond = np.zeros(len(found), bool)
    if len(found) > most:
        for number in np.unique(found[:, 4]):
            beyond[np.flatnonzero(found[:, 4] == number)[most:]] = True
    return beyond


NEAR = 0.1  # the IoU from which on a box that is not right is at an object all the same (TIDE's background threshold)
