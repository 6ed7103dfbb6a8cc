"""What a run looks like: mistakes by class, sample pictures, learning curves, as matplotlib figures.

Figures are made as objects: pyplot's global state leaks memory in a long-lived worker and wants a main thread.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from components.data.batches.geometry import find_canvas
from components.domain.canvas import Fit, ImgSize
from components.reports import box_figures, boxes, maps, pixels
from components.reports.cells import draw_cells
from components.reports.tiles import load_tile
from components.reports.words import count_short
from components.tasks import Task
from components.tasks.base import (
    Annotation,
    BoxTask,
    MapTask,
    list_probabilities,
    number_names,
    read_probabilities,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SAMPLES = 24
LONGEST = 28  # characters of a line above a tile
#: What a probability is of, by what a picture is annotated with.
KINDS: dict[Annotation, str] = {"label": "answers", "labels": "labels", "mask": "pixels", "boxes": "boxes"}
Counts = np.ndarray[Any, np.dtype[np.int64]]
RIGHT, WRONG = "#1a7f37", "#b42318"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's colours


def draw_mistakes(frame: pl.DataFrame, task: Task, classes: Sequence[str], title: str) -> "Figure":
    """What was taken for what, or, where an image has any number of labels, what was found, missed and made up.

    Counts, coloured by the share of each true class: a rare class is as visible as a frequent one. Of class maps, the
    counts are of pixels; of boxes, of objects.
    """
    from matplotlib.figure import Figure

    if isinstance(task, MapTask):
        return pixels.draw_confusion(frame, classes, title)
    if isinstance(task, BoxTask):
        return box_figures.draw_confusion(frame, classes, title)
    if task.annotation == "label":
        counts, columns = count_confusion(frame, task, classes), list(classes)
        support, words = counts.sum(axis=1), ("answer", "truth (images)")
    else:
        counts, columns = count_labels(frame, task, classes), ["found", "missed", "false alarm"]
        support, words = counts[:, :2].sum(axis=1), ("answer", "label (images)")
    shares = np.minimum(counts / np.maximum(support, 1)[:, None], 1)
    width, height = (min(4 + 0.45 * len(labels), 24) for labels in (columns, classes))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    names = [f"{name} ({n})" for name, n in zip(classes, support, strict=True)]
    draw_cells(axes, shares, [[str(count) if count else "" for count in row] for row in counts], names, columns)
    axes.set(xlabel=words[0], ylabel=words[1], title=title)
    return figure


def count_confusion(frame: pl.DataFrame, task: Task, classes: Sequence[str]) -> Counts:
    """(C, C) images by true (row) and answered (column) class."""
    truth, answered = (number_names(names, classes) for names in (frame["label"], task.describe_answers(frame)))
    cells = np.bincount(truth * len(classes) + answered, minlength=len(classes) ** 2)
    return cells.reshape(len(classes), len(classes))


def count_labels(frame: pl.DataFrame, task: Task, classes: Sequence[str]) -> Counts:
    """(C, 3) images in which a label was found, was missed, and was answered without being there."""
    truth, answered = task.flags(frame, classes)
    return np.stack([(truth & answered).sum(0), (truth & ~answered).sum(0), (answered & ~truth).sum(0)], axis=1)


def draw_samples(frame: pl.DataFrame, task: Task, classes: Sequence[str], raw: Path, title: str) -> "Figure":
    """A sheet of pictures: the mistakes first, the most confident of them on top, then the least certain hits.

    Of class maps and boxes it is that of `draw_worst`.
    """
    from matplotlib.figure import Figure

    if isinstance(task, MapTask):
        return maps.draw_worst(frame, task, classes, raw, title)
    if isinstance(task, BoxTask):
        return boxes.draw_worst(frame, task, classes, raw, title)
    rows = choose_samples(frame, task, MOST_SAMPLES)
    columns = min(6, max(1, rows.height))
    lines = max(1, math.ceil(rows.height / columns))
    figure = Figure(figsize=(2.1 * columns, 2.5 * lines + 0.6), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, row in zip(grid.flat, rows.iter_rows(named=True), strict=False):
        axes.imshow(load_tile(raw / row["path"], row.get("crop")))
        parts = [row["label"]] if row["right"] else [f"{row['label']}, taken for", row["answer"]]
        text = "\n".join(textwrap.fill(part, LONGEST) for part in parts)
        colour = RIGHT if row["right"] else WRONG
        axes.set_title(f"{text} {row['confidence']:.0%}", fontsize=8, color=colour, parse_math=False)
    return figure


def draw_calibration(frame: pl.DataFrame, task: Task, classes: Sequence[str], title: str) -> "Figure":
    """How often what has each probability came true (arXiv 1706.04599, figure 1), and how much there is of each."""
    from matplotlib.figure import Figure

    mean, right, count = task.reliability_curve(frame, classes)
    what, bins, seen = KINDS[task.annotation], len(count), count > 0
    figure = Figure(figsize=(4.6, 5), layout="constrained")
    figure.suptitle(title, fontsize=10, parse_math=False)
    above, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    above.plot([0, 1], [0, 1], ":", color="#59636e", label="as sure as right")
    above.plot(mean[seen], right[seen], "o-", color=SERIES[0], label="this model")
    above.set(ylabel=f"share of the {what} that is right", xlim=(0, 1), ylim=(0, 1.02))
    above.legend(fontsize=8, frameon=False, loc="upper left")
    below.bar((np.arange(bins) + 0.5) / bins, count, width=0.9 / bins, color="#afb8c1")
    below.set(xlabel="probability", ylabel=what)
    below.yaxis.set_major_formatter(lambda number, _: count_short(round(number)))
    return figure


def draw_saliency(
    frame: pl.DataFrame, task: Task, saliency: Mapping[str, Any], raw: Path, img_size: ImgSize, fit: Fit
) -> "Figure":
    """The hardest images, each beside what the model looked at; frame: their rows.

    saliency: by id, of the whole canvas that the model saw, of which img_size and fit say where the picture lies.
    """
    from matplotlib.figure import Figure

    pairs = 3
    lines = max(1, math.ceil(frame.height / pairs))
    figure = Figure(figsize=(11, 2.0 * lines + 0.4), layout="constrained")
    grid = figure.subplots(lines, 2 * pairs, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    cells = grid.reshape(lines * pairs, 2)
    for (left, right), row in zip(cells, describe_rows(frame, task).iter_rows(named=True), strict=False):
        tile = load_tile(raw / row["path"], row.get("crop"))
        height, width = tile.shape[:2]
        x0, y0, x1, y1 = find_canvas((width, height), img_size, fit)
        text = f"{row['label']}, rightly" if row["right"] else f"{row['label']}, taken for {row['answer']}"
        left.imshow(tile, cmap="gray")
        colour = RIGHT if row["right"] else WRONG
        left.set_title(textwrap.fill(text, LONGEST), fontsize=8, color=colour, parse_math=False, loc="left")
        right.imshow(tile, cmap="gray", alpha=0.55, extent=(0, width, height, 0))
        style: dict[str, Any] = {"cmap": "inferno", "alpha": 0.6, "interpolation": "bilinear", "vmin": 0, "vmax": 1}
        right.imshow(saliency[row["id"]], extent=(x0, x1, y1, y0), **style)
        right.set(xlim=(0, width), ylim=(height, 0))
        right.set_title(f"looked for {row['likeliest']}", fontsize=8, parse_math=False, loc="left")
    return figure


def draw_curves(history: Sequence[Mapping[str, float]], best_epoch: int, title: str) -> "Figure":
    """Losses and validation scores by epoch, and the epoch whose weights were kept, 0 for the start."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title, parse_math=False)
    panels = figure.subplots(1, 2)
    losses = ("train/loss", "val/loss")
    shown = (("loss", losses), ("score", [key for key in history[0] if key.startswith("val/") and key not in losses]))
    for axes, (unit, keys) in zip(panels, shown, strict=True):
        for key, colour in zip(keys, SERIES, strict=False):
            label = key.replace("_", " ")
            axes.plot(epochs, [row[key] for row in history], "o-", ms=3, color=colour, label=label)
        named = f"epoch {best_epoch}" if best_epoch else "the start"
        kept = f"solved, strength {history[0]['strength']:g}" if "strength" in history[0] else f"kept: {named}"
        axes.axvline(best_epoch, color="#59636e", linestyle=":", label=kept)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel=unit)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    return figure


def choose_samples(frame: pl.DataFrame, task: Task, most: int) -> pl.DataFrame:
    """At most `most` rows, as `describe_rows` completes them."""
    scored = describe_rows(frame, task)
    wrong = scored.filter(~pl.col("right")).sort(["confidence", "id"], descending=[True, False])
    right = scored.filter(pl.col("right")).sort(["confidence", "id"])
    return pl.concat([wrong, right]).head(most)


def describe_rows(frame: pl.DataFrame, task: Task) -> pl.DataFrame:
    """Predictions with what is written beside their pictures: the answer, whether it is right, how sure it was, and
    the class of the highest probability."""
    names = list_probabilities(frame)
    places = read_probabilities(frame, names).argmax(axis=1)
    return frame.with_columns(
        task.describe_answers(frame).alias("answer"),
        pl.Series("right", task.hits(frame)),
        task.confidence(frame).alias("confidence"),
        pl.Series("likeliest", np.array(names)[places], dtype=pl.String),
    )
