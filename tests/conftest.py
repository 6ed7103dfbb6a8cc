"""A workspace with a tiny domain that every test may copy: real images, real DVC, the real command line."""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar

import hypothesis
import jsonschema
import pytest
import yaml

from components.data.stages import run_manifest
from components.domain.reading import parse_domain
from components.domain.strict import Strict
from components.models.features import run_features
from components.synthetic.surfaces import create_surface_defects
from components.tracking.store import Store
from components.workspace import QUIET, REPOSITORY, Workspace

# Nothing a test starts may phone home, and two threads in two processes thrash two cores.
os.environ.update(QUIET)
os.environ["HF_HUB_OFFLINE"] = "1"  # nor be another test where there is a network
os.environ.setdefault("OMP_NUM_THREADS", "1")

#: The files that take longest, in that order.
SLOWEST = (
    *("test_orchestration", "test_real_data", "test_services", "test_drift", "test_road", "test_resume", "test_clone"),
    *("test_serve_faults", "test_serve_process", "test_folders", "test_export_model", "test_keys", "test_maps"),
    *("test_cli", "test_promote", "test_events", "test_contest", "test_importing", "test_train_candidate"),
    *("test_versions", "test_process_group", "test_search", "test_validation", "test_methods", "test_surroundings"),
    *("test_fetched", "test_duplicates"),
)

# A busy machine is slow: how long an example takes is no property of the code.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process has one left to do when the other has nothing."""
    place = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


DOMAIN = "parts"
TINY = {
    "name": DOMAIN,
    "task": "classification",
    "classes": ["none", "scratch", "pit", "crack", "inclusion", "stain"],
    "layout": {"kind": "csv", "mask": "mask", "boxes": "boxes"},
    "group": "lot",
    "slices": ["surface"],
    "backbone": "embedded",
    "img_size": 32,
    "candidates": ["linear", {"kind": "vpt", "num_prompts": 2}],
    "training": {"epochs": 2, "warmup_epochs": 0.5, "batch_size": 16},
    "split": {"seed": 1},
    "gates": {"floor": 0.0},
}


Record = TypeVar("Record", bound=Strict)


@dataclass(frozen=True)
class Answer:
    """What a command left: its exit code, the JSON object on stdout, and what a person reads."""

    code: int
    outcome: dict[str, Any]
    stdout: str
    stderr: str

    def read(self, record: type[Record]) -> Record:
        """The record that stdout is the dump of: every key is known, none is missing, no type is coerced."""
        printed = record.model_validate_json(self.stdout, strict=True)
        assert printed.model_dump(mode="json") == self.outcome
        jsonschema.validate(self.outcome, record.model_json_schema(mode="serialization"))
        return printed


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Command = Callable[..., Answer]
LONGEST = 500  # seconds of a command


def run_tessera(workspace: Path, *arguments: str, as_json: bool = True, **env: str) -> Answer:
    """`tessera ARGUMENTS --workspace W --json` as a process of its own."""
    words = [*arguments, "--workspace", str(workspace), *(["--json"] if as_json else [])]
    code, stdout, stderr = (_run_fresh if env else _commands().run)(words, clean_environment() | env)
    return Answer(code, json.loads(stdout) if as_json and stdout else {}, stdout, stderr)


def _run_fresh(words: list[str], env: dict[str, str]) -> tuple[int, str, str]:
    """By an interpreter of its own, some of whose libraries read the environment when they are imported."""
    command = [sys.executable, "-m", "flows.commands.cli", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=REPOSITORY, check=False, timeout=LONGEST
    )
    return done.returncode, done.stdout, done.stderr


FORKS = """
import gc, json, os, runpy, sys
import alembic.command, cryptography.fernet, fastapi, httpx, PIL.Image, pandas, polars, pyarrow, scipy.special, typer
import mlflow.store.model_registry.sqlalchemy_store, mlflow.store.tracking.sqlalchemy_store, rich.console

gc.freeze()  # or each fork would copy every page as it collects
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
else:
    sys.exit()
for number, path in enumerate((os.devnull, order["stdout"], order["stderr"])):
    os.dup2(os.open(path, os.O_RDWR), number)
os.environ.clear()
os.environ.update(order["env"])
sys.argv = ["tessera", *order["words"]]
runpy.run_module("flows.commands.cli", run_name="__main__", alter_sys=True)
"""


class Commands:
    """Starts commands one after the other, as forks of a process that has imported what takes seconds: libraries of
    others alone, none that reads its settings then, and nothing of ours."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment() | QUIET,
            cwd=REPOSITORY,
        )

    def run(self, words: list[str], env: dict[str, str]) -> tuple[int, str, str]:
        """Its exit code, negative for a signal, and what it wrote."""
        assert self.process.stdin
        assert self.process.stdout
        with NamedTemporaryFile() as stdout, NamedTemporaryFile() as stderr:
            order = {"words": words, "env": env, "stdout": stdout.name, "stderr": stderr.name}
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            pid = int(self.process.stdout.readline())
            if not select.select([self.process.stdout], [], [], LONGEST)[0]:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(words, LONGEST, stdout.read(), stderr.read())
            code = os.waitstatus_to_exitcode(int(self.process.stdout.readline()))
            return code, stdout.read().decode(), stderr.read().decode()


@cache
def _commands() -> Commands:
    return Commands()


def clean_environment() -> dict[str, str]:
    """The environment without what would point a process at somebody's real servers."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_", "TESSERA_"))}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 pictures of surfaces in 16 lots, 64 px: read-only, shared by all tests."""
    place = Workspace(tmp_path_factory.mktemp("images"))
    create_surface_defects(place.raw(DOMAIN), lots=16, images_per_lot=6, size=64)
    domain = parse_domain(TINY, "tests")
    run_manifest(place, domain)
    run_features(place, domain)  # every workspace begins with what is known of these contents: no torch in its stage
    return place.raw(DOMAIN)


@pytest.fixture
def workspace(tmp_path: Path, images: Path) -> Path:
    """A fresh workspace outside git whose domain `parts` has its images in place."""
    return create_workspace(tmp_path / "workspace", images)


@pytest.fixture(scope="module")
def mlflow_workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """An empty workspace whose SQLite store this process is connected to."""
    place = Workspace(tmp_path_factory.mktemp("store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        place.activate()
        Store.open(place)
        yield place


@pytest.fixture(scope="module")
def store(mlflow_workspace: Workspace) -> Store:
    """The store of `mlflow_workspace`."""
    return Store.open(mlflow_workspace)


def create_workspace(root: Path, images: Path, **changes: Any) -> Path:
    """A workspace with the tiny domain, some of its keys changed."""
    folder = root / "data" / DOMAIN
    folder.mkdir(parents=True)
    (folder / "domain.yaml").write_text(yaml.safe_dump(TINY | changes, sort_keys=False))
    shutil.copytree(images, folder / "raw")
    known = Workspace(images.parents[2]).derived(DOMAIN)
    (derived := Workspace(root).derived(DOMAIN)).mkdir(parents=True)
    for name in ("features.parquet", "matches.parquet"):
        shutil.copyfile(known / name, derived / name)
    return root
