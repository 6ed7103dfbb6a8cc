"""sha256 of files, read again only where a file may have changed since.

What a file looked like (size, times, inode) when it was hashed is kept beside its hash, as git and DVC do, with the
time of its last change of any kind, which no tool can set back. A stamp so young that the clock could not tell a
second write apart is not kept. Losing the file of stamps costs one reading of everything, nothing else.
"""

import hashlib
import os
import time
from pathlib import Path

import polars as pl

from components.data.manifest import load_cache, save_frame
from components.files import hash_file

Stamp = tuple[int, int, int, int]  # size, mtime, ctime, inode

YOUNG = 50_000_000  # ns; kernels count file times in steps of 1 to 10 ms
STAMP: dict[str, type[pl.DataType]] = {"size": pl.Int64, "mtime": pl.Int64, "ctime": pl.Int64, "inode": pl.UInt64}
SCHEMA: dict[str, type[pl.DataType]] = {"path": pl.String, **STAMP, "sha256": pl.String}


class Digests:
    """Hashes of the files below one root: `Digests(raw, cache)["good/a.png"]`; None for what cannot be read."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root = os.fspath(root)
        name = hashlib.sha256(os.path.realpath(root).encode()).hexdigest()[:16]
        self.file = cache / "digests" / f"{name}.parquet"
        self.known = _load(self.file)
        self.seen: dict[str, tuple[Stamp, str]] = {}

    def __getitem__(self, path: str) -> str | None:
        if path in self.seen:
            return self.seen[path][1]
        full = f"{self.root}/{path}"
        stamp = read_stamp(full)
        if stamp is None:
            return None
        before = self.known.get(path)
        digest = before[1] if before and before[0] == stamp else hash_file(Path(full))
        if digest:
            self.seen[path] = stamp, digest
        return digest

    def put(self, path: str, digest: str) -> None:
        """What is known from writing the file."""
        stamp = read_stamp(f"{self.root}/{path}")
        if stamp:
            self.seen[path] = stamp, digest

    def save(self, *, whole: bool = False) -> None:
        """Keep what is known for the next one; `whole`: what was not asked for is not there any more."""
        entries = self.seen if whole else self.known | self.seen
        if entries != self.known:
            young = time.time_ns() - YOUNG
            rows = [(path, *stamp, digest) for path, (stamp, digest) in entries.items() if stamp[2] < young]
            save_frame(pl.DataFrame(rows, schema=SCHEMA, orient="row"), self.file)


def read_stamp(path: str) -> Stamp | None:
    """None where there is nothing to read."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _load(file: Path) -> dict[str, tuple[Stamp, str]]:
    """Nothing where the file is lost, damaged or of another time: then everything is read again."""
    return {row[0]: (row[1:5], row[5]) for row in load_cache(file, SCHEMA).rows()}
