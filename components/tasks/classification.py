"""One label per image. The metric is balanced accuracy, the mean of the per-class recalls: in inspection and pathology
the rare class is the one that matters, and plain accuracy rewards ignoring it."""

import numpy as np
from numpy.typing import NDArray

from components.tasks.base import CountEvidence, Floats, Ints, number_groups


def measure_recall(labels: Ints, predicted: Ints, names: NDArray[np.generic], num_classes: int) -> CountEvidence:
    """Evidence of the balanced accuracy. labels, predicted: (N,) numbers of classes; names: (N,) groups.

    A class that a resample lacks is left out of that resample's mean.
    """
    groups, number = number_groups(names)
    cells = groups * num_classes + labels

    def count(chosen: Ints) -> Floats:
        return np.bincount(chosen, minlength=number * num_classes).reshape(number, num_classes).astype(float)  # (G, C)

    return CountEvidence(groups, count(cells[labels == predicted]), count(cells), average_recall)


def average_recall(hits: Floats, support: Floats) -> Floats:
    """(R, C) and (R, C) -> (R,): the mean over the classes present in each row."""
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    mean: Floats = recall.sum(axis=1) / (support > 0).sum(axis=1)
    return mean
