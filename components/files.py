"""Files and folders that are written whole or not at all, and private files."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from components.processes import answers

PRIVATE = 0o600


def write_whole(path: Path, data: bytes, *, mode: int | None = None, flush: bool = False) -> None:
    """Write `data` beside `path` and rename it, so that a reader sees the old file or the new one, never a part.

    mode: permission bits of the new file, set before any byte is written; None: the default of the umask.
    flush: wait until the bytes are on the disk, for files that must survive a power cut.
    """
    with whole_file(path) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666 if mode is None else mode)
        with open(descriptor, "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)  # also if the umask differs, or a killed process left the file
            file.write(data)
            if flush:
                file.flush()
                os.fsync(file.fileno())


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path for a library to write to; renamed to `path` when the block ends, removed when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_partial(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def open_private(path: Path) -> BinaryIO:
    """Open a file to append to; only its owner may read it, from the moment it is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE)
    if os.fstat(descriptor).st_mode & 0o777 != PRIVATE:
        os.fchmod(descriptor, PRIVATE)
    return os.fdopen(descriptor, "ab")


def remove_partial(path: Path) -> None:
    """Remove the partial files that killed writers of `path` left beside it."""
    start, end = f".{path.name}.", ".partial"
    if not path.parent.is_dir():
        return
    with os.scandir(path.parent) as entries:
        left = [entry.name for entry in entries if entry.name.startswith(start) and entry.name.endswith(end)]
    for name in left:
        number = name[len(start) : -len(end)]
        if number.isdecimal() and not _is_alive(number):
            path.with_name(name).unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or the list of names of a folder, is on the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill; it replaces `target` when the block ends, unless the block fails.

    A folder cannot be renamed over another one, so the old one is renamed first. A process killed at any point leaves
    the old or the new folder whole, and `settle_folder` puts it in place. Callers must hold a lock on the target.
    """
    target = Path(os.path.realpath(target))  # a link stays a link, and points to the new folder
    settle_folder(target)
    fresh, aside = target.with_name(f".{target.name}-{os.getpid()}.partial"), _aside(target)
    shutil.rmtree(fresh, ignore_errors=True)  # left by a killed process with our pid; containers reuse pids
    fresh.mkdir(parents=True)
    try:
        yield fresh
        if target.exists():
            os.replace(target, aside)
        os.replace(fresh, target)
    finally:
        settle_folder(target)
        shutil.rmtree(fresh, ignore_errors=True)


def settle_folder(target: Path) -> None:
    """Complete or undo an interrupted `whole_folder` of `target`, and remove its unfinished folder.

    The partial folder of a process that is still running is kept.
    """
    target = Path(os.path.realpath(target))
    aside = _aside(target)
    if aside.exists() and not target.exists():
        os.replace(aside, target)
    elif aside.exists():  # renamed first, so that a half-removed folder is never taken for a whole one
        doomed = target.with_name(f".{target.name}-old-{os.getpid()}.partial")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(aside, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    for left in target.parent.glob(f".{target.name}-*.partial"):
        if not _is_alive(left.name.removesuffix(".partial").rpartition("-")[2]):
            shutil.rmtree(left, ignore_errors=True)


def remove_whole(target: Path) -> None:
    """Remove a file or a folder. A folder is renamed first, so that half of it is never taken for a whole one."""
    if target.is_symlink() or not target.is_dir():
        target.unlink(missing_ok=True)
        return
    settle_folder(target)
    doomed = target.with_name(f".{target.name}-{os.getpid()}.partial")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(target, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.aside.partial")


def _is_alive(number: str) -> bool:
    return number.isdecimal() and answers(int(number))


def hash_file(path: Path) -> str | None:
    """The sha256 of a file's bytes; None if there is no file to read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
