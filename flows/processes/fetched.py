"""What a worker fetched: a folder a data version under `.tessera/work`, held while a candidate is trained on it.

    with hold_fetched(store, home, data) as place:     images by hash from the DVC remote, the manifest from MLflow

Orders for two versions do not meet. What nobody works with goes when the next version is fetched, but for the two
versions of each domain that were used last, within a month: all that they hold is in the remote and in MLflow.
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
    """A domain's images and manifest by their hashes, and the MLflow run that has the manifest."""

    domain: str
    md5: str
    manifest: str
    run_id: str


def is_here(home: Workspace, data: Data) -> bool:
    """Whether the workspace itself has exactly this."""
    manifest = _manifest(home, data)
    return (
        home.raw(data.domain).is_dir()
        and read_version(home, data.domain).md5 == data.md5
        and manifest.exists()
        and hashlib.sha256(manifest.read_bytes()).hexdigest() == data.manifest
    )


@contextmanager
def hold_fetched(store: Store, home: Workspace, data: Data) -> Iterator[Workspace]:
    """The version's place, which nobody removes as long as the block runs."""
    place = Workspace(home.state / "work" / f"{data.domain}-{data.md5[:12]}-{data.manifest[:12]}")
    with _lock(place, fcntl.LOCK_SH):
        place.state.mkdir(parents=True, exist_ok=True)
        with FileLock(place.state / "fetch.lock"):
            if not place.raw(data.domain).is_dir():
                remove_old(home)
            _fetch(store, home, data, place)
        yield place


def remove_old(home: Workspace) -> None:
    """The versions that nobody works with and nobody will miss. Renamed first: half a folder would be taken for one."""
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
    """Shared by those who work in the place, alone for who removes it; the kernel ends it with its holder.

    The file beside the folder stays for good, and its time is that of the last use.
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
    """Zero for what an earlier version of this code left."""
    lock = _lock_file(path)
    return lock.stat().st_mtime if lock.exists() else 0.0


def _fetch(store: Store, home: Workspace, data: Data, place: Workspace) -> None:
    if not (place.state / "cache").exists():
        home.cache.mkdir(parents=True, exist_ok=True)
        (place.state / "cache").symlink_to(home.cache)  # one bounded cache a machine
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
                expected=f"the file with sha256 {data.manifest[:12]} that the retrain left in MLflow",
                found=f"sha256 {found[:12]}",
                hint="Run the retrain again; if it stays, the artifact store damages files.",
            )
