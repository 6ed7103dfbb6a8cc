"""Two class maps of one picture side by side: pixels, components and boundaries as counts that add up over pictures,
and the scores of these counts.

Pixels to ignore count for nothing. Class maps as in `components.records.maps`.

Shapes: H, W height and width of the picture, C classes, R resamples.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.records.maps import IGNORE, ClassMap
from components.tasks.calibration import TINY

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

TOUCH = 0.1  # an answered component finds a true one where their IoU is above this
TOLERANCE = 0.0075  # of the picture's diagonal: how far apart two boundaries may be and still agree


def count_confusion(truth: NDArray[np.uint8], answer: NDArray[np.uint8], classes: int) -> Ints:
    """(C, C) labelled pixels by true (row) and answered (column) class. truth, answer: arrays of one shape."""
    known = truth != IGNORE
    cells = truth[known].astype(np.int64) * classes + answer[known]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def count_components(truth: ClassMap, answer: ClassMap, classes: Sequence[int]) -> Ints:
    """(len(classes), 4) components of each class: true, found, answered, false.

    Components are 8-connected. A true one is found where an answered one of its class has an IoU above TOUCH with it,
    over labelled pixels. An answered one is false where it finds none; but it is not counted where, besides, most of
    its pixels are to be ignored.
    """
    ignored = truth == IGNORE
    return np.array([_match(truth == number, answer == number, ignored) for number in classes]).reshape(-1, 4)


def count_boundaries(truth: ClassMap, answer: ClassMap, classes: Sequence[int]) -> Ints:
    """(len(classes), 4) boundary pixels of each class: true, of these matched, answered, of these matched.

    A pixel of a class is on its boundary where one of its four neighbours is of another class; the picture's edge is no
    boundary, and neither is the edge of pixels to ignore. It is matched where the other map has a boundary of the class
    within `measure_tolerance`. An answered one that is not matched is not counted where pixels to ignore are as near:
    the boundary may be there.
    """
    reach, ignored = measure_tolerance(*truth.shape), truth == IGNORE
    return np.array([_compare_edges(truth == k, answer == k, ignored, reach) for k in classes]).reshape(-1, 4)


def measure_tolerance(height: int, width: int) -> float:
    """In pixels, one at least."""
    return max(1.0, TOLERANCE * math.hypot(height, width))


def average_iou(own: Floats, truth: Floats) -> Floats:
    """(R, 2 C) pixels that truth and answer share, and pixels answered; (R, C) true pixels -> (R,): the mean over the
    classes present in each row, NaN where none is."""
    hits, answered = np.split(own, 2, axis=1)
    present = truth > 0
    shares = np.divide(hits, truth + answered - hits, out=np.zeros_like(hits), where=present)
    classes = present.sum(axis=1)
    mean: Floats = np.divide(shares.sum(axis=1), classes, out=np.full(len(truth), np.nan), where=classes > 0)
    return mean


def score_pixels(confusion: NDArray[Any], classes: Sequence[str]) -> dict[str, float]:
    """Of the classes that occur; confusion: (C, C) pixels by true and answered class."""
    hits, truth, answered = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    present = np.flatnonzero(truth).tolist()
    iou = {k: float(hits[k] / (truth[k] + answered[k] - hits[k])) for k in present}
    dice = {k: float(2 * hits[k] / (truth[k] + answered[k])) for k in present}
    return {
        "mean_iou": float(np.mean(list(iou.values()))) if iou else 0.0,
        "mean_dice": float(np.mean(list(dice.values()))) if dice else 0.0,
        "accuracy": float(hits.sum() / max(truth.sum(), 1)),
        **{f"iou/{classes[k]}": value for k, value in iou.items()},
        **{f"dice/{classes[k]}": value for k, value in dice.items()},
    }


def score_boundaries(counts: NDArray[Any], names: Sequence[str]) -> dict[str, float]:
    """The harmonic mean of the shares of true and of answered boundary pixels that are matched, per class that has
    true ones, and their mean."""
    scores = {}
    for name, (true, matched, answered, agreed) in zip(names, counts, strict=True):
        if true:
            recall, precision = matched / true, agreed / max(answered, 1)
            scores[name] = float(2 * recall * precision / max(recall + precision, TINY))
    mean = {"boundary_f1": float(np.mean(list(scores.values())))} if scores else {}
    return mean | {f"boundary_f1/{name}": value for name, value in scores.items()}


def score_components(counts: NDArray[Any], names: Sequence[str]) -> dict[str, float]:
    """The share of the true components that are found, of all together and per class that has any."""
    scores = {name: float(row[1] / row[0]) for name, row in zip(names, counts, strict=True) if row[0]}
    true, found = counts[:, 0].sum(), counts[:, 1].sum()
    together = {"defect_recall": float(found / true)} if true else {}
    return together | {f"defect_recall/{name}": value for name, value in scores.items()}


def measure_dice(confusion: Ints, foreground: Sequence[int]) -> float:
    """The mean Dice of one picture, over the foreground classes that truth or answer shows; 1 where neither does."""
    hits, sizes = confusion.diagonal(), confusion.sum(axis=0) + confusion.sum(axis=1)
    shares = [2 * hits[k] / sizes[k] for k in foreground if sizes[k]]
    return float(np.mean(shares)) if shares else 1.0


def _match(truth: Flags, answer: Flags, ignored: Flags) -> tuple[int, int, int, int]:
    box = _find_box(truth | answer)
    (of_truth, sizes), (of_answer, areas) = _label(truth[box]), _label(answer[box])
    both = (of_truth > 0) & (of_answer > 0)
    pairs = (of_truth[both].astype(np.int64) - 1) * len(areas) + of_answer[both] - 1
    pairs, shared = np.unique(pairs, return_counts=True)
    ones, others = np.divmod(pairs, max(len(areas), 1))
    hidden = np.bincount(of_answer[ignored[box]], minlength=len(areas) + 1)[1:]
    close = shared > TOUCH * (sizes[ones] + (areas - hidden)[others] - shared)
    finds = np.zeros(len(areas), bool)
    finds[others[close]] = True
    false = int((~finds & (2 * hidden <= areas)).sum())
    return len(sizes), len(np.unique(ones[close])), int(finds.sum()) + false, false


def _label(flags: Flags) -> tuple[NDArray[np.int32], Ints]:
    """(H, W) which 8-connected component each pixel is in, from 1, or 0 for none; and the pixels of each."""
    import cv2

    count, places = cv2.connectedComponents(flags.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    return places, np.bincount(places[flags] - 1, minlength=count - 1)


def _compare_edges(truth: Flags, answer: Flags, ignored: Flags, reach: float) -> tuple[int, int, int, int]:
    ones, others = _find_edge(truth, truth | ignored), _find_edge(answer, answer)
    matched = _find_near(ones, others, reach)
    counted = others & ~ignored
    agreed = _find_near(counted, ones, reach)
    hidden = _find_near(counted & ~agreed, _find_edge(ignored, ignored), reach)
    return int(ones.sum()), int(matched.sum()), int((counted & ~hidden).sum()), int(agreed.sum())


def _find_edge(flags: Flags, inside: Flags) -> Flags:
    """Those pixels that have a neighbour which is not inside."""
    outside = ~inside
    beside = np.zeros_like(flags)
    beside[1:] |= outside[:-1]
    beside[:-1] |= outside[1:]
    beside[:, 1:] |= outside[:, :-1]
    beside[:, :-1] |= outside[:, 1:]
    return flags & beside


def _find_near(flags: Flags, others: Flags, reach: float) -> Flags:
    """Those pixels that are within so many pixels of one of the others, by Euclid's distance."""
    from scipy.spatial import KDTree  # quicker than a distance transform, because edges are few of the pixels

    near = flags & others
    places, goals = np.argwhere(flags & ~others), np.argwhere(others)
    if len(places) and len(goals):
        distances, _ = KDTree(goals).query(places, distance_upper_bound=reach + 1)
        near[tuple(places[distances <= reach].T)] = True
    return near


def _find_box(flags: Flags) -> tuple[slice, slice]:
    """The part of the picture that holds all of these pixels, and one at least."""
    sides = []
    for axis in (1, 0):
        places = np.flatnonzero(flags.any(axis=axis))
        first, last = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 1)
        sides.append(slice(first, last))
    return sides[0], sides[1]
