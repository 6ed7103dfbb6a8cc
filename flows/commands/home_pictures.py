"""Small pictures of a domain for the home page: the champion's hardest test images, or else some of its images."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image

from components.data.manifest import load_frame
from components.domain.domain import Domain
from components.records.jobs import load_predictions, load_result
from components.reports.tiles import load_tile
from components.tasks import create_task
from components.tasks.base import DenseTask
from components.workspace import Workspace

SIDE = 112  # pixels of the longer side
QUALITY = 72  # of JPEG


@dataclass(frozen=True)
class Tile:
    """A picture in words and pixels. hard: one of those that the champion found hardest. right: whether its answer was;
    None where it is not known."""

    jpeg: bytes
    text: str
    hard: bool = False
    right: bool | None = None


def find_training(workspace: Workspace, name: str, adapter_sha256: str) -> Path | None:
    """The folder in which these weights were trained; None where that was on another machine, or it was removed."""
    for path in workspace.runs(name).glob("*/*/result.json"):
        if adapter_sha256 in path.read_text():
            result = load_result(path.parent)
            if result is not None and result.adapter_sha256 == adapter_sha256:
                return path.parent
    return None


def load_hardest(workspace: Workspace, domain: Domain, training: Path, most: int) -> list[Tile]:
    """The test images that the champion found hardest. Raises DataError where one is not readable."""
    task, frame = create_task(domain), load_predictions(training, "test")
    told, right = task.describe_answers(frame), pl.Series(task.hits(frame))
    ranked = frame.with_columns(ease=task.ease(frame), told=told, right=right).sort("ease", "id")
    dense = isinstance(task, DenseTask)  # the names of the classes shown say too little of whether it is right
    return [
        Tile(
            _shrink(workspace, domain.name, row),
            f"{row['path']}: {row['label']}" + ("" if dense else f", answered {row['told']}"),
            True,
            None if dense else row["right"],
        )
        for row in _first_of_each_picture(ranked, most)
    ]


def load_some(workspace: Workspace, domain: Domain, most: int) -> list[Tile]:
    """Images from all over the domain; none before its data stages have run. Raises DataError as above."""
    path = workspace.derived(domain.name) / "manifest.parquet"
    if not path.exists():
        return []
    frame = load_frame(path)
    spread = frame.gather_every(max(1, frame.height // most))
    rows = _first_of_each_picture(spread, most)
    return [Tile(_shrink(workspace, domain.name, row), f"{row['path']}: {row['label']}") for row in rows]


def _first_of_each_picture(frame: pl.DataFrame, most: int) -> Sequence[dict[str, Any]]:
    return list(frame.unique("path", keep="first", maintain_order=True).head(most).iter_rows(named=True))


def _shrink(workspace: Workspace, name: str, row: dict[str, Any]) -> bytes:
    picture = Image.fromarray(load_tile(workspace.raw(name) / row["path"], row["crop"]))
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
