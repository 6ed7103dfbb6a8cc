"""What a training process is told and what it leaves behind. Free of torch: flows speak it too."""

import json
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field

from components.domain import Domain, Strict

STOPPED = 130  # exit code of a process that stopped because it was asked to
STOP_SECONDS = 20.0  # for it to write its checkpoint: a step of a large network on a CPU takes many
PROBABILITY = "p_"  # column prefix of class probabilities in predictions.parquet


class Job(Strict):
    """Train one candidate with one seed, or score an adapter that exists.

    folder receives adapter/, predictions.parquet and result.json; `result.json` comes last and marks it done.
    """

    action: Literal["train", "score"]
    domain: Domain
    tuner: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    manifest: Path
    raw: Path
    cache: Path
    folder: Path
    adapter: Path | None = None
    data_version: str
    git_commit: str


class Result(Strict):
    """What training or scoring one candidate gave. Scores are of the splits named before the slash."""

    label: str
    seed: int
    metrics: dict[str, float]
    history: tuple[dict[str, float], ...] = ()
    trainable_params: int
    head_params: int
    share: float
    seconds: float
    adapter_bytes: int
    adapter_sha256: str
    split_sha256: str
    backbone: dict[str, Any]
    environment: dict[str, str] = Field(default_factory=dict)
    folder: Path


def load_result(folder: Path) -> Result | None:
    """The result of a finished job in this folder, None where it has not finished."""
    path = folder / "result.json"
    return Result.model_validate_json(path.read_text()) if path.exists() else None


def load_predictions(folder: Path, split: str) -> pl.DataFrame:
    """The predictions of one split, sorted by id."""
    frame = pl.read_parquet(folder / "predictions.parquet")
    return frame.filter(pl.col("split") == split).sort("id")


def write_job(job: Job, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(job.model_dump(mode="json"), indent=1))
    return path
