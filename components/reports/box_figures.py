"""Figures of the answered boxes of a split: their confusion, recall against false alarms, and counts of objects."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from components.data.batches.colours import Colour, choose_colours, to_matplotlib
from components.reports.cells import create_square, draw_cells
from components.reports.words import format_share
from components.tasks.base import BoxTask
from components.tasks.box_answers import Answers, read_answers
from components.tasks.box_outcomes import count_confusion, read_confusion
from components.tasks.box_scores import Froc, draw_froc

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHIFT = 0.12  # objects between the dots of two classes
MOST_LINES = 7  # classes with a curve of their own


def draw_confusion(frame: pl.DataFrame, classes: Sequence[str], title: str) -> "Figure":
    """As what the objects of each class were shown, as shares of the class and as counts; what is none is below."""
    counts = count_confusion(frame, classes)
    objects = counts.sum(axis=1)
    shares = counts / np.maximum(objects, 1)[:, None]
    shares[-1] = 0.0  # of what is not there, there is no share
    names = [f"{name} ({count:,})" for name, count in zip(classes, objects, strict=False)]
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
    answers = read_answers(frame, classes)
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
            draw(draw_froc(_only(answers, k)), classes[k], color=colour, linewidth=1.1)
    together = draw_froc(answers)
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


def _only(answers: Answers, number: int) -> Answers:
    """The boxes and objects of one class."""
    mine, objects = answers.found[:, 4] == number, answers.targets[:, 4] == number
    return replace(
        answers,
        found=answers.found[mine],
        of_found=answers.of_found[mine],
        targets=answers.targets[objects],
        of_targets=answers.of_targets[objects],
    )


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
