"""What answered class maps are worth, as sections that the retrain report, the model card and MLflow's pages share."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from components.reports.maps import draw_worst
from components.reports.pixels import HEADS, NOTE, SplitPixels, measure_split
from components.reports.shell import embed_figure, render_row
from components.reports.words import render_table
from components.tasks.base import MapTask

WORST = (
    "The test images with the lowest Dice, and for comparison the median and the best one. Where objects are small, "
    "the worst one is enlarged, and a frame shows where it is."
)


def render_classes(split: SplitPixels) -> str:
    """The table of classes as HTML."""
    table = render_row(HEADS, "th") + "".join(render_row(row.cells) for row in split.classes)
    return f'<h2>Classes</h2><p>{split.summarise()}</p><div class="wide"><table>{table}</table></div><p>{NOTE}</p>'


def render_worst(frame: pl.DataFrame, task: MapTask, classes: Sequence[str], raw: Path) -> str:
    """The worst answers as HTML. frame: predictions of the test split. raw: the folder that their paths are in."""
    sheet = embed_figure(draw_worst(frame, task, classes, raw, ""), "Image, truth, answer and difference")
    return f"<h2>The worst answers</h2><p>{WORST}</p>{sheet}"


def render_sections(frame: pl.DataFrame, task: MapTask, classes: Sequence[str], raw: Path) -> str:
    """Both, of a frame of predictions."""
    return render_classes(measure_split(frame, task, classes)) + render_worst(frame, task, classes, raw)


def tabulate_classes(split: SplitPixels) -> str:
    """The same as Markdown."""
    return f"{split.summarise()}\n\n{render_table(HEADS, [row.cells for row in split.classes])}\n\n{NOTE}"
