"""A network asked about held-out samples, whose answers are judged one picture at a time, at the picture's own size."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.data.batches.loading import Samples
from components.domain.canvas import Fit
from components.domain.domain import Domain
from components.models.engine import Engine
from components.models.network import Network
from components.tasks.base import DenseTask
from components.tasks.calibration import Calibration

TaskT = TypeVar("TaskT", bound=DenseTask)


@dataclass(frozen=True)
class Asked(ABC, Generic[TaskT]):
    """A network with the samples it is asked about.

    rows: of the manifest, one per sample and in their order. fit: how the pictures were put into the samples' size.
    """

    network: Network
    engine: Engine
    task: TaskT
    samples: Samples
    rows: pl.DataFrame
    domain: Domain
    fit: Fit
    batch_size: int

    @abstractmethod
    def calibrate(self, split: str = "val") -> Calibration:
        """What makes the probabilities of a split's answers frequencies."""

    @abstractmethod
    def judge_all(self, calibration: Calibration) -> list[dict[str, Any]]:
        """What the task judges of each sample, in their order."""

    def judge(self, calibration: Calibration) -> pl.DataFrame:
        """The frame of predictions: the rows with what was answered for them, and what that is worth."""
        keep = ["id", "path", "crop", "group", "split", *self.task.columns(), *self.domain.slices]
        judged = pl.DataFrame(self.judge_all(calibration), schema=self.task.judged())
        return self.rows.select(keep).hstack(judged)

    def find(self, split: str) -> NDArray[np.int64]:
        """The places of a split's samples."""
        return np.flatnonzero((self.rows["split"] == split).to_numpy())
