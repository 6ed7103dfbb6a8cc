"""Which layout a raw folder looks like, and the error that says so when another one was declared."""

import posixpath
from collections import Counter
from pathlib import Path
from typing import NoReturn

from components.data.columns import Found, suggest_table
from components.data.images import SUFFIXES
from components.data.tree import require_inside, resolve_inside, walk_files
from components.data.yolo_files import suggest_yolo
from components.domain import Coco, Folders, Instances, Layout, Masks, Voc
from components.errors import DataError

COCO_KEYS = (b'"images"', b'"annotations"', b'"categories"')
MASK_FOLDERS = ("masks", "ground_truth")


def guess_layout(raw: Path) -> str | None:
    """The kind of layout a folder looks like, None when it looks like none."""
    suggested = suggest_layout(raw)
    return suggested.kind if suggested else None


def suggest_layout(raw: Path) -> Layout | None:
    """The layout a folder looks like, with the names of its sub-folders or its table filled in."""
    files = walk_files(raw) if raw.is_dir() else []
    holds: dict[str, set[str]] = {}
    for path in files:
        holds.setdefault(posixpath.dirname(path), set()).add(posixpath.splitext(path)[1].lower())
    pictures = [folder for folder, suffixes in sorted(holds.items()) if suffixes & set(SUFFIXES)]
    annotations = [folder for folder, suffixes in sorted(holds.items()) if ".xml" in suffixes]
    if pictures and annotations:
        return Voc(images=pictures[0] or ".", annotations=annotations[0] or ".")
    if pictures and (found := [path for path in files if _is_coco(raw, path)]):
        one = found[0] if len(found) == 1 else posixpath.dirname(found[0]) or "."
        return Coco(images=posixpath.commonpath(pictures) or ".", annotations=one)
    if yolo := suggest_yolo(raw, files):
        return yolo
    table = suggest_table(raw, files)
    folders = _suggest_by_folders(pictures)
    if table and (folders is None or (table.sure and 2 * len(table.pictures) >= _count_pictures(files, table))):
        return table.layout
    return folders


def _count_pictures(files: list[str], table: Found) -> int:
    """Pictures in the folders of which a table names some: it does not describe masks and what lies elsewhere."""
    folders = {posixpath.dirname(path) for path in table.pictures}
    return sum(path.lower().endswith(SUFFIXES) and posixpath.dirname(path) in folders for path in files)


def _suggest_by_folders(pictures: list[str]) -> Layout | None:
    if len(pictures) == 2:
        for folder, other in (pictures, reversed(pictures)):
            if folder == "instances":
                return Instances(images=other)
            if folder in MASK_FOLDERS:
                return Masks(images=other, masks=folder)
    parents = Counter(posixpath.dirname(folder) for folder in pictures if folder)
    masks = next((parent for parent in MASK_FOLDERS if parent in parents), None)
    best = max((parent for parent in parents if parent != masks), key=lambda parent: parents[parent], default=None)
    return Folders(images=best or ".", masks=masks) if best is not None and parents[best] >= 2 else None


def _is_coco(raw: Path, path: str) -> bool:
    if not path.lower().endswith(".json"):
        return False
    data = (raw / path).read_bytes()
    return all(key in data for key in COCO_KEYS)


def require_folder(raw: Path, text: str, layout: Layout) -> str:
    """A folder the layout names, relative to raw/; DataError when it is not there."""
    path = resolve_inside(text, "", f"layout {layout.kind}")
    if not (raw / path).is_dir():
        refuse_layout(raw, layout, f"a folder {text!r}", "no such folder")
    require_inside(raw, raw / path)
    return path


def refuse_layout(raw: Path, layout: Layout, expected: str, found: str) -> NoReturn:
    """Raise the DataError of a tree that is not what the layout says, with what it looks like instead."""
    mend = f"Correct `layout` in domain.yaml, or the folder.{hint_layout(raw, layout)}"
    raise DataError(f"{raw} as layout {layout.kind}", expected=expected, found=found, mend=mend)


def hint_layout(raw: Path, layout: Layout, *, same_kind: bool = True) -> str:
    """` This looks like ...` with the line to write, where the folder looks like another layout; else nothing.

    same_kind: say so too where only the options differ.
    """
    guess = suggest_layout(raw)
    if guess is None or guess == layout or (guess.kind == layout.kind and not same_kind):
        return ""
    return f" This looks like {_describe(guess)}."


def _describe(layout: Layout) -> str:
    """`layout: voc`, with the options that are not the default."""
    changed = layout.model_dump(exclude_defaults=True)
    if not changed:
        return f"{layout.kind}: write `layout: {layout.kind}`"
    options = ", ".join(f"{key}: {value}" for key, value in {"kind": layout.kind, **changed}.items())
    return f"{layout.kind}: write `layout: {{{options}}}`"
