"""Several processes train one candidate: the same steps as one process takes, and no process outlives another."""

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import distributed as dist
from vits import create_backbone

from components.errors import TesseraError, TrainingError
from components.models.engine import Engine
from components.models.network import create_network
from components.models.process_group import ProcessGroup
from components.models.tuners import TUNERS, create_tuners
from components.records.jobs import Job, load_result
from components.tasks import TASKS
from components.training import run
from components.training.fit import Learner
from flows.processes.training import spawn_job
from flows.progress import listening


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers")
    tiny.write_images(folder / "raw", groups=36).write_parquet(folder / "manifest.parquet")
    return folder


def create_job(place: Path, devices: int, changes: Mapping[str, Any] = {}, **training: Any) -> Job:
    settings = {"epochs": 3, "batch_size": 5, "warmup_epochs": 1, "checkpoint_seconds": 0, "dtype": "float32"}
    domain = tiny.create_domain(
        backbone="embedded",
        img_size=32,
        augmentation="industrial",
        training={**settings, "devices": devices, **training},
        **changes,
    )
    return Job(
        action="train",
        domain=domain,
        tuner={"kind": "vpt"},
        manifest=place / "manifest.parquet",
        raw=place / "raw",
        cache=place / "cache",
        folder=place / f"devices-{devices}",
        data_version=tiny.DATA_VERSION,
        git_commit="",
    )


@pytest.mark.slow
def test_two_processes_train_as_one_and_a_killed_one_ends_both(place: Path) -> None:
    """The second is killed in the middle; the same job again goes on, to the curve of one process alone."""
    alone, job = create_job(place, 1), create_job(place, 2, accumulate=2)
    run.do_job(alone, lambda event, **facts: None)
    caught: list[TesseraError] = []

    def train() -> None:
        try:
            spawn_job(job, "vpt")
        except TesseraError as error:
            caught.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    _wait(lambda: (job.folder / "checkpoint.safetensors").exists(), 120)
    workers = find_workers(job)
    assert len(workers) == 2
    os.kill(max(workers), signal.SIGKILL)
    killed = time.monotonic()
    thread.join(60)
    assert not thread.is_alive()
    assert time.monotonic() - killed < 30
    assert isinstance(caught[0], TrainingError)
    assert "could not go on" in str(caught[0])
    assert "goes on from the last checkpoint" in str(caught[0])
    _wait(lambda: not find_workers(job), 5)
    together = spawn_job(job, "vpt")
    single = load_result(alone.folder)
    assert single is not None
    assert (single.environment["devices"], together.environment["devices"]) == ("1", "2")
    assert len(single.history) == len(together.history) == 3
    for one, two in zip(single.history, together.history, strict=True):
        assert two == pytest.approx(one, rel=1e-3, abs=1e-4)
    _wait(lambda: not find_workers(job), 5)


@pytest.mark.slow
def test_a_solved_probe_is_the_same_on_two_devices(place: Path) -> None:
    """One process solves it, the other has nothing to do."""
    jobs = [create_job(place, devices, epochs=7) for devices in (1, 2)]
    jobs = [
        job.model_copy(update={"tuner": {"kind": "linear"}, "folder": place / f"l{k}"}) for k, job in enumerate(jobs)
    ]
    alone, together = (spawn_job(job, "linear") for job in jobs)
    assert together.environment["devices"] == "2"
    assert together.adapter_sha256 == alone.adapter_sha256
    assert len(together.history) == 1
    _wait(lambda: not find_workers(jobs[1]), 5)


@pytest.mark.slow
def test_class_maps_are_learned_on_two_devices_as_on_one(tmp_path: Path) -> None:
    """Each picture's loss is a share of the batch's, whichever process computes it and in how many parts."""
    tiny.write_masked_images(tmp_path / "raw").write_parquet(tmp_path / "manifest.parquet")
    masked = {"task": {"kind": "segmentation", "background": "dark"}, "layout": "masks"}
    alone, shared = (create_job(tmp_path, devices, masked, accumulate=devices, epochs=2) for devices in (1, 2))
    run.do_job(alone, lambda event, **facts: None)
    together, single = spawn_job(shared, "vpt"), load_result(alone.folder)
    assert single is not None
    assert (single.environment["devices"], together.environment["devices"]) == ("1", "2")
    assert len(together.history) == 2
    for one, two in zip(single.history, together.history, strict=True):
        assert two == pytest.approx(one, rel=5e-3, abs=1e-3)
    _wait(lambda: not find_workers(shared), 5)


@pytest.mark.slow
def test_an_interrupted_parent_asks_its_processes_for_a_checkpoint_first(place: Path) -> None:
    """Ctrl-C while an epoch is told. Checkpoints are an hour apart, so the one there was written when asked."""
    job = create_job(place, 2, epochs=500, checkpoint_seconds=3600)
    job = job.model_copy(update={"folder": place / "interrupted"})

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "training-epoch":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), listening(interrupt):
        spawn_job(job, "vpt")
    assert not find_workers(job)
    assert (job.folder / "checkpoint.safetensors").exists()
    assert "training stopped after" in (job.folder / "log.txt").read_text()


def find_workers(job: Job) -> list[int]:
    """Processes that train this job, without the launcher's own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(job.folder / "job.json") in words and "torch.distributed.run" not in words:
            found.append(int(path.parent.name))
    return found


def _wait(holds: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", sorted(TUNERS))
def test_every_candidate_can_be_shared(kind: str, task: str, tmp_path: Path) -> None:
    """Nothing that learns is left without a gradient, which the others would wait for in vain."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        (tuner,) = create_tuners([{"kind": kind}])
        engine = Engine(torch.device("cpu"), torch.bfloat16, (0.5,) * 3, (0.5,) * 3, fused_attention=False)
        network = engine.prepare(create_network(create_backbone(), tuner, 3, 0, TASKS[task]())).train()
        learner = ProcessGroup(0, 2).share(Learner(network, engine), engine.device)
        features = network.learns_head_only and network.head.solvable
        images = torch.zeros(2, 24) if features else torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        for _ in range(2):
            learner(images).sum().backward()
        assert all(parameter.grad is not None for parameter in network.trainable_parameters().values())
    finally:
        dist.destroy_process_group()


def test_more_devices_than_images_are_refused(place: Path) -> None:
    job = create_job(place, 8)
    with pytest.raises(TrainingError, match="8 images a step at least"):
        run.do_job(job, lambda event, **facts: None, peers=ProcessGroup(0, 8))
