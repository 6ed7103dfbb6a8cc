"""What a training process receives and leaves behind. Free of torch: flows use it too."""

import json
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field

from components.domain.domain import Domain
from components.domain.strict import Strict
from components.files import write_whole
from components.records.memory import Memory

STOPPED = 130  # exit code of a process that stopped because it was asked to
STOP_SECONDS = 20.0  # for it to write its checkpoint: a step of a large network on a CPU takes many
SALIENCY_FILE = "saliency.safetensors"  # what the network looked at in the hardest test images
JOB_FILE = "job.json"  # in the job's folder: what its process was told
PROBABILITY = "p_"  # column prefix of class probabilities in predictions.parquet


class Job(Strict):
    """Train one candidate with one seed, or score an adapter that exists.

    folder receives adapter/, predictions.parquet and result.json; `result.json` comes last and marks it done.
    until_epoch: stop there, as a trial of a search does; the folder receives rung-<epoch>.json, and a checkpoint from
    which the same job goes on with a later epoch. The schedule is that of the whole training all along. beside: options
    of candidates that will be trained here next, whose memory is computed before this one's first step.
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
    until_epoch: int | None = None
    beside: tuple[dict[str, Any], ...] = ()
    data_version: str
    git_commit: str


class Result(Strict):
    """What training or scoring one candidate gave. Scores are of the splits named before the slash.

    calibration: which temperature its probabilities have, and why. memory: what the training was to take, as computed
    before it; None where that was little.
    """

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
    calibration: str = ""
    environment: dict[str, str] = Field(default_factory=dict)
    memory: Memory | None = None
    folder: Path


class Rung(Strict):
    """How far a trial of a search came. Score and loss are those on validation of the best epoch so far.

    seconds: from being told the job to this. error: why it cannot be trained; such a trial scores 0.
    """

    tuner: dict[str, Any]
    seed: int
    epochs: int
    score: float
    loss: float
    seconds: float
    error: str = ""


def rung_path(folder: Path, epochs: int) -> Path:
    return folder / f"rung-{epochs}.json"


def load_rung(folder: Path, epochs: int) -> Rung | None:
    """What the trial in this folder scored after so many epochs, None where it has not come there."""
    path = rung_path(folder, epochs)
    return Rung.model_validate_json(path.read_text()) if path.exists() else None


def write_rung(folder: Path, rung: Rung) -> None:
    """All of it or nothing."""
    _write_whole(rung_path(folder, rung.epochs), rung)


def load_result(folder: Path) -> Result | None:
    """The result of a finished job in this folder, None where it has not finished."""
    path = folder / "result.json"
    return Result.model_validate_json(path.read_text()) if path.exists() else None


def write_result(result: Result) -> None:
    """Into its folder, all of it or nothing: it says that the job is done."""
    _write_whole(result.folder / "result.json", result)


def load_predictions(folder: Path, split: str) -> pl.DataFrame:
    """The predictions of one split, sorted by id."""
    frame = pl.read_parquet(folder / "predictions.parquet")
    return frame.filter(pl.col("split") == split).sort("id")


def write_job(job: Job, path: Path) -> Path:
    _write_whole(path, job)
    return path


def _write_whole(path: Path, record: Strict) -> None:
    write_whole(path, json.dumps(record.model_dump(mode="json"), indent=1).encode())
