"""One label per image. The metric is balanced accuracy, the mean of the per-class recalls: in inspection and pathology
the rare class is the one that matters, and plain accuracy rewards ignoring it.

By hand, because scikit-learn takes every training process a second to import; the tests compare the two.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.domain.domain import Domain
from components.domain.layouts import Table
from components.domain.settings import Gates
from components.records.jobs import PROBABILITY
from components.tasks.base import (
    PREDICTED,
    Annotated,
    Annotation,
    CountEvidence,
    Evidence,
    Floats,
    Ints,
    Problem,
    Task,
    number_groups,
    number_names,
)
from components.tasks.calibration import EXCLUSIVE, Calibration, calibrate
from components.tasks.decisions import abstains, decide

if TYPE_CHECKING:
    from pandera.polars import Check, Column


class ClassificationTask(Task):
    """`task: classification`"""

    metric: ClassVar[str] = "balanced_accuracy"
    metric_words: ClassVar[str] = "balanced accuracy"
    class_words: ClassVar[str] = "recall"
    shown: ClassVar[str] = "macro_f1"
    annotation: ClassVar[Annotation] = "label"
    fewest_classes: ClassVar[int] = 2

    kind: Literal["classification"] = "classification"
    """An image has one label."""

    def find_misfit(self, domain: Domain) -> tuple[str, str, str] | None:
        if isinstance(domain.layout, Table) and domain.layout.separator:
            hint = "Remove it, or choose the task multilabel; what stands between columns is the `delimiter`."
            return "a layout of one label per image", f"separator: {domain.layout.separator!r}", hint
        return super().find_misfit(domain)

    def columns(self) -> dict[str, pl.DataType]:
        return {"label": pl.String()}

    def annotate(self, row: Annotated, classes: Sequence[str]) -> dict[str, Any]:
        return {"label": row.label}

    def checks(self, classes: Sequence[str]) -> "tuple[dict[str, Column], list[Check]]":
        import pandera.polars as pa

        return {"label": pa.Column(pl.String, pa.Check.isin(classes))}, []

    def targets(self, manifest: pl.DataFrame, classes: Sequence[str]) -> Ints:
        return number_names(manifest["label"], classes)

    def strata(self, targets: Ints) -> Ints:
        return targets

    def problems(self, targets: Ints, classes: int) -> list[Problem]:
        return [Problem(targets, classes, balanced=True)]

    def surprise(self, targets: Ints, probabilities: Floats) -> Floats:
        return EXCLUSIVE.surprise(targets, probabilities)

    def calibrate(
        self, targets: Ints, probabilities: Floats, groups: NDArray[np.generic], classes: Sequence[str]
    ) -> Calibration:
        return calibrate(self, targets, probabilities, groups, self.strata(targets))

    def rescale(self, probabilities: Floats, temperature: float) -> Floats:
        return EXCLUSIVE.rescale(probabilities, temperature)

    def answer(self, probabilities: Floats, classes: Sequence[str], calibration: Calibration) -> list[dict[str, Any]]:
        """`{"label": None, "abstained": True}` where a decision leaves the image to a person."""
        rule = calibration.decision
        chosen = zip(decide(probabilities, classes, rule), abstains(probabilities, classes, rule), strict=True)
        return [{"label": None, "abstained": True} if left else {"label": classes[place]} for place, left in chosen]

    def answers(self, probabilities: Floats, classes: Sequence[str], calibration: Calibration) -> list[pl.Series]:
        """An image that is left to a person counts as the most probable other class: as an alarm."""
        return [pl.Series(PREDICTED, np.array(classes)[decide(probabilities, classes, calibration.decision)])]

    def metrics(
        self, targets: Ints, probabilities: Floats, classes: Sequence[str], calibration: Calibration | None = None
    ) -> dict[str, float]:
        """balanced_accuracy, accuracy, macro_f1, ece and recall/<class>.

        A class without an image here has no recall and is left out of the balanced accuracy.
        """
        predicted = decide(probabilities, classes, None if calibration is None else calibration.decision)
        present = np.unique(targets)
        confusion = np.zeros((len(classes), len(classes)), np.int64)  # by truth and prediction
        np.add.at(confusion, (targets, predicted), 1)
        hits, truths = confusion.diagonal()[present], confusion.sum(axis=1)[present]
        calls, recalls = confusion.sum(axis=0)[present], hits / truths
        return {
            self.metric: float(recalls.mean()),
            "accuracy": float(hits.sum() / len(targets)),
            "macro_f1": float((2 * hits / (truths + calls)).mean()),
            "ece": self.calibration_error(targets, probabilities),
            **{f"recall/{classes[k]}": float(value) for k, value in zip(present, recalls, strict=True)},
        }

    def evidence(self, frame: pl.DataFrame, classes: Sequence[str]) -> Evidence:
        labels, predicted = number_names(frame["label"], classes), number_names(frame[PREDICTED], classes)
        return measure_recall(labels, predicted, frame["group"].to_numpy(), len(classes))

    def mean_evidence(self, frames: Sequence[pl.DataFrame], classes: Sequence[str]) -> Evidence:
        """Answers laid end to end have as recalls the means of the models' recalls."""
        return self.evidence(pl.concat(frames), classes)

    def class_evidence(self, frame: pl.DataFrame, classes: Sequence[str]) -> dict[str, Evidence]:
        """The recall of each class: the balanced accuracy of its images alone."""
        parts = {name: frame.filter(pl.col("label") == name) for name in classes}
        return {name: self.evidence(part, classes) for name, part in parts.items() if part.height}

    def chance(self, frame: pl.DataFrame, classes: Sequence[str], of: str | None = None) -> float:
        return 1 / len(classes)

    def name_chance(self, classes: Sequence[str], of: str | None = None) -> str:
        return f"guessing among {len(classes)}{'' if of else ' classes'}"

    def costs(self, frame: pl.DataFrame, gates: Gates, classes: Sequence[str]) -> tuple[Floats, float]:
        most = max([1.0, *(cost for row in gates.costs.values() for cost in row.values())])
        return np.array([gates.cost(*pair) for pair in frame.select("label", PREDICTED).iter_rows()]), most

    def reliability(self, targets: Ints, probabilities: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """The probability of the most probable class, and whether that is the truth, whatever a decision answers."""
        return probabilities.max(axis=1)[:, None], (probabilities.argmax(axis=1) == targets)[:, None]

    def flags(self, frame: pl.DataFrame, classes: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        truth, answered = (number_names(frame[name], classes) for name in ("label", PREDICTED))
        places = np.arange(len(classes))
        return truth[:, None] == places, answered[:, None] == places

    def confidence(self, frame: pl.DataFrame) -> pl.Series:
        """The probability of the answer, which under a decision may not be the highest."""
        return pl.Series(
            [row[f"{PROBABILITY}{row[PREDICTED]}"] for row in frame.iter_rows(named=True)], dtype=pl.Float64
        )

    def ease(self, frame: pl.DataFrame) -> pl.Series:
        return pl.Series([row[f"{PROBABILITY}{row['label']}"] for row in frame.iter_rows(named=True)], dtype=pl.Float64)

    def outputs(self, classes: Sequence[str]) -> dict[str, str]:
        return {"label": "string"} | {f"{PROBABILITY}{name}": "double" for name in classes}


def weigh_classes(targets: Ints, num_classes: int) -> Floats:
    """Weights (C,) that make every class count the same in the loss; mean 1 over the images."""
    counts = np.bincount(targets, minlength=num_classes).clip(1)
    weights: Floats = len(targets) / (num_classes * counts)
    return weights


def measure_recall(labels: Ints, predicted: Ints, names: NDArray[np.generic], num_classes: int) -> CountEvidence:
    """Evidence of the balanced accuracy. labels, predicted: (N,) numbers of classes; names: (N,) groups.

    A class that a resample lacks is left out of that resample's mean.
    """
    groups, number = number_groups(names)
    cells = groups * num_classes + labels

    def count(chosen: Ints) -> Floats:
        return np.bincount(chosen, minlength=number * num_classes).reshape(number, num_classes).astype(float)  # (G, C)

    return CountEvidence(groups, count(cells[labels == predicted]), count(cells), average_recall)


def average_recall(hits: Floats, support: Floats) -> Floats:
    """(R, C) and (R, C) -> (R,): the mean over the classes present in each row."""
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    mean: Floats = recall.sum(axis=1) / (support > 0).sum(axis=1)
    return mean
