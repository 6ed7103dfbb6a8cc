"""Scores of predictions. Balanced accuracy is the one that decides: the mean of the per-class recalls, because in
inspection and pathology the rare class is the one that matters and plain accuracy rewards ignoring it.

By hand, because scikit-learn takes every training process a second to import; the tests compare the two."""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
TINY = 1e-12
PRIOR = 0.5  # a temperature of 1.65 is one width away


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


def fit_temperature(targets: Labels, probabilities: NDArray[np.float64]) -> float:
    """T for which softmax(logits / T) tells these targets best (Guo et al., arXiv 1706.04599).

    By likelihood and a prior on log T around zero of the width PRIOR: where all of a few images are right, the
    likelihood alone would call every answer certain.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        likely = apply_temperature(probabilities, float(np.exp(log_t)))[np.arange(len(targets)), targets]
        return float(-np.log(np.maximum(likely, TINY)).sum() + (log_t / PRIOR) ** 2 / 2)

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
