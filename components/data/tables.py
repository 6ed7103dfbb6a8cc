"""Tables to rows: csv and parquet, with one label a line or any number of them."""

import posixpath
import re
from pathlib import Path

import polars as pl

from components.data.guessing import refuse_layout
from components.data.images import SUFFIXES, Box, not_an_image, reason
from components.data.manifest import Reading, Row, Wanted
from components.data.tree import Index, require_inside, resolve_inside, walk_files
from components.domain import Csv, Parquet
from components.errors import DataError

Record = dict[str, str | None]

FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def read_table(layout: Csv | Parquet, raw: Path, wanted: Wanted) -> Reading:
    """A row a line of the table. A bare file name is looked for everywhere below the table's folder.

    Pictures beside listed ones that no line lists are rows with a problem.
    """
    table = resolve_inside(layout.table, "", "layout.table")
    frame = _load_table(layout, raw, table)
    flags = wanted.many and not layout.separator
    classes = (wanted.classes or find_flags(frame, layout)) if flags else ()
    names = [layout.image, *(classes if flags else [layout.label]), *wanted.columns]
    names += [name for name in (layout.mask, layout.boxes, layout.crop) if name]
    if missing := [name for name in dict.fromkeys(names) if name not in frame.columns]:
        mend = "Name one of these columns in domain.yaml, or add it" + ("." if layout.kind == "parquet" else CSV_MEND)
        found = f"the columns {', '.join(map(repr, frame.columns))}"
        raise DataError(f"table {table}", expected=f"the columns {', '.join(missing)}", found=found, mend=mend)
    files = walk_files(raw)
    index = Index(files, posixpath.dirname(table))
    line = "line" if layout.kind == "csv" else "row"
    rows = [
        _read_line(layout, record, index, f"{table}, {line} {number}", wanted, classes)
        for number, record in enumerate(_as_text(frame, names, layout, table).to_dicts(), 2 if line == "line" else 1)
    ]
    return Reading(rows + find_unlisted(files, rows, f"a line in {table} for every picture beside the listed ones"))


CSV_MEND = "; the separator must be a comma."


def find_flags(frame: pl.DataFrame, layout: Csv | Parquet) -> tuple[str, ...]:
    """Columns that hold nothing but 0 and 1: the classes of a multilabel table."""
    plain = [name for name in frame.columns if name != layout.image and not frame.schema[name].is_nested()]
    texts = frame.select(pl.col(plain).cast(pl.String, strict=False).str.to_lowercase())
    return tuple(name for name in plain if texts[name].is_in(list(FLAGS)).fill_null(False).all())


def looks_multilabel(layout: Csv | Parquet, raw: Path) -> bool:
    """Whether a table has no column of labels, but columns of 0 and 1."""
    frame = _load_table(layout, raw, resolve_inside(layout.table, "", "layout.table"))
    return layout.label not in frame.columns and len(find_flags(frame, layout)) >= 2


def find_unlisted(files: list[str], rows: list[Row], expected: str) -> list[Row]:
    """A row with a problem for every picture that no row names, in folders of which rows name some."""
    named = {row.path for row in rows} | {row.mask for row in rows}
    folders = {posixpath.dirname(row.path) for row in rows}
    problem = reason(expected, "none", "Add it, or take the picture out of the folder.")
    return [
        Row(path=path, problem=problem)
        for path in files
        if path.lower().endswith(SUFFIXES) and path not in named and posixpath.dirname(path) in folders
    ]


def resolve_picture(text: str, index: Index, where: str) -> tuple[str, str | None]:
    """A file that a table or an annotation names, relative to raw/, and what is wrong with it."""
    path = resolve_inside(text, index.base, where)
    found = [path] if path in index.files else index.find(text)
    found = [path for path in found if path.lower().endswith(SUFFIXES)] or found
    if len(found) > 1:
        mend = "Write the path from the table's folder instead of the bare name."
        raise DataError(where, expected=f"one file {text!r}", found=", ".join(found[:4]), mend=mend)
    if found:
        return found[0], not_an_image(found[0])
    mend = "Add the image, or remove its line."
    return path, reason(f"the listed image {text}", index.describe_missing(text), mend)


def parse_boxes(text: str | None) -> tuple[list[Box], str | None]:
    """`x0 y0 x1 y1; x0 y0 x1 y1` as numbers, or what is wrong with them."""
    boxes = []
    for part in (text or "").split(";"):
        numbers = re.fullmatch(r"\s*(-?\d{1,9})\s+(-?\d{1,9})\s+(-?\d{1,9})\s+(-?\d{1,9})\s*", part)
        if numbers:
            boxes.append((int(numbers[1]), int(numbers[2]), int(numbers[3]), int(numbers[4])))
        elif part.strip():
            mend = "Write whole pixels, several boxes joined by `;`."
            return [], reason("boxes as `x0 y0 x1 y1`", repr(part.strip()), mend)
    return boxes, None


def _load_table(layout: Csv | Parquet, raw: Path, table: str) -> pl.DataFrame:
    """The whole table; of a csv everything is text."""
    if not (raw / table).is_file():
        refuse_layout(raw, layout, f"the table {table}", "no such file")
    require_inside(raw, raw / table)
    try:
        if layout.kind == "csv":
            frame = pl.read_csv(raw / table, infer_schema=False, encoding="utf8")
        else:
            frame = pl.read_parquet(raw / table, hive_partitioning=False)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError, pl.exceptions.PanicException) as error:
        found = "an empty file" if (raw / table).stat().st_size == 0 else " ".join(str(error).split())[:200]
        form = "comma-separated UTF-8 text with a header line" if layout.kind == "csv" else "parquet"
        mend = f"Save it as {form}."
        raise DataError(f"table {table}", expected=f"a {layout.kind} table", found=found, mend=mend) from None
    if frame.is_empty():
        mend = "Write one line an image below the header."
        raise DataError(f"table {table}", expected="at least one row", found="a header alone", mend=mend)
    return _strip_names(frame, table)


def _strip_names(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    names = [name.strip() for name in frame.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        mend = "Rename one of them."
        raise DataError(f"table {table}", expected="every column once", found=f"{twice[0]!r} twice", mend=mend)
    return frame.rename(dict(zip(frame.columns, names, strict=True)))


def _as_text(frame: pl.DataFrame, names: list[str], layout: Csv | Parquet, table: str) -> pl.DataFrame:
    """The columns wanted as text without blanks around it; an empty cell is None, a list is joined."""
    columns = []
    for name in dict.fromkeys(names):
        kind, column = frame.schema[name], pl.col(name)
        if isinstance(kind, pl.List) and not kind.inner.is_nested():
            column = column.cast(pl.List(pl.String)).list.join(layout.separator or ";")
        elif kind.is_nested() or kind == pl.Binary:
            mend = "Save the column as text or numbers, or as lists of them, and the images as files."
            raise DataError(f"table {table}, column {name!r}", expected="plain values", found=str(kind), mend=mend)
        columns.append(column.cast(pl.String).str.strip_chars().replace("", None).alias(name))
    return frame.select(columns)


def _read_line(
    layout: Csv | Parquet, record: Record, index: Index, where: str, wanted: Wanted, classes: tuple[str, ...]
) -> Row:
    image = _require_cell(record, layout.image, where)
    label = None if wanted.many else _require_cell(record, layout.label, where)
    path, problem = resolve_picture(image, index, where)
    mask = record[layout.mask] if layout.mask else None
    boxes, box_problem = parse_boxes(record[layout.boxes] if layout.boxes else None)
    crops, crop_problem = parse_boxes(record[layout.crop] if layout.crop else None)
    if len(crops) > 1:
        crop_problem = reason("one crop a row", f"{len(crops)}", "Write a row for each.")
    return Row(
        path=path,
        label=label,
        labels=_read_labels(layout, record, where, classes) if wanted.many else None,
        mask=resolve_picture(mask, index, where)[0] if mask else None,
        boxes=boxes,
        crop=crops[0] if crops else None,
        columns={name: record[name] for name in wanted.columns},
        problem=problem or box_problem or crop_problem,
    )


def _read_labels(layout: Csv | Parquet, record: Record, where: str, classes: tuple[str, ...]) -> list[str]:
    if layout.separator:
        parts = (record[layout.label] or "").split(layout.separator)
        return [part.strip() for part in parts if part.strip()]
    labels = []
    for name in classes:
        cell = _require_cell(record, name, where)
        flag = FLAGS.get(cell.lower())
        if flag is None:
            mend = "Write 1 where the picture shows the class; or name the `separator` that joins labels in one column."
            raise DataError(where, expected=f"0 or 1 in column {name!r}", found=repr(cell), mend=mend)
        labels += [name] if flag else []
    return labels


def _require_cell(record: Record, name: str, where: str) -> str:
    if not (value := record[name]):
        mend = "Fill it in, or remove the line."
        raise DataError(where, expected=f"a value in column {name!r}", found="an empty cell", mend=mend)
    return value
