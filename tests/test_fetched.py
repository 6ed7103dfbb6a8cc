"""What a worker fetched is there while it works, and does not pile up: real DVC, MLflow and processes."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
from conftest import clean_environment
from samples import write_folders

from components.data.store import versioning
from components.data.store.versioning import record_version
from components.errors import TrackingError
from components.tracking import artifacts
from components.tracking.store import Store
from components.workspace import REPOSITORY, Workspace
from flows.processes.fetched import KEPT, KEPT_SECONDS, Data, hold_fetched, remove_old


@pytest.fixture
def home(tmp_path: Path, mlflow_workspace: Workspace) -> Workspace:
    """A workspace with four pictures of the domain `tiles`, known to DVC."""
    place = Workspace(tmp_path)
    write_folders(place.raw("tiles"), images=2)
    versioning.require_repository(place)
    record_version(place, "tiles")
    return place


def create_data(store: Store, home: Workspace, number: int) -> Data:
    """The pictures with one of many manifests, which is in MLflow."""
    manifest = home.root / "manifest.parquet"
    manifest.write_bytes(b"manifest %d" % number)
    client = mlflow.MlflowClient()
    run = client.create_run("0").info.run_id
    artifacts.log_data(store, run, manifest)
    version = versioning.read_version(home, "tiles")
    return Data("tiles", version.md5, hashlib.sha256(manifest.read_bytes()).hexdigest(), run)


def fetch(store: Store, home: Workspace, data: Data) -> Path:
    with hold_fetched(store, home, data) as place:
        assert len(list(place.raw("tiles").rglob("*.png"))) == 4
        assert (place.derived("tiles") / "manifest.parquet").read_bytes().startswith(b"manifest")
        return place.root


@contextmanager
def somebody_works_in(home: Workspace, data: Data) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the version, and cannot fetch it again: it knows no MLflow."""
    code = "from pathlib import Path; from components.workspace import Workspace\n"
    code += "from flows.processes.fetched import Data, hold_fetched\n"
    code += f"with hold_fetched(None, Workspace(Path({str(home.root)!r})), Data(*{tuple(data)})):\n"
    code += "    print('held', flush=True); input()"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=clean_environment()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_versions_used_last_stay_and_what_is_worked_in(store: Store, home: Workspace) -> None:
    versions = [create_data(store, home, number) for number in range(KEPT + 3)]
    places = [fetch(store, home, data) for data in versions[: KEPT + 1]]
    with somebody_works_in(home, versions[KEPT]) as worker:
        assert fetch(store, home, versions[KEPT - 1]) == places[KEPT - 1]  # used again: now it is the latest
        places += [fetch(store, home, data) for data in versions[KEPT + 1 :]]
        assert places[KEPT].is_dir()
        assert (places[KEPT] / "data/tiles/raw").is_dir()
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        remove_old(home)
    assert [place.is_dir() for place in places] == [place in places[-KEPT:] for place in places]
    assert home.raw("tiles").is_dir()


@pytest.mark.slow
def test_what_is_unused_for_a_month_is_removed_and_fetched_again(store: Store, home: Workspace) -> None:
    data = create_data(store, home, 0)
    place = fetch(store, home, data)
    remove_old(home)
    assert place.is_dir()
    lock = place.with_name(f"{place.name}.lock")
    os.utime(lock, (0, lock.stat().st_mtime - KEPT_SECONDS - 60))
    (place.with_name("tiles-half.gone") / "data").mkdir(parents=True)  # a remover that was killed
    remove_old(home)
    assert [path.name for path in place.parent.iterdir()] == [lock.name]
    assert fetch(store, home, data) == place


@pytest.mark.slow
def test_a_manifest_that_is_not_the_senders_is_refused(store: Store, home: Workspace) -> None:
    data = create_data(store, home, 0)
    with pytest.raises(TrackingError, match="sha256"):
        fetch(store, home, data._replace(manifest="0" * 64))
