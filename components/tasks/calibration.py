"""Probabilities that are frequencies: one temperature for all logits, where it helps groups it was not fitted on.

Shapes: N images, C classes.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from components.records.decisions import PassRule

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

TINY = 1e-12
PRIOR = 0.5  # a temperature of 1.65 is one width away
FOLDS = 5  # of a cross-validation over groups
FEWEST_GROUPS = 3  # on which anything can be judged: two that agree prove nothing


@dataclass(frozen=True)
class Calibration:
    """What logits are divided by, and a sentence on why it is that.

    offset: what is added to them then, for tasks whose confidences are no probabilities by themselves. thresholds:
    class -> the probability from which on it is answered, for tasks that answer each class by itself. decision: for
    tasks that answer one of them; None where the most probable one is the answer.
    """

    temperature: float = 1.0
    reason: str = ""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    offset: float = 0.0
    decision: PassRule | None = None


class Answers(Protocol):
    """How a task reads probabilities (N, C)."""

    def surprise(self, targets: NDArray[Any], probabilities: Floats) -> Floats:
        """(N,) negative log likelihood of each image's truth, in nats."""

    def rescale(self, probabilities: Floats, temperature: float) -> Floats:
        """(N, C) probabilities as they are with the logits divided by the temperature."""


class Exclusive:
    """Probabilities (N, C) of which exactly one comes true; targets: (N,) numbers of classes."""

    def surprise(self, targets: Ints, probabilities: Floats) -> Floats:
        losses: Floats = -np.log(np.maximum(probabilities[np.arange(len(targets)), targets], TINY))
        return losses

    def rescale(self, probabilities: Floats, temperature: float) -> Floats:
        """Which class is first stays as it is."""
        if temperature == 1:
            return probabilities
        scaled = np.log(np.maximum(probabilities, TINY)) / temperature
        raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        shares: Floats = raised / raised.sum(axis=1, keepdims=True)
        return shares


EXCLUSIVE = Exclusive()


def calibrate(
    answers: Answers,
    targets: NDArray[Any],
    probabilities: Floats,
    groups: NDArray[np.generic],
    strata: Ints,
    rows: int = 1,
) -> Calibration:
    """A temperature where it helps groups of validation images that it was not fitted on; else 1, which changes none.

    Each group is held out once. Help is a lower negative log likelihood, averaged over the images of a group and then
    over the groups: many images of one patient are one witness. groups, strata: (N,), as `split_groups` takes them.
    rows: how many rows are one witness for `fit_temperature`.
    """
    names, places = np.unique(groups, return_inverse=True)
    if len(names) < FEWEST_GROUPS:
        count = f"{len(names)} group{'' if len(names) == 1 else 's'}"
        reason = f"not calibrated: validation has {count}, and {FEWEST_GROUPS} are needed to judge it"
        return Calibration(reason=reason)
    after = np.empty(len(targets))
    for held_out in split_groups(strata, groups):
        temperature = fit_temperature(answers, targets[~held_out], probabilities[~held_out], rows)
        after[held_out] = answers.surprise(targets[held_out], answers.rescale(probabilities[held_out], temperature))
    images = np.bincount(places.reshape(-1))
    plain, calibrated = (
        float((np.bincount(places.reshape(-1), weights=loss) / images).mean())
        for loss in (answers.surprise(targets, probabilities), after)
    )
    temperature = fit_temperature(answers, targets, probabilities, rows)
    told = f"loss on held-out validation groups {plain:.3f} without and {calibrated:.3f} with it ({len(names)} groups)"
    if calibrated < plain:
        return Calibration(temperature, f"temperature {temperature:.3g}: {told}")
    return Calibration(reason=f"not calibrated, for a temperature of {temperature:.3g} does not help: {told}")


def fit_temperature(answers: Answers, targets: NDArray[Any], probabilities: Floats, rows: int = 1) -> float:
    """The temperature for which these targets are least surprising (Guo et al., arXiv 1706.04599).

    By likelihood and a prior on log T around zero of the width PRIOR: where all of a few images are right, the
    likelihood alone would call every answer certain. rows: how many rows are one witness.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        losses = answers.surprise(targets, answers.rescale(probabilities, float(np.exp(log_t))))
        return float(losses.sum() / rows + (log_t / PRIOR) ** 2 / 2)

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def split_groups(strata: Ints, groups: NDArray[np.generic], folds: int = FOLDS) -> Iterator[NDArray[np.bool_]]:
    """Masks (N,) of the images held out in turn. The groups of each stratum are dealt to the folds one after the other.

    A group's stratum is its images' most frequent one; the order of groups is that of a hash of their names, so that a
    fold does not change with the order of the images.
    """
    names, places = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), int(strata.max()) + 1), np.int64)
    np.add.at(counts, (places.reshape(-1), strata), 1)
    hashes = [hashlib.sha256(str(name).encode()).hexdigest() for name in names]
    fold = np.empty(len(names), np.int64)
    fold[np.lexsort((hashes, counts.argmax(axis=1)))] = np.arange(len(names)) % folds
    for number in range(min(folds, len(names))):
        yield fold[places.reshape(-1)] == number


def measure_gaps(confidence: Floats, hits: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error: the mean gap between confidence and frequency over equal-width bins (Guo et al.,
    arXiv 1706.04599). confidence: (N,) probabilities; hits: (N,) whether what they are of came true."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=hits - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))
