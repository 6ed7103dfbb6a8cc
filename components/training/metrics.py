"""Scores of predictions. Balanced accuracy is the one that decides: the mean of the per-class recalls, because in
inspection and pathology the rare class is the one that matters and plain accuracy rewards ignoring it.

By hand, because scikit-learn takes every training process a second to import; the tests compare the two."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
TINY = 1e-12
PRIOR = 0.5  # a temperature of 1.65 is one width away
FOLDS = 5  # of a cross-validation over groups
FEWEST_GROUPS = 3  # on which anything can be judged: two that agree prove nothing


def score_predictions(
    targets: Labels, probabilities: NDArray[np.float64], classes: tuple[str, ...]
) -> dict[str, float]:
    """balanced_accuracy, accuracy, macro_f1, ece and recall/<class>; probabilities are (N, C).

    A class without an image here has no recall and is left out of the balanced accuracy.
    """
    predicted = probabilities.argmax(axis=1)
    present = np.unique(targets)
    confusion = np.zeros((len(classes), len(classes)), np.int64)  # by truth and prediction
    np.add.at(confusion, (targets, predicted), 1)
    hits, truths, calls = confusion.diagonal()[present], confusion.sum(axis=1)[present], confusion.sum(axis=0)[present]
    recalls = hits / truths
    return {
        "balanced_accuracy": float(recalls.mean()),
        "accuracy": float(hits.sum() / len(targets)),
        "macro_f1": float((2 * hits / (truths + calls)).mean()),
        "ece": expected_calibration_error(targets, probabilities),
        **{f"recall/{classes[k]}": float(value) for k, value in zip(present, recalls, strict=True)},
    }


class Calibration(NamedTuple):
    """What logits are divided by, and a sentence on why it is that."""

    temperature: float
    reason: str


def calibrate(targets: Labels, probabilities: NDArray[np.float64], groups: NDArray[np.generic]) -> Calibration:
    """A temperature where it helps groups of validation images that it was not fitted on; else 1, which changes none.

    Each group is held out once. Help is a lower negative log likelihood, averaged over the images of a group and then
    over the groups: many images of one patient are one witness. groups: (N,).
    """
    names, places = np.unique(groups, return_inverse=True)
    if len(names) < FEWEST_GROUPS:
        count = f"{len(names)} group{'' if len(names) == 1 else 's'}"
        return Calibration(1.0, f"not calibrated: validation has {count}, and {FEWEST_GROUPS} are needed to judge it")
    after = np.empty(len(targets))
    for held_out in split_groups(targets, groups):
        temperature = fit_temperature(targets[~held_out], probabilities[~held_out])
        after[held_out] = _surprise(targets[held_out], apply_temperature(probabilities[held_out], temperature))
    images = np.bincount(places.reshape(-1))
    plain, calibrated = (
        float((np.bincount(places.reshape(-1), weights=loss) / images).mean())
        for loss in (_surprise(targets, probabilities), after)
    )
    temperature = fit_temperature(targets, probabilities)
    told = f"loss on held-out validation groups {plain:.3f} without and {calibrated:.3f} with it ({len(names)} groups)"
    if calibrated < plain:
        return Calibration(temperature, f"temperature {temperature:.3g}: {told}")
    return Calibration(1.0, f"not calibrated, for a temperature of {temperature:.3g} does not help: {told}")


def _surprise(targets: Labels, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Negative log likelihood of each image (N,) in nats."""
    losses: NDArray[np.float64] = -np.log(np.maximum(probabilities[np.arange(len(targets)), targets], TINY))
    return losses


def split_groups(targets: Labels, groups: NDArray[np.generic], folds: int = FOLDS) -> Iterator[NDArray[np.bool_]]:
    """Masks (N,) of the images held out in turn. The groups of each class are dealt to the folds one after the other.

    A group's class is its most frequent one; the order of groups is that of a hash of their names, so that a fold does
    not change with the order of the images.
    """
    names, places = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), int(targets.max()) + 1), np.int64)
    np.add.at(counts, (places.reshape(-1), targets), 1)
    hashes = [hashlib.sha256(str(name).encode()).hexdigest() for name in names]
    fold = np.empty(len(names), np.int64)
    fold[np.lexsort((hashes, counts.argmax(axis=1)))] = np.arange(len(names)) % folds
    for number in range(min(folds, len(names))):
        yield fold[places.reshape(-1)] == number


def weigh_classes(targets: Labels, num_classes: int) -> NDArray[np.float64]:
    """Weights (C,) that make every class count the same in the loss; mean 1 over the images."""
    counts = np.bincount(targets, minlength=num_classes).clip(1)
    weights: NDArray[np.float64] = len(targets) / (num_classes * counts)
    return weights


def fit_temperature(targets: Labels, probabilities: NDArray[np.float64]) -> float:
    """T for which softmax(logits / T) tells these targets best (Guo et al., arXiv 1706.04599).

    By likelihood and a prior on log T around zero of the width PRIOR: where all of a few images are right, the
    likelihood alone would call every answer certain.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        losses = _surprise(targets, apply_temperature(probabilities, float(np.exp(log_t))))
        return float(losses.sum() + (log_t / PRIOR) ** 2 / 2)

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def apply_temperature(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """softmax(logits / T), from the probabilities that were softmax(logits); which class is first stays as it is."""
    if temperature == 1:
        return probabilities
    scaled = np.log(np.maximum(probabilities, TINY)) / temperature
    raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
    return shares


def expected_calibration_error(targets: Labels, probabilities: NDArray[np.float64], bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins (Guo et al., arXiv 1706.04599)."""
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=hit - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(targets))
