"""What every head has: it turns the encoder's output into answers, and defines their loss.

Shapes: B images, D features, C classes; R problems of a linear probe.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from components.models.tokens import POOLED, Needs, Tokens, count_pooled
from components.tasks.base import Task

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

HEAD_STD = 0.01  # small, so that the first logits are near zero and the first loss near that of a guess


class Shape(NamedTuple):
    """What a head must know of the encoder: channels of a token, number of blocks, height and width of a patch.

    pooled: channels of a pooled feature; 0 means as many as a token's.
    """

    width: int
    depth: int = 12
    patch: tuple[int, int] = (16, 16)
    pooled: int = 0

    @staticmethod
    def of(vit: "VisionTransformer") -> "Shape":
        height, width = vit.patch_embed.patch_size
        return Shape(vit.num_features, len(vit.blocks), (height, width), count_pooled(vit))


class Solution(Protocol):
    """The answer to one problem of a linear probe: weight (K, D) and bias (K,)."""

    @property
    def weight(self) -> NDArray[np.float64]: ...

    @property
    def bias(self) -> NDArray[np.float64]: ...


class Head(nn.Module, ABC):
    """One task's last layer. Its parameters are `head.*` of an adapter.

    needs: what of the encoder's output it reads. solvable: whether `linear` computes its optimum (`fill`) instead of
    training it. lr: the learning rate of its parameters; None for that of the tuner.
    """

    needs: Needs = POOLED
    solvable: ClassVar[bool] = False
    lr: float | None = None

    @classmethod
    @abstractmethod
    def create(cls, task: Task, shape: Shape, num_classes: int) -> Self:
        """A fresh head; torch's generator decides its first weights."""

    @abstractmethod
    def forward(self, tokens: Tokens) -> Tensor:
        """Outputs of the network (B, ...), which `loss` and `decode` read."""

    @abstractmethod
    def class_weights(self, targets: Any) -> Tensor:
        """(C,) from the targets of all training images: what keeps a rare class from being ignored."""

    @abstractmethod
    def count(self, targets: Tensor, weights: Tensor) -> Tensor:
        """What the loss of a batch is divided by: a sum over its images, so that parts and processes add up.

        It is wanted before the batch's first part is computed, hence it is not a result of `loss`.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The sum of the images' losses, weighted."""

    @abstractmethod
    def decode(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        """Probabilities (B, C, ...)."""

    def decode_graph(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        """What an exported graph puts out: `decode`, or what it begins with where it is more than a graph can hold.

        components/serving/prepare.py does the rest.
        """
        return self.decode(outputs, temperature)

    def fill(self, solutions: Sequence[Solution]) -> None:
        """Take the optimum of a linear probe: the solutions of the task's problems, in their order."""
        raise TypeError(f"{type(self).__name__} is trained, not solved")


class LinearHead(nn.Linear, Head):
    """Logits (B, C) of the pooled features (B, D)."""

    solvable: ClassVar[bool] = True

    @classmethod
    def create(cls, task: Task, shape: Shape, num_classes: int) -> Self:
        return cls(shape.pooled or shape.width, num_classes)

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__(num_features, num_classes)
        nn.init.normal_(self.weight, std=HEAD_STD)
        nn.init.zeros_(self.bias)

    def forward(self, tokens: Tokens) -> Tensor:  # type: ignore[override]  # tokens in the place of a tensor
        return super().forward(tokens.pooled)

    def take(self, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(weight))
            self.bias.copy_(torch.from_numpy(bias))
