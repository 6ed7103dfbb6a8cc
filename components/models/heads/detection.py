"""Labelled boxes: an anchor-free head on a simple pyramid over four depths of the backbone and a stem on the pixels."""

from typing import Self

from components.models.heads.base import Head, Shape
from components.tasks.base import Task


class DetectionHead(Head):
    """targets: (B, M, 6) float32, as `components.records.boxes` has them."""

    @classmethod
    def create(cls, task: Task, shape: Shape, num_classes: int) -> Self:
        raise NotImplementedError
