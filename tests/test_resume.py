"""Real training processes, killed, interrupted and short of disk: the same command again ends at the same bits.

A process takes seconds to import torch, so one that has done so waits and forks: what is killed is a process that
runs the whole of `python -m components.training`, from its first line to its last.
"""

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tiny
from safetensors import safe_open

from components.records.jobs import STOPPED, Job, Result, load_result, write_job
from components.workspace import REPOSITORY

pytestmark = pytest.mark.slow

#: What might change the bits.
ENVIRONMENT = {
    *("python", "torch", "timm", "numpy", "albumentations"),
    *("device", "devices", "dtype", "attention", "threads"),
}

FORKS = """
import json, os, resource, sys
from pathlib import Path
import PIL.Image, albumentations, scipy.stats, sklearn.metrics, timm, torch._dynamo  # all that a training ever imports
from components.training import __main__ as entry, run
PIL.Image.init()

for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, order["events"], os.O_WRONLY | os.O_CREAT),
                                   (2, order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)):
            os.dup2(os.open(path, mode), number)
        if order["limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
        os._exit(entry.main(Path(order["job"])))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Trainer:
    """Starts training processes one after the other."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )

    def run(
        self, job: Job, sign: signal.Signals | None = None, when: Callable[[], bool] | None = None, limit: int = 0
    ) -> int | None:
        """Its exit code, negative for a signal: `sign` is sent `when` it is time, if it still lives."""
        assert self.process.stdin
        assert self.process.stdout
        path = write_job(job, job.folder / "job.json")
        (job.folder / "events").unlink(missing_ok=True)
        order = {"job": str(path), "limit": limit} | {key: str(job.folder / key) for key in ("events", "log")}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        while not select.select([self.process.stdout], [], [], 0.002 if sign else 300)[0]:
            assert sign is not None, "it hangs"
            assert when is not None
            if when():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sign)
                break
        return os.waitstatus_to_exitcode(int(self.process.stdout.readline()))


def after(seconds: float) -> Callable[[], bool]:
    moment = time.monotonic() + seconds
    return lambda: time.monotonic() > moment


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    trainer = Trainer()
    yield trainer
    assert trainer.process.stdin
    assert trainer.process.stdout
    trainer.process.stdin.close()
    trainer.process.stdout.close()
    trainer.process.wait(30)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    tiny.write_images(folder / "raw", groups=36).write_parquet(folder / "manifest.parquet")
    return folder


def create_job(place: Path, name: str, **training: Any) -> Job:
    """Three epochs of six steps, with dropout and augmentation, a checkpoint after every step."""
    settings = {"epochs": 3, "batch_size": 4, "warmup_epochs": 1, "checkpoint_seconds": 0, **training}
    return Job(
        action="train",
        domain=tiny.create_domain(backbone="embedded", img_size=32, augmentation="industrial", training=settings),
        tuner={"kind": "vapt", "dropout": 0.2},
        manifest=place / "manifest.parquet",
        raw=place / "raw",
        cache=place / "cache",
        folder=place / name,
        data_version=tiny.DATA_VERSION,
        git_commit="",
    )


def finished(job: Job) -> Result:
    result = load_result(job.folder)
    assert result is not None
    assert not list(job.folder.glob("checkpoint.*"))
    return result


def assert_same(one: Job, other: Job) -> None:
    """Adapter, predictions, history and metrics, to the last bit."""
    ours, theirs = finished(one), finished(other)
    assert ours.adapter_sha256 == theirs.adapter_sha256
    assert ours.history == theirs.history
    assert ours.metrics == theirs.metrics
    frames = [pl.read_parquet(job.folder / "predictions.parquet") for job in (one, other)]
    assert frames[0].equals(frames[1])


def read_events(job: Job) -> dict[str, Any]:
    """The last one of each kind."""
    path = job.folder / "events"
    lines = path.read_text().splitlines() if path.exists() else []
    return {event["event"]: event for event in map(json.loads, lines)}


def read_place(job: Job) -> tuple[int, int]:
    """Epochs and steps of the checkpoint."""
    with safe_open(job.folder / "checkpoint.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
    return facts["epoch"], facts["step"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_killed_at_a_dozen_random_moments(dtype: str, place: Path, trainer: Trainer) -> None:
    """As many trainings as it takes; each ends as the undisturbed one did, however often it was killed.

    A process lives for up to a quarter of what a whole training takes, and for longer each time it was killed: so a
    training is killed several times, and late, too, yet ends where a start takes longer than expected.
    """
    whole, warm = (create_job(place, f"{dtype}-{name}", dtype=dtype) for name in ("whole", "warm"))
    assert trainer.run(whole) == 0, (whole.folder / "log").read_text()
    started = time.monotonic()
    assert trainer.run(warm) == 0
    seconds = time.monotonic() - started
    assert finished(whole).environment["dtype"] == dtype
    assert finished(whole).environment.keys() == ENVIRONMENT
    assert_same(whole, warm)
    rng, kills, places = random.Random(dtype), 0, set()
    for number in range(12):
        job, life = create_job(place, f"{dtype}-{number}", dtype=dtype), seconds / 4
        while (code := trainer.run(job, signal.SIGKILL, after(rng.uniform(0, life)))) == -signal.SIGKILL:
            kills += 1
            life += seconds / 8
            if (job.folder / "checkpoint.safetensors").exists():
                places.add(read_place(job))
        assert code == 0, (job.folder / "log").read_text()
        assert_same(whole, job)
        if kills >= 12:
            break
    assert kills >= 12
    assert any(step for _, step in places), "none of them fell into an epoch"


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_it_stops_with_a_checkpoint_when_asked(sign: signal.Signals, place: Path, trainer: Trainer) -> None:
    """At the next step, wherever it is; with checkpoints an hour apart, so that this one is because it was asked."""
    whole = create_job(place, "stopped-never", checkpoint_seconds=3600, epochs=12)
    if load_result(whole.folder) is None:
        assert trainer.run(whole) == 0
    job = create_job(place, f"asked-{sign.name}", checkpoint_seconds=3600, epochs=12)
    assert trainer.run(job, sign, lambda: "epoch" in read_events(job)) == STOPPED
    epoch, step = read_place(job)
    assert 1 <= epoch < 12
    assert f"after {epoch} epochs and {step} steps; the same command goes on" in (job.folder / "log").read_text()
    assert trainer.run(job) == 0
    assert_same(whole, job)


def test_a_full_disk_leaves_the_last_good_checkpoint(place: Path, trainer: Trainer) -> None:
    """No file may grow beyond a limit: the system says so with an error of its own, as a full disk does."""
    whole, job = create_job(place, "roomy"), create_job(place, "full")
    assert trainer.run(whole) == 0
    assert trainer.run(job, signal.SIGKILL, (job.folder / "checkpoint.safetensors").exists) == -signal.SIGKILL
    good = (job.folder / "checkpoint.safetensors").read_bytes()
    assert trainer.run(job, limit=len(good) // 2) == 2, (job.folder / "log").read_text()
    assert (job.folder / "checkpoint.safetensors").read_bytes() == good
    assert [path.name for path in job.folder.glob("checkpoint.*")] == ["checkpoint.safetensors"]
    assert read_events(job)["error"]["error"]["hint"].startswith("Free some space")
    assert trainer.run(job) == 0
    assert_same(whole, job)
