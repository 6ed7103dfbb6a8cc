"""What all guesses about a table's columns share: names as words, cells as texts, numbers and pictures, and the option
to write where a guess is not clear."""

import posixpath
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import yaml
from PIL import Image

from components.data.annotations.cells import load_sheet
from components.data.annotations.tree import Index, resolve_inside, walk_files
from components.data.sources.images import FORMATS, UNDECODABLE
from components.data.sources.names import SUFFIXES
from components.domain.layouts import Csv, Parquet
from components.errors import DataError

MASK_WORDS = ("mask", "seg", "groundtruth", "gt", "annotationmask", "labelmask")  # how names of columns of masks begin
SAMPLE = 200  # rows by which a column is judged
NEARLY = 0.8  # least share of rows with exactly one 1, or of cells with a number, of which the others may be mistakes
Table = Csv | Parquet
T = TypeVar("T", bound=Csv | Parquet)


class UnclearTableError(DataError):
    """A table names pictures, but the meaning of its columns is not clear."""


def complete_mask(layout: T, raw: Path) -> T:
    """The layout with its column `mask`, if the table has one column that names masks; else unchanged."""
    table = resolve_inside(layout.table, "", "layout.table")
    if layout.mask or not (raw / table).is_file():
        return layout
    frame = load_sheet(layout, raw / table, table).frame
    index = Index((path for path in walk_files(raw) if path.lower().endswith(SUFFIXES)), posixpath.dirname(table))
    for name in frame.columns:
        texts = read_texts(frame, name, SAMPLE) if to_word(name).startswith(MASK_WORDS) and name != layout.image else []
        if texts and 2 * sum(bool(find_pictures(text, index)) for text in texts) >= len(texts):
            return with_options(layout, mask=name)
    return layout


def find_pictures(text: str, index: Index) -> list[str]:
    """Pictures that a cell names: by path from the table's folder or the top, by name or stem, or by a path's end."""
    plain, outside = posixpath.normpath(text.replace("\\", "/")), is_outside(text)
    found = [] if outside else index.find(text)
    if not found and not outside and plain in index.files:
        found = [plain]
    found = found or index.find_by_tail(text)
    return [path for path in found if path.lower().endswith(SUFFIXES)] or found


def is_outside(text: str) -> bool:
    """Whether a path is absolute or leads out of the raw folder, like a path from another machine."""
    plain = posixpath.normpath(text.replace("\\", "/"))
    return plain.startswith(("/", "../")) or re.match(r"[A-Za-z]:/", plain) is not None


def with_options(layout: T, **options: Any) -> T:
    """A copy with changed options; options with their default value stay unnamed."""
    fields = type(layout).model_fields
    named = {name: getattr(layout, name) for name in layout.model_fields_set} | {
        name: value for name, value in options.items() if value != fields[name].default or name == "table"
    }
    return type(layout).model_validate(named)  # type: ignore[return-value]


def to_word(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def read_texts(frame: pl.DataFrame, name: str, most: int | None = None) -> list[str]:
    """The cells of a column that are not empty; at most about `most` of them, evenly spread."""
    column = frame[name]
    if column.dtype.is_nested() or column.dtype == pl.Binary:
        return []
    if most and frame.height > most:
        column = column.gather_every(-(-frame.height // most))
    return [text.strip() for text in column.cast(pl.String, strict=False).drop_nulls() if text.strip()]


def unclear_columns(frame: pl.DataFrame, layout: Table, expected: str, able: Sequence[str], option: str) -> DataError:
    """The error that names the possible columns and the `--layout` line to write."""
    found = f"the columns {', '.join(map(repr, able[:12]))}"
    hint = f"Name the right one: `{write_option(layout, **{option: able[0]})}`."
    known = option != "image" or len(able) < len(frame.columns)
    kind = UnclearTableError if known else DataError
    return kind(f"table {layout.table}", expected=expected, found=found, hint=hint)


def write_option(layout: Table, **options: Any) -> str:
    """The `--layout` line with these options and those that the layout already names."""
    named = {name: getattr(layout, name) for name in type(layout).model_fields if name in layout.model_fields_set}
    text = yaml.safe_dump({"kind": layout.kind} | named | options, default_flow_style=True, sort_keys=False, width=9999)
    text = text.strip() if '"' in text else text.strip().replace("'", '"')
    return f"--layout {shlex.quote(text)}"


def holds_numbers(frame: pl.DataFrame, name: str, share: float = 1.0) -> bool:
    """Whether at least this share of the cells are numbers."""
    texts = read_texts(frame, name, SAMPLE)
    return bool(texts) and sum(len(parse_numbers(text)) == 1 for text in texts) >= share * len(texts)


def parse_numbers(text: str | None) -> list[float]:
    """The numbers in `[1, 2.5, 3, 4]`, `(1 2 3 4)` or `1 2 3 4`; an empty list for any other text."""
    plain = re.sub(r"[\[\](),\s]+", " ", text or "").split()
    if all(re.fullmatch(r"-?(\d{1,9}(\.\d*)?|\.\d+)([eE]-\d{1,3})?", part) for part in plain):
        return [float(part) for part in plain]
    return []


def read_size(file: Path) -> tuple[int, int] | None:
    """Width and height in pixels, after EXIF rotation, from the file's header; None if it cannot be read."""
    try:
        with Image.open(file, formats=FORMATS) as opened:
            sideways = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return opened.size[::-1] if sideways else opened.size
    except (Image.DecompressionBombError, *UNDECODABLE):
        return None
