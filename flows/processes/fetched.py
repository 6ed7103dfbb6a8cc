"""Data versions on a worker: one folder per version under `.tessera/work`, locked while a candidate is trained on it.

    with hold_fetched(store, home, data) as place:     images by hash from the DVC remote, the manifest from MLflow

Orders for different versions use different folders. When the next version is fetched, unused versions are removed,
except the two of each domain that were used last, within a month. Everything in them is in the remote and in MLflow.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from components.data.store import versions
from components.data.store.versioning import read_version, require_repository
from components.errors import TrackingError
from components.files import whole_file
from components.tracking import artifacts
from components.tracking.store import Store
from components.workspace import Workspace

KEPT, KEPT_SECONDS = 2, 30 * 86400.0
GONE = ".gone"


class Data(NamedTuple):
    """A domain's images and manifest by their hashes, and the MLflow run that holds the manifest."""

    domain: str
    md5: str
    manifest: str
    run_id: str


def is_here(home: Workspace, data: Data) -> bool:
    """Whether the workspace itself has exactly this version and manifest."""
    manifest = _manifest(home, data)
    return (
        home.raw(data.domain).is_dir()
        and read_version(home, data.domain).md5 == data.md5
        and manifest.exists()
        and hashlib.sha256(manifest.read_bytes()).hexdigest() == data.manifest
    )


@contextmanager
def hold_fetched(store: Store, home: Workspace, data: Data) -> Iterator[Workspace]:
    """A workspace with the version, fetched if needed. It is not removed as long as the block runs."""
    place = Workspace(home.state / "work" / f"{data.domain}-{data.md5[:12]}-{data.manifest[:12]}")
    with _lock(place, fcntl.LOCK_SH):
        place.state.mkdir(parents=True, exist_ok=True)
        with FileLock(place.state / "fetch.lock"):
            if not place.raw(data.domain).is_dir():
                remove_old(home)
            _fetch(store, home, data, place)
        yield place


def remove_old(home: Workspace) -> None:
    """Remove unused old versions. Folders are renamed first, so that half of one is never taken for a whole one."""
    work, kept = home.state / "work", Counter[str]()
    for left in work.glob(f"*{GONE}"):
        shutil.rmtree(left, ignore_errors=True)
    used = {path: _last_used(path) for path in work.iterdir() if path.is_dir()}
    for path in sorted(used, key=lambda path: -used[path]):
        domain = path.name.rsplit("-", 2)[0]
        kept[domain] += 1
        if kept[domain] <= KEPT and time.time() - used[path] < KEPT_SECONDS:
            continue
        with suppress(BlockingIOError, FileNotFoundError), _lock(Workspace(path), fcntl.LOCK_EX | fcntl.LOCK_NB):
            gone = path.with_name(path.name + GONE)
            os.replace(path, gone)
            shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def _lock(place: Workspace, kind: int) -> Iterator[None]:
    """Lock a version: shared while it is used, exclusive while it is removed. The kernel releases it with its holder.

    The lock file beside the folder stays, and its time is that of the last use.
    """
    path = _lock_file(place.root)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, kind)
        os.utime(path)
        yield


def _lock_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _last_used(path: Path) -> float:
    """The time of the last use; 0 for folders of an earlier version of this code."""
    lock = _lock_file(path)
    return lock.stat().st_mtime if lock.exists() else 0.0


def _fetch(store: Store, home: Workspace, data: Data, place: Workspace) -> None:
    if not (place.state / "cache").exists():
        home.cache.mkdir(parents=True, exist_ok=True)
        (place.state / "cache").symlink_to(home.cache)  # one cache per machine, bounded in size
    if not place.raw(data.domain).is_dir():
        require_repository(home)
        versions.restore_copy(home, data.md5, place.raw(data.domain))
    if not (manifest := _manifest(place, data)).exists():
        _fetch_manifest(store, data, manifest)


def _manifest(place: Workspace, data: Data) -> Path:
    return place.derived(data.domain) / "manifest.parquet"


def _fetch_manifest(store: Store, data: Data, target: Path) -> None:
    with whole_file(target) as partial:
        artifacts.fetch_file(store, data.run_id, artifacts.MANIFEST_FILE, partial)
        found = hashlib.sha256(partial.read_bytes()).hexdigest()
        if found != data.manifest:
            raise TrackingError(
                f"manifest of {data.domain}",
                expected=f"the file with sha256 {data.manifest[:12]} that the retrain stored in MLflow",
                found=f"sha256 {found[:12]}",
                hint="Run the retrain again; if the error stays, the artifact store damages files.",
            )
