"""Small pictures of a domain for the home page: the champion's hardest test images, or else some of its images."""

import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image

from components.data.manifest import load_frame
from components.domain.domain import Domain
from components.errors import DataError
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
    """The test images that the champion found hardest."""
    task, frame = create_task(domain), load_predictions(training, "test")
    told, right = task.describe_answers(frame), pl.Series(task.hits(frame))
    ranked = frame.with_columns(ease=task.ease(frame), told=told, right=right).sort("ease", "id")
    dense = isinstance(task, DenseTask)  # the names of the classes shown say too little of whether it is right
    return [
        Tile(
            jpeg,
            f"{row['path']}: {row['label']}" + ("" if dense else f", answered {row['told']}"),
            True,
            None if dense else row["right"],
        )
        for row, jpeg in _shrink_first(workspace, domain.name, ranked, most)
    ]


def load_some(workspace: Workspace, domain: Domain, most: int) -> list[Tile]:
    """Images from all over the domain; none before its data stages have run."""
    path = workspace.derived(domain.name) / "manifest.parquet"
    if not path.exists():
        return []
    frame = load_frame(path)
    spread = frame.gather_every(max(1, frame.height // most))
    shrunk = _shrink_first(workspace, domain.name, spread, most)
    return [Tile(jpeg, f"{row['path']}: {row['label']}") for row, jpeg in shrunk]


def _shrink_first(
    workspace: Workspace, name: str, frame: pl.DataFrame, most: int
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The first rows, one per picture, with their JPEGs. A picture that was removed or damaged since the frame was
    written is passed over: the next check of the domain reports it."""
    shrunk = 0
    for row in frame.unique("path", keep="first", maintain_order=True).iter_rows(named=True):
        if shrunk == most:
            return
        with suppress(DataError):
            picture = Image.fromarray(load_tile(workspace.raw(name) / row["path"], row["crop"]))
            picture.thumbnail((SIDE, SIDE))
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=QUALITY)
            yield row, buffer.getvalue()
            shrunk += 1
