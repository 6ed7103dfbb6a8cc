"""Confidences of answered boxes that are frequencies, and from which one on a box is shown.

The confidence is calibrated to the probability that a box is right at an IoU of one half. Logits are divided by a
temperature and get an offset, so that no order changes.

Shapes: K boxes, N pictures.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.records.boxes import LEAST
from components.tasks.box_matches import (
    OBJECT,
    Boxes,
    is_ignored,
    is_right,
    match_boxes,
    measure_overlaps,
    sort_found,
)
from components.tasks.calibration import FEWEST_GROUPS, PRIOR, TINY, Calibration, Floats, Ints, split_groups
from components.tasks.pixels import BINS

Flags = NDArray[np.bool_]

SHIFT = 2.0  # the width of the prior on the offset
EVEN = 0.5  # threshold of a class of which validation knows nothing
MOST_TOLD = 10  # classes that a sentence names
NEVER = float(np.nextafter(1.0, 2.0))  # threshold that no box reaches


@dataclass(frozen=True)
class Ranked:
    """Answered boxes of some pictures that count, and how many objects these pictures show.

    pictures, classes, confidence, right: (K,); right is at an IoU of one half. objects: (N, C). groups: (N,).
    """

    pictures: Ints
    classes: Ints
    confidence: Floats
    right: Flags
    objects: Ints
    groups: NDArray[np.generic]


def rank(targets: Iterable[Boxes], found: Iterable[Boxes], groups: NDArray[np.generic], classes: int) -> Ranked:
    """targets: (M, 6) and found: (K, 6) per picture, in pixels. groups: (N,)."""
    parts, objects = [], np.zeros((len(groups), classes), np.int64)
    for picture, (truth, answer) in enumerate(zip(targets, found, strict=True)):
        rows = sort_found(answer)
        masks, _ = match_boxes(rows, truth, measure_overlaps(rows, truth), most=len(rows))
        counted = ~is_ignored(masks)
        parts.append(np.column_stack([np.full(len(rows), picture), rows[:, 4:], is_right(masks)])[counted])
        objects[picture] = count_objects(truth, classes)
    picture_of, numbers, confidence, right = np.concatenate([np.zeros((0, 4)), *parts]).T
    return Ranked(
        picture_of.astype(np.int64), numbers.astype(np.int64), confidence, right.astype(bool), objects, groups
    )


def count_objects(targets: Boxes, classes: int) -> Ints:
    """(C,) objects that count, of (M, 6)."""
    counted = targets[(targets[:, 4] >= 0) & (targets[:, 5] == OBJECT), 4].astype(np.int64)
    return np.bincount(counted, minlength=classes)


# Calibration


def find_logits(confidence: Floats) -> Floats:
    logits: Floats = np.log(np.maximum(confidence, TINY)) - np.log(np.maximum(1 - confidence, TINY))
    return logits


def rescale_confidence(confidence: NDArray[np.floating[Any]], temperature: float, offset: float = 0.0) -> Floats:
    """(K,) confidences as they are with the logits divided by the temperature, and the offset added then."""
    plain = confidence.astype(np.float64)
    if temperature == 1 and offset == 0:
        return plain
    scaled: Floats = 1 / (1 + np.exp(-(find_logits(plain) / temperature + offset)))
    return scaled


def measure_surprise(confidence: Floats, right: Flags) -> Floats:
    """(K,) negative log likelihood in nats of boxes being right or wrong."""
    losses: Floats = -np.log(np.maximum(np.where(right, confidence, 1 - confidence), TINY))
    return losses


def sum_surprise(confidence: Floats, right: Flags, missed: int) -> float:
    """The mean over a picture's boxes and its missed objects, of which each has the least confidence that is answered;
    0 where there is neither."""
    total = float(measure_surprise(confidence, right).sum()) - missed * float(np.log(LEAST))
    return total / max(len(right) + missed, 1)


def calibrate_boxes(ranked: Ranked) -> Calibration:
    """A temperature and an offset where they help groups of validation pictures that they were not fitted on; else 1
    and 0, which change none.

    Help is a lower negative log likelihood, averaged over the boxes of a group and then over the groups. Groups without
    a box that counts say nothing.
    """
    groups = ranked.groups[ranked.pictures]
    names, places = np.unique(groups, return_inverse=True)
    if len(names) < FEWEST_GROUPS:
        count = f"{len(names)} group{'' if len(names) == 1 else 's'}"
        needed = f"{FEWEST_GROUPS} are needed to judge it"
        return Calibration(reason=f"not calibrated: boxes were found in {count} of validation, and {needed}")
    confidence, right = ranked.confidence, ranked.right
    after = np.empty(len(right))
    for held_out in split_groups(ranked.classes, groups):
        line = fit_line(confidence[~held_out], right[~held_out])
        after[held_out] = measure_surprise(rescale_confidence(confidence[held_out], *line), right[held_out])
    boxes = np.bincount(places)
    plain, calibrated = (
        float((np.bincount(places, weights=losses) / boxes).mean())
        for losses in (measure_surprise(confidence, right), after)
    )
    temperature, offset = fit_line(confidence, right)
    words = f"temperature {temperature:.3g} and offset {offset:+.3g}"
    told = f"loss on held-out validation groups {plain:.3f} without and {calibrated:.3f} with it ({len(names)} groups)"
    if calibrated < plain:
        return Calibration(temperature, f"{words}: {told}", offset=offset)
    return Calibration(reason=f"not calibrated, for {words} do not help: {told}")


def fit_line(confidence: Floats, right: Flags) -> tuple[float, float]:
    """Temperature and offset for which it is least surprising which boxes are right (Platt scaling; Guo et al., arXiv
    1706.04599), by likelihood and priors around a temperature of 1 and an offset of 0."""
    from scipy.optimize import minimize

    logits = find_logits(confidence)

    def loss(line: Floats) -> tuple[float, Floats]:
        log_t, offset = line
        scaled = logits * np.exp(-log_t)
        total = scaled + offset
        losses = np.logaddexp(0, np.where(right, -total, total)).sum()
        gap = 1 / (1 + np.exp(-total)) - right
        slopes = np.array([-(gap * scaled).sum() + log_t / PRIOR**2, gap.sum() + offset / SHIFT**2])
        return float(losses + (log_t / PRIOR) ** 2 / 2 + (offset / SHIFT) ** 2 / 2), slopes

    log_t, offset = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-3, 3), (-20, 20)]).x
    return float(np.exp(log_t)), float(offset)


def bin_boxes(confidence: Floats, right: Flags) -> Floats:
    """(3 * BINS,) the sum of confidences, how many boxes are right, and their number, by bins of confidence of equal
    width: sums that add up over pictures, as `components.tasks.pixels.measure_bins` takes them."""
    place = np.clip((confidence * BINS).astype(np.int64), 0, BINS - 1)
    columns = (np.bincount(place, weights=weights, minlength=BINS) for weights in (confidence, right, None))
    return np.concatenate([column.astype(np.float64) for column in columns])


# Thresholds


def choose_limits(
    ranked: Ranked, classes: Sequence[str], false_alarms: float | None, misses: float | None
) -> tuple[dict[str, float], str]:
    """The threshold of each class on calibrated confidences, and a sentence on what it reaches.

    false_alarms: the lowest threshold with at most so many wrong boxes per picture. misses: the highest one at which at
    most this share of the objects is missed. Both are averaged over the pictures of a group, and then over the groups:
    many pictures of one patient are one witness. Else: the highest F1 of all boxes and objects.
    """
    limits, told = dict[str, float](), list[str]()
    for number, name in enumerate(classes):
        limits[name], sentence = _choose(_list_steps(ranked, number), false_alarms, misses)
        told.append(f"{name} {sentence}")
    more = [f"and {len(told) - MOST_TOLD} further classes"] if len(told) > MOST_TOLD else []
    return limits, "; ".join(told[:MOST_TOLD] + more)


@dataclass(frozen=True)
class Steps:
    """What the thresholds of one class reach on validation, from the highest down; the first shows no box.

    limits: (S,), halfway between two confidences. false_alarms: (S,) per picture. misses: (S,) share of objects, not a
    number where there is none. f1: (S,).
    """

    limits: Floats
    false_alarms: Floats
    misses: Floats
    f1: Floats


def _list_steps(ranked: Ranked, number: int) -> Steps:
    """Of the class of this number."""
    mine = ranked.classes == number
    names, group_of = np.unique(ranked.groups, return_inverse=True)
    group_of = group_of.reshape(-1)
    pictures = np.bincount(group_of, minlength=len(names))
    objects = np.bincount(group_of, weights=ranked.objects[:, number], minlength=len(names))
    order = np.argsort(-ranked.confidence[mine], kind="stable")
    confidence, right = ranked.confidence[mine][order], ranked.right[mine][order]
    of = group_of[ranked.pictures[mine][order]]
    ends = np.flatnonzero(np.diff(confidence, append=-1.0))  # the last box of each run of equal ones
    following = np.append(confidence, 0.0)[ends + 1]
    limits = np.concatenate([[NEVER], (confidence[ends] + following) / 2])
    witnesses = max(int((objects > 0).sum()), 1)
    of_object = np.divide(1.0, objects, out=np.zeros(len(names)), where=objects > 0)[of] / witnesses
    wrong = np.cumsum(~right / pictures[of]) / len(names)
    hit = np.cumsum(right * of_object)
    total = objects.sum()
    f1 = 2 * np.cumsum(right)[ends] / (ends + 1 + total)
    missed = np.maximum(1 - np.append(0.0, hit[ends]), 0.0) if total else np.full(len(limits), np.nan)
    return Steps(limits, np.append(0.0, wrong[ends]), missed, np.append(0.0, f1))


def _choose(steps: Steps, false_alarms: float | None, misses: float | None) -> tuple[float, str]:
    known, short = not np.isnan(steps.misses).any(), ""
    if false_alarms is not None and len(steps.limits) > 1:
        place = int(np.flatnonzero(steps.false_alarms <= false_alarms + TINY)[-1])
    elif misses is not None and known:
        within = np.flatnonzero(steps.misses <= misses + TINY)
        place = int(within[0]) if len(within) else len(steps.limits) - 1
        short = "" if len(within) else ", for no box finds the others"
    elif known and steps.f1.max() > 0:
        best = np.flatnonzero(steps.f1 >= steps.f1.max() - TINY)
        place = int(best[np.abs(steps.limits[best] - EVEN).argmin()])
    else:
        reason = "no box finds one" if known else "there is none"
        return EVEN, f"from {EVEN}, for {reason} in validation"
    missed = f"{steps.misses[place]:.1%} of the objects missed{short}" if known else "no object to miss"
    reached = f"{steps.false_alarms[place]:.3g} false alarms per picture, {missed}"
    return float(steps.limits[place]), f"from {steps.limits[place]:.3g}: {reached}"
