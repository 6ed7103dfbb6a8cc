"""Finds the table that describes the pictures, and the meaning of its columns.

A table describes pictures if one column names them and another column, or several columns of 0 and 1, label them. What
is found becomes options of the layout, so that domain.yaml states it. What a user named is not searched for.
"""

import posixpath
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import polars as pl
import yaml
from PIL import Image

from components.data.annotations.cells import Sheet, decode, find_form, find_strange_words, load_sheet
from components.data.annotations.tree import Index, require_inside, resolve_inside, walk_files
from components.data.sources.images import FORMATS, SUFFIXES, UNDECODABLE
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
MASK_WORDS = ("mask", "seg", "groundtruth", "gt", "annotationmask", "labelmask")  # how names of columns of masks begin
RUNS = re.compile(r"encodedpixels|rle|segmentation|annotation|encoding")  # names of columns of run lengths
SPLIT_WORDS = ("split", "set", "subset", "partition", "phase")
BOX_WORDS = ("crop", "bbox", "boundingbox", "box", "roi")
CORNERS = (
    *(("xmin", "ymin", "xmax", "ymax"), ("x0", "y0", "x1", "y1"), ("x1", "y1", "x2", "y2")),
    *(("left", "top", "right", "bottom"), ("bboxxmin", "bboxymin", "bboxxmax", "bboxymax")),
)
SIZES = (
    *(("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height")),
    *(("bboxx", "bboxy", "bboxwidth", "bboxheight"), ("bboxx", "bboxy", "bboxw", "bboxh")),
)
#: Further names of columns of boxes, where the task asks for boxes: without it they may be mere measurements.
MORE_CORNERS = (
    *(("xtl", "ytl", "xbr", "ybr"), ("bboxx1", "bboxy1", "bboxx2", "bboxy2"), ("bboxx0", "bboxy0", "bboxx1", "bboxy1")),
    *(("boxxmin", "boxymin", "boxxmax", "boxymax"), ("xstart", "ystart", "xend", "yend")),
    *(("minx", "miny", "maxx", "maxy"), ("bboxleft", "bboxtop", "bboxright", "bboxbottom")),
)
MORE_SIZES = (("xmin", "ymin", "width", "height"), ("x0", "y0", "width", "height"), ("minx", "miny", "width", "height"))
EMPTY = " []()"  # signs of a cell without any box
BOX_LISTS = (*BOX_WORDS, "boxes", "bboxes", "boundingboxes", "rois")
SAMPLE = 200  # rows by which a column is judged
ALPHABETS = ("cp1251", "gb18030", "shift_jis", "big5", "euc_kr", "cp1253", "cp1250")  # for tables without a mark
NEARLY = 0.8  # least share of rows with exactly one 1, or of cells with a number, of which the others may be mistakes
MOST_CLASSES = 100  # most different values in a label column that is not identified by its name

Table = Csv | Parquet
T = TypeVar("T", bound=Csv | Parquet)


class UnclearTableError(DataError):
    """A table names pictures, but the meaning of its columns is not clear."""


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
    return _word(layout.label) in WEAK


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
            found.append(_search(_with(layout, table=path), raw, files, boxes=boxes))
        except TesseraError as error:
            errors.append(error)
    if found:
        return max(found, key=lambda each: len(each.pictures)).layout
    if errors:
        raise errors[0]
    return layout


def complete_mask(layout: T, raw: Path) -> T:
    """The layout with its column `mask`, if the table has one column that names masks; else unchanged."""
    table = resolve_inside(layout.table, "", "layout.table")
    if layout.mask or not (raw / table).is_file():
        return layout
    frame = load_sheet(layout, raw / table, table).frame
    index = Index((path for path in walk_files(raw) if path.lower().endswith(SUFFIXES)), posixpath.dirname(table))
    for name in frame.columns:
        texts = _texts(frame, name, SAMPLE) if _word(name).startswith(MASK_WORDS) and name != layout.image else []
        if texts and 2 * sum(bool(find_pictures(text, index)) for text in texts) >= len(texts):
            return _with(layout, mask=name)
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
            layout = _with(layout, image=_find_image(sheet, index, layout), runs=runs)
            worded = [name for word in LABEL_WORDS for name in sheet.frame.columns if _word(name) == word]
            label = next((name for name in worded if name not in (runs, layout.image)), None)
            named = {text for text in _texts(sheet.frame, layout.image) if find_pictures(text, index)}
            found.append((len(named), _with(layout, label=label) if label else layout))
        except TesseraError:
            continue
    return max(found, key=lambda each: each[0])[1] if found else None


def _are_runs(frame: pl.DataFrame, name: str) -> bool:
    """Whether a column is called like run lengths and holds pairs of numbers."""
    texts = _texts(frame, name, SAMPLE) if RUNS.search(_word(name)) else []
    return bool(texts) and all(re.fullmatch(r"\d+ \d+(?: \d+ \d+)*", " ".join(text.split())) for text in texts)


def find_flags(frame: pl.DataFrame, layout: Table) -> tuple[str, ...]:
    """Columns that hold 0 and 1: the classes of a table with one column per class.

    A column that also contains marks for "not known" counts if others contain none, so that no class is lost; the
    reader of the table then refuses such a cell and names its line.
    """
    plain = [
        name
        for name in frame.columns
        if name != layout.image and _word(name) not in NO_LABELS and not frame.schema[name].is_nested()
    ]
    texts = frame.select(pl.col(plain).cast(pl.String, strict=False).str.strip_chars().str.to_lowercase())
    flags = {name: texts[name].is_in(list(FLAGS)).fill_null(False) for name in plain}
    unknown = {name: texts[name].fill_null("").is_in(UNKNOWN) for name in plain}
    able = tuple(name for name in plain if flags[name].any() and (flags[name] | unknown[name]).all())
    return able if any(flags[name].all() for name in able) else ()


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


def find_split_column(frame: pl.DataFrame) -> str | None:
    """The column that names the split of each picture."""
    return next((name for word in SPLIT_WORDS for name in frame.columns if _word(name) == word), None)


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
        layout = _with(layout, image=_find_image(sheet, index, layout))
    layout = _without_mistaken_separator(_find_crops(layout, sheet.frame, raw, index, boxes=boxes))
    sure = True
    if boxes and "label" not in layout.model_fields_set:
        label = _find_class(sheet.frame, layout)
        layout = _with(layout, label=label) if label else layout
    elif not {"label", "one_hot"} & layout.model_fields_set:
        label, one_hot, sure = _find_label(sheet.frame, layout)
        layout = _with(layout, **({"one_hot": True} if one_hot else {"label": label} if label else {}))
        if label:
            _refuse_joined(sheet.frame, layout)
    texts = _texts(sheet.frame, layout.image) if layout.image in sheet.frame.columns else []
    pictures = frozenset(path for text in texts for path in find_pictures(text, index)[:1])
    return Found(layout, pictures, sure)


def _with(layout: T, **options: Any) -> T:
    """A copy with changed options; options with their default value stay unnamed."""
    fields = type(layout).model_fields
    named = {name: getattr(layout, name) for name in layout.model_fields_set} | {
        name: value for name, value in options.items() if value != fields[name].default or name == "table"
    }
    return type(layout).model_validate(named)  # type: ignore[return-value]


# The form of a csv


def _find_csv_form(layout: Csv, file: Path, index: Index) -> Csv:
    named = layout.model_fields_set
    try:
        found = find_form(file.read_bytes(), layout.encoding if "encoding" in named else None)
    except (ValueError, OSError):
        return layout  # its reader reports what is wrong
    chosen = _with(layout, **{name: value for name, value in found.items() if name not in named})
    if "encoding" not in named:
        _refuse_other_alphabets(chosen, file)
    if "header" not in named and _starts_with_data(chosen, file, index):
        chosen = _with(chosen, header=False)
    return chosen


def _refuse_other_alphabets(layout: Csv, file: Path) -> None:
    """Raise UnclearTableError if the bytes are text only in a western European encoding, and give no words in it."""
    data = file.read_bytes()
    if layout.encoding not in ("cp1252", "latin-1") or not (words := find_strange_words(decode(data, layout.encoding))):
        return
    able = [name for name in ALPHABETS if _can_decode(data, name)]
    found = f"bytes that read {words[0]!r} in {layout.encoding}, what Windows writes in western Europe"
    lines = [f"`{_write_option(layout, encoding=name)}`" for name in able[:4] or ["cp1251"]]
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
        first = load_sheet(_with(layout, header=False), file, file.name).frame.row(0)
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


def _word(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _texts(frame: pl.DataFrame, name: str, most: int | None = None) -> list[str]:
    """The cells of a column that are not empty; at most about `most` of them, evenly spread."""
    column = frame[name]
    if column.dtype.is_nested() or column.dtype == pl.Binary:
        return []
    if most and frame.height > most:
        column = column.gather_every(-(-frame.height // most))
    return [text.strip() for text in column.cast(pl.String, strict=False).drop_nulls() if text.strip()]


def _find_image(sheet: Sheet, index: Index, layout: Table) -> str:
    """The column whose cells name pictures; if several do, the one with the best name. Raises DataError if unclear."""
    shares = {}
    for name in sheet.frame.columns:
        texts = _texts(sheet.frame, name, SAMPLE)
        hits = sum(bool(find_pictures(text, index)) for text in texts)
        if texts and hits >= 0.5 * len(texts):
            shares[name] = hits / len(texts)
    able = {name: share for name, share in shares.items() if not _word(name).startswith("mask")} or shares
    named = sorted(
        (name for name in able if _word(name) in IMAGE_WORDS), key=lambda name: IMAGE_WORDS.index(_word(name))
    )
    if named or len(able) == 1:
        return named[0] if named else next(iter(able))
    if not able:
        expected = "a column that names pictures of this folder"
        raise unclear_columns(sheet.frame, layout, expected, sheet.frame.columns, "image")
    raise unclear_columns(sheet.frame, layout, "one column that names the pictures", list(able), "image")


def _find_label(frame: pl.DataFrame, layout: Table) -> tuple[str | None, bool, bool]:
    """(column, one_hot, sure) of the labels; the column is None if columns of 0 and 1 are the classes.

    Raises UnclearTableError if several columns may be the label, or none.
    """
    taken = {layout.image, layout.mask, layout.boxes, *_box_columns(layout)}
    others = [name for name in frame.columns if name not in taken and _texts(frame, name, SAMPLE)]
    worded = sorted((name for name in others if _word(name) in LABEL_WORDS), key=lambda n: LABEL_WORDS.index(_word(n)))
    flags = [name for name in find_flags(frame, layout) if name not in taken]
    if worded and (len(worded) == 1 or _word(worded[0]) in LABEL_WORDS[:2] or _say_the_same(frame, worded)):
        return worded[0], False, True
    if len(worded) > 1 and not set(worded) <= set(flags):
        raise unclear_columns(frame, layout, "one column of labels", worded, "label")
    if len(flags) >= 2 and not layout.separator:
        return None, _is_one_hot(frame, flags, layout), True
    left = [name for name in others if _word(name) not in NO_LABELS and _may_be_label(frame[name])]
    if len(left) == 1:
        return left[0], False, False
    expected = "one column of labels" if left else "a column of labels"
    raise unclear_columns(frame, layout, expected, left or others or frame.columns, "label")


def _find_class(frame: pl.DataFrame, layout: Table) -> str | None:
    """The column that names the classes of boxes; None where there is none, because all boxes are of one class.

    Raises UnclearTableError if several columns may be it.
    """
    taken = {layout.image, layout.mask, layout.boxes, *_box_columns(layout)}
    others = [name for name in frame.columns if name not in taken and _texts(frame, name, SAMPLE)]
    able = sorted((name for name in others if _word(name) in LABEL_WORDS), key=lambda n: LABEL_WORDS.index(_word(n)))
    if len(able) == 1 or (able and (_word(able[0]) in LABEL_WORDS[:2] or _say_the_same(frame, able))):
        return able[0]
    words = [name for name in others if not _holds_numbers(frame, name)]
    if isinstance(layout, Csv) and not layout.header and len(words) == 1:
        return words[0]
    able = able or [name for name in words if _word(name) not in NO_LABELS and _may_be_label(frame[name])]
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
        hint=f"Where a picture has one label: `{_write_option(layout, one_hot=True)}`, which puts the other rows into "
        f"quarantine. Where it may show several or none: `{_write_option(layout, one_hot=False)}`. Remove columns that "
        "are not a class from the table.",
    )


def _refuse_joined(frame: pl.DataFrame, layout: Table) -> None:
    """Raise UnclearTableError if cells of the label column look like several joined labels."""
    values = set(_texts(frame, layout.label)) if layout.label in frame.columns and not layout.separator else set()
    for mark in "|;,":
        joined = [value for value in values if mark in value]
        known = [value for value in joined if {part.strip() for part in value.split(mark)} <= values]
        if known and 2 * len(known) >= len(joined):
            raise UnclearTableError(
                f"table {layout.table}, column {layout.label!r}",
                expected="one label per picture, or several with the mark that joins them",
                found=f"{min(known)!r}, and its parts as labels in other rows",
                hint=f"Where a picture may show several: `{_write_option(layout, separator=mark)}`. Where such a cell "
                f"is one label: `{_write_option(layout, label=layout.label)}`.",
            )


def _may_be_label(column: pl.Series) -> bool:
    """Whether a column has few different values, most of which occur more than once."""
    if column.dtype.is_nested() or column.dtype == pl.Binary:
        return False
    return 2 <= column.drop_nulls().n_unique() <= min(MOST_CLASSES, max(2, len(column) // 2))


def unclear_columns(frame: pl.DataFrame, layout: Table, expected: str, able: Sequence[str], option: str) -> DataError:
    """The error that names the possible columns and the `--layout` line to write."""
    found = f"the columns {', '.join(map(repr, able[:12]))}"
    hint = f"Name the right one: `{_write_option(layout, **{option: able[0]})}`."
    known = option != "image" or len(able) < len(frame.columns)
    kind = UnclearTableError if known else DataError
    return kind(f"table {layout.table}", expected=expected, found=found, hint=hint)


def _write_option(layout: Table, **options: Any) -> str:
    """The `--layout` line with these options and those that the layout already names."""
    named = {name: getattr(layout, name) for name in type(layout).model_fields if name in layout.model_fields_set}
    text = yaml.safe_dump({"kind": layout.kind} | named | options, default_flow_style=True, sort_keys=False, width=9999)
    text = text.strip() if '"' in text else text.strip().replace("'", '"')
    return f"--layout {shlex.quote(text)}"


# Crops


def _box_columns(layout: Table) -> tuple[str, ...]:
    return () if layout.crop is None else (layout.crop,) if isinstance(layout.crop, str) else layout.crop


def _find_crops(layout: Table, frame: pl.DataFrame, raw: Path, index: Index, *, boxes: bool = False) -> Table:
    """The layout with the columns that hold one box per row, if there are any.

    boxes: whether more names of columns are known, and a column of several boxes per cell will do. Raises
    UnclearTableError if there is none of these.
    """
    if "crop" in layout.model_fields_set or (boxes and (layout.boxes or layout.mask)):
        return layout
    words = {_word(name): name for name in reversed(frame.columns)}
    more = (MORE_CORNERS, MORE_SIZES) if boxes else ((), ())
    share = NEARLY if boxes else 1  # the reader quarantines a picture whose box is no number
    for form, sets in (("corners", CORNERS + more[0]), ("size", SIZES + more[1])):
        for four in sets:
            if set(four) <= words.keys() and all(_holds_numbers(frame, words[word], share) for word in four):
                _refuse_shares(frame, [words[word] for word in four], layout)
                return _with(layout, crop=tuple(words[word] for word in four), box_form=form)
    for name in (words[word] for word in BOX_WORDS if word in words):
        if name not in (layout.image, layout.label, layout.boxes):
            texts = enumerate(frame[name].cast(pl.String, strict=False))
            written = [(row, parse_numbers(text)) for row, text in texts if text]
            if written and all(len(numbers) == 4 for _, numbers in written):
                form = _find_box_form(_with(layout, crop=name), frame, written, raw, index)
                return _with(layout, crop=name, box_form=form)
    return _find_unnamed(layout, frame, raw, index) if boxes else layout


def _find_unnamed(layout: Table, frame: pl.DataFrame, raw: Path, index: Index) -> Table:
    """The layout with the only four columns of numbers, if columns have no names; else as `_find_lists`."""
    numbers = [name for name in frame.columns if name != layout.image and _holds_numbers(frame, name, NEARLY)]
    if not isinstance(layout, Csv) or layout.header or len(numbers) != 4:
        return _find_lists(layout, frame, raw, index)
    cells = enumerate(zip(*(frame[name] for name in numbers), strict=True))
    written = [(row, parse_numbers(" ".join(four))) for row, four in cells if all(four)]
    found = _with(layout, crop=tuple(numbers))
    whole = [(row, four) for row, four in written if len(four) == 4]
    return _with(found, box_form=_find_box_form(found, frame, whole, raw, index))


def _find_lists(layout: Table, frame: pl.DataFrame, raw: Path, index: Index) -> Table:
    """The layout with the column that holds several boxes per cell, or else masks. Raises UnclearTableError."""
    words = {_word(name): name for name in reversed(frame.columns)}
    for name in (words[word] for word in BOX_LISTS if word in words and words[word] != layout.image):
        cells = enumerate(frame[name].cast(pl.String, strict=False))
        written = [
            (row, parse_numbers(part)) for row, text in cells for part in (text or "").split(";") if part.strip(EMPTY)
        ]
        if written and all(len(numbers) == 4 for _, numbers in written):
            form = _find_box_form(_with(layout, boxes=name), frame, written, raw, index)
            return _with(layout, boxes=name, box_form=form)
    if (masked := complete_mask(layout, raw)).mask:
        return masked
    four = _write_option(layout, crop=["xmin", "ymin", "xmax", "ymax"])
    raise UnclearTableError(
        f"table {layout.table} for boxes",
        expected="four columns of corners (xmin, ymin, xmax, ymax) or of a size (x, y, width, height), or a column of "
        "boxes",
        found=f"the columns {', '.join(map(repr, frame.columns[:16]))}",
        hint=f"Name them: `{four}`, with `box_form: size` for x, y, width and height; or `boxes: COLUMN` for a column "
        "of `x0 y0 x1 y1; ...`.",
    )


def _refuse_shares(frame: pl.DataFrame, names: Sequence[str], layout: Table) -> None:
    """Raise UnclearTableError if the numbers of the boxes are shares: none above 1, and some between 0 and 1."""
    numbers = [number for name in names for text in _texts(frame, name) for number in parse_numbers(text)]
    if max(numbers) <= 1 and any(0 < number < 1 for number in numbers):
        where, found = f"table {layout.table}, columns {', '.join(names)}", "numbers from 0 to 1, shares of the picture"
        hint = "Multiply them by the width and height of their picture."
        raise UnclearTableError(where, expected="boxes in pixels", found=found, hint=hint)


def _holds_numbers(frame: pl.DataFrame, name: str, share: float = 1.0) -> bool:
    """Whether at least this share of the cells are numbers."""
    texts = _texts(frame, name, SAMPLE)
    return bool(texts) and sum(len(parse_numbers(text)) == 1 for text in texts) >= share * len(texts)


def parse_numbers(text: str | None) -> list[float]:
    """The numbers in `[1, 2.5, 3, 4]`, `(1 2 3 4)` or `1 2 3 4`; an empty list for any other text."""
    plain = re.sub(r"[\[\](),\s]+", " ", text or "").split()
    if all(re.fullmatch(r"-?(\d{1,9}(\.\d*)?|\.\d+)([eE]-\d{1,3})?", part) for part in plain):
        return [float(part) for part in plain]
    return []


def _find_box_form(
    layout: Table, frame: pl.DataFrame, boxes: Sequence[tuple[int, list[float]]], raw: Path, index: Index
) -> Literal["corners", "size"]:
    """Corners or size: the form in which boxes lie inside their pictures. Raises UnclearTableError if both fit."""
    name = layout.crop or layout.boxes
    if _word(str(name)) in ("crop", "boxes") or "box_form" in layout.model_fields_set:
        return layout.box_form
    corners = all(x1 > x0 and y1 > y0 for _, (x0, y0, x1, y1) in boxes)
    size = all(min(w, h) > 0 for _, (_, _, w, h) in boxes)
    for row, (a, b, c, d) in boxes[:: -(-len(boxes) // SAMPLE)]:
        found = find_pictures(str(frame[layout.image][row]), index)
        if len(found) == 1 and (limits := read_size(raw / found[0])):
            corners &= c <= limits[0] + 2 and d <= limits[1] + 2
            size &= a + c <= limits[0] + 2 and b + d <= limits[1] + 2
    if corners and size:
        both = f"column {name!r}, whose numbers may be corners (x0 y0 x1 y1) or a size (x y width height)"
        hint = f"Name the form: `{_write_option(layout, box_form='size')}`, or the same with `box_form: corners`."
        raise UnclearTableError(f"table {layout.table}", expected="boxes that have one meaning", found=both, hint=hint)
    return "size" if size else "corners"


def read_size(file: Path) -> tuple[int, int] | None:
    """Width and height in pixels, after EXIF rotation, from the file's header; None if it cannot be read."""
    try:
        with Image.open(file, formats=FORMATS) as opened:
            sideways = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return opened.size[::-1] if sideways else opened.size
    except (Image.DecompressionBombError, *UNDECODABLE):
        return None
