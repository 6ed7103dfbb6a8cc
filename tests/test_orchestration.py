"""Retrains on a real Prefect server, with an MLflow server and a worker in a workspace of its own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml
from conftest import DOMAIN, TINY, Answer, clean_environment, create_workspace, free_port, run_tessera
from schemas import SCHEMAS

from components.training.job import Job, load_result
from components.workspace import REPOSITORY, Workspace

pytestmark = pytest.mark.slow
BINARIES = Path(sys.executable).parent


@dataclass
class Team:
    """Two servers, the workspace of whoever retrains, and workers started in others."""

    root: Path
    head: Path
    prefect: str
    mlflow: str
    stack: ExitStack
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        return {"PREFECT_API_URL": self.prefect, "MLFLOW_TRACKING_URI": self.mlflow}

    def tessera(self, *arguments: str) -> Answer:
        return run_tessera(self.head, *arguments, **self.env)

    def start(self, name: str, *command: str, **env: str) -> "subprocess.Popen[bytes]":
        log = (self.root / f"{name}.log").open("ab")
        process = subprocess.Popen(
            [str(BINARIES / command[0]), *command[1:]],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=clean_environment() | {"PREFECT_HOME": str(self.root / name)} | env,
            cwd=REPOSITORY,
            start_new_session=True,
        )
        self.processes[name] = process
        self.stack.callback(end, process)
        return process

    def start_worker(self, name: str, pool: str, workspace: Path) -> "subprocess.Popen[bytes]":
        command = ("prefect", "worker", "start", "--pool", pool, "--name", name, "--limit", "1")
        return self.start(name, *command, TESSERA_WORKSPACE=str(workspace), **self.env)

    def ask(self, path: str, **body: Any) -> Any:
        answer = httpx.post(f"{self.prefect}/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def runs(self, flow: str) -> list[dict[str, Any]]:
        wanted = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return list(self.ask("flow_runs/filter", **wanted))


def end(process: "subprocess.Popen[bytes]", sign: signal.Signals = signal.SIGTERM) -> None:
    for each in (sign, signal.SIGKILL):
        try:
            os.killpg(process.pid, each)
            process.wait(20)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def wait_until(what: Callable[[], Any], seconds: float, told: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"{told}: not within {seconds:.0f} s"
        time.sleep(0.5)
    return found


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[Team]:
    root = tmp_path_factory.mktemp("team")
    ports = free_port(), free_port()
    with ExitStack() as stack:
        head = create_workspace(root / "head", images, work_pool="gpu")
        found = Team(root, head, f"http://127.0.0.1:{ports[0]}/api", f"http://127.0.0.1:{ports[1]}", stack)
        found.start("prefect", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(ports[0]))
        store, artifacts = f"sqlite:///{root / 'mlflow.db'}", (root / "artifacts").as_uri()
        command = ("mlflow", "server", "--host", "127.0.0.1", "--port", str(ports[1]), "--workers", "1")
        command += ("--backend-store-uri", store, "--artifacts-destination", artifacts, "--serve-artifacts")
        found.start("mlflow", *command, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        checked = run_tessera(head, "check", DOMAIN)  # meanwhile
        assert checked.code == 0, checked.stderr
        wait_until(lambda: answers(f"{found.prefect}/health"), 120, "Prefect")
        wait_until(lambda: answers(f"{found.mlflow}/health"), 120, "MLflow")
        yield found


@pytest.fixture(scope="module")
def deployed(team: Team) -> Answer:
    return team.tessera("deploy")


@pytest.fixture(scope="module")
def worker(team: Team, deployed: Answer) -> Path:
    """A clone with the team's DVC settings, and no images."""
    place = team.root / "worker"
    place.mkdir()
    for name in (".dvc/config", "dvc.yaml"):
        (place / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(team.head / name, place / name)
    team.start_worker("worker", "gpu", place)
    return place


@pytest.fixture(scope="module")
def retrained(team: Team, worker: Path) -> Answer:
    return team.tessera("retrain", DOMAIN)


def test_deploying_tells_what_it_did_and_does_it_once(team: Team, deployed: Answer) -> None:
    assert deployed.code == 0, deployed.stderr
    jsonschema.validate(deployed.outcome, SCHEMAS["deploy"])
    assert _changes(deployed) == {
        "tessera": "created",
        "gpu": "created",
        f"retrain/{DOMAIN}": "created",
        "train_candidate/gpu": "created",
        "tessera: runs that went silent": "created",
    }
    assert set(_changes(team.tessera("deploy")).values()) == {"unchanged"}


def _changes(answer: Answer) -> dict[str, str]:
    return {row["name"]: row["change"] for row in answer.outcome["deployed"]}


def test_a_worker_elsewhere_trains_the_same_bits(team: Team, worker: Path, retrained: Answer) -> None:
    """The images come by hash from the remote, the manifest and the results go through MLflow."""
    assert retrained.code == 0, retrained.stderr
    jsonschema.validate(retrained.outcome, SCHEMAS["retrain"])
    assert retrained.outcome["verdict"] == "PROMOTE"
    runs = team.runs("train_candidate")
    assert sorted(run["name"] for run in runs) == [f"train {DOMAIN} linear-s0", f"train {DOMAIN} vpt-deep-s0"]
    assert {run["state_type"] for run in runs} == {"COMPLETED"}
    assert list((worker / ".tessera" / "work").glob(f"{DOMAIN}-*/data/{DOMAIN}/raw/images/*.jpg"))
    assert not (worker / "data").exists()
    for row in retrained.outcome["candidates"]:
        assert _train_here(team, f"{row['tuner']}-s{row['seed']}") == row["adapter_sha256"]


def _train_here(team: Team, name: str) -> str:
    """Hash of the adapter that this process makes of the head's own images."""
    from components.training.run import run_job

    (place,) = (team.head / ".tessera" / "runs" / DOMAIN).glob(f"*/{name}")
    (order,) = (team.root / "worker" / ".tessera" / "work").glob(f"*/.tessera/runs/{DOMAIN}/*/{name}/job.json")
    head = Workspace(team.head)
    moved = {"raw": head.raw(DOMAIN), "manifest": head.derived(DOMAIN) / "manifest.parquet"}
    moved |= {"folder": team.root / "here" / name, "cache": head.cache}
    run_job(Job.model_validate_json(order.read_text()).model_copy(update=moved), lambda event, **facts: None)
    result = load_result(moved["folder"])
    assert result is not None
    assert load_result(place) is not None
    return result.adapter_sha256
