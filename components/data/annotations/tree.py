"""The raw folder as a set of files: walks and indexes it, and refuses every link and path that leads out of it."""

import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from components.data.sources.names import is_junk
from components.domain.layouts import PART
from components.errors import DataError

LONGEST_NAME, LONGEST_PATH = 255, 2000  # bytes of a name on every common disk; characters of a path below raw/


class Index:
    """Files by path from a base folder, by bare name and by stem."""

    def __init__(self, files: Iterable[str], base: str, suffix: str | None = None) -> None:
        """suffix: how the names of masks end, where it is not a word that marks them."""
        self.files, self.base, self.suffix = frozenset(files), base, suffix
        self._names: dict[str, list[str]] = {}
        self._masks: dict[str, list[str]] = {}
        for path in sorted(self.files):
            name = posixpath.basename(path)
            for key in {name, posixpath.splitext(name)[0]}:
                self._names.setdefault(key, []).append(path)
            if (bare := bare_stem(name)) != stem_of(name):
                self._masks.setdefault(bare, []).append(path)

    def find(self, text: str) -> list[str]:
        """Files that `text` names: by its path from the base folder, else by bare name or stem."""
        for written in (text, text.replace("\\", "/")):  # a backslash may be a separator, or part of a name
            exact = posixpath.normpath(posixpath.join(self.base, written))
            if exact in self.files:
                return [exact]
        return [path for path in self._names.get(text, []) if not self.base or path.startswith(f"{self.base}/")]

    def find_alike(self, name: str) -> list[str]:
        """Files whose names differ from `name` only in suffix, case or the encoding of accents."""
        found = self._folded_stems.get(_fold(stem_of(name)), [])
        return [path for path in found if not self.base or path.startswith(f"{self.base}/")]

    @cached_property
    def _folded_stems(self) -> dict[str, list[str]]:
        stems: dict[str, list[str]] = {}
        for path in sorted(self.files):
            stems.setdefault(_fold(stem_of(path)), []).append(path)
        return stems

    def find_by_tail(self, text: str) -> list[str]:
        """Files whose path ends like a path from elsewhere: `D:\\set\\img\\a.jpg`, `../input/img/a.jpg`.

        The longest matching end decides. If the folder that it names exists but the file does not, the file is missing,
        and no shorter end may match another file.
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
        """Every end of every folder's path: for `a/b/c` also `b/c` and `c`."""
        folders = {posixpath.dirname(path) for path in self.files}
        parts = [folder.split("/") for folder in folders if folder]
        return frozenset("/".join(names[start:]) for names in parts for start in range(len(names)))

    def find_mask(self, picture: str) -> list[str]:
        """Masks of a picture: files with the same stem, else files called `<stem>_mask` or similar.

        With a `suffix`: what is before it is the picture's stem, else the stem without its last words.
        """
        stem = stem_of(picture)
        if self.suffix is not None:
            return next((found for key in [stem, *cut_words(stem)] if (found := self._cut_off.get(key))), [])
        return self.find(stem) or [path for path in self._masks.get(stem, []) if path.startswith(self.base)]

    @cached_property
    def _cut_off(self) -> dict[str, list[str]]:
        """Files by their names without `suffix`."""
        found: dict[str, list[str]] = {}
        for path in sorted(self.files):
            if (key := cut_ending(path, self.suffix or "")) is not None:
                found.setdefault(key, []).append(path)
        return found

    def describe_missing(self, text: str) -> str:
        """`no such file`, and a file whose name differs only in case or the encoding of accents, if there is one."""
        wanted = _fold(posixpath.basename(text.replace("\\", "/")))
        close = next((path for path in sorted(self.files) if _fold(posixpath.basename(path)) == wanted), None)
        return "no such file" + (f", but {close}" if close else "")


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def walk_files(raw: Path, base: str = "") -> list[str]:
    """Every visible file below raw/base, as sorted POSIX paths relative to raw.

    Raises DataError for a link that leads out, a pipe or device, and a name that is not UTF-8.
    """
    return sorted(path.relative_to(raw).as_posix() for path in _visible(raw, raw / base))


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
    """Raise DataError for a pipe or device, which would block the reader, and for a name that is not UTF-8."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(str(path), expected="plain files", found="a pipe, socket or device", hint="Remove it.")
    try:
        path.name.encode()
    except UnicodeEncodeError:
        hint = "Rename it."
        raise DataError(ascii(str(path)), expected="a file name in UTF-8", found="other bytes", hint=hint) from None


def _require_name(text: str, where: str) -> None:
    """Raise DataError for a name that no file can have: the system would raise wherever it is looked up."""
    try:
        parts = text.encode().replace(b"\\", b"/").split(b"/")
    except UnicodeEncodeError:
        hint = "Write the path as Unicode text."
        raise DataError(where, expected="a path", found=ascii(text)[:200], hint=hint) from None
    if max(map(len, parts)) > LONGEST_NAME or len(text) > LONGEST_PATH:
        expected, hint = f"names of at most {LONGEST_NAME} bytes", "Correct the path."
        raise DataError(where, expected=expected, found=f"{text[:60]!r}, {len(text):,} characters in all", hint=hint)


def require_inside(raw: Path, path: Path) -> None:
    """Raise DataError for a link that leads out of `raw`, to a folder, or nowhere."""
    if path == raw:  # the raw folder itself may be a link
        return
    target = Path(os.path.realpath(path))  # resolve() raises for circular links
    if target.is_relative_to(raw.resolve()) and not (path.is_symlink() and (path.is_dir() or not path.exists())):
        return
    raise DataError(
        str(path),
        expected="a file inside the raw folder, so that a data version holds all of it",
        found=f"a link to {target}",
        hint="Copy the file in (with DVC: `dvc config cache.type copy`, then `dvc checkout --relink`).",
    )


def resolve_inside(text: str, base: str, where: str) -> str:
    """A path from a table or a domain file, normalised and relative to raw/. Raises DataError if it leads out of raw/.

    base: the folder that `text` is relative to. where: the place of the text, for the message.
    """
    _require_name(text, where)
    plain = text.replace("\\", "/")
    path = posixpath.normpath(posixpath.join(base, plain))
    outside = plain.startswith("/") or path == ".." or path.startswith("../") or re.match(r"[A-Za-z]:/", plain)
    if outside or "\0" in text:
        hint = "Copy the file into the raw folder and write its path from there."
        raise DataError(where, expected="a path inside the raw folder", found=repr(text), hint=hint)
    return "" if path == "." else path


# Parts of a path that mean a split, or any folder


SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NO_WORD = re.compile(r"[^a-z]+")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")


def find_split(name: str) -> str | None:
    """The split that a name contains (`Train`, `valid`, `train2017`, `test_set`): train, val or test, else None."""
    apart = _HUMP.sub(" ", name).casefold()  # `trainA`, `TestImages`
    found = {SPLIT_WORDS[word] for word in _NO_WORD.split(apart) if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else None


GROUPS = re.compile(
    r"(?i)(patient|lot|batch|slide|case|subject|part|site|plate|wafer|session|sample|day|line)s?[-_ ]?\w*"
)


def are_groups(names: Iterable[str]) -> bool:
    return all(any(map(str.isdigit, name)) or GROUPS.fullmatch(name) for name in names)


def are_named_groups(names: Iterable[str]) -> bool:
    return all(GROUPS.fullmatch(name) for name in names)


def match_parts(template: str, paths: Iterable[str]) -> dict[str, dict[str, str]]:
    """The paths that match a template with parts in angle brackets, each with the names found at the parts.

    `<split>` matches only names of splits.
    """
    pieces = re.split(r"(<[a-z][a-z0-9_]*>)", posixpath.normpath(template))
    named = (f"(?P<{piece[1:-1]}>[^/]+)" if PART.fullmatch(piece) else re.escape(piece) for piece in pieces)
    pattern = re.compile("".join(named))
    found = {path: match.groupdict() for path in paths if (match := pattern.fullmatch(path))}
    return {path: parts for path, parts in found.items() if "split" not in parts or find_split(parts["split"])}


def name_columns(parts: Mapping[str, str]) -> dict[str, str]:
    """The parts of a path as columns of a row: a split by its plain name, without the class."""
    return {
        name: (find_split(text) or text) if name == "split" else text for name, text in parts.items() if name != "class"
    }


def fill_parts(template: str, parts: Mapping[str, str], paths: Iterable[str]) -> str | None:
    """The one of `paths` that matches the template with these parts (`valid` equals `val`); None if there is none."""
    if not PART.search(template):
        return template
    wanted = name_columns(parts)
    matched = match_parts(template, paths).items()
    return next((path for path, found in matched if name_columns(found).items() <= wanted.items()), None)


def list_folders(files: Iterable[str]) -> list[str]:
    """Every folder above one of the files, as sorted POSIX paths; the top folder is ''."""
    folders = {""}
    for path in files:
        folder = posixpath.dirname(path)
        while folder not in folders:
            folders.add(folder)
            folder = posixpath.dirname(folder)
    return sorted(folders)


# Masks by the names of their pictures


_MASK_WORDS = (
    "gtfine|gtcoarse|mask|masks|msk|seg|segm|segmentation|gt|groundtruth|ground_truth|label|labels|lbl|annotation|anno"
)
_MASK_NAME = re.compile(
    rf"(?:(?:{_MASK_WORDS})[-_ ])?(.+?)(?:[-_ .](?:{_MASK_WORDS})(?:[-_ ]?\d{{1,2}})?)?", re.IGNORECASE
)

#: Where a word begins in a stem, unlike a number: `_left` and `_1st`, not `_19`; and the channel `_0000` of nnU-Net.
_WORD = re.compile(r"[-_ .](?=(?:\d(?:st|nd|rd|th))?[A-Za-z]|0000$)")


def stem_of(path: str) -> str:
    """The file's name without folder and suffix."""
    return posixpath.splitext(posixpath.basename(path))[0]


def bare_stem(path: str) -> str:
    """The stem without the words that mark a mask: `a` for `a_mask.png`, `mask_a.png` and `a.png`."""
    match = _MASK_NAME.fullmatch(stem_of(path))
    return match[1] if match else stem_of(path)


def cut_ending(path: str, suffix: str) -> str | None:
    """The file's stem, or its name, without `suffix` at its end; None if it does not end so."""
    for name in (stem_of(path), posixpath.basename(path)):
        if name.endswith(suffix) and name != suffix:
            return name.removesuffix(suffix)
    return None


def cut_words(stem: str) -> list[str]:
    """The stem without its last word, its last two words and so on: `a_b` and `a` for `a_b_c`."""
    return [stem[: found.start()] for found in reversed(list(_WORD.finditer(stem))) if found.start()]


def find_masks_beside(pictures: Iterable[str]) -> dict[str, str]:
    """Masks that lie beside their pictures (`a_mask.png` beside `a.jpg`), as a dict from mask to picture."""
    placed = {(posixpath.dirname(path), stem_of(path)): path for path in pictures}
    bare = {path: (folder, bare_stem(path)) for (folder, _), path in placed.items()}
    return {path: placed[key] for path, key in bare.items() if placed.get(key, path) != path}
