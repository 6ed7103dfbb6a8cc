"""The class of every pixel: `conv`, a small pyramid over four depths of the backbone and a stem on the pixels, and
`linear`, one projection of the patch tokens.

There is no batch norm in either, although linear heads of the literature have one: `components.models.heads.pyramid`
says why.

Shapes: B images, C classes, D channels of a token, (H, W) patch grid, (h, w) pixels of the training canvas.
"""

import math
from abc import abstractmethod
from typing import Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from components.models.heads.base import Head, Shape
from components.models.heads.pyramid import (
    CHANNELS,
    STEM,
    choose_layers,
    convolve,
    create_stem,
    join_enlarged,
    join_layers,
    lay_out,
    require_pixels,
    see,
    start_near_zero,
)
from components.models.tokens import Needs, Tokens
from components.records.maps import IGNORE
from components.tasks.base import Task
from components.tasks.segmentation import SegmentationTask

STRIDE = 2  # pixels per answer, along each side
RAREST = 5.0  # the largest weight of a class
SMOOTH = 1.0  # pixels added to both sides of a Dice, so that a class of a few pixels has a gradient


class SegmentationHead(Head):
    """targets: (B, h, w) uint8 numbers of classes; IGNORE counts for nothing.

    Outputs are logits (B, C, h / 2, w / 2), or a little more where h or w is no multiple of 8: of answers at every
    fourth pixel, an outline moves when probabilities are enlarged to the picture.
    """

    @classmethod
    def create(cls, task: Task, shape: Shape, num_classes: int) -> Self:
        """One of the kind that the task's options choose."""
        if not isinstance(task, SegmentationTask):
            raise TypeError(f"a head for class maps answers no task of {task.kind}")
        head = HEADS[task.head](shape, num_classes)
        head.lr = task.head_lr
        return cast(Self, head)

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.needs, self.classes = Needs(layers=choose_layers(shape.depth)), num_classes

    @abstractmethod
    def forward(self, tokens: Tokens) -> Tensor: ...

    def class_weights(self, targets: NDArray[np.uint8]) -> Tensor:
        """One over the fourth root of a class's share of the pixels, in proportion to that of the commonest class, and
        5 at most.

        The Dice already counts every class that an image shows alike. With one over the root in addition, answers of a
        rare class flooded its surroundings: the best threshold on it was 0.85 instead of one half.
        """
        pixels = np.zeros(self.classes)
        for classes in targets:  # one at a time: they are mapped from a file
            pixels += np.bincount(classes.reshape(-1), minlength=IGNORE + 1)[: self.classes]
        weights = ((pixels.max() / np.maximum(pixels, 1)) ** 0.25).clip(1, RAREST)
        return torch.from_numpy(weights).float()

    def count(self, targets: Tensor, weights: Tensor) -> Tensor:
        """The number of images with a labelled pixel; a trace more than 0 where there is none."""
        return (targets != IGNORE).flatten(1).any(dim=1).sum().double().clamp(min=1e-9)

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Per image the cross entropy, as a weighted mean over its labelled pixels, plus what its Dice lacks of one."""
        logits = F.interpolate(outputs, targets.shape[-2:], mode="bilinear")
        return measure_losses(logits, targets, weights).sum()

    def decode(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        return F.softmax(outputs / temperature, dim=1)


class LinearMapHead(SegmentationHead):
    """`linear`: normalised tokens, one projection to the classes."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__(shape, num_classes)
        self.project = nn.Linear(shape.width * len(self.needs.layers), num_classes)
        start_near_zero(self.project)

    def forward(self, tokens: Tokens) -> Tensor:
        logits = lay_out(self.project(join_layers(tokens)), tokens.grid)
        return F.interpolate(logits, _divide(require_pixels(tokens), STRIDE), mode="bilinear")


class ConvMapHead(SegmentationHead):
    """`conv`: normalised tokens projected to 96 channels, enlarged twice, with the stem's maps beside them."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__(shape, num_classes)
        self.project = nn.Linear(shape.width * len(self.needs.layers), CHANNELS)
        self.stem = create_stem()
        self.eighth = convolve(CHANNELS + STEM[2], CHANNELS)
        self.narrow = nn.Conv2d(CHANNELS, CHANNELS // 2, 1)  # before it is enlarged: a fifth of the head's time
        self.fourth = convolve(CHANNELS // 2 + STEM[1], CHANNELS // 2)
        self.answer = nn.Conv2d(CHANNELS // 2, num_classes * 4, 1)  # 2 x 2 answers, which the shuffle lays out
        start_near_zero(self.answer)

    def forward(self, tokens: Tokens) -> Tensor:
        x = lay_out(self.project(join_layers(tokens)), tokens.grid)
        seen = see(self.stem, tokens)
        x = self.narrow(self.eighth(join_enlarged(x, seen[3])))
        return F.pixel_shuffle(self.answer(self.fourth(join_enlarged(x, seen[2]))), 2)


HEADS: dict[str, type[LinearMapHead] | type[ConvMapHead]] = {"conv": ConvMapHead, "linear": LinearMapHead}


def measure_losses(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """(B,) cross entropy, as a weighted mean over an image's labelled pixels, plus one minus the mean Dice of the
    classes that it shows. logits: (B, C, h, w); targets: (B, h, w) uint8.

    Everything is a sum by class of a value per pixel, so that no array of ones and zeros per class is needed.
    """
    logs = F.log_softmax(logits, dim=1)
    known = targets != IGNORE
    place = targets.long().where(known, 0)
    picked = logs.gather(1, place[:, None])[:, 0]
    pixels, entropy, shared = (
        _sum_by_class(values * known, place, logits.shape[1])
        for values in (torch.ones_like(picked), picked, picked.exp())
    )
    answered = (logs.exp() * known[:, None]).sum(dim=(2, 3))
    dice = (2 * shared + SMOOTH) / (pixels + answered + SMOOTH)
    shown = (pixels > 0).float()
    lacking = ((1 - dice) * shown).sum(dim=1) / shown.sum(dim=1).clamp(min=1)
    losses: Tensor = lacking - (entropy * weights).sum(dim=1) / pixels.sum(dim=1).clamp(min=1)
    return losses


def _divide(pixels: Tensor, stride: int) -> tuple[int, int]:
    height, width = pixels.shape[-2:]
    return math.ceil(height / stride), math.ceil(width / stride)


def _sum_by_class(values: Tensor, place: Tensor, classes: int) -> Tensor:
    """Values (B, h, w) and the class of each pixel to (B, C)."""
    return values.new_zeros(len(values), classes).scatter_add(1, place.flatten(1), values.flatten(1))
