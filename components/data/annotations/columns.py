"""Finds the table that describes the pictures, and the meaning of its columns.

A table describes pictures if one column names them and another column, or several columns of 0 and 1, label them. What
is found becomes options of the layout, so that domain.yaml states it. What a user named is not searched for.
"""

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from components.data.annotations.box_columns import find_crops, list_box_columns
from components.data.annotations.cells import Sheet, decode, find_form, find_strange_words, load_sheet
from components.data.annotations.column_cells import (
    NEARLY,
    SAMPLE,
    Table,
    UnclearTableError,
    find_pictures,
    holds_numbers,
    read_texts,
    to_word,
    unclear_columns,
    with_options,
    write_option,
)
from components.data.annotations.tree import Index, require_inside, resolve_inside, walk_files
from components.data.sources.names import SUFFIXES
from components.domain.layouts import Csv, Parquet
from components.errors import DataError, TesseraError

TABLES = {"csv": (".csv", ".tsv", ".tab"), "parquet": (".parquet",)}
FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
UNKNOWN = ("", "-1", "-1.0", "nan", "na", "n/a", "null", "none", "?", "u")  # cells beside 0 and 1 that mean "not known"
#: Names that identify columns, the best first; compared without case, blanks and underscores.
IMAGE_WORDS = (
    *("image", "images", "imagepath", "imagefile", "imagefilename", "imagename", "img", "imgpath", "imgname"),
    *("file", "files", "filename", "filepath", "path", "picture", "photo", "imageid", "imgid", "id", "name", "uid"),
)
LABEL_WORDS = (
    *("label", "labels", "class", "classname", "classlabel", "labelname", "target", "category", "categoryname"),
    *("diagnosis", "dx", "grade", "findinglabels", "defect", "defecttype", "defectclass", "species", "severity"),
    *("groundtruth", "gt", "annotation", "tag", "tags", "y", "classid", "labelid", "categoryid", "type", "quality"),
)
WEAK = ("type", "quality", "severity", "tag", "tags", "annotation")
#: Columns that divide, number or measure pictures: never the label, whatever they contain.
NO_LABELS = {
    *("fold", "folds", "kfold", "split", "set", "subset", "partition", "phase", "usage", "istrain", "train", "istest"),
    *("test", "isval", "isvalid", "val", "valid", "validation", "index", "unnamed0", "id", "width", "height", "size"),
    *("imagewidth", "imageheight", "area", "filesize", "md5", "sha256", "mask", "maskpath", "group", "lot", "batch"),
    *("comment", "comments", "note", "notes", "operator", "date", "time", "timestamp", "url", "source", "licence"),
    *("license", "patient", "patientid", "lesionid", "serial", "price", "age", "sex", "gender", "female", "male"),
    *("smoker", "isfemale", "ismale"),
}
RUNS = re.compile(r"encodedpixels|rle|segmentation|annotation|encoding")  # names of columns of run lengths
SPLIT_WORDS = ("split", "set", "subset", "partition", "phase")
ALPHABETS = ("cp1251", "gb18030", "shift_jis", "big5", "euc_kr", "cp1253", "cp1250")  # for tables without a mark
MOST_CLASSES = 100  # most different values in a label column that is not identified by its name


@dataclass(frozen=True)
class Found:
    """A table that describes pictures. sure: whether the names of its columns say so, not only the lack of others."""

    layout: Table
    pictures: frozenset[str]
    sure: bool


def suggest_table(raw: Path, files: Sequence[str], *, boxes: bool = False) -> Found | None:
    """The table that describes most pictures, with its options filled in; None if no table describes any.

    boxes: tables of boxes alone, here and below.
    """
    return min(
        list_described(raw, files, boxes=boxes),
        key=lambda each: (-len(each.pictures), each.layout.table.count("/"), each.layout.table),
        default=None,
    )


def list_described(raw: Path, files: Sequence[str], *, boxes: bool = False) -> list[Found]:
    """All tables whose options can be filled in."""
    found = []
    for kind in (Csv, Parquet):
        for path in list_tables(kind().kind, files):
            try:
                found.append(_search(kind(table=path), raw, files, boxes=boxes))
            except TesseraError:
                continue
    return found


def is_weakly_named(layout: Table) -> bool:
    """Whether the label column has a name that many tables use for something else."""
    return to_word(layout.label) in WEAK


def refuse_unclear_tables(raw: Path, files: Sequence[str], *, any_error: bool = False, boxes: bool = False) -> None:
    """Raise the DataError of a table that names pictures, but labels them in several columns or in none.

    any_error: also raise the error of a table that may describe something else.
    """
    for kind in (Csv, Parquet):
        for path in list_tables(kind().kind, files):
            try:
                _search(kind(table=path), raw, files, boxes=boxes)
            except TesseraError as error:
                if any_error or isinstance(error, UnclearTableError):
                    raise


def list_tables(kind: str, files: Iterable[str]) -> list[str]:
    """Paths of the tables of a kind, those in upper folders first."""
    return sorted(
        (path for path in files if path.lower().endswith(TABLES[kind])), key=lambda path: (path.count("/"), path)
    )


def complete_table(layout: Table, raw: Path, *, boxes: bool = False) -> Table:
    """The layout with all options that it does not name filled in from the table.

    Raises DataError with the `--layout` line to write if several columns fit an option, or none.
    """
    files = walk_files(raw)
    if "table" in layout.model_fields_set:
        return _search(layout, raw, files, boxes=boxes).layout
    found, errors = [], []
    for path in list_tables(layout.kind, files):
        try:
            found.append(_search(with_options(layout, table=path), raw, files, boxes=boxes))
        except TesseraError as error:
            errors.append(error)
    if found:
        return max(found, key=lambda each: len(each.pictures)).layout
    if errors:
        raise errors[0]
    return layout


def suggest_runs(raw: Path, files: Sequence[str]) -> Table | None:
    """The table with a column of run lengths (`EncodedPixels`) that describes most pictures; None without any."""
    index = Index([path for path in files if path.lower().endswith(SUFFIXES)], "")
    found = list[tuple[int, Table]]()
    for path in list_tables("csv", files):
        try:
            layout = _find_csv_form(Csv(table=path), raw / path, index)
            sheet = load_sheet(layout, raw / path, path)
            runs = next((name for name in sheet.frame.columns if _are_runs(sheet.frame, name)), None)
            if runs is None:
                continue
            layout = with_options(layout, image=_find_image(sheet, index, layout), runs=runs)
            worded = [name for word in LABEL_WORDS for name in sheet.frame.columns if to_word(name) == word]
            label = next((name for name in worded if name not in (runs, layout.image)), None)
            named = {text for text in read_texts(sheet.frame, layout.image) if find_pictures(text, index)}
            found.append((len(named), with_options(layout, label=label) if label else layout))
        except TesseraError:
            continue
    return max(found, key=lambda each: each[0])[1] if found else None


def _are_runs(frame: pl.DataFrame, name: str) -> bool:
    """Whether a column is called like run lengths and holds pairs of numbers."""
    texts = read_texts(frame, name, SAMPLE) if RUNS.search(to_word(name)) else []
    return bool(texts) and all(re.fullmatch(r"\d+ \d+(?: \d+ \d+)*", " ".join(text.split())) for text in texts)


def find_flags(frame: pl.DataFrame, layout: Table) -> tuple[str, ...]:
    """Columns that hold 0 and 1: the classes of a table with one column per class.

    A column that also contains marks for "not known" counts if others contain none, so that no class is lost; the
    reader of the table then refuses such a cell and names its line.
    """
    plain = [
        name
        for name in frame.columns
        if name != layout.image and to_word(name) not in NO_LABELS and not frame.schema[name].is_nested()
    ]
    texts = frame.select(pl.col(plain).cast(pl.String, strict=False).str.strip_chars().str.to_lowercase())
    flags = {name: texts[name].is_in(list(FLAGS)).fill_null(False) for name in plain}
    unknown = {name: texts[name].fill_null("").is_in(UNKNOWN) for name in plain}
    able = tuple(name for name in plain if flags[name].any() and (flags[name] | unknown[name]).all())
    return able if any(flags[name].all() for name in able) else ()


def find_split_column(frame: pl.DataFrame) -> str | None:
    """The column that names the split of each picture."""
    return next((name for word in SPLIT_WORDS for name in frame.columns if to_word(name) == word), None)


def _search(layout: Table, raw: Path, files: Sequence[str], *, boxes: bool = False) -> Found:
    """Fill in the options of one table. Raises DataError if they cannot be determined."""
    table = resolve_inside(layout.table, "", "layout.table")
    if not (raw / table).is_file():
        return Found(layout, frozenset(), sure=False)
    require_inside(raw, raw / table)
    index = Index((path for path in files if path.lower().endswith(SUFFIXES)), posixpath.dirname(table))
    if isinstance(layout, Csv):
        layout = _find_csv_form(layout, raw / table, index)
    sheet = load_sheet(layout, raw / table, table)
    if "image" not in layout.model_fields_set:
        layout = with_options(layout, image=_find_image(sheet, index, layout))
    layout = _without_mistaken_separator(find_crops(layout, sheet.frame, raw, index, boxes=boxes))
    sure = True
    if boxes and "label" not in layout.model_fields_set:
        label = _find_class(sheet.frame, layout)
        layout = with_options(layout, label=label) if label else layout
    elif not {"label", "one_hot"} & layout.model_fields_set:
        label, one_hot, sure = _find_label(sheet.frame, layout)
        layout = with_options(layout, **({"one_hot": True} if one_hot else {"label": label} if label else {}))
        if label:
            _refuse_joined(sheet.frame, layout)
    texts = read_texts(sheet.frame, layout.image) if layout.image in sheet.frame.columns else []
    pictures = frozenset(path for text in texts for path in find_pictures(text, index)[:1])
    return Found(layout, pictures, sure)


# The form of a csv


def _find_csv_form(layout: Csv, file: Path, index: Index) -> Csv:
    named = layout.model_fields_set
    try:
        found = find_form(file.read_bytes(), layout.encoding if "encoding" in named else None)
    except (ValueError, OSError):
        return layout  # its reader reports what is wrong
    chosen = with_options(layout, **{name: value for name, value in found.items() if name not in named})
    if "encoding" not in named:
        _refuse_other_alphabets(chosen, file)
    if "header" not in named and _starts_with_data(chosen, file, index):
        chosen = with_options(chosen, header=False)
    return chosen


def _refuse_other_alphabets(layout: Csv, file: Path) -> None:
    """Raise UnclearTableError if the bytes are text only in a western European encoding, and give no words in it."""
    data = file.read_bytes()
    if layout.encoding not in ("cp1252", "latin-1") or not (words := find_strange_words(decode(data, layout.encoding))):
        return
    able = [name for name in ALPHABETS if _can_decode(data, name)]
    found = f"bytes that read {words[0]!r} in {layout.encoding}, what Windows writes in western Europe"
    lines = [f"`{write_option(layout, encoding=name)}`" for name in able[:4] or ["cp1251"]]
    hint = (
        f"Save it as UTF-8, or name its encoding: {', '.join(lines)}, or `encoding: {layout.encoding}` if that is it."
    )
    raise UnclearTableError(f"table {layout.table}", expected="text in UTF-8", found=found, hint=hint)


def _can_decode(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _starts_with_data(layout: Csv, file: Path, index: Index) -> bool:
    """Whether the first line names a picture, which a header does not."""
    try:
        first = load_sheet(with_options(layout, header=False), file, file.name).frame.row(0)
    except DataError:
        return False
    return any(
        cell and cell.strip().lower().endswith(SUFFIXES) and find_pictures(cell.strip(), index) for cell in first
    )


def _without_mistaken_separator(layout: Table) -> Table:
    """The layout without a `separator` that is the `delimiter`: `separator` joins labels, not columns."""
    if not isinstance(layout, Csv) or layout.separator is None or layout.separator != layout.delimiter:
        return layout
    return Csv.model_validate({name: getattr(layout, name) for name in layout.model_fields_set - {"separator"}})


# Columns


def _find_image(sheet: Sheet, index: Index, layout: Table) -> str:
    """The column whose cells name pictures; if several do, the one with the best name. Raises DataError if unclear."""
    shares = {}
    for name in sheet.frame.columns:
        texts = read_texts(sheet.frame, name, SAMPLE)
        hits = sum(bool(find_pictures(text, index)) for text in texts)
        if texts and hits >= 0.5 * len(texts):
            shares[name] = hits / len(texts)
    able = {name: share for name, share in shares.items() if not to_word(name).startswith("mask")} or shares
    named = sorted(
        (name for name in able if to_word(name) in IMAGE_WORDS), key=lambda name: IMAGE_WORDS.index(to_word(name))
    )
    if named or len(able) == 1:
        return named[0] if named else next(iter(able))
    if not able:
        expected = "a column that names pictures of this folder"
        raise unclear_columns(sheet.frame, layout, expected, sheet.frame.columns, "image")
    raise unclear_columns(sheet.frame, layout, "one column that names the pictures", list(able), "image")


def _sort_labels(names: Sequence[str]) -> list[str]:
    """Those that are called like labels, the plainest word first."""
    return sorted((n for n in names if to_word(n) in LABEL_WORDS), key=lambda n: LABEL_WORDS.index(to_word(n)))


def _find_label(frame: pl.DataFrame, layout: Table) -> tuple[str | None, bool, bool]:
    """(column, one_hot, sure) of the labels; the column is None if columns of 0 and 1 are the classes.

    Raises UnclearTableError if several columns may be the label, or none.
    """
    taken = {layout.image, layout.mask, layout.boxes, *list_box_columns(layout)}
    others = [name for name in frame.columns if name not in taken and read_texts(frame, name, SAMPLE)]
    worded = _sort_labels(others)
    flags = [name for name in find_flags(frame, layout) if name not in taken]
    if worded and (len(worded) == 1 or to_word(worded[0]) in LABEL_WORDS[:2] or _say_the_same(frame, worded)):
        return worded[0], False, True
    if len(worded) > 1 and not set(worded) <= set(flags):
        raise unclear_columns(frame, layout, "one column of labels", worded, "label")
    if len(flags) >= 2 and not layout.separator:
        return None, _is_one_hot(frame, flags, layout), True
    left = [name for name in others if to_word(name) not in NO_LABELS and _may_be_label(frame[name])]
    if len(left) == 1:
        return left[0], False, False
    expected = "one column of labels" if left else "a column of labels"
    raise unclear_columns(frame, layout, expected, left or others or frame.columns, "label")


def _find_class(frame: pl.DataFrame, layout: Table) -> str | None:
    """The column that names the classes of boxes; None where there is none, because all boxes are of one class.

    Raises UnclearTableError if several columns may be it.
    """
    taken = {layout.image, layout.mask, layout.boxes, *list_box_columns(layout)}
    others = [name for name in frame.columns if name not in taken and read_texts(frame, name, SAMPLE)]
    able = _sort_labels(others)
    if len(able) == 1 or (able and (to_word(able[0]) in LABEL_WORDS[:2] or _say_the_same(frame, able))):
        return able[0]
    words = [name for name in others if not holds_numbers(frame, name)]
    if isinstance(layout, Csv) and not layout.header and len(words) == 1:
        return words[0]
    able = able or [name for name in words if to_word(name) not in NO_LABELS and _may_be_label(frame[name])]
    if len(able) > 1:
        raise unclear_columns(frame, layout, "one column of classes of the boxes", able, "label")
    return able[0] if able else None


def _say_the_same(frame: pl.DataFrame, names: list[str]) -> bool:
    """Whether the columns name the same classes in different words, such as `class_name` and `class_id`."""
    whole = frame.select(names).unique().height
    return all(frame[name].n_unique() == whole for name in names)


def _is_one_hot(frame: pl.DataFrame, flags: list[str], layout: Table) -> bool:
    """Whether every row has exactly one 1.

    Raises UnclearTableError if nearly all rows do, or all rows without one of the columns.
    """
    texts = frame.select(pl.col(flags).cast(pl.String).str.strip_chars().str.to_lowercase())
    ones = texts.select(pl.all().replace_strict(FLAGS, default=None).cast(pl.Int64))
    single = ones.select(pl.sum_horizontal(pl.all()) == 1).to_series()
    if single.all():
        return True
    besides = [name for name in flags if len(flags) > 2 and (ones.drop(name).sum_horizontal() == 1).all()]
    if not besides and single.mean() < NEARLY:  # type: ignore[operator]
        return False
    found = f"{(~single).sum():,} of {len(single):,} rows with none or several"
    found += f"; one in every row but for the column {besides[0]!r}" if besides else ""
    raise UnclearTableError(
        f"table {layout.table}, columns {', '.join(flags[:12])}",
        expected="a 1 in exactly one of the columns of 0 and 1, or rows that may have any number",
        found=found,
        hint=f"Where a picture has one label: `{write_option(layout, one_hot=True)}`, which puts the other rows into "
        f"quarantine. Where it may show several or none: `{write_option(layout, one_hot=False)}`. Remove columns that "
        "are not a class from the table.",
    )


def _refuse_joined(frame: pl.DataFrame, layout: Table) -> None:
    """Raise UnclearTableError if cells of the label column look like several joined labels."""
    values = set(read_texts(frame, layout.label)) if layout.label in frame.columns and not layout.separator else set()
    for mark in "|;,":
        joined = [value for value in values if mark in value]
        known = [value for value in joined if {part.strip() for part in value.split(mark)} <= values]
        if known and 2 * len(known) >= len(joined):
            raise UnclearTableError(
                f"table {layout.table}, column {layout.label!r}",
                expected="one label per picture, or several with the mark that joins them",
                found=f"{min(known)!r}, and its parts as labels in other rows",
                hint=f"Where a picture may show several: `{write_option(layout, separator=mark)}`. Where such a cell "
                f"is one label: `{write_option(layout, label=layout.label)}`.",
            )


def _may_be_label(column: pl.Series) -> bool:
    """Whether a column has few different values, most of which occur more than once."""
    if column.dtype.is_nested() or column.dtype == pl.Binary:
        return False
    return 2 <= column.drop_nulls().n_unique() <= min(MOST_CLASSES, max(2, len(column) // 2))
