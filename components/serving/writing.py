"""What files of answers have in common: their names, and where they may be written."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.errors import DataError

JSON, CSV, PARQUET, LINES = ".json", ".csv", ".parquet", ".jsonl"
TABLES = (CSV, PARQUET, LINES)  # of one row per question; of boxes, csv has one line per box
QUALITY = 92  # of a drawing's JPEG
ENDINGS = frozenset({JSON, CSV, ".tsv", ".txt", ".xml", ".yaml", PARQUET, LINES, ".jpg", ".png"})  # of no folder's name


@dataclass(frozen=True)
class Form:
    """What `--out` may name. files: endings of single files. folder: what is written into a folder; empty where
    answers are no files of a folder."""

    files: tuple[str, ...]
    folder: frozenset[str]


#: By the annotation of a task.
FORMS: Mapping[str, Form] = {
    "label": Form(TABLES, frozenset()),
    "labels": Form(TABLES, frozenset()),
    "mask": Form((JSON, *TABLES), frozenset({"masks", "overlays", "predictions.json"})),
    "boxes": Form((JSON, *TABLES), frozenset({"drawn", "voc", "yolo", "predictions.json", "predictions.csv"})),
}


def require_target(target: Path, form: Form) -> None:
    """Raise DataError for a file of another ending, and for a folder that holds other files than earlier answers."""
    ending = target.suffix.lower()
    if ending in form.files:
        found = "a folder" if target.is_dir() else ""
    elif not form.folder:
        found = "a folder" if target.is_dir() else f"the ending {ending}" if ending else "a name without an ending"
    elif target.is_dir():
        others = sorted({path.name for path in target.iterdir()} - form.folder)
        found = f"a folder with {', '.join(others[:3])}" if others else ""
    else:
        found = "a file" if target.exists() else f"the ending {ending}" if ending in ENDINGS else ""
    if found:
        expected = f"a file that ends in {', '.join(form.files[:-1])} or {form.files[-1]}"
        expected = f"a new folder, one of earlier answers, or {expected}" if form.folder else expected
        raise DataError(f"--out {target}", expected=expected, found=found, hint="Name another one.")


def name_files(paths: Sequence[Path]) -> list[str]:
    """A name per picture: its path below the folder that all share, without suffix unless two would be the same."""
    absolute = [path.absolute() for path in paths]
    base = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else Path()
    bare = [path.relative_to(base).with_suffix("").as_posix() for path in absolute]
    times = Counter(bare)
    return [
        path.relative_to(base).as_posix() if times[name] > 1 else name
        for name, path in zip(bare, absolute, strict=True)
    ]
