"""The class of every pixel: `conv`, a small pyramid over four depths of the backbone and a stem on the pixels, and
`linear`, one projection of the patch tokens.

A patch token covers 16 x 16 pixels, hence cannot say where inside it an edge runs. The stem of `conv` can: three thin
convolutions on the pixels themselves, joined where the pyramid has their stride.

There is no batch norm in either, although linear heads of the literature have one: running statistics differ between
one process and several, are no parameters, so that an adapter would lack them, and are noise at two pictures per step.
Tokens are normalised one by one instead, and maps by groups of channels.

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

from components.models.heads.base import HEAD_STD, Head, Shape
from components.models.tokens import Needs, Tokens
from components.records.maps import IGNORE
from components.tasks.base import Task
from components.tasks.segmentation import SegmentationTask

DEPTHS = 4  # how many blocks a head reads
STRIDE = 2  # pixels per answer, along each side
CHANNELS = 96
STEM = (16, 32, 64)  # channels at the strides 2, 4 and 8
GROUPS = 8  # of channels that are normalised together
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
        _start_near_zero(self.project)

    def forward(self, tokens: Tokens) -> Tensor:
        logits = _lay_out(self.project(_join_layers(tokens)), tokens.grid)
        return F.interpolate(logits, _divide(_require_pixels(tokens), STRIDE), mode="bilinear")


class ConvMapHead(SegmentationHead):
    """`conv`: normalised tokens projected to 96 channels, enlarged twice, with the stem's maps beside them."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__(shape, num_classes)
        self.project = nn.Linear(shape.width * len(self.needs.layers), CHANNELS)
        widths = (3, *STEM)
        self.stem = nn.ModuleList(_convolve(a, b, stride=2) for a, b in zip(widths, STEM, strict=False))
        self.eighth = _convolve(CHANNELS + STEM[2], CHANNELS)
        self.narrow = nn.Conv2d(CHANNELS, CHANNELS // 2, 1)  # before it is enlarged: a fifth of the head's time
        self.fourth = _convolve(CHANNELS // 2 + STEM[1], CHANNELS // 2)
        self.answer = nn.Conv2d(CHANNELS // 2, num_classes * 4, 1)  # 2 x 2 answers, which the shuffle lays out
        _start_near_zero(self.answer)

    def forward(self, tokens: Tokens) -> Tensor:
        x = _lay_out(self.project(_join_layers(tokens)), tokens.grid)
        seen = [_require_pixels(tokens)]
        for layer in self.stem:
            seen.append(layer(seen[-1]))
        x = self.narrow(self.eighth(_join_enlarged(x, seen[3])))
        return F.pixel_shuffle(self.answer(self.fourth(_join_enlarged(x, seen[2]))), 2)


HEADS: dict[str, type[LinearMapHead] | type[ConvMapHead]] = {"conv": ConvMapHead, "linear": LinearMapHead}


def choose_layers(depth: int) -> tuple[int, ...]:
    """Four blocks at even distances, the last one included; all of them where there are no more."""
    return tuple(sorted({math.ceil(depth * part / DEPTHS) - 1 for part in range(1, DEPTHS + 1)}))


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


def _sum_by_class(values: Tensor, place: Tensor, classes: int) -> Tensor:
    """Values (B, h, w) and the class of each pixel to (B, C)."""
    return values.new_zeros(len(values), classes).scatter_add(1, place.flatten(1), values.flatten(1))


def _join_layers(tokens: Tokens) -> Tensor:
    """(B, HW, D * layers), each token of each layer with mean 0 and variance 1."""
    return torch.cat([F.layer_norm(layer, layer.shape[-1:]) for layer in tokens.layers], dim=-1)


def _lay_out(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, HW, D) to (B, D, H, W)."""
    return x.transpose(1, 2).reshape(len(x), -1, *grid)


def _join_enlarged(x: Tensor, beside: Tensor) -> Tensor:
    """x (B, D, H, W) enlarged to the size of `beside`, whose channels follow its own."""
    return torch.cat([F.interpolate(x, beside.shape[-2:], mode="bilinear"), beside], dim=1)


def _divide(pixels: Tensor, stride: int) -> tuple[int, int]:
    height, width = pixels.shape[-2:]
    return math.ceil(height / stride), math.ceil(width / stride)


def _require_pixels(tokens: Tokens) -> Tensor:
    if tokens.pixels is None:
        raise ValueError("a dense head reads the pixels, which `Network.forward` puts among the tokens")
    return tokens.pixels


def _convolve(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, outputs), nn.GELU())


def _start_near_zero(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.normal_(layer.weight, std=HEAD_STD)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
