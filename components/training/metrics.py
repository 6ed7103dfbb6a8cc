"""Scores of predictions. Balanced accuracy is the one that decides: the mean of the per-class recalls, because in
inspection and pathology the rare class is the one that matters and plain accuracy rewards ignoring it.

By hand, because scikit-learn takes every training process a second to import; the tests compare the two."""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


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


def expected_calibration_error(targets: Labels, probabilities: NDArray[np.float64], bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins (Guo et al., arXiv 1706.04599)."""
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=hit - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(targets))
