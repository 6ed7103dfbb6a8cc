"""Room for caches: what pixels and features take together stays below TESSERA_CACHE_GB.

The least recently used pixel files and sets of features go first, and nothing that a running process uses.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from components.workspace import cache_limit

PIXELS, FEATURES, SUMS = "pixels", "features", "sums"  # folders of the cache


class Kept(NamedTuple):
    """One removable part of the cache. used: the time of its last use, in ns. remove: whether it is gone then."""

    used: int
    size: int
    remove: Callable[[], bool]


def make_room(cache: Path, wanted: int, what: str) -> None:
    """Remove leftovers of killed writers, and what was used least recently and is not in use, until `wanted` bytes fit.

    what: what the bytes are, for the error. Raises OSError if the disk is still too full, and WorkspaceError for a
    TESSERA_CACHE_GB that is no number.
    """
    limit = cache_limit()
    for partial in (cache / PIXELS).glob("*.partial"):
        _remove_stale(partial)
    everything = sorted([*_list_pixels(cache / PIXELS), *_list_features(cache / FEATURES)], key=lambda kept: kept.used)
    taken = sum(kept.size for kept in everything)
    for kept in everything:
        if taken + wanted <= limit and shutil.disk_usage(cache).free >= wanted:
            return
        taken -= kept.size if kept.remove() else 0
    if shutil.disk_usage(cache).free < wanted:
        raise OSError(errno.ENOSPC, f"less than the {wanted / 1e9:.2f} GB that {what}")


def locate_sums(pixels: Path) -> Path:
    """The path of the checksums of a pixel file."""
    return pixels.parent.with_name(SUMS) / f"{pixels.stem}.crc"


def is_at(file: IO[bytes], path: Path) -> bool:
    """Whether the open file still has this path: another process may have moved or removed it before the lock came."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def lock_of(features: Path) -> Path:
    """The path of the lock that the writer of a set of features holds."""
    return features.with_name(f"{features.name}.lock")


def _list_pixels(folder: Path) -> Iterator[Kept]:
    for path in folder.glob("*.u8"):
        with contextlib.suppress(FileNotFoundError):
            facts = path.stat()
            yield Kept(facts.st_mtime_ns, facts.st_size, lambda path=path: _remove_unused(path))  # type: ignore[misc]


def _list_features(folder: Path) -> Iterator[Kept]:
    """Sets of features: folders, whose time is that of the last use."""
    for path in folder.glob("*/"):
        with contextlib.suppress(FileNotFoundError):
            size = sum(part.stat().st_size for part in path.iterdir())
            yield Kept(path.stat().st_mtime_ns, size, lambda path=path: _remove_set(path))  # type: ignore[misc]


def _remove_stale(partial: Path) -> None:
    """Remove a partial file unless its writer is still running."""
    lock = partial.with_suffix(".lock")
    with lock.open("ab") as held, contextlib.suppress(BlockingIOError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(held, lock):
            partial.unlink(missing_ok=True)
            lock.unlink()


def _remove_unused(path: Path) -> bool:
    """Remove a file unless a running process has mapped it; whether it is gone."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(file, path):
                path.unlink()
                locate_sums(path).unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def _remove_set(path: Path) -> bool:
    """Remove a set of features unless a process computes more of them; readers hold what they read in memory."""
    try:
        with lock_of(path).open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True
