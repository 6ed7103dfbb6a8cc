"""Answered boxes of a split in numbers: per class, per size of object and per kind of error, and figures of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.data.batches.colours import Colour, choose_colours, to_matplotlib
from components.reports.boxes import match_row
from components.reports.cells import create_square, draw_cells
from components.reports.words import ByClass, Estimate, format_share
from components.tasks.base import BoxTask
from components.tasks.box_matches import SIZES
from components.tasks.box_scores import (
    Answers,
    Froc,
    count_confusion,
    count_errors,
    draw_froc,
    read_answers,
    read_confusion,
    read_masks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Counts = NDArray[np.int64]

NONE = "-"  # of what there is nothing to measure
SHIFT = 0.12  # objects between the dots of two classes
MOST_LINES = 7  # classes with a curve of their own
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


def count_images(frame: pl.DataFrame, classes: Sequence[str]) -> dict[str, int]:
    """How many images show an object of each size that counts."""
    answers = read_answers(frame, classes)
    return {size: len(np.unique(answers.of_targets[answers.find_counted(area)])) for size, area in SIZES.items()}


def _count_sizes(frame: pl.DataFrame, classes: Sequence[str], scores: Mapping[str, float]) -> tuple[SizeBoxes, ...]:
    """Of the sizes that occur."""
    answers, images = read_answers(frame, classes), count_images(frame, classes)
    fates = [fate for facts in frame.iter_rows(named=True) for fate in match_row(facts, classes).objects]
    found = np.array(fates, dtype=object) == "found"
    counted = {size: answers.find_counted(area) for size, area in SIZES.items()}
    return tuple(
        SizeBoxes(size, images[size], int(of.sum()), int(found[of].sum()), scores.get(f"map_{size}"))
        for size, of in counted.items()
        if of.any()
    )


def draw_confusion(frame: pl.DataFrame, classes: Sequence[str], title: str) -> "Figure":
    """As what the objects of each class were shown, as shares of the class and as counts; what is none is below."""
    counts = count_confusion(frame, classes)
    objects = counts.sum(axis=1)
    shares = counts / np.maximum(objects, 1)[:, None]
    shares[-1] = 0.0  # of what is not there, there is no share
    names = [f"{name} ({count:,})" for name, count in zip(classes, objects, strict=False)]
    pairs = [zip(*row, strict=True) for row in zip(counts.tolist(), shares, strict=True)]
    pairs = [zip(*row, strict=True) for row in zip(counts.tolist(), shares, strict=True)]
    texts = [[_write_cell(count, share) for count, share in row] for row in pairs]
    figure, axes = create_square(len(counts), title)
    draw_cells(axes, shares, texts, [*names, "no object"], [*classes, "not found"])
    axes.set(xlabel="shown", ylabel="truth (objects)")
    return figure


def _write_cell(count: int, share: float) -> str:
    if not count:
        return ""
    return f"{format_share(share)}\n{count:,}" if share else f"{count:,}"


def draw_curves(frame: pl.DataFrame, task: BoxTask, classes: Sequence[str], title: str) -> "Figure":
    """Recall against false alarms per image, and how many objects of an image were shown against how many there are."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    figure.suptitle(title, fontsize=10, parse_math=False)
    left, right = figure.subplots(1, 2)
    _draw_froc(left, frame, task, classes)
    _draw_counts(right, frame, classes)
    return figure


def _draw_froc(axes: "Axes", frame: pl.DataFrame, task: BoxTask, classes: Sequence[str]) -> None:
    """Of all classes together and of each, down to the least confidence; where recall is reported and what is shown."""
    answers, masks = read_answers(frame, classes), read_masks(frame)
    floor = 0.5 / max(frame.height, 1)  # stands for none, as a logarithm has no zero
    colours = choose_colours(classes, None)
    confusion = count_confusion(frame, classes)

    def draw(curve: Froc, label: str, **style: Any) -> None:
        places = np.maximum(curve.false_alarms, floor)
        axes.plot(places, curve.recall, drawstyle="steps-post", label=label, **style)

    counted = [k for k, name in enumerate(classes) if confusion[k].sum()]
    if 1 < len(counted) <= MOST_LINES:
        for k in counted:
            colour = to_matplotlib(colours[classes[k]])
            draw(draw_froc(*_only(answers, masks, k)), classes[k], color=colour, linewidth=1.1)
    together = draw_froc(answers, masks)
    draw(together, "all" if len(classes) > 1 else classes[0], color="black", linewidth=1.8)
    at = together.recall_at(task.recall_at)
    label = f"{at:.3f} at {task.recall_at:g} per image"
    axes.axvline(max(task.recall_at, floor), color="#59636e", linestyle=":", linewidth=1)
    axes.plot([max(task.recall_at, floor)], [at], "D", color="black", markersize=5, label=label)
    right, objects, shown = np.trace(confusion[:-1, :-1]), confusion[:-1].sum(), confusion[:, :-1].sum()
    place = max(float(shown - right) / max(frame.height, 1), floor)
    axes.plot([place], [right / max(objects, 1)], "o", color="#b42318", label="shown, at the thresholds")
    axes.set(xscale="log", xlabel="false alarms per image", ylabel="recall", ylim=(0, 1.02))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.25)
    _add_legend(axes)


def _only(answers: Answers, masks: Counts, number: int) -> tuple[Answers, Counts]:
    """The boxes and objects of one class."""
    mine, objects = answers.found[:, 4] == number, answers.targets[:, 4] == number
    some = replace(
        answers,
        found=answers.found[mine],
        of_found=answers.of_found[mine],
        targets=answers.targets[objects],
        of_targets=answers.of_targets[objects],
    )
    return some, masks[mine]


def _draw_counts(axes: "Axes", frame: pl.DataFrame, classes: Sequence[str]) -> None:
    """One dot per image, as large as there are images of the same numbers; per class where these are few."""
    from matplotlib.ticker import MaxNLocator

    confusion = read_confusion(frame, classes)
    true, shown = confusion[:, :-1].sum(axis=2), confusion[:, :, :-1].sum(axis=1)
    colours: dict[str, Colour] = choose_colours(classes, None)
    if len(classes) > MOST_LINES:
        true, shown = (each.sum(axis=1, keepdims=True) for each in (true, shown))
        colours = {"all classes": (0, 0, 0)}
    most = max(int(true.max(initial=1)), int(shown.max(initial=1)))
    axes.plot([0, most], [0, most], ":", color="#59636e", label="as many as there are")
    for k, name in enumerate(colours):
        places, number = np.unique(np.stack([true[:, k], shown[:, k]]), axis=1, return_counts=True)
        style: dict[str, Any] = {"s": 14 * np.sqrt(number), "alpha": 0.6, "linewidths": 0}
        shift = SHIFT * (k - (len(colours) - 1) / 2)  # so that no class hides another
        axes.scatter(places[0] + shift, places[1], color=[to_matplotlib(colours[name])], label=name, **style)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="objects of an image, annotated", ylabel="objects of an image, shown")
    axes.grid(alpha=0.25)
    _add_legend(axes)


def _add_legend(axes: "Axes") -> None:
    for text in axes.legend(fontsize=8, loc="best").get_texts():
        text.set_parse_math(False)


def _write_interval(task: BoxTask, score: Estimate | None) -> tuple[str, str]:
    """Behind AP50 and behind AP: ` [0.81 0.93]` behind the one that is the metric, where it is known."""
    if score is None or score.low is None or score.high is None:
        return "", ""
    text = f" [{score.low:.2f} {score.high:.2f}]"
    return (text, "") if task.metric == "map50" else ("", text)


def _format_precision(value: float | None, interval: str) -> str:
    return NONE if value is None else f"{value:.3f}{interval}"


def _divide(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else NONE
