"""What a run looks like: the confusion matrix and a sheet of sample pictures, as matplotlib figures.

Figures are made as objects: pyplot's global state leaks memory in a long-lived worker and wants a main thread.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from components.errors import DataError
from components.training.job import PROBABILITY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ANNOTATED = 20  # classes; beyond it the numbers cover one another
TILE_PIXELS = 160
RIGHT, WRONG = "#1a7f37", "#b42318"


def draw_confusion(frame: pl.DataFrame, classes: Sequence[str], title: str) -> "Figure":
    """Counts, coloured by the share of each true class: a rare class is as visible as a frequent one."""
    from matplotlib.figure import Figure

    counts = count_confusion(frame, classes)  # (C, C)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(4 + 0.45 * len(classes), 24)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    support = [f"{name} ({n})" for name, n in zip(classes, counts.sum(axis=1), strict=True)]
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(classes)), support, parse_math=False)
    axes.set(xlabel="predicted", ylabel="truth (images)", title=title)
    if len(classes) <= MOST_ANNOTATED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            shade = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=shade)
    return figure


def count_confusion(frame: pl.DataFrame, classes: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Images by true (row) and predicted (column) class."""
    number = {name: k for k, name in enumerate(classes)}
    truth = np.array([number[name] for name in frame["label"]], dtype=np.int64)
    predicted = np.array([number[name] for name in frame["predicted"]], dtype=np.int64)
    cells = np.bincount(truth * len(classes) + predicted, minlength=len(classes) ** 2)
    return cells.reshape(len(classes), len(classes))


def draw_samples(frame: pl.DataFrame, raw: Path, title: str, most: int = 24) -> "Figure":
    """A sheet of pictures: the mistakes first, the most confident of them on top, then the least certain hits."""
    from matplotlib.figure import Figure

    rows = choose_samples(frame, most)
    columns = min(6, max(1, rows.height))
    lines = max(1, math.ceil(rows.height / columns))
    figure = Figure(figsize=(2.1 * columns, 2.5 * lines + 0.6), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, row in zip(grid.flat, rows.iter_rows(named=True), strict=False):
        axes.imshow(_load_tile(raw / row["path"], row.get("crop")))
        wrong = row["label"] != row["predicted"]
        told = f"{row['label']}, taken for\n{row['predicted']}" if wrong else row["label"]
        colour = WRONG if wrong else RIGHT
        axes.set_title(f"{told} {row['confidence']:.0%}", fontsize=8, color=colour, parse_math=False)
    return figure


def choose_samples(frame: pl.DataFrame, most: int) -> pl.DataFrame:
    """At most `most` rows with `confidence`, the probability of the predicted class."""
    scored = frame.with_columns(confidence=pl.max_horizontal(pl.col(f"^{PROBABILITY}.*$")))
    wrong = scored.filter(pl.col("label") != pl.col("predicted")).sort(["confidence", "id"], descending=[True, False])
    right = scored.filter(pl.col("label") == pl.col("predicted")).sort(["confidence", "id"])
    return pl.concat([wrong, right]).head(most)


def _load_tile(path: Path, crop: Sequence[int] | None) -> Any:
    """Pixels alone: nothing of a file's EXIF gets into a figure, and so into the tracking store."""
    from components.data.images import UNDECODABLE, read_picture

    try:
        picture = read_picture(path)
    except UNDECODABLE as error:
        mend = "It was readable when it was validated: fetch the data version again."
        raise DataError(str(path), expected="a readable image", found=str(error), mend=mend) from None
    if crop is not None:
        picture = picture.crop((crop[0], crop[1], crop[2], crop[3]))
    picture.thumbnail((TILE_PIXELS, TILE_PIXELS))
    return np.asarray(picture)
