"""Answered boxes of a split in numbers: per class, per size of object and per kind of error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from components.reports.boxes import match_row
from components.reports.words import ByClass, Estimate, format_share
from components.tasks.base import BoxTask
from components.tasks.box_answers import Answers, read_answers
from components.tasks.box_matches import SIZES
from components.tasks.box_outcomes import count_confusion, count_errors

NONE = "-"  # of what there is nothing to measure
SIZE_WORDS = {
    "small": "small, up to 32 x 32 px",
    "medium": "medium, up to 96 x 96 px",
    "large": "large",
}
ERROR_WORDS = {
    "class": "in place, but of another class",
    "localisation": "of the right class, with an IoU from .1 to .5",
    "both": "neither in place nor of the class",
    "duplicate": "a second box for an object that is found",
    "background": "where no object is",
    "missed": "objects that no box is for",
}
CLASS_HEADS = (
    "class", "objects", "AP50", "AP", "shown from", "recall", "precision", "F1", "missed",
    "false alarms per image", "count error",
)  # fmt: skip
SIZE_HEADS = ("size", "images", "objects", "mAP", "recall", "missed")
ERROR_HEADS = ("kind of error", "mAP50 if it were fixed")
NOTE = (
    "A box is right where it overlaps an object of its class, which no more confident box has taken, with an IoU of at "
    "least .5. AP50 and AP (the mean over IoUs of .5 to .95) are over all boxes of any confidence; the other columns "
    "are of the boxes that are shown, from the threshold of their class on. False alarms are shown boxes that are not "
    "right. Count error: how far the number of objects of an image is off, on average."
)
ERROR_NOTE = (
    "What mAP50 would gain if all errors of one kind were fixed (TIDE, arXiv 2008.08115), over boxes of any "
    "confidence; the gains do not add up."
)


@dataclass(frozen=True)
class ClassBoxes:
    """One class over a split of so many images. objects: that count; right, shown: boxes. ap50, ap: None without an
    object. intervals: what stands behind either. threshold: from which confidence on
    boxes are shown, where it is known. off: the mean of how far the number of objects of an image is off."""

    name: str
    images: int
    objects: int
    right: int
    shown: int
    ap50: float | None
    ap: float | None
    intervals: tuple[str, str]
    threshold: float | None
    off: float

    @property
    def cells(self) -> tuple[str, ...]:
        """As the table shows them; CLASS_HEADS are above."""
        return (
            self.name,
            f"{self.objects:,}",
            *map(_format_precision, (self.ap50, self.ap), self.intervals),
            NONE if self.threshold is None else f"{self.threshold:.2f}",
            _divide(self.right, self.objects),
            _divide(self.right, self.shown),
            _divide(2 * self.right, self.objects + self.shown),
            f"{self.objects - self.right:,}",
            f"{(self.shown - self.right) / max(self.images, 1):.2f}",
            f"{self.off:.2f}",
        )


@dataclass(frozen=True)
class SizeBoxes:
    """Objects of one size that count, in so many images, and those that shown boxes find. ap: mAP of the size."""

    name: str
    images: int
    objects: int
    found: int
    ap: float | None

    @property
    def cells(self) -> tuple[str, ...]:
        ap = NONE if self.ap is None else f"{self.ap:.3f}"
        missed = f"{self.objects - self.found:,}"
        return (
            SIZE_WORDS[self.name],
            f"{self.images:,}",
            f"{self.objects:,}",
            ap,
            _divide(self.found, self.objects),
            missed,
        )


@dataclass(frozen=True)
class SplitBoxes:
    """All classes over a split of so many images. scores: of the task. recall_at: false alarms per image at which
    recall is reported."""

    classes: tuple[ClassBoxes, ...]
    sizes: tuple[SizeBoxes, ...]
    images: int
    scores: Mapping[str, float]
    recall_at: float

    def summarise(self) -> str:
        """What an inspector asks first: objects found, false alarms, and how far counts are off."""
        objects, right, shown = (
            sum(getattr(row, name) for row in self.classes) for name in ("objects", "right", "shown")
        )
        share = f" ({format_share(right / objects)})" if objects else ""
        wrong = shown - right
        false = f"{wrong:,} false alarms, {wrong / max(self.images, 1):.2g} per image" if wrong else "no false alarm"
        recall, off = self.scores[f"recall_at_{self.recall_at:g}_fa"], self.scores["count_error"]
        return (
            f"Found {right:,} of {objects:,} objects{share}, with {false}. At {self.recall_at:g} false alarms per "
            f"image the recall is {recall:.3f}. The number of objects of an image is off by {off:.2g} on average."
        )

    def list_errors(self) -> list[tuple[str, ...]]:
        """What fixing each kind would add, the most first."""
        gains = {kind: self.scores[f"errors/{kind}"] for kind in ERROR_WORDS}
        ranked = sorted(gains.items(), key=lambda item: -item[1])
        return [(f"{kind}: {ERROR_WORDS[kind]}", f"{gain:+.3f}") for kind, gain in ranked]


def measure_split(frame: pl.DataFrame, task: BoxTask, classes: Sequence[str], known: ByClass) -> SplitBoxes:
    """All of a frame of predictions."""
    scores = task.score_frame(frame, classes)
    confusion, off = count_confusion(frame, classes), np.abs(count_errors(frame, classes))
    rows = tuple(
        ClassBoxes(
            name=name,
            images=frame.height,
            objects=int(confusion[k].sum()),
            right=int(confusion[k, k]),
            shown=int(confusion[:, k].sum()),
            ap50=scores.get(f"ap50/{name}"),
            ap=scores.get(f"ap/{name}"),
            intervals=_write_interval(task, known.intervals.get(name)),
            threshold=known.thresholds.get(name),
            off=float(off[:, k].mean()) if frame.height else 0.0,
        )
        for k, name in enumerate(classes)
    )
    return SplitBoxes(rows, _count_sizes(frame, classes, scores), frame.height, scores, task.recall_at)


def count_images(answers: Answers) -> dict[str, int]:
    """How many images show an object of each size that counts."""
    return {size: len(np.unique(answers.of_targets[answers.find_counted(area)])) for size, area in SIZES.items()}


def _count_sizes(frame: pl.DataFrame, classes: Sequence[str], scores: Mapping[str, float]) -> tuple[SizeBoxes, ...]:
    """Of the sizes that occur."""
    answers = read_answers(frame, classes)
    images = count_images(answers)
    fates = [fate for facts in frame.iter_rows(named=True) for fate in match_row(facts, classes).objects]
    found = np.array(fates, dtype=object) == "found"
    counted = {size: answers.find_counted(area) for size, area in SIZES.items()}
    return tuple(
        SizeBoxes(size, images[size], int(of.sum()), int(found[of].sum()), scores.get(f"map_{size}"))
        for size, of in counted.items()
        if of.any()
    )


def _write_interval(task: BoxTask, score: Estimate | None) -> tuple[str, str]:
    """Behind AP50 and behind AP: ` [0.81 0.93]` behind the one that is the metric, where it is known."""
    if score is None or score.low is None or score.high is None:
        return "", ""
    text = f" [{score.low:.2f} {score.high:.2f}]"
    return (text, "") if task.class_words == "AP50" else ("", text)


def _format_precision(value: float | None, interval: str) -> str:
    return NONE if value is None else f"{value:.3f}{interval}"


def _divide(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else NONE
