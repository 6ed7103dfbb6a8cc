"""What answers are worth that are more than labels: sections and texts that report, card and MLflow's pages share.

Answers that are labels have none: their texts and sections are empty.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from components.reports import map_sections
from components.reports.pixels import measure_split
from components.reports.words import Estimate
from components.tasks import Task
from components.tasks.base import MapTask


def render_sections(
    frame: pl.DataFrame, task: Task, classes: Sequence[str], raw: Path, intervals: Mapping[str, Estimate]
) -> str:
    """The classes and the worst answers as HTML.

    frame: predictions of the test split. raw: the folder that their paths are in. intervals: the score of each class
    with its interval.
    """
    if isinstance(task, MapTask):
        return map_sections.render_sections(frame, task, classes, raw)
    return ""


def describe_classes(
    frame: pl.DataFrame,
    task: Task,
    classes: Sequence[str],
    intervals: Mapping[str, Estimate] | None = None,
    most: int | None = None,
) -> str:
    """The classes as Markdown: sentences and a table, without the table where all has more than `most` characters."""
    if isinstance(task, MapTask):
        split = measure_split(frame, task, classes)
        text, summary = map_sections.tabulate_classes(split), split.summarise()
    else:
        return ""
    return text if most is None or len(text) <= most else f"{summary} The model card has one row per class."
