"""Any of C classes: a sigmoid and binary cross entropy per class.

Each class's loss is divided by its entropy, which is the loss of always answering the class's share of the images: at
the start every class loses 1, however rare it is. Positives and negatives of a class keep their proportion, so that the
sigmoid stays a probability, which a weight on the positives alone would not leave it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from components.models.heads.base import LinearHead, Solution


class MultilabelHead(LinearHead):
    """targets: (B, C) float32, 1 where the image has the label."""

    def class_weights(self, targets: NDArray[Any]) -> Tensor:
        """One over the entropy in nats, scaled to the mean 1 over the classes."""
        fewest = 1 / (len(targets) + 2)  # a share of one more image of either kind, where all are of one
        shares = np.clip(targets.mean(axis=0, dtype=np.float64), fewest, 1 - fewest)
        weights = -1 / (shares * np.log(shares) + (1 - shares) * np.log(1 - shares))
        return torch.from_numpy(weights / weights.mean()).float()

    def count(self, targets: Tensor, weights: Tensor) -> Tensor:
        return weights.sum() * len(targets)

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, targets, weight=weights, reduction="sum")

    def decode(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        return torch.sigmoid(outputs / temperature)

    def fill(self, solutions: Sequence[Solution]) -> None:
        """Each solution tells absent (0) from present (1): the logit of the latter is their difference."""
        weight = np.stack([one.weight[1] - one.weight[0] for one in solutions])
        self.take(weight, np.array([one.bias[1] - one.bias[0] for one in solutions]))
