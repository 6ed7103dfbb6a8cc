"""The raw folder as a set of files that surely lie inside it: walked, indexed, never followed out of."""

import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from components.errors import DataError

LONGEST_NAME, LONGEST_PATH = 255, 2000  # bytes of a name on every common disk; signs of a path below raw/
JUNK = ("thumbs.db", "desktop.ini", "__macosx")


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
        for written in (text, text.replace("\\", "/")):  # a backslash may be a separator, or part of a name
            exact = posixpath.normpath(posixpath.join(self.base, written))
            if exact in self.files:
                return [exact]
        return [path for path in self._names.get(text, []) if not self.base or path.startswith(f"{self.base}/")]

    def find_by_tail(self, text: str) -> list[str]:
        """Files whose path ends as a path from elsewhere does: `D:\\set\\img\\a.jpg`, `../input/img/a.jpg`.

        The longest end decides. Where the folder it names is here and the file is not, the file is missing, and no
        shorter end may find another one.
        """
        parts = [part for part in posixpath.normpath(text.replace("\\", "/")).split("/") if part not in ("", "..")]
        same_name = self._names.get(parts[-1], []) if parts else []
        for start in range(len(parts)):
            folder, tail = "/".join(parts[start:-1]), "/".join(parts[start:])
            if found := [path for path in same_name if f"/{path}".endswith(f"/{tail}")]:
                return found
            if folder in self._folder_tails:
                return []
        return [path for path in same_name if "." not in parts[-1]]  # a stem

    @cached_property
    def _folder_tails(self) -> frozenset[str]:
        """Every end of every folder's path: `b/c` and `c` of `a/b/c`."""
        folders = {posixpath.dirname(path) for path in self.files}
        parts = [folder.split("/") for folder in folders if folder]
        return frozenset("/".join(names[start:]) for names in parts for start in range(len(names)))

    def describe_missing(self, text: str) -> str:
        """`no such file`, and the file whose name differs in case or in the encoding of its accents alone."""
        wanted = _fold(posixpath.basename(text.replace("\\", "/")))
        close = next((path for path in sorted(self.files) if _fold(posixpath.basename(path)) == wanted), None)
        return "no such file" + (f", but {close}" if close else "")


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def walk_files(raw: Path, base: str = "") -> list[str]:
    """Every visible file below raw/base, posix and relative to raw, sorted."""
    return sorted(path.relative_to(raw).as_posix() for path in _visible(raw, raw / base))


def is_junk(name: str) -> bool:
    """Hidden, or left by a system's file browser."""
    return name.startswith(".") or name.lower() in JUNK


def _visible(raw: Path, folder: Path) -> Iterator[Path]:
    for entry in os.scandir(folder):
        if is_junk(entry.name):
            continue
        if entry.is_symlink():
            require_inside(raw, Path(entry.path))
        if entry.is_dir(follow_symlinks=False):
            yield from _visible(raw, Path(entry.path))
        elif not entry.is_dir():
            _require_plain(Path(entry.path))
            yield Path(entry.path)


def _require_plain(path: Path) -> None:
    """Reading a pipe waits for ever, and a name that is no Unicode fits into no table."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(str(path), expected="plain files", found="a pipe, socket or device", mend="Remove it.")
    try:
        path.name.encode()
    except UnicodeEncodeError:
        mend = "Rename it."
        raise DataError(ascii(str(path)), expected="a file name in UTF-8", found="other bytes", mend=mend) from None


def _require_name(text: str, where: str) -> None:
    """Names that no file can have make the system raise wherever they are looked for."""
    try:
        parts = text.encode().replace(b"\\", b"/").split(b"/")
    except UnicodeEncodeError:
        mend = "Write the path as Unicode text."
        raise DataError(where, expected="a path", found=ascii(text)[:200], mend=mend) from None
    if max(map(len, parts)) > LONGEST_NAME or len(text) > LONGEST_PATH:
        expected, mend = f"names of at most {LONGEST_NAME} bytes", "Correct the path."
        raise DataError(where, expected=expected, found=f"{text[:60]!r}, {len(text):,} signs in all", mend=mend)


def require_inside(raw: Path, path: Path) -> None:
    if path == raw:  # which may itself be a link, for all we care
        return
    target = Path(os.path.realpath(path))  # resolve() raises on links that go round in a circle
    if target.is_relative_to(raw.resolve()) and not (path.is_symlink() and (path.is_dir() or not path.exists())):
        return
    raise DataError(
        str(path),
        expected="a file inside the raw folder, so that a data version holds all of it",
        found=f"a link to {target}",
        mend="Copy the file in (with DVC: `dvc config cache.type copy`, then `dvc checkout --relink`).",
    )


def resolve_inside(text: str, base: str, where: str) -> str:
    """A path written in a table or a domain file, relative to raw/; DataError when it leads out of it."""
    _require_name(text, where)
    plain = text.replace("\\", "/")
    path = posixpath.normpath(posixpath.join(base, plain))
    outside = plain.startswith("/") or path == ".." or path.startswith("../") or re.match(r"[A-Za-z]:/", plain)
    if outside or "\0" in text:
        mend = "Copy the file into the raw folder and write its path from there."
        raise DataError(where, expected="a path inside the raw folder", found=repr(text), mend=mend)
    return "" if path == "." else path
