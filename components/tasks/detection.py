"""Labelled boxes. The metric is mAP50: the mean over the classes of the average precision, where an answered box is
right if it overlaps a box of its class that no more confident one has taken, with an IoU of at least one half.

Shapes: N pictures, C classes, M annotated and K answered boxes of a picture.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from components.records.boxes import OBJECTS, LabelledBox, write_objects
from components.tasks.advice import advise_canvas, advise_training
from components.tasks.base import Annotated, BoxTask, Ints, ask_each, name_labels, number_names

if TYPE_CHECKING:
    from pandera.polars import Check, Column

SEEN = 16  # pixels, the root of an object's area: at half of it AP50 of blood platelets fell from .88 to .24
SIDES = (224, 512)  # pixels of a new domain's canvas, as a square of the same area
STEPS = 600  # of a new domain's training: minutes on a CPU


class DetectionTask(BoxTask):
    """`task: detection`, or `{kind: detection, metric: map}`"""

    metric_words: ClassVar[str] = "mAP50"
    class_words: ClassVar[str] = "AP50"
    reads: ClassVar[frozenset[str]] = frozenset(
        {"folders", "csv", "parquet", "voc", "coco", "yolo", "instances", "masks", "labelme", "cvat"}
    )
    fewest_classes: ClassVar[int] = 1
    shown: ClassVar[str] = "map"
    cost_unit: ClassVar[str] = "an image"

    kind: Literal["detection"] = "detection"
    """An image has any number of labelled boxes, or none."""
    unannotated: Literal["leave_out", "background"] = "leave_out"
    """Whether pictures without any annotation are left out, or show no object."""
    stride: Literal[8, 4] = 8
    """Pixels between the finest points that answer a box. 4 finds smaller objects, and takes longer."""
    head_lr: float = Field(default=0.003, gt=0, le=1)
    """AdamW's peak learning rate of the last layers."""

    def advise(
        self, pictures: int, sizes: Sequence[tuple[int, int]], objects: Sequence[Sequence[LabelledBox]] = ()
    ) -> dict[str, Any]:
        """A canvas on which the middle object of the class with the smallest ones is SEEN pixels wide, within limits:
        what is smaller is hardly found. Small batches, and as many epochs as take about STEPS of them."""
        training = advise_training(pictures, STEPS)
        if not sizes:
            return {"training": training}
        side = SEEN / min(measure_classes(sizes, objects).values(), default=1.0)
        return {"img_size": advise_canvas(sizes, float(np.clip(side, *SIDES)))[0], "training": training}

    def columns(self) -> dict[str, pl.DataType]:
        """labels: the classes of all objects, those to ignore included. objects: as `components.records.boxes`."""
        return {"label": pl.String(), "labels": pl.List(pl.String), "objects": OBJECTS}

    def annotate(self, row: Annotated, classes: Sequence[str]) -> dict[str, Any]:
        if row.objects is None:
            return {"label": row.label}
        shown = {each.label for each in row.objects}
        labels = [name for name in classes if name in shown]
        return {"label": name_labels(labels), "labels": labels, "objects": write_objects(row.objects)}

    def checks(self, classes: Sequence[str]) -> "tuple[dict[str, Column], list[Check]]":
        import pandera.polars as pa

        columns = {
            "label": pa.Column(pl.String),
            "labels": pa.Column(pl.List(pl.String)),
            "objects": pa.Column(OBJECTS),
        }
        return columns, []

    def questions(self, frame: pl.DataFrame, classes: Sequence[str]) -> list[pl.DataFrame]:
        """One per class: does the picture show it?"""
        return ask_each(frame, classes)

    def targets(self, manifest: pl.DataFrame, classes: Sequence[str]) -> NDArray[np.bool_]:
        """(N, C) which classes a picture shows; the boxes themselves are loaded at the size of the training."""
        lists = manifest["labels"]
        rows = np.repeat(np.arange(len(lists)), lists.list.len().to_numpy())
        flags = np.zeros((len(lists), len(classes)), bool)
        flags[rows, number_names(lists.explode().drop_nulls(), classes)] = True
        return flags

    def strata(self, targets: NDArray[Any]) -> Ints:
        """The rarest class of each picture; one more for pictures without any."""
        rarity = np.where(targets, -targets.sum(axis=0), -np.inf)
        rarest: Ints = np.where(targets.any(axis=1), rarity.argmax(axis=1), targets.shape[1])
        return rarest


def measure_classes(sizes: Sequence[tuple[int, int]], objects: Sequence[Sequence[LabelledBox]]) -> dict[str, float]:
    """The root of the area of each class's middle object, as a share of that of its picture (width, height)."""
    shares: dict[str, list[float]] = {}
    for (width, height), shown in zip(sizes, objects, strict=False):
        for label, (x0, y0, x1, y1), kind in shown:
            if kind == "object":
                shares.setdefault(label, []).append(math.sqrt((x1 - x0) * (y1 - y0) / (width * height)))
    return {label: float(np.median(found)) for label, found in shares.items()}
