"""The last layer of each task: one file per task, as in components/tasks."""

from components.models.heads.base import Head, Shape
from components.models.heads.classification import ClassificationHead
from components.models.heads.detection import DetectionHead
from components.models.heads.multilabel import MultilabelHead
from components.models.heads.segmentation import SegmentationHead
from components.tasks import Task

__all__ = ["HEADS", "Head", "Shape", "create_head"]

#: kind -> its head; a test holds it against components.tasks.TASKS.
HEADS: dict[str, type[Head]] = {
    "classification": ClassificationHead,
    "multilabel": MultilabelHead,
    "segmentation": SegmentationHead,  # type: ignore[type-abstract]  # its `create` chooses among its own
    "detection": DetectionHead,
}


def create_head(task: Task, shape: Shape, num_classes: int) -> Head:
    """A fresh head; torch's generator decides its first weights."""
    return HEADS[task.kind].create(task, shape, num_classes)
