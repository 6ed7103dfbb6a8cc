"""The raw folder as a set of files that surely lie inside it: walked, indexed, never followed out of."""

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from components.errors import DataError

JUNK = ("thumbs.db", "desktop.ini")


class Index:
    """Files by path from a base folder, by bare name and by stem."""

    def __init__(self, files: Iterable[str], base: str) -> None:
        self.files, self.base = frozenset(files), base
        self._names: dict[str, list[str]] = {}
        for path in sorted(self.files):
            name = posixpath.basename(path)
            for key in {name, posixpath.splitext(name)[0]}:
                self._names.setdefault(key, []).append(path)

    def find(self, text: str) -> list[str]:
        exact = posixpath.normpath(posixpath.join(self.base, text.replace("\\", "/")))
        if exact in self.files:
            return [exact]
        return [path for path in self._names.get(text, []) if not self.base or path.startswith(f"{self.base}/")]


def walk_files(raw: Path, base: str = "") -> list[str]:
    """Every visible file below raw/base, posix and relative to raw, sorted."""
    return sorted(path.relative_to(raw).as_posix() for path in _visible(raw, raw / base))


def _visible(raw: Path, folder: Path) -> Iterator[Path]:
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or entry.name.lower() in JUNK:
            continue
        if entry.is_symlink():
            require_inside(raw, Path(entry.path))
        if entry.is_dir(follow_symlinks=False):
            yield from _visible(raw, Path(entry.path))
        elif not entry.is_dir():
            yield Path(entry.path)


def require_inside(raw: Path, path: Path) -> None:
    if path.resolve().is_relative_to(raw.resolve()) and not (path.is_symlink() and path.is_dir()):
        return
    raise DataError(
        str(path),
        expected="a file inside the raw folder, so that a data version holds all of it",
        found=f"a link to {path.resolve()}",
        mend="Copy the file in (with DVC: `dvc config cache.type copy`, then `dvc checkout --relink`).",
    )


def resolve_inside(text: str, base: str, where: str) -> str:
    """A path written in a table or a domain file, relative to raw/; DataError when it leads out of it."""
    plain = text.replace("\\", "/")
    path = posixpath.normpath(posixpath.join(base, plain))
    outside = plain.startswith("/") or path == ".." or path.startswith("../") or re.match(r"[A-Za-z]:/", plain)
    if outside or "\0" in text:
        mend = "Copy the file into the raw folder and write its path from there."
        raise DataError(where, expected="a path inside the raw folder", found=repr(text), mend=mend)
    return "" if path == "." else path
