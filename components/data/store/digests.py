"""sha256 of files; a file is hashed again only if it may have changed.

The file's stamp (size, times, inode) at the time of hashing is kept beside its hash, as git and DVC do. It includes the
time of the last change of any kind (ctime), which no tool can set back. A stamp is not kept if it is so young that a
second write could have the same time. If the file of stamps is lost, all files are hashed once more.
"""

import hashlib
import os
import time
from pathlib import Path

import polars as pl

from components.data.manifest import load_cache, save_frame
from components.files import hash_file

Stamp = tuple[int, int, int, int]  # size, mtime, ctime, inode

YOUNG = 50_000_000  # ns; the resolution of file times is 1 to 10 ms
STAMP: dict[str, type[pl.DataType]] = {"size": pl.Int64, "mtime": pl.Int64, "ctime": pl.Int64, "inode": pl.UInt64}
SCHEMA: dict[str, type[pl.DataType]] = {"path": pl.String, **STAMP, "sha256": pl.String}


class Digests:
    """Hashes of the files below one root: `Digests(raw, cache)["good/a.png"]`; None for a file that cannot be read."""

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
        """Add the hash of a file that was just written."""
        stamp = read_stamp(f"{self.root}/{path}")
        if stamp:
            self.seen[path] = stamp, digest

    def save(self, *, whole: bool = False) -> None:
        """Save the hashes for later runs. whole: drop those that were not requested, because their files are gone."""
        entries = self.seen if whole else self.known | self.seen
        if entries != self.known:
            young = time.time_ns() - YOUNG
            rows = [(path, *stamp, digest) for path, (stamp, digest) in entries.items() if stamp[2] < young]
            save_frame(pl.DataFrame(rows, schema=SCHEMA, orient="row"), self.file)


def read_stamp(path: str) -> Stamp | None:
    """The stamp of a file; None if there is no file to read."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _load(file: Path) -> dict[str, tuple[Stamp, str]]:
    """The saved hashes; empty if the file is missing, damaged or of another version, so that all files are hashed."""
    return {row[0]: (row[1:5], row[5]) for row in load_cache(file, SCHEMA).rows()}
