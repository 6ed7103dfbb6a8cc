"""Answers that are class maps: calibrated on pixels of validation, judged at the size of each picture.

A network answers at training size, or at half of it. What the gates compare is measured where the annotation was
made: each answer is stretched back to its picture before it is judged. One picture at a time is held at that size.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.data.batches.geometry import place, restore
from components.records.maps import decode_map
from components.tasks.base import MapTask
from components.tasks.calibration import Calibration
from components.training.asked import Asked
from components.training.evaluate import answer_batches

THREADS = 2  # pictures judged at a time: each needs its probabilities at full size in memory


@dataclass(frozen=True)
class Maps(Asked[MapTask]):
    """Asked for class maps."""

    def calibrate(self, split: str = "val") -> Calibration:
        """What makes the probabilities of a split's pixels frequencies."""
        places = self.find(split)
        groups = self.rows["group"].to_numpy()[places]
        parts, first = [], 0
        for chances, targets in self._answer(places):
            classes, sampled, images = self.task.sample(chances, targets)
            parts.append((classes, sampled, groups[first + images]))
            first += len(chances)
        classes, sampled, of = (np.concatenate(part) for part in zip(*parts, strict=True))
        return self.task.calibrate(classes, sampled, of, self.domain.classes)

    def judge_all(self, calibration: Calibration) -> list[dict[str, Any]]:
        maps = self.rows["class_map"].to_list()
        rows, columns = self.samples.pixels.shape[1:3]

        def judge_one(index: int, chances: NDArray[np.float64]) -> dict[str, Any]:
            truth = decode_map(maps[index])
            placed = place(truth.shape[::-1], (rows, columns), self.fit)
            return self.task.judge(restore(chances, placed, truth.shape), truth, self.domain.classes, calibration)

        judged: list[dict[str, Any]] = []
        with ThreadPoolExecutor(THREADS) as pool:
            for chances, _ in self._answer(np.arange(len(self.samples))):
                numbers = range(len(judged), len(judged) + len(chances))
                judged += pool.map(judge_one, numbers, chances)
        return judged

    def _answer(self, places: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.float64], NDArray[Any]]]:
        """Probabilities and targets of some samples, a batch at a time."""
        from torch.utils.data import Subset

        return answer_batches(self.network, Subset(self.samples, places.tolist()), self.engine, self.batch_size)
