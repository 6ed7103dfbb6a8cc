"""A workspace with a tiny domain that every test may copy: real images, real DVC, the real command line."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml

from components.data.stages import run_manifest
from components.domain.reading import parse_domain
from components.models.features import run_features
from components.synthetic.surfaces import create_surface_defects
from components.tracking.store import Store
from components.workspace import QUIET, REPOSITORY, Workspace

# Nothing a test starts may phone home, and two threads in two processes thrash two cores.
os.environ.update(QUIET)
os.environ["HF_HUB_OFFLINE"] = "1"  # nor be another test where there is a network
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is slow: how long an example takes is no property of the code.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

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


@dataclass(frozen=True)
class Answer:
    """What a command left: its exit code, the JSON object on stdout, and what a person reads."""

    code: int
    outcome: dict[str, Any]
    stdout: str
    stderr: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Command = Callable[..., Answer]


def run_tessera(workspace: Path, *arguments: str, as_json: bool = True, **env: str) -> Answer:
    """`tessera ARGUMENTS --workspace W --json` as a process of its own."""
    command = [sys.executable, "-m", "flows.commands.cli", *arguments, "--workspace", str(workspace)]
    done = subprocess.run(
        command + (["--json"] if as_json else []),
        capture_output=True,
        text=True,
        env=clean_environment() | env,
        cwd=REPOSITORY,
        check=False,
        timeout=500,
    )
    return Answer(done.returncode, json.loads(done.stdout) if as_json and done.stdout else {}, done.stdout, done.stderr)


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
