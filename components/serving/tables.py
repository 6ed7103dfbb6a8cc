"""Tables of answers as files: csv, parquet, or one JSON object per line; row by row, so that many fit in memory.

In csv a box is `x0 y0 x1 y1`, as `tessera predict --boxes` reads it, and a list is JSON text. No torch here.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.files import whole_file
from components.serving.rows import Column, Kind, Row

ROWS = 1024  # of a parquet file that are Python's objects at a time

csv.field_size_limit(sys.maxsize)  # a list of boxes may be long

WRITE: Mapping[Kind, Callable[[Any], str]] = {
    "text": str,
    "share": repr,
    "count": str,
    "flag": lambda value: "true" if value else "false",
    "box": lambda value: " ".join(map(str, value)),
    **dict.fromkeys(("texts", "objects", "components"), lambda value: json.dumps(value, ensure_ascii=False)),
}
READ: Mapping[Kind, Callable[[str], Any]] = {
    "text": str,
    "share": float,
    "count": int,
    "flag": {"true": True, "false": False}.__getitem__,
    "box": lambda text: [int(part) for part in text.split()],
    **dict.fromkeys(("texts", "objects", "components"), json.loads),
}


def write_table(file: Path, columns: Sequence[Column], rows: Iterable[Row]) -> None:
    """Write the file whole: a reader sees the old one or the new one. Its ending says its form."""
    with whole_file(file) as partial:
        WRITERS[file.suffix.lower()](partial, columns, rows)


def read_table(file: Path, columns: Sequence[Column]) -> Iterator[Row]:
    """The rows of such a file. Raises DataError where it cannot be read, or has other columns."""
    try:
        yield from READERS[file.suffix.lower()](file, columns)
    except _OtherColumns as error:
        raise _refuse(file, columns, f"the columns {', '.join(map(str, error.args[0]))}"[:300]) from None
    except (ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
        raise _refuse(file, columns, " ".join(str(error).split())[:200] or "another file") from None


def _refuse(file: Path, columns: Sequence[Column], found: str) -> DataError:
    return DataError(
        f"--out {file}",
        expected=f"a new file, or one of earlier answers of this domain, with the columns "
        f"{', '.join(column.name for column in columns)}",
        found=found,
        hint="Name another file, or move this one away.",
    )


class _OtherColumns(Exception):  # noqa: N818  found while reading
    pass


def _require_columns(found: Sequence[str], columns: Sequence[Column]) -> None:
    if list(found) != [column.name for column in columns]:
        raise _OtherColumns(found)


def _write_csv(file: Path, columns: Sequence[Column], rows: Iterable[Row]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([column.name for column in columns])
        for row in rows:
            cells = ((row[column.name], WRITE[column.kind]) for column in columns)
            writer.writerow(["" if value is None else write(value) for value, write in cells])


def _read_csv(file: Path, columns: Sequence[Column]) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        _require_columns(next(reader, []), columns)
        for line in reader:
            cells = zip(columns, line, strict=True)
            yield {column.name: READ[column.kind](text) if text else None for column, text in cells}


def _write_lines(file: Path, columns: Sequence[Column], rows: Iterable[Row]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps({column.name: row[column.name] for column in columns}, ensure_ascii=False) + "\n")


def _read_lines(file: Path, columns: Sequence[Column]) -> Iterator[Row]:
    with file.open(encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            _require_columns(list(row) if isinstance(row, dict) else [], columns)
            yield row


def _write_parquet(file: Path, columns: Sequence[Column], rows: Iterable[Row]) -> None:
    import polars as pl

    schema, left = _to_schema(columns), iter(rows)
    parts = [pl.DataFrame(schema=schema)]
    while part := list(islice(left, ROWS)):
        parts.append(pl.DataFrame(part, schema=schema, orient="row"))
    pl.concat(parts, rechunk=False).write_parquet(file)


def _read_parquet(file: Path, columns: Sequence[Column]) -> Iterator[Row]:
    import polars as pl

    try:
        frame = pl.read_parquet(file, memory_map=False)
        _require_columns(frame.columns, columns)
        frame = frame.cast(pl.Schema(_to_schema(columns)))
    except pl.exceptions.PolarsError as error:
        raise ValueError(error) from None
    for part in frame.iter_slices(ROWS):
        yield from part.to_dicts()


def _to_schema(columns: Sequence[Column]) -> dict[str, Any]:
    import polars as pl

    corners, box = pl.List(pl.Float64), pl.List(pl.Int64)
    kinds: Mapping[Kind, Any] = {
        "text": pl.String,
        "share": pl.Float64,
        "count": pl.Int64,
        "flag": pl.Boolean,
        "box": box,
        "texts": pl.List(pl.String),
        "objects": pl.List(pl.Struct({"label": pl.String, "box": corners, "confidence": pl.Float64})),
        "components": pl.List(pl.Struct({"label": pl.String, "box": box, "area": pl.Int64, "confidence": pl.Float64})),
    }
    return {column.name: kinds[column.kind] for column in columns}


Writer = Callable[[Path, Sequence[Column], Iterable[Row]], None]
Reader = Callable[[Path, Sequence[Column]], Iterator[Row]]
WRITERS: Mapping[str, Writer] = {".csv": _write_csv, ".parquet": _write_parquet, ".jsonl": _write_lines}
READERS: Mapping[str, Reader] = {".csv": _read_csv, ".parquet": _read_parquet, ".jsonl": _read_lines}
