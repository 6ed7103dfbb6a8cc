"""Questions the labels of a retrain's val and test images, from which no candidate has learned."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import polars as pl

from components.files import write_whole
from components.records.boxes import read_objects
from components.records.jobs import load_predictions
from components.records.outcomes import TrainedCandidate
from components.reports.suspects import TABLE, Questioned, count_suspects
from components.tasks import create_task
from components.tasks.base import BoxTask
from components.tasks.suspects import FEWEST_MODELS, Suspect, find_suspects
from flows.plan import Plan


def question_labels(plan: Plan, rows: Sequence[TrainedCandidate]) -> Questioned | None:
    """By all candidates but the control; None where labels are no boxes."""
    task = create_task(plan.domain)
    if not isinstance(task, BoxTask):
        return None
    controls = {tuner.label for tuner in plan.tuners if tuner.kind == task.control}
    frames = [_load_unlearned(row) for row in rows if row.tuner not in controls]
    if len(frames) < FEWEST_MODELS:
        return Questioned(count_suspects(len(frames), 0, ()), (), {})
    images = frames[0]
    suspects = tuple(find_suspects(frames, plan.domain.classes))
    objects = {name: read_objects(value) for name, value in zip(images["id"], images["objects"].to_list(), strict=True)}
    return Questioned(count_suspects(len(frames), images.height, suspects), suspects, objects)


def write_suspects(plan: Plan, suspects: Sequence[Suspect]) -> Path:
    """A table of all of them, beside the report; returns its path."""
    rows = []
    for one in suspects:
        facts = asdict(one)
        corners = zip(("x0", "y0", "x1", "y1"), facts.pop("box"), strict=True)
        rows.append(facts | dict(corners))
    path = plan.folder / TABLE
    write_whole(path, pl.DataFrame(rows).write_csv().encode())
    return path


def _load_unlearned(row: TrainedCandidate) -> pl.DataFrame:
    return pl.concat([load_predictions(row.folder, split) for split in ("val", "test")])
