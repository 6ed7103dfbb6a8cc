"""Removes a domain from the workspace, so that it can be restored.

data/<name>/raw, raw.dvc, domain.yaml       removed; the small files are kept in .tessera/removed/<name>-<version>/
its word in dvc.yaml, its stages in dvc.lock, .tessera/data, runs and caches       removed
data/<name>/splits.csv, versions.json       stay: a later import must know which image was in which split
ledger, registered versions, DVC's cache and remote, git's tags       stay
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from filelock import FileLock, Timeout

from components.data.store import versioning, versions
from components.domain.reading import load_domain
from components.errors import VersioningError
from components.files import remove_whole, settle_folder, write_whole
from components.records.images import Removed
from components.workspace import Workspace

REMEMBERED = ("splits.csv", "versions.json")


def remove_domain(workspace: Workspace, name: str, *, force: bool = False) -> Removed:
    """Remove a domain's images and everything derived from them. The same command completes a removal that was killed.

    force: remove images that no named version holds. Raises VersioningError if none does, and DomainError for a domain
    that does not exist.
    """
    places = (workspace.domain_file(name), workspace.raw(name), workspace.raw(name).with_suffix(".dvc"))
    if not any(path.exists() for path in places):
        load_domain(places[0])  # raises the error that lists the domains
    with versioning.hold_domain(workspace, name, f"tessera remove {name}"), _no_retrain(workspace, name):
        versioning.require_repository(workspace)
        version = _find_version(workspace, name)
        if version is not None:
            _require_named(workspace, name, version.md5, force)
        kept = _keep_files(workspace, name, version.md5[:12] if version else "empty")
        versioning.forget_domain(workspace, name)
        gone = [path for path in (workspace.raw(name), *_list_derived(workspace, name)) if path.exists()]
        for path in gone:
            remove_whole(path)
        folder = places[0].parent
        left = sorted((path for path in folder.iterdir() if path.name not in REMEMBERED), key=_is_domain_file)
        for path in left:
            remove_whole(path)
        stay = [folder / each for each in REMEMBERED if (folder / each).exists()]
        if not stay:
            folder.rmdir()
    return Removed(
        domain=name,
        files=version.files if version else 0,
        data_version=version.md5 if version else None,
        removed=(*gone, *left),
        kept=(*stay, kept),
        back=f"mkdir -p {quote(str(folder))} && cp -n {quote(str(kept))}/* {quote(str(folder))}/",
    )


@contextmanager
def _no_retrain(workspace: Workspace, name: str) -> Iterator[None]:
    """Raise VersioningError while a retrain of the domain runs, because a training reads the images until its end."""
    lock = FileLock(workspace.state / "locks" / f"retrain-{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        hint = "Wait for its end, or end it with Ctrl-C, and run the command again."
        expected, found = "no running retrain of it", "one"
        raise VersioningError(f"removal of {name}", expected=expected, found=found, hint=hint) from None
    try:
        yield
    finally:
        lock.release()


def _find_version(workspace: Workspace, name: str) -> versioning.DataVersion | None:
    """Record the images as they are now, so that DVC's cache has them; None if there are none."""
    raw = workspace.raw(name)
    settle_folder(raw)
    if raw.is_dir() and any(raw.iterdir()):
        return versioning.record_version(workspace, name)
    return versioning.read_version(workspace, name) if raw.with_suffix(".dvc").exists() else None


def _require_named(workspace: Workspace, name: str, md5: str, force: bool) -> None:
    if force or md5 in {named.md5 for named in versions.list_versions(workspace, name)}:
        return
    raise VersioningError(
        f"removal of {name}",
        expected="images that are a named version, so that they can be restored",
        found="images that no version holds",
        hint=f"Name them first with `tessera version {name}`, or give `--force` if they may be lost.",
    )


def _keep_files(workspace: Workspace, name: str, version: str) -> Path:
    """Copy the domain's small files to a folder from which it can be restored."""
    folder = workspace.state / "removed" / f"{name}-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    for path in workspace.domain_file(name).parent.iterdir():
        if path.is_file() and not path.name.startswith("."):
            write_whole(folder / path.name, path.read_bytes())
    return folder


def _list_derived(workspace: Workspace, name: str) -> list[Path]:
    """The files of stages, retrains and caches that belong to this domain alone."""
    cache = workspace.cache
    return [
        workspace.derived(name),
        workspace.runs(name),
        cache / "findings" / name,
        *(path for path in cache.glob(f"unpacked/{name}-*") if path.is_dir()),
        *cache.glob(f"proofs/{name}-*.json"),
    ]


def _is_domain_file(path: Path) -> bool:
    """Whether a path is the domain file. It is removed last: while it exists, the same command can continue."""
    return path.name == "domain.yaml"
