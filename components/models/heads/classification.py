"""One of C classes: softmax and cross entropy, in which every class counts the same."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, from_numpy
from torch.nn import functional as F  # noqa: N812

from components.models.heads.base import LinearHead, Solution
from components.tasks.classification import weigh_classes


class ClassificationHead(LinearHead):
    """targets: (B,) numbers of classes."""

    def class_weights(self, targets: NDArray[Any]) -> Tensor:
        """Mean 1 over the images."""
        return from_numpy(weigh_classes(targets, self.out_features)).float()

    def count(self, targets: Tensor, weights: Tensor) -> Tensor:
        return weights[targets].sum()

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, weight=weights, reduction="sum")

    def decode(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        return F.softmax(outputs / temperature, dim=-1)

    def fill(self, solutions: Sequence[Solution]) -> None:
        (one,) = solutions
        self.take(one.weight, one.bias)
