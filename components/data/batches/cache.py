"""Arrays that training maps into memory: made once, one file each, named by their content.

    <cache>/pixels/<name>.u8        the arrays of all rows of a manifest, of one shape, and nothing else
    <cache>/pixels/<name>.partial   the same while it is being written, and <name>.lock, which its writer holds
    <cache>/sums/<name>.crc         CRC-32 of every row in it, (N,) little-endian uint32, and one over these

Before a file is mapped, several threads read it once and compare it with its checksums; a damaged file is rebuilt. The
name of a file depends on its content, so it is never stale. Locks are kernel locks: a reader holds a shared lock on its
file as long as its map exists, and a killed process holds none. Files in use are therefore distinguished from leftovers
without guessing about process ids. Writers lock a separate file, because waiting for a lock on the file itself would
mean waiting for the last reader.
"""

import fcntl
import hashlib
import math
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.data.batches.room import PIXELS, is_at, locate_sums, make_room
from components.files import write_whole
from components.sealed import warn_of_damage
from components.workspace import DISK_TROUBLE, describe_disk_trouble

Bytes = NDArray[np.uint8]

CHECKED = 64  # rows that a thread compares with their checksums at a time


def load_mapped(cache: Path, facts: Any, shape: tuple[int, ...], make: Callable[[], Iterator[Bytes]]) -> Bytes:
    """The array (N, ...) uint8 of this shape, memory-mapped read-only; `make` yields its rows where there is no file.

    facts: everything that the content depends on. If several processes need the same file, one makes it and the others
    wait. Raises WorkspaceError if the disk is full, and what `make` raises.
    """
    path = _locate(cache, facts)
    if path.exists() and not _is_intact(path):
        warn_of_damage(path)
        path.unlink(missing_ok=True)  # processes that have mapped it keep it
    while True:
        mapped = _map(path, shape)
        if mapped is None:
            mapped = _make(cache, path, shape, make())
        if mapped is not None:
            return mapped


def remove_mapped(cache: Path, facts: Any) -> None:
    """Remove the file of these facts, if there is one. Processes that have mapped it keep it until they end."""
    path = _locate(cache, facts)
    path.unlink(missing_ok=True)
    locate_sums(path).unlink(missing_ok=True)


def _locate(cache: Path, facts: Any) -> Path:
    return cache / PIXELS / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.u8"


def _map(path: Path, shape: tuple[int, ...]) -> Bytes | None:
    """Map the file, with a shared lock as long as the map exists; None if it is missing or incomplete."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            if not is_at(file, path) or os.fstat(file.fileno()).st_size != math.prod(shape):
                return None
            os.utime(path)  # records the last use: file systems seldom keep access times
            mapped: Bytes = np.memmap(file, np.uint8, "r", shape=shape)  # its file descriptor keeps the lock
            return mapped
    except FileNotFoundError:
        return None


def _make(cache: Path, path: Path, shape: tuple[int, ...], rows: Iterator[Bytes]) -> Bytes | None:
    """Write the file and map it. Waits for another process that writes it; None if that process gave up."""
    partial, lock = path.with_suffix(".partial"), path.with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not is_at(held, lock):
                return _map(path, shape)
            try:
                if (made := _map(path, shape)) is not None:
                    return made
                make_room(cache, math.prod(shape), "the images at training size, or what is computed of them, take")
                write_whole(locate_sums(path), _write(partial, rows))
                os.replace(partial, path)
                return _map(path, shape)
            finally:
                partial.unlink(missing_ok=True)
                lock.unlink()
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        raise describe_disk_trouble(path.parent, error) from None


def _write(partial: Path, rows: Iterator[Bytes]) -> bytes:
    """Write the rows and return their checksums. Writing to a map would kill the process when the disk is full."""
    sums = []
    with partial.open("wb") as file:
        for row in rows:
            file.write(row.data)
            sums.append(zlib.crc32(row.data))
        file.flush()
        os.fsync(file.fileno())
    packed = np.array(sums, "<u4").tobytes()
    return packed + zlib.crc32(packed).to_bytes(4, "little")


def _is_intact(path: Path) -> bool:
    """Whether the content is what was written: every row fits its checksum."""
    try:
        packed = locate_sums(path).read_bytes()
        sums = np.frombuffer(packed[:-4], "<u4")
    except (OSError, ValueError):
        return False
    if not sums.size or zlib.crc32(packed[:-4]).to_bytes(4, "little") != packed[-4:]:
        return False
    with path.open("rb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        each, rest = divmod(os.fstat(file.fileno()).st_size, sums.size)

        def compare(first: int) -> bool:
            part = range(first, min(first + CHECKED, sums.size))
            return all(zlib.crc32(os.pread(file.fileno(), each, number * each)) == sums[number] for number in part)

        return not rest and all(pool.map(compare, range(0, sums.size, CHECKED)))
