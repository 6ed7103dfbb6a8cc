"""What a network answered, in the words and numbers of its task. No torch here.

Shapes: C classes, (H, W) pixels of the upright picture, (h, w) of the training's canvas, K boxes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.data.batches.boxes import restore_boxes
from components.data.batches.geometry import place, restore
from components.data.sources.images import Box
from components.models.adapter import AdapterMeta
from components.records.boxes import FoundBox, list_found
from components.records.maps import ClassMap
from components.serving.boxes import describe_boxes
from components.serving.looks import Look
from components.serving.maps import describe_map
from components.tasks.base import BoxTask, MapTask, describe_answer

UNKNOWN = (
    "This adapter was trained before adapter.json said what an input is: a whole picture, or the crop inside a box. "
    "If it was trained on crops, answers for whole pictures are wrong. Train it again with `tessera retrain`."
)

UNBOUND = (
    "Version {version} is not bound: it was registered before the registry and the ledger kept the sha256 of "
    "adapter.json, so only its weights are proven, not its classes and temperature."
)


@dataclass(frozen=True)
class Prediction:
    """The answer for one question.

    path: empty where the image came from memory. answer: `{"label": "crack"}`, or what else the task answers;
    `{"label": None, "abstained": True}` where the adapter's decision leaves the image to a person. box: as
    it was asked; crop: what was cut for it. class_map: (H, W) the answer of each pixel of the upright picture, where
    that is what the task answers. found: where the task answers boxes, all of them, the most confident first, also
    those below their threshold, which `answer` leaves out. With either of both, probabilities are None.
    """

    path: str
    answer: dict[str, Any]
    probabilities: dict[str, float] | None
    box: Box | None = None
    crop: Box | None = None
    class_map: ClassMap | None = None
    found: tuple[FoundBox, ...] | None = None

    @property
    def label(self) -> str:
        """The answer as one text for people."""
        return describe_answer(self.answer)


def list_doubts(meta: AdapterMeta, version: int, adapter_sha256: str) -> tuple[str, ...]:
    """What a caller must be warned of. adapter_sha256: by which the registry knows the adapter."""
    unbound = adapter_sha256 in ("", meta.adapter_sha256)  # only its weights
    doubts = (UNKNOWN if meta.input is None else "", UNBOUND.format(version=version) if unbound else "")
    return tuple(doubt for doubt in doubts if doubt)


def describe(meta: AdapterMeta, look: Look, row: NDArray[np.float64]) -> Prediction:
    """row: what the head decoded of the look's pixels: calibrated probabilities (C,), or, not calibrated yet,
    probabilities of the canvas (C, h, w) or boxes on it (K, 6)."""
    if isinstance(meta.task, MapTask):
        return _describe_map(meta, meta.task, look, row)
    if isinstance(meta.task, BoxTask):
        return _describe_boxes(meta, meta.task, look, row)
    (answer,) = meta.task.answer(row[None], meta.classes, meta.calibrated)
    probabilities = dict(zip(meta.classes, row.tolist(), strict=True))
    return Prediction(look.question.path, answer, probabilities, look.question.box, look.crop)


def _describe_map(meta: AdapterMeta, task: MapTask, look: Look, row: NDArray[np.float64]) -> Prediction:
    """The answer at the size of the picture."""
    chances = restore(row, place(look.size, meta.backbone.img_size, meta.fit), look.size[::-1])
    classes = task.decide(chances, meta.classes, meta.calibrated)
    answer = describe_map(task, classes, chances, meta.classes, meta.temperature)
    return Prediction(look.question.path, answer, None, look.question.box, look.crop, classes)


def _describe_boxes(meta: AdapterMeta, task: BoxTask, look: Look, row: NDArray[np.float64]) -> Prediction:
    """The answer in pixels of the picture."""
    lying = place(look.size, meta.backbone.img_size, meta.fit)
    decided = task.decide(restore_boxes(row, lying, look.size), meta.classes, meta.calibrated)
    found = list_found(*decided, meta.classes)
    return Prediction(look.question.path, describe_boxes(found, meta.classes), None, found=found)
