"""Reads a table's bytes into a frame of text, whatever program wrote them.

Finds the encoding and the delimiter; handles headers, comments, empty lines and trailing delimiters.
"""

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from components.domain.layouts import Csv, Parquet
from components.errors import DataError

DELIMITERS = (",", ";", "\t", "|")
PLAIN = ("utf-8", "utf8", "utf-8-sig")  # names under which UTF-8 is declared
SAMPLE = 200  # records from which encoding and delimiter are guessed
BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


@dataclass(frozen=True)
class Sheet:
    """A table as it was read. lines: for each row its line in the file (csv) or its number from 1 (parquet)."""

    frame: pl.DataFrame
    lines: list[int]
    notes: dict[str, int] = field(default_factory=dict)


def find_form(data: bytes, encoding: str | None = None) -> dict[str, str]:
    """`encoding` and `delimiter` of a csv file, as options of the layout. Raises ValueError if `data` is not text."""
    encoding = encoding or find_encoding(data)
    return {"encoding": encoding, "delimiter": find_delimiter(decode(data, encoding))}


def find_encoding(data: bytes) -> str:
    """The encoding by byte order mark, else UTF-8 where the bytes are valid, else cp1252 (Windows, western Europe)."""
    for mark, name in BOMS:
        if data.startswith(mark):
            return name
    if data[:400].count(b"\0") > len(data[:400]) // 4:  # two bytes per character, and no byte order mark
        return "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    for name in ("utf-8", "cp1252"):
        try:
            data.decode(name)
        except UnicodeDecodeError:
            continue
        return name
    return "latin-1"


def find_strange_words(text: str) -> list[str]:
    """Words that are mostly non-ASCII, if that holds for most words with non-ASCII characters; else none.

    Such words show that the text is not in a western European encoding.
    """
    words = re.findall(r"[^\s,;|\"'()/\\]*[^\x00-\x7f][^\s,;|\"'()/\\]*", text)
    strange = [word for word in words if len(word) > 2 and sum(sign > "\x7f" for sign in word) > 0.6 * len(word)]
    return strange if 2 * len(strange) > len(words) else []


def decode(data: bytes, encoding: str) -> str:
    """The text, with `\\n` as line end. Raises ValueError for bytes in another encoding, or that are not text."""
    if data.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"%PDF")):
        raise ValueError("a picture or document instead of text")
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise ValueError("an Excel workbook or an archive instead of text")
    name = "utf-8-sig" if encoding.lower() in PLAIN else encoding
    text = data.decode(name).removeprefix("\ufeff")
    if "\0" in text:
        raise ValueError("zero bytes")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def find_delimiter(text: str) -> str:
    """The delimiter that splits most lines into as many columns as the first line; a comma where none does."""
    if declared := re.match(r"sep=(.)\n", text):
        return declared[1]
    best, most = ",", 1.0
    for mark in DELIMITERS:
        try:
            counts = [len(record) for _, record in _records(text, mark, SAMPLE)]
        except csv.Error:
            continue
        width = Counter(counts).most_common(1)[0][0] if counts else 0
        first = counts[0] if counts else 0
        even = sum(count <= first for count in counts) / max(1, len(counts))
        if first >= 2 and width >= 2 and even >= 0.9 and first * even > most:
            best, most = mark, first * even
    return best


def load_sheet(layout: Csv | Parquet, file: Path, table: str) -> Sheet:
    """Load the whole table; all values of a csv are text. Raises DataError if the file cannot be read.

    table: the file's path below raw/, for messages.
    """
    form = "comma-separated UTF-8 text with a header line" if layout.kind == "csv" else "parquet"
    try:
        sheet = _load_csv(layout, file, table) if isinstance(layout, Csv) else _load_parquet(file)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, csv.Error) as error:
        found = "an empty file" if file.stat().st_size == 0 else _brief(error)
        hint = f"Save the table as {form}." + _hint_form(layout, file)
        raise DataError(f"table {table}", expected=f"a {layout.kind} table", found=found, hint=hint) from None
    if sheet.frame.is_empty():
        hint = "Write one line per image below the header."
        raise DataError(f"table {table}", expected="at least one row", found="only a header", hint=hint)
    return Sheet(_strip_names(sheet.frame, table), sheet.lines, sheet.notes)


def _brief(error: BaseException) -> str:
    if isinstance(error, UnicodeError):
        return "bytes that are not valid text in the table's `encoding`"
    return " ".join(str(error).split())[:200]


def _hint_form(layout: Csv | Parquet, file: Path) -> str:
    """A sentence with the encoding and delimiter that the file seems to have, where the layout says otherwise."""
    if not isinstance(layout, Csv):
        return ""
    try:
        found = find_form(file.read_bytes())
    except ValueError:
        return ""
    return describe_form({key: value for key, value in found.items() if value != getattr(layout, key)})


def describe_form(options: dict[str, str]) -> str:
    listed = ", ".join(f"{key}: {value!r}" for key, value in options.items())
    return f" Or write the form that it seems to have into `layout` in domain.yaml: `{listed}`." if options else ""


def _load_parquet(file: Path) -> Sheet:
    frame = pl.read_parquet(file, hive_partitioning=False)
    return Sheet(frame, list(range(1, frame.height + 1)))


def _load_csv(layout: Csv, file: Path, table: str) -> Sheet:
    text = decode(file.read_bytes(), layout.encoding)
    records = list(_records(text, layout.delimiter))
    if not records:
        raise ValueError("an empty file")
    comments = text.startswith("#") or "\n#" in text
    head = records[0][1] if layout.header else []
    body = records[1:] if layout.header else records
    body, passed = _without_comments(body, len(head)) if comments else (body, 0)
    width = max([len(head), *(len(_trim(record)) for _, record in body)] if not head else [len(head)])
    for line, record in body:
        if len(_trim(record)) > width:
            expected, found = f"at most {width} columns, as in the header", f"{len(record)}"
            hint = "Quote cells that contain the delimiter, or name the right delimiter." + _hint_form(layout, file)
            where = f"table {table}, line {line}"
            raise DataError(where, expected=f"a csv table with {expected}", found=found, hint=hint)
    names = [name.strip() or f"column_{number}" for number, name in enumerate([*head, *[""] * (width - len(head))], 1)]
    cells = {
        number: [record[number] if number < len(record) else None for _, record in body] for number in range(width)
    }
    empty = {number for number in range(len(head)) if not head[number].strip() and not any(map(_filled, cells[number]))}
    series = [pl.Series(names[n], cells[n], dtype=pl.String) for n in range(width) if n not in empty]
    notes = {f"comment lines in {table} passed over": passed} if passed else {}
    _require_distinct([one.name for one in series], table)
    return Sheet(pl.DataFrame(series), [line for line, _ in body], notes)


def _filled(cell: str | None) -> bool:
    return bool(cell and cell.strip())


def _records(text: str, delimiter: str, most: int | None = None) -> list[tuple[int, list[str]]]:
    """(line, cells) of every record that is not empty, without the comments above a header. Raises csv.Error."""
    start = text.index("\n") + 1 if re.match(r"sep=.\n", text) else 0
    reader = csv.reader(io.StringIO(text[start:]), delimiter=delimiter, skipinitialspace=True, strict=True)
    records, line = [], 1 + bool(start)
    for record in reader:
        if any(map(str.strip, record)):
            records.append((line, record))
            if most is not None and len(records) == most:
                break
        line = 1 + bool(start) + reader.line_num
    while len(records) > 1 and _is_comment(records[0][1], records[1][1]):
        records.pop(0)
    if records and records[0][1][0].startswith("#"):  # `# image,label`
        records[0] = records[0][0], [records[0][1][0].lstrip("# "), *records[0][1][1:]]
    return records


def _is_comment(record: list[str], following: list[str]) -> bool:
    """Whether a line above the header starts with `#` and has another number of columns than the next line."""
    return record[0].lstrip().startswith("#") and len(record) != len(following)


def _without_comments(body: list[tuple[int, list[str]]], width: int) -> tuple[list[tuple[int, list[str]]], int]:
    """Records without lines that start with `#` and have fewer columns than the header, and the number of those."""
    kept = [(line, record) for line, record in body if not (record[0].startswith("#") and len(record) < width)]
    return kept, len(body) - len(kept)


def _trim(record: list[str]) -> list[str]:
    """The record without the empty cells after trailing delimiters."""
    end = len(record)
    while end and not record[end - 1].strip():
        end -= 1
    return record[:end]


def _strip_names(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    names = [name.strip() for name in frame.columns]
    _require_distinct(names, table)
    return frame.rename(dict(zip(frame.columns, names, strict=True)))


def _require_distinct(names: list[str], table: str) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        hint = "Rename one of them."
        raise DataError(f"table {table}", expected="every column once", found=f"{twice[0]!r} twice", hint=hint)
