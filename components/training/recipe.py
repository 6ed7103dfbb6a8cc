"""What one training is asked for, and that it was asked to end."""

from dataclasses import dataclass

from components.domain.settings import Training
from components.models.extraction import FeatureSource
from components.models.tuners import Tuner
from components.tasks import CLASSIFICATION, Task


class Stopped(Exception):  # noqa: N818  asked for, so no error
    """Training ended early because somebody asked; the checkpoint says where."""


@dataclass(frozen=True)
class Recipe:
    """One candidate's training: who learns what, and for how long.

    origin: names of backbone and data, by hash. features: where features of the bare backbone are kept.
    """

    tuner: Tuner
    training: Training
    classes: tuple[str, ...]
    seed: int
    origin: str = ""
    task: Task = CLASSIFICATION
    features: FeatureSource | None = None
