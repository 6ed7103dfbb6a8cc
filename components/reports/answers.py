"""What answers are worth that are more than labels: sections and texts that report, card and MLflow's pages share.

Answers that are labels have none: their texts and sections are empty.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from components.reports import box_sections, box_tables, map_sections, pixels
from components.reports.words import ByClass
from components.tasks import Task
from components.tasks.base import BoxTask, MapTask

NOTHING = ByClass()


def render_sections(frame: pl.DataFrame, task: Task, classes: Sequence[str], raw: Path, known: ByClass) -> str:
    """The classes and the worst answers as HTML.

    frame: predictions of the test split. raw: the folder that their paths are in.
    """
    if isinstance(task, MapTask):
        return map_sections.render_sections(frame, task, classes, raw)
    if isinstance(task, BoxTask):
        split = box_tables.measure_split(frame, task, classes, known)
        return box_sections.render_sections(split, frame, task, classes, raw)
    return ""


def describe_classes(
    frame: pl.DataFrame,
    task: Task,
    classes: Sequence[str],
    known: ByClass = NOTHING,
    most: int | None = None,
) -> str:
    """The classes as Markdown: sentences and a table, without the table where all has more than `most` characters."""
    if isinstance(task, MapTask):
        split = pixels.measure_split(frame, task, classes)
        text, summary = map_sections.tabulate_classes(split), split.summarise()
    elif isinstance(task, BoxTask):
        counted = box_tables.measure_split(frame, task, classes, known)
        text, summary = box_sections.tabulate(counted), counted.summarise()
    else:
        return ""
    return text if most is None or len(text) <= most else f"{summary} The model card has one row per class."
