"""Answers that are labelled boxes: calibrated on validation, judged in pixels of each picture.

A network answers boxes on the canvas of the training; what the gates compare is measured where the annotation was made.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.data.batches.boxes import restore_boxes
from components.data.batches.geometry import place
from components.records.boxes import read_objects, to_targets
from components.tasks.base import BoxTask
from components.tasks.calibration import Calibration
from components.training.asked import Asked
from components.training.evaluate import answer_batches


@dataclass(frozen=True)
class Boxes(Asked[BoxTask]):
    """Asked for boxes."""

    @cached_property
    def found(self) -> list[NDArray[np.float64]]:
        """What is answered for each sample (K, 6), in pixels of its picture, before calibration."""
        canvas = self.samples.pixels.shape[1:3]
        sizes = self.rows.select("width", "height").rows()
        batches = answer_batches(self.network, self.samples, self.engine, self.batch_size)
        answers = [found for batch, _ in batches for found in batch]
        pairs = zip(answers, sizes, strict=True)
        return [restore_boxes(found, place(size, canvas, self.fit), size) for found, size in pairs]

    @cached_property
    def truth(self) -> list[NDArray[np.float64]]:
        """The annotated boxes of each sample (M, 6), in pixels of its picture."""
        return [to_targets(read_objects(objects), self.domain.classes) for objects in self.rows["objects"]]

    def calibrate(self, split: str = "val") -> Calibration:
        """What makes the confidences of a split's boxes frequencies, and from which confidence on a box is shown."""
        places = self.find(split)
        truth, found = ([each[place] for place in places] for each in (self.truth, self.found))
        return self.task.calibrate(truth, found, self.rows["group"].to_numpy()[places], self.domain.classes)

    def judge_all(self, calibration: Calibration) -> list[dict[str, Any]]:
        return [
            self.task.judge(found, truth, self.domain.classes, calibration)
            for found, truth in zip(self.found, self.truth, strict=True)
        ]
