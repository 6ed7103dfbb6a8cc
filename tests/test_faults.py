"""Faults of a worker's surroundings, on real processes: the network cut, a disk full, the clock put back or forward.

A run ends or goes on by itself within two minutes, its GPU slot is free within that, nothing is registered twice, and
`tessera doctor` says what happened. How processes and servers die is in test_orchestration.py.
"""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import DOMAIN, clean_environment
from filelock import FileLock, Timeout
from servers import Team, answers, find_postgres, find_processes, free_port, start_team, wait_until
from test_gpus import write_tool

from components.workspace import REPOSITORY

SECONDS = 120  # within which all is as it should be again
LONG = 900  # for what may take its time, on a busy machine
HOUR = 3600

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif("TESSERA_FAULTS" not in os.environ, reason="most of an hour of waiting: set TESSERA_FAULTS=1"),
    pytest.mark.skipif(find_postgres() is None, reason="no PostgreSQL here: apt-get install postgresql"),
]


@dataclass(frozen=True)
class Cable:
    """A network namespace of its own, joined to this machine's by a pair of virtual devices.

    Cut, packets vanish in silence, as with a pulled cable: nothing is refused and no connection is closed.
    """

    name: str
    here: str
    there: str

    @property
    def within(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        ip("route", "add", "blackhole", f"{self.there}/32")

    def repair(self) -> None:
        ip("route", "del", "blackhole", f"{self.there}/32")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def plug() -> Cable | None:
    """None where this process may not make network namespaces, or there is no `ip`."""
    number = os.getpid() % 16000
    base = f"10.213.{number // 64}"
    cable = Cable(f"tessera-{number}", f"{base}.{number % 64 * 4 + 1}", f"{base}.{number % 64 * 4 + 2}")
    ours, theirs = f"tsa{number}", f"tsb{number}"
    try:
        ip("netns", "add", cable.name)
        ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", cable.name)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    ip("addr", "add", f"{cable.here}/30", "dev", ours)
    ip("link", "set", ours, "up")
    ip("-n", cable.name, "addr", "add", f"{cable.there}/30", "dev", theirs)
    for device in (theirs, "lo"):
        ip("-n", cable.name, "link", "set", device, "up")
    return cable


@dataclass(frozen=True)
class Clock:
    """A clock that processes started with `env` go by."""

    file: Path
    library: Path

    @property
    def env(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "CLOCK_FILE": str(self.file)}

    def put(self, seconds: int) -> None:
        with self.file.open("r+b") as file:
            file.write(struct.pack("q", seconds))


def build_clock(folder: Path, name: str) -> Clock | None:
    """None without a C compiler."""
    clock = Clock(folder / f"{name}.clock", folder / "clock.so")
    clock.file.write_bytes(bytes(8))
    source = Path(__file__).with_name("clock.c")
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(clock.library), str(source)], check=True)
    except FileNotFoundError:
        return None
    return clock


@pytest.fixture(scope="module")
def server_clock(tmp_path_factory: pytest.TempPathFactory) -> Clock | None:
    return build_clock(tmp_path_factory.mktemp("clocks"), "servers")


@pytest.fixture(scope="module")
def cable() -> Iterator[Cable | None]:
    found = plug()
    yield found
    if found is not None:
        subprocess.run(["ip", "route", "del", "blackhole", f"{found.there}/32"], capture_output=True, check=False)
        ip("netns", "del", found.name)  # and the devices with it


@pytest.fixture(scope="module")
def team(
    tmp_path_factory: pytest.TempPathFactory, images: Path, cable: Cable | None, server_clock: Clock | None
) -> Iterator[Team]:
    """Servers that listen on this end of the cable and go by a clock of their own, where there are such things."""
    host = "127.0.0.1" if cable is None else cable.here
    env = {} if server_clock is None else server_clock.env
    with start_team(tmp_path_factory.mktemp("team"), images, host, **env) as found:
        assert found.tessera("deploy").code == 0
        yield found


class Worker:
    """A worker on a machine of its own, as far as it can tell: workspace, GPU, temporary files."""

    def __init__(
        self, team: Team, name: str, within: Sequence[str] = (), place: Path | None = None, **env: str
    ) -> None:
        self.team, self.name = team, name
        self.place = team.clone(name) if place is None else place
        self.temporary = team.root / f"{name}-tmp"
        tool = write_tool(self.temporary / "bin", f"GPU-{name}")
        env |= {"PATH": f"{tool}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(self.temporary)}
        team.start_worker(name, "gpu", self.place, within, PREFECT_WORKER_QUERY_SECONDS="2", **env)

    def find_checkpoint(self) -> Path | None:
        return next(self.place.rglob("checkpoint.safetensors"), None)

    def has_slot(self) -> bool:
        """What the server says."""
        limits = self.team.ask("v2/concurrency_limits/filter")
        return any(limit["name"] == f"gpu-GPU-{self.name}" and limit["active_slots"] for limit in limits)

    def is_training(self) -> bool:
        """What the machine knows: the file lock of its GPU."""
        try:
            with FileLock(self.temporary / f"tessera-gpu-GPU-{self.name}.lock").acquire(timeout=0):
                return False
        except Timeout:
            return True

    def has_result(self) -> bool:
        return any(self.place.rglob("vpt-deep-s0/result.json"))

    def stop(self) -> None:
        """With the runs it started, if there are any left."""
        self.team.kill(self.name)
        for pid in find_processes("prefect.engine", self.place):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def working(worker: Worker) -> Iterator[Worker]:
    try:
        yield worker
    finally:
        worker.stop()


def require_one_of_everything(team: Team, versions: int) -> None:
    """Each candidate has one finished run, and one version was registered since there were so many."""
    runs = team.ask_mlflow("POST", "runs/search", experiment_ids=["1"], filter="attributes.status = 'FINISHED'")["runs"]
    tags = [{tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in runs]
    candidates = [tag for tag in tags if tag["tessera.role"] == "candidate"]
    told = [(tag["tessera.candidate_key"], tag["tessera.tuner"], tag["tessera.seed"]) for tag in candidates]
    assert len(told) == len(set(told))
    assert count_versions(team) == versions + 1


def count_versions(team: Team) -> int:
    found = team.ask_mlflow("GET", "model-versions/search", filter=f"name='{DOMAIN}'")
    return len(found.get("model_versions", []))


def ask_doctor(team: Team, place: Path, within: Sequence[str] = (), **env: str) -> dict[str, str]:
    """The state of each check, what was found and what fixes it."""
    command = [*within, sys.executable, "-m", "flows.commands.cli", "doctor", "--workspace", str(place), "--json"]
    env = clean_environment() | team.env | env
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPOSITORY, check=False, timeout=100)
    checks = json.loads(done.stdout)["checks"]
    return {check["name"]: f"{check['state']}: {check['found']} {check['hint']}" for check in checks}


def ends(team: Team, before: set[str]) -> list[str]:
    return sorted(state for run, state in team.states().items() if run not in before)


def settings(prompts: int, epochs: int) -> tuple[str, str]:
    """A candidate that no other test has trained."""
    return f"candidates=[{{kind: vpt, num_prompts: {prompts}}}]", f"training.epochs={epochs}"


def test_a_cable_pulled_for_good(team: Team, cable: Cable | None) -> None:
    """The run is called crashed, its slot is free, another worker does the work; the first, which trains on meanwhile,
    has nothing to add when it is heard again."""
    if cable is None:
        pytest.skip("no network namespaces here: they need root and `apt-get install iproute2`")
    before, versions = set(team.states()), count_versions(team)
    with working(Worker(team, "cut", cable.within)) as cut, team.retraining(*settings(2, 40)) as retrain:
        wait_until(cut.find_checkpoint, LONG, "a checkpoint")
        cable.cut()
        try:
            wait_until(lambda: not cut.has_slot() and ends(team, before)[0] == "CRASHED", SECONDS, "the lost run's end")
            assert cut.is_training() or cut.has_result()  # its GPU is nobody else's as long as it trains
            checks = ask_doctor(team, cut.place, cable.within)
            with working(Worker(team, "spare")):
                assert retrain.wait(LONG) in (0, 1), team.read_answer()
        finally:
            cable.repair()
        wait_until(lambda: not find_processes("prefect.engine", cut.place), LONG, "the end of the run that was cut")
    assert cut.has_result()
    assert {name for name in checks if checks[name].startswith("error")} == {"mlflow", "prefect"}
    require_one_of_everything(team, versions)
    assert ends(team, before) == ["COMPLETED", "COMPLETED"]  # the one that was called crashed has come to its end


def test_a_cable_pulled_for_a_moment(team: Team, cable: Cable | None) -> None:
    """Long enough to lose the slot on the server, not to be called crashed: the run goes on and is heard in time."""
    if cable is None:
        pytest.skip("no network namespaces here: they need root and `apt-get install iproute2`")
    before, versions = set(team.states()), count_versions(team)
    with working(Worker(team, "loose", cable.within)) as loose, team.retraining(*settings(3, 120)) as retrain:
        wait_until(loose.find_checkpoint, LONG, "a checkpoint")
        cable.cut()
        time.sleep(45)
        cable.repair()
        assert retrain.wait(LONG) in (0, 1), team.read_answer()
    assert ends(team, before) == ["COMPLETED"]
    require_one_of_everything(team, versions)


def test_a_flow_process_is_killed_and_then_its_worker(team: Team) -> None:
    """The worker tells of the first at once and takes the order again; that run ends with its worker, and the next one
    goes on from its checkpoint."""
    before, versions = set(team.states()), count_versions(team)
    with working(Worker(team, "mortal")) as worker, team.retraining(*settings(6, 120)) as retrain:
        wait_until(worker.find_checkpoint, LONG, "a checkpoint")
        for pid in find_processes("prefect.engine", worker.place):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: ends(team, before) == ["CRASHED", "RUNNING"], SECONDS, "the second run")
        os.kill(team.processes["mortal"].pid, signal.SIGKILL)
        wait_until(lambda: ends(team, before)[:2] == ["CRASHED", "CRASHED"], SECONDS, "the second run's end")
        assert not worker.has_slot()
        team.again["mortal"]()
        assert retrain.wait(LONG) in (0, 1), team.read_answer()
    assert ends(team, before) == ["COMPLETED", "CRASHED", "CRASHED"]
    require_one_of_everything(team, versions)


def test_a_workers_disk_is_full(team: Team, small: Path) -> None:
    """The run fails in seconds and says why; with room again the same command goes on from the checkpoint."""
    before, versions = set(team.states()), count_versions(team)
    with working(Worker(team, "small", place=team.clone("small", small))) as worker:
        with team.retraining(*settings(4, 60)) as retrain:
            wait_until(worker.find_checkpoint, LONG, "a checkpoint")
            fill(small / "ballast")
            assert retrain.wait(SECONDS) == 2
        wait_until(lambda: not worker.has_slot(), 30, "the slot")
        told = team.read_answer()["error"]
        assert "No space left" in told["found"] + told["expected"], told
        assert ends(team, before) == ["FAILED"]
        assert (checks := ask_doctor(team, small))["workspace"].startswith("error"), checks
        assert "No space left" in checks["prefect"], checks
        (small / "ballast").unlink()
        with team.retraining(*settings(4, 60)) as retrain:
            assert retrain.wait(LONG) in (0, 1), team.read_answer()
    assert ends(team, before) == ["COMPLETED", "FAILED"]
    require_one_of_everything(team, versions)
    assert "done again" in ask_doctor(team, team.head)["prefect"]


def test_the_artifact_store_is_full(team: Team, small: Path, tmp_path: Path) -> None:
    """What is to be kept cannot be: the run fails within two minutes, and what is trained is logged the next time."""
    mlflow = f"http://127.0.0.1:{(port := free_port())}"
    other = replace(team, mlflow=mlflow)
    store = [f"--backend-store-uri=sqlite:///{tmp_path}/mlflow.db", f"--artifacts-destination={small}"]
    options = ["--host=127.0.0.1", f"--port={port}", "--workers=1", "--serve-artifacts", *store]
    team.start("mlflow-small", ["mlflow", "server", *options], {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    wait_until(lambda: answers(f"{mlflow}/health"), 180, "MLflow")
    before = set(team.states())
    with working(Worker(other, "careless")) as worker:
        with other.retraining(*settings(5, 30)) as retrain:
            wait_until(worker.find_checkpoint, LONG, "a checkpoint")
            fill(small / "ballast")
            wait_until(worker.has_result, LONG, "the training's end")
            assert retrain.wait(SECONDS) == 2
        assert not worker.has_slot()
        assert ends(team, before) == ["FAILED"]
        assert "Free space where the server keeps artifacts" in ask_doctor(team, team.head)["prefect"]
        (small / "ballast").unlink()
        with other.retraining(*settings(5, 30)) as retrain:
            assert retrain.wait(LONG) in (0, 1), other.read_answer()
    require_one_of_everything(other, 0)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 MB in memory."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200m", "tessera", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no small disk to be had here: mounting one needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(path: Path) -> None:
    with path.open("wb") as file, suppress(OSError):
        while True:
            file.write(bytes(1_000_000))


@pytest.mark.parametrize(("whose", "jump"), [("worker", -HOUR), ("all", -HOUR), ("all", HOUR)])
def test_a_clock_that_jumps(team: Team, server_clock: Clock | None, tmp_path: Path, whose: str, jump: int) -> None:
    """Put an hour back or forward while a candidate is trained, on the worker's machine or everywhere: it comes to its
    end once, and the next order is taken at once."""
    if server_clock is None:
        pytest.skip("no C compiler for a clock of a process's own: apt-get install gcc")
    own = build_clock(tmp_path, "worker")
    assert own is not None
    versions, number = count_versions(team), 10 + 2 * ["worker", "all"].index(whose) + (jump > 0)
    try:
        with working(Worker(team, f"{whose}{number}", **own.env)) as worker:
            with team.retraining(*settings(number, 100)) as retrain:
                wait_until(worker.find_checkpoint, LONG, "a checkpoint")
                own.put(jump)
                if whose == "all":
                    server_clock.put(jump)
                assert retrain.wait(LONG) in (0, 1), team.read_answer()
            require_one_of_everything(team, versions)
            assert not worker.has_slot()
            with team.retraining(*settings(number, 2)) as retrain:
                assert retrain.wait(LONG) in (0, 1), team.read_answer()
            require_one_of_everything(team, versions + 1)
        if whose == "worker":
            told = ask_doctor(team, worker.place, **own.env)["prefect"]
            assert re.search("clock is (3599|3600|3601) s behind", told), told
    finally:
        server_clock.put(0)
