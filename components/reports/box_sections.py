"""What answered boxes are worth, as sections that the retrain report, the model card and MLflow's pages share."""

import html
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from components.reports.box_figures import draw_curves
from components.reports.box_tables import CLASS_HEADS, ERROR_HEADS, ERROR_NOTE, NOTE, SIZE_HEADS, SplitBoxes
from components.reports.boxes import draw_worst
from components.reports.shell import embed_figure, render_row
from components.reports.words import render_table
from components.tasks.base import BoxTask

WORST = (
    "The test images with the lowest F1 of their shown boxes, and for comparison the median and the best one. Numbers "
    "are confidences. Where boxes are small, a part is enlarged, and a frame shows where it is."
)
CURVES = (
    "Recall against false alarms per image (FROC), as the threshold falls; and the number of objects of each image, "
    "as shown and as annotated."
)


def render_tables(split: SplitBoxes) -> str:
    """Classes, sizes and kinds of error as HTML."""
    classes = _render_table(CLASS_HEADS, [row.cells for row in split.classes])
    sizes = _render_table(SIZE_HEADS, [row.cells for row in split.sizes])
    errors = _render_table(ERROR_HEADS, split.list_errors())
    return (
        f"<h2>Classes</h2><p>{html.escape(split.summarise())}</p>{classes}<p>{NOTE}</p>"
        f"<h2>Sizes</h2>{sizes}<h2>Kinds of error</h2>{errors}<p>{ERROR_NOTE}</p>"
    )


def _render_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f'<div class="wide"><table>{render_row(heads, "th")}{"".join(map(render_row, rows))}</table></div>'


def render_sections(split: SplitBoxes, frame: pl.DataFrame, task: BoxTask, classes: Sequence[str], raw: Path) -> str:
    """Tables, curves and the worst answers as HTML. frame: predictions of the test split, of which `split` is."""
    curves = embed_figure(draw_curves(frame, task, classes, ""), "Recall against false alarms; counts of objects")
    sheet = embed_figure(draw_worst(frame, task, classes, raw, ""), "Truth, answer and difference")
    return (
        f"{render_tables(split)}<h2>False alarms and counts</h2><p>{CURVES}</p>{curves}"
        f"<h2>The worst answers</h2><p>{WORST}</p>{sheet}"
    )


def tabulate(split: SplitBoxes) -> str:
    """The tables as Markdown."""
    parts = [
        split.summarise(),
        render_table(CLASS_HEADS, [row.cells for row in split.classes]),
        NOTE,
        render_table(SIZE_HEADS, [row.cells for row in split.sizes]),
        render_table(ERROR_HEADS, split.list_errors()),
        ERROR_NOTE,
    ]
    return "\n\n".join(parts)
