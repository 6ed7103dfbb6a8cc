"""Labelled boxes: every point of a pyramid answers one box, without anchors (https://arxiv.org/abs/1904.01355).

The pyramid has the strides 8, 16 and 32, of which only 16 is the backbone's own (https://arxiv.org/abs/2203.16527), and
4 if the task asks for it. Queries as of DETR are no option: without tens of thousands of pictures they do not learn
where to look.

The centres of the points depend on the size of the canvas, which only `forward` knows; so they are part of its outputs.

Shapes: B images, C classes, P points, M annotated boxes, K found ones, D channels of a token, (H, W) patch grid.
"""

import math
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision.ops import batched_nms, generalized_box_iou_loss

from components.models.heads.assignment import assign, find_objects
from components.models.heads.base import Head, Shape
from components.models.heads.pyramid import (
    CHANNELS,
    STEM,
    choose_layers,
    convolve,
    create_stem,
    enlarge,
    join_layers,
    lay_out,
    see,
    start_near_zero,
)
from components.models.tokens import Needs, Tokens
from components.records.boxes import LEAST, MOST_FOUND, NONE
from components.tasks.base import Task
from components.tasks.detection import DetectionTask

TOWER = 2  # shared layers before the answers
RARE = math.log(0.01 / 0.99)  # logit of every point's first score, near the share of points that have an object
REACH = 2.0  # strides from a point to the sides of its first box
PLACE = 2.0  # weight of the boxes beside the scores
CANDIDATES = 1000  # boxes per picture that suppression chooses from
OVERLAP = 0.6  # IoU from which on the less confident of two boxes of a class is suppressed


class DetectionHead(Head):
    """targets: (B, M, 6) float32, as `components.records.boxes` has them."""

    @classmethod
    def create(cls, task: Task, shape: Shape, num_classes: int) -> Self:
        if not isinstance(task, DetectionTask):
            raise TypeError(f"a head for boxes answers no task of {task.kind}")
        head = cls(shape, num_classes, task.stride)
        head.lr = task.head_lr
        return head

    def __init__(self, shape: Shape, num_classes: int, stride: int = 8) -> None:
        super().__init__()
        self.needs, self.classes = Needs(layers=choose_layers(shape.depth)), num_classes
        self.strides = tuple(each for each in (4, 8, 16, 32) if each >= stride)
        self.project = nn.Linear(shape.width * len(self.needs.layers), CHANNELS)
        self.stem = create_stem()
        self.sixteenth = nn.Conv2d(STEM[2], CHANNELS, 2, 2)  # 2 x 2, so that a point stays amid the pixels it sees
        self.spread = nn.Linear(CHANNELS, 4 * CHANNELS)  # 2 x 2 places per token, which the shuffle lays out
        self.eighth = nn.Conv2d(STEM[2], CHANNELS, 1)
        self.fourth = nn.Conv2d(STEM[1], CHANNELS, 1) if stride == 4 else None
        self.coarse = nn.Conv2d(CHANNELS, CHANNELS, 2, 2)
        self.tower = nn.Sequential(*(convolve(CHANNELS, CHANNELS) for _ in range(TOWER)))
        self.answer = nn.Conv2d(CHANNELS, num_classes + 4, 3, padding=1)
        start_near_zero(self.answer)

    def forward(self, tokens: Tokens) -> Tensor:
        """(B, P, C + 6) float32: logits of the classes, a box in pixels of the canvas, and the centre of the point."""
        levels = zip(self.strides, self.build_pyramid(tokens), strict=True)
        return torch.cat([self.read_level(level, stride) for stride, level in levels], dim=1)

    def build_pyramid(self, tokens: Tokens) -> list[Tensor]:
        """One map (B, D, h, w) per stride, the finest first."""
        x = self.project(join_layers(tokens))
        _, _, fourth, eighth = see(self.stem, tokens)
        sixteenth = self.sixteenth(pad_even(eighth))
        spread = F.pixel_shuffle(lay_out(self.spread(x), tokens.grid), 2)
        sixteenth = sixteenth + enlarge(lay_out(x, tokens.grid), sixteenth)
        eighth = self.eighth(eighth) + enlarge(spread, eighth)
        levels = [eighth, sixteenth, self.coarse(pad_even(sixteenth))]
        return levels if self.fourth is None else [self.fourth(fourth) + enlarge(eighth, fourth), *levels]

    def read_level(self, level: Tensor, stride: int) -> Tensor:
        """(B, h * w, C + 6). In float32 even under autocast: bfloat16 would round a box to a whole pixel or more."""
        level = self.tower(level)
        with torch.autocast(level.device.type, enabled=False):
            answers = self.answer(level.float()).flatten(2).transpose(1, 2)
            centres = find_centres(level, stride).expand(answers.shape[0], -1, -1)
            logits, sides = torch.split(answers, [self.classes, 4], dim=2)
            low, high = (sides.clamp(-8, 8).exp() * (REACH * stride)).chunk(2, dim=2)
            return torch.cat([logits + RARE, centres - low, centres + high, centres], dim=2)

    def class_weights(self, targets: Any) -> Tensor:
        """Ones: an object weighs the same whatever its class."""
        return torch.ones(self.classes)

    def count(self, targets: Tensor, weights: Tensor) -> Tensor:
        """The number of objects; a picture without any counts as one."""
        return find_objects(targets).sum(dim=1).clamp(min=1).sum().double()

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The cross entropy of every score to the quality its box should have, weighted by class, and twice the GIoU
        loss of the boxes that answer for an object.

        Boxes are not weighted by their quality, as in TOOD: where objects differ in size, a box that fits badly would
        then hardly learn, and AP50 of 400 simulated defects was .22 instead of .47 after as many steps.
        """
        logits, boxes, centres = torch.split(outputs, [self.classes, 4, 2], dim=2)
        found = assign(logits.sigmoid(), boxes.detach(), centres[0], targets, least=float(self.strides[0]))
        entropy = F.binary_cross_entropy_with_logits(logits, found.qualities, reduction="none")
        entropy = (entropy * weights).sum(dim=2).where(~found.ignored, 0.0)
        distance = generalized_box_iou_loss(boxes[found.taken], found.boxes[found.taken])
        total: Tensor = entropy.sum() + PLACE * distance.sum()
        return total

    def decode(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        """(B, K, 6) what is found, the most confident first: x0, y0, x1, y1, class, confidence; filled up with rows of
        class NONE."""
        candidates = self.decode_graph(outputs, temperature)
        image, rank = torch.nonzero(candidates[..., 5] >= LEAST, as_tuple=True)
        rows = candidates[image, rank]
        place_of = image * self.classes + rows[:, 4].long()
        kept = batched_nms(rows[:, :4].double(), rows[:, 5].double(), place_of, OVERLAP)
        kept = kept[image[kept].argsort(stable=True)]
        starts = torch.bincount(image[kept], minlength=len(outputs)).cumsum(0).roll(1)
        starts[0] = 0
        place = torch.arange(len(kept), device=kept.device) - starts[image[kept]]
        found = outputs.new_zeros(len(outputs), MOST_FOUND, 6)
        found[..., 4] = NONE
        some = place < MOST_FOUND
        found[image[kept][some], place[some]] = rows[kept][some]
        return found

    def decode_graph(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        """(B, K, 6) the boxes that suppression chooses from, the most confident first; also those below LEAST."""
        logits, boxes, _ = torch.split(outputs, [self.classes, 4, 2], dim=2)
        scores = (logits / temperature).sigmoid().flatten(1)
        scores, places = scores.topk(min(CANDIDATES, scores.shape[1]))
        points, classes = places // self.classes, places % self.classes
        # To tell classes and pictures apart, batched_nms moves boxes: none may lie left of or above the canvas, and far
        # out, float32 would round them.
        chosen = boxes.gather(1, points[..., None].expand(-1, -1, 4)).clamp(min=0)
        return torch.cat([chosen, classes[..., None].to(chosen), scores[..., None]], dim=2)


def pad_even(x: Tensor) -> Tensor:
    """Zeros below and right of maps (B, D, h, w) of odd size, so that no row or column is lost when they are halved."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, width % 2, 0, height % 2))


def find_centres(level: Tensor, stride: int) -> Tensor:
    """(h * w, 2) x and y in pixels of the canvas, row by row."""
    rows, columns = ((torch.arange(size, device=level.device) + 0.5) * stride for size in level.shape[-2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)
