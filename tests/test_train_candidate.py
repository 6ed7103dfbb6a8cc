"""Jobs in forks of one process: the same bits as in one of their own, and nothing that kills one kills another."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from components.domain.domain import Domain
from components.errors import BackboneError, TrainingError
from components.records.jobs import Job, write_job
from components.workspace import REPOSITORY
from flows.processes import training
from flows.processes.training import prepare, spawn_job
from flows.progress import Event, listening

VPT = {"kind": "vpt", "num_prompts": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def domain() -> Domain:
    return tiny.create_domain(training={"epochs": 6, "batch_size": 4, "checkpoint_seconds": 0})


@pytest.fixture
def trainer(domain: Domain) -> training.Trainer:
    prepare(domain)
    return training._IDLE[-1]


def create_job(place: Path, domain: Domain, name: str) -> Job:
    return tiny.create_job(place, domain, VPT, 0, place / name)


def disturb(act: Callable[[], None]) -> Callable[[Event], None]:
    """Do it once, at the end of the second epoch."""

    def hear(event: Event) -> None:
        if event["event"] == "training-epoch" and event["epoch"] == 2:
            act()

    return hear


def kill_forks(trainer: training.Trainer) -> None:
    for path in Path("/proc").glob("[0-9]*/stat"):
        facts = path.read_text().rpartition(")")[2].split()
        if int(facts[1]) == trainer.process.pid:
            os.kill(int(path.parent.name), signal.SIGKILL)


@pytest.mark.slow
def test_two_jobs_of_one_process_give_the_bits_of_two(place: Path, domain: Domain, trainer: training.Trainer) -> None:
    first, second = (spawn_job(create_job(place, domain, name), name) for name in ("first", "second"))
    alone = create_job(place, domain, "alone")
    path = write_job(alone, alone.folder / "job.json")
    subprocess.run([sys.executable, "-m", "components.training", str(path)], check=True, cwd=REPOSITORY)
    third = spawn_job(alone, "alone")
    assert first.adapter_sha256 == second.adapter_sha256 == third.adapter_sha256
    assert first.environment == third.environment
    assert [trainer] == training._IDLE


@pytest.mark.slow
def test_a_killed_fork_fails_alone_and_goes_on(place: Path, domain: Domain, trainer: training.Trainer) -> None:
    job = create_job(place, domain, "killed")
    told = "exit code -9.* If the machine has run out of memory"
    with listening(disturb(lambda: kill_forks(trainer))), pytest.raises(TrainingError, match=told):
        spawn_job(job, "killed")
    assert spawn_job(job, "killed").adapter_sha256 == spawn_job(create_job(place, domain, "first"), "").adapter_sha256
    assert [trainer] == training._IDLE


@pytest.mark.slow
def test_a_killed_trainer_is_replaced(place: Path, domain: Domain, trainer: training.Trainer) -> None:
    job = create_job(place, domain, "orphan")
    with listening(disturb(trainer.process.kill)), pytest.raises(TrainingError, match="exit code -9"):
        spawn_job(job, "orphan")
    assert spawn_job(job, "orphan").adapter_sha256 == spawn_job(create_job(place, domain, "first"), "").adapter_sha256
    assert [trainer] != training._IDLE


@pytest.mark.slow
@pytest.mark.parametrize("when", ["training-epoch", "training-done"])
def test_interrupted_it_leaves_a_checkpoint_or_a_result(when: str, place: Path, domain: Domain) -> None:
    """In the middle, with checkpoints an hour apart; and when it has done its work and its end is told already."""
    patient = domain.model_copy(update={"training": domain.training.model_copy(update={"checkpoint_seconds": 3600})})
    job = create_job(place, patient, f"interrupted-{when}")

    def interrupt(event: Event) -> None:
        if event["event"] == when:
            time.sleep(1 if when == "training-done" else 0)
            raise KeyboardInterrupt

    with listening(interrupt), pytest.raises(KeyboardInterrupt):
        spawn_job(job, "interrupted")
    if when == "training-epoch":
        assert (job.folder / "checkpoint.safetensors").exists()
        assert "the same command goes on from there" in (job.folder / "log.txt").read_text()
    assert training._IDLE == []
    assert (
        spawn_job(job, "interrupted").adapter_sha256 == spawn_job(create_job(place, domain, "first"), "").adapter_sha256
    )


@pytest.mark.slow
def test_an_error_comes_out_as_itself(place: Path, domain: Domain, trainer: training.Trainer) -> None:
    job = create_job(place, domain.model_copy(update={"backbone": "vit_tinny_patch16_224"}), "typo")
    with pytest.raises(BackboneError, match="vit_tiny"):
        spawn_job(job, "typo")
    assert [trainer] == training._IDLE
    assert trainer.is_free


@pytest.mark.slow
def test_nothing_outlives_a_killed_parent(place: Path, domain: Domain) -> None:
    """Neither the process that forks nor its fork."""
    job = create_job(place, domain, "left")
    path = write_job(job, job.folder / "told.json")
    code = (
        "import os, signal, sys; from pathlib import Path; from components.records.jobs import Job\n"
        "from flows.progress import listening; from flows.processes.training import spawn_job\n"
        "def hear(event):\n"
        "    if event['event'] == 'training-epoch': os.kill(os.getpid(), signal.SIGKILL)\n"
        "with listening(hear): spawn_job(Job.model_validate_json(Path(sys.argv[1]).read_text()), 'left')\n"
    )
    marked = os.environ | {"TESSERA_TEST": str(job.folder)}
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=REPOSITORY, env=marked, check=False)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while list_marked(job.folder):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (job.folder / "result.json").exists()


def list_marked(mark: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"TESSERA_TEST={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
        except OSError:
            continue
    return found
