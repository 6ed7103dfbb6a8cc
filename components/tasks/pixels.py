"""Probabilities of the classes of pixels: which class is answered, how sure it is, and what calibration is fitted on.

All of it works on parts of a picture, so that a large one needs little memory beside its probabilities.

Shapes: H, W height and width of the picture, C classes, P pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.records.maps import IGNORE
from components.tasks.calibration import TINY

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Chances = NDArray[np.floating[Any]]
Bytes = NDArray[np.uint8]

BINS = 15  # of equal width, as in `measure_gaps`
LIMITS = 200  # thresholds that are tried lie at k / LIMITS
CLOSE = 0.001  # of mean IoU: thresholds whose scores differ by less are equally good
PART = 1_000_000  # probabilities handled at once


def resize_probabilities(probabilities: Chances, height: int, width: int) -> NDArray[np.float32]:
    """(C, h, w) to (C, height, width), bilinear between the centres of pixels."""
    import cv2

    planes = [np.ascontiguousarray(plane, np.float32) for plane in probabilities]
    if probabilities.shape[1:] == (height, width):
        return np.stack(planes)
    return np.stack([cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in planes])


def find_best(probabilities: Chances) -> tuple[Chances, Bytes]:
    """(C, ...) -> (...) the largest probability, and its class, the first of equal ones."""
    best, answer = probabilities[0].copy(), np.zeros(probabilities.shape[1:], np.uint8)
    for number, plane in enumerate(probabilities[1:], 1):
        answer[plane > best] = number
        np.maximum(best, plane, out=best)
    return best, answer


def answer_map(probabilities: Chances, limit: float | None = None, limited: int = 1) -> Bytes:
    """(C, H, W) -> (H, W) the most probable class, the first of equal ones.

    limit: from which probability on the class `limited` is answered, for two classes; None for the more probable one.
    """
    if limit is not None:
        return np.where(probabilities[limited] >= limit, limited, 1 - limited).astype(np.uint8)
    answer = np.empty(probabilities.shape[1:], np.uint8)
    for rows in cut(probabilities.shape):
        _, answer[rows] = find_best(probabilities[:, rows])
    return answer


def cut(shape: tuple[int, ...]) -> Iterator[slice]:
    """Rows of (C, H, W), part after part."""
    classes, height, width = shape
    step = max(1, PART // (classes * width))
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


@dataclass(frozen=True)
class Sureness:
    """What the calibration error is a function of, for labelled pixels, as sums that add up over pictures.

    plain, calibrated: (3 * BINS,) the sum of the probabilities of the most probable class, how often it was right, and
    the number of pixels, by bins of that probability, before and after calibration. surprise: the mean negative log
    likelihood of the truth in nats, before calibration.
    """

    plain: Floats
    calibrated: Floats
    surprise: float


def measure_sureness(probabilities: Chances, truth: Bytes, temperature: float) -> Sureness:
    """probabilities: (C, H, W) before calibration; truth: (H, W)."""
    plain, calibrated, surprise, pixels = np.zeros(3 * BINS), np.zeros(3 * BINS), 0.0, 0
    for rows in cut(probabilities.shape):
        chances, numbers = probabilities[:, rows].reshape(len(probabilities), -1), truth[rows].reshape(-1)
        if (numbers == IGNORE).any():
            known = np.flatnonzero(numbers != IGNORE)
            chances, numbers = chances.take(known, axis=1), numbers[known]
        best, answer = find_best(chances)
        hits = answer == numbers
        likely = chances[numbers, np.arange(len(numbers))]
        surprise -= float(np.log(np.maximum(likely, TINY)).sum(dtype=np.float64))
        pixels += len(numbers)
        plain += _fill_bins(best, hits)
        calibrated += _fill_bins(rescale_best(chances, best, temperature), hits)
    return Sureness(plain, calibrated, surprise / max(pixels, 1))


def rescale_best(chances: Chances, best: Chances, temperature: float) -> Chances:
    """(C, P) probabilities and (P,) the largest of each -> (P,) the largest after logits are divided."""
    if temperature == 1:
        return best
    total = np.zeros_like(best)
    for plane in chances:
        total += np.exp(np.log(np.maximum(plane, TINY) / best) / temperature)
    largest: Chances = 1 / total
    return largest


def _fill_bins(sure: Chances, hits: NDArray[np.bool_]) -> Floats:
    place = np.clip((sure * BINS).astype(np.int64), 0, BINS - 1)
    columns = (np.bincount(place, weights=weights, minlength=BINS) for weights in (sure, hits, None))
    return np.concatenate([column.astype(np.float64) for column in columns])


def measure_bins(sums: Floats) -> float:
    """The expected calibration error of (3 * BINS,) sums of `Sureness`."""
    sure, hits, count = sums.reshape(3, BINS)
    return float(np.abs(hits - sure).sum() / max(count.sum(), 1))


def sample_pixels(probabilities: Chances, truth: Bytes, number: int) -> tuple[Ints, Floats]:
    """(number,) classes and (number, C) probabilities of labelled pixels of one picture; none where it has none.

    All pixels are equally likely, so that the sample's frequencies are those of the picture: a sample with more pixels
    of rare classes would make their probabilities look too low. The places depend on the picture's size and on what is
    labelled alone. probabilities: (C, H, W); truth: (H, W). Pixels are drawn with replacement.
    """
    known = np.flatnonzero(truth != IGNORE)
    if not len(known):
        return np.zeros(0, np.int64), np.zeros((0, len(probabilities)))
    draws = np.random.default_rng(truth.shape).random(number)
    places = known[(draws * len(known)).astype(np.int64)]
    flat = probabilities.reshape(len(probabilities), -1)
    return truth.reshape(-1)[places].astype(np.int64), flat[:, places].T.astype(np.float64)


def choose_limit(truth: NDArray[np.bool_], chances: Floats) -> float:
    """From which probability on a pixel is answered the class, for the highest mean IoU of class and rest.

    The nearest to one half of those that are within CLOSE of the best; one half where all pixels are of one side.
    truth, chances: (P,).
    """
    if truth.all() or not truth.any():
        return 0.5
    place = np.clip((chances * LIMITS).astype(np.int64), 0, LIMITS - 1)
    counts = [np.bincount(place[truth == side], minlength=LIMITS) for side in (False, True)]
    rest, there = (count[::-1].cumsum()[::-1][1:] for count in counts)  # answered, at the limits 1 / LIMITS and on
    absent, present = (int(count.sum()) for count in counts)
    of_class = there / (present + rest)
    of_rest = (absent - rest) / (absent + present - there)
    scores = (of_class + of_rest) / 2
    limits = np.arange(1, LIMITS) / LIMITS
    best = limits[scores >= scores.max() - CLOSE]
    return float(best[np.abs(best - 0.5).argmin()])


def restore_limit(limit: float, temperature: float) -> float:
    """The probability before calibration that is the limit after it, for two classes."""
    odds = float(np.log(limit) - np.log1p(-limit))
    return float(1 / (1 + np.exp(-temperature * odds)))
