"""Which picture an annotation file of one picture describes: by the name that it holds, and by its own name."""

import posixpath

from components.data.annotations.tree import Index, stem_of
from components.data.sources.names import SUFFIXES
from components.records.reasons import Reason


def find_beside(path: str, annotations: str, index: Index) -> list[str]:
    """Pictures with the stem of an annotation file; where there are several, those in the same sub-folder."""
    found = index.find(stem_of(path))
    inner = posixpath.dirname(posixpath.relpath(path, annotations or "."))
    same = [picture for picture in found if posixpath.dirname(posixpath.relpath(picture, index.base or ".")) == inner]
    return same or found


def find_named(text: str, index: Index) -> list[str]:
    """Pictures that a name from an annotation file names, whatever folder it puts before the name."""
    plain = text.replace("\\", "/")
    return index.find(text) or index.find(posixpath.basename(plain))


def _find_named_alike(text: str, index: Index) -> list[str]:
    """Pictures whose names differ from the one in the file only in suffix, case or the encoding of accents."""
    name = posixpath.basename(text.replace("\\", "/"))
    return index.find_alike(name) if name.lower().endswith(SUFFIXES) else []


def choose_picture(named: str, beside: list[str], path: str, index: Index, key: str) -> tuple[str, Reason | None]:
    """The picture of an annotation file, or why there is not exactly one. key: where the file holds the name."""
    by_name = find_named(named, index) if named else []
    both = [picture for picture in beside if picture in by_name]
    meant = by_name or _find_named_alike(named, index)
    if meant and beside and not set(meant) & set(beside):
        expected = f"{key} in {path} that is the file's own name"
        found = f"{named}, so that it may describe {meant[0]} or {beside[0]}"
        return "", Reason(expected, found, f"Correct {key}, or rename the annotation file.")
    found_all = both or by_name or beside
    if len(found_all) == 1:
        return found_all[0], None
    files = ", ".join(found_all[:4]) or index.describe_missing(named or stem_of(path))
    hint = f"Correct {key}, or add the picture."
    return "", Reason(f"one picture {named or stem_of(path)!r} of {path}", files, hint)


def claimed_twice(picture: str, files: list[str], key: str) -> Reason:
    hint = f"Keep the right one, or correct {key}."
    return Reason(f"one annotation file of {picture}", " and ".join(files[:4]), hint)
