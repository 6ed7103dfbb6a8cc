"""Pixels, objects and boundaries of the answered class maps of a split: their confusion, and one row per class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.reports.cells import create_square, draw_cells
from components.reports.maps import Legend
from components.reports.words import count_short, format_share
from components.tasks.base import MapTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Counts = NDArray[np.int64]

HEADS = (
    "class", "IoU", "Dice", "precision", "recall", "true pixels", "share", "images", "objects found", "false objects",
    "boundary F1",
)  # fmt: skip
NOTE = (
    "IoU, Dice, precision and recall are of pixels, summed over the test images. An object is a connected region. It "
    "is found where an answered object of its class overlaps it with an IoU above 0.1; an answered object that finds "
    "none is false. Boundary F1 is that of the boundary pixels that have a counterpart nearby."
)
NONE = "-"  # of what there is nothing to measure


@dataclass(frozen=True)
class ClassPixels:
    """One class over a split. hits, truth, answered: labelled pixels. share: of all labelled pixels. images: that show
    it. components: true, found, answered, false; boundary: true, of these matched, answered, of these matched; both
    None for the background."""

    name: str
    hits: int
    truth: int
    answered: int
    share: float
    images: int
    components: tuple[int, ...] | None
    boundary: tuple[int, ...] | None

    @property
    def cells(self) -> tuple[str, ...]:
        """As the table shows them; HEADS are above."""
        objects = (NONE, NONE)
        if self.components is not None:
            true, found, _, false = self.components
            objects = (f"{found:,} of {true:,}", f"{false:,}")
        return (
            self.name,
            _divide(self.hits, self.truth + self.answered - self.hits),
            _divide(2 * self.hits, self.truth + self.answered),
            _divide(self.hits, self.answered),
            _divide(self.hits, self.truth),
            count_short(self.truth),
            f"{100 * self.share:.2f} %",
            f"{self.images:,}",
            *objects,
            self._score_boundary(),
        )

    def _score_boundary(self) -> str:
        """The harmonic mean of the matched shares of the true and of the answered boundary."""
        if self.boundary is None or not self.boundary[0]:
            return NONE
        true, matched, answered, agreed = self.boundary
        recall, precision = matched / true, agreed / max(answered, 1)
        return f"{2 * recall * precision / (recall + precision):.3f}" if recall + precision else "0.000"


@dataclass(frozen=True)
class SplitPixels:
    """All classes over a split. images: their number; dice: the mean over them."""

    classes: tuple[ClassPixels, ...]
    images: int
    dice: float

    def summarise(self) -> str:
        """What an inspector asks first: objects found, false ones, and the Dice of an image."""
        counts = np.array([row.components for row in self.classes if row.components is not None]).reshape(-1, 4)
        true, found, _, false = counts.sum(axis=0).tolist()
        share = f" ({format_share(found / true)})" if true else ""
        wrong = f"{false:,} false, {false / max(self.images, 1):.2g} per image" if false else "none that is false"
        return f"Found {found:,} of {true:,} objects{share}, and {wrong}. Mean Dice of an image {self.dice:.3f}."


def measure_split(frame: pl.DataFrame, task: MapTask, classes: Sequence[str]) -> SplitPixels:
    """All of a frame of predictions."""
    return SplitPixels(count_classes(frame, task, classes), frame.height, float(frame["dice"].to_numpy().mean()))


def count_classes(frame: pl.DataFrame, task: MapTask, classes: Sequence[str]) -> tuple[ClassPixels, ...]:
    """One row per class, of a frame of predictions."""
    confusion = count_pixels(frame, classes)
    background = Legend.of(task, classes).background
    foreground = [name for name in classes if name != background]
    parts = (_sum(frame, column, 4 * len(foreground)).reshape(-1, 4).tolist() for column in ("components", "boundary"))
    components, boundary = (dict(zip(foreground, map(tuple, rows), strict=True)) for rows in parts)
    images = dict(frame["labels"].explode().drop_nulls().value_counts().iter_rows())
    return tuple(
        ClassPixels(
            name=name,
            hits=int(confusion[k, k]),
            truth=int(confusion[k].sum()),
            answered=int(confusion[:, k].sum()),
            share=float(confusion[k].sum() / max(confusion.sum(), 1)),
            images=images.get(name, 0),
            components=components.get(name),
            boundary=boundary.get(name),
        )
        for k, name in enumerate(classes)
    )


def count_pixels(frame: pl.DataFrame, classes: Sequence[str]) -> Counts:
    """(C, C) labelled pixels by true (row) and answered (column) class."""
    return _sum(frame, "confusion", len(classes) ** 2).reshape(len(classes), len(classes))


def draw_confusion(frame: pl.DataFrame, classes: Sequence[str], title: str) -> "Figure":
    """Which class the pixels of each true class were answered: as shares of the true class, and as counts."""
    counts = count_pixels(frame, classes)
    truth = counts.sum(axis=1)
    shares = counts / np.maximum(truth, 1)[:, None]
    names = [f"{name} ({count_short(int(count))})" for name, count in zip(classes, truth, strict=True)]
    pairs = [zip(*row, strict=True) for row in zip(shares, counts.tolist(), strict=True)]
    pairs = [zip(*row, strict=True) for row in zip(shares, counts.tolist(), strict=True)]
    texts = [[f"{format_share(share)}\n{count_short(count)}" if count else "" for share, count in row] for row in pairs]
    figure, axes = create_square(len(classes), title)
    draw_cells(axes, shares, texts, names, classes)
    axes.set(xlabel="answer", ylabel="truth (pixels)")
    return figure


def _sum(frame: pl.DataFrame, column: str, width: int) -> Counts:
    """(width,) the sum over all rows of a column of lists."""
    rows = np.array(frame[column].to_list(), np.int64).reshape(-1, width)
    total: Counts = rows.sum(axis=0)
    return total


def _divide(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else NONE
