"""Tables to rows: csv and parquet, with one label or several per line, or the boxes of a picture in several lines."""

import posixpath
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from components.data.annotations.box_columns import EMPTY, list_box_columns
from components.data.annotations.cells import Sheet, load_sheet
from components.data.annotations.column_cells import find_pictures, is_outside, parse_numbers
from components.data.annotations.columns import FLAGS, find_flags, find_split_column
from components.data.annotations.guessing import refuse_layout
from components.data.annotations.mask_boxes import box_classes, box_regions
from components.data.annotations.masks import in_colour, name_values
from components.data.annotations.regions import paint_classes, paint_masks, read_mask, require_one_mask
from components.data.annotations.run_lengths import paint_runs
from components.data.annotations.table_boxes import BoxLine, place_lines
from components.data.annotations.tree import Index, require_inside, resolve_inside, walk_files
from components.data.manifest import Reading, Row, Wanted
from components.data.sources.images import Box, not_an_image
from components.data.sources.names import SUFFIXES
from components.domain.domain import Domain
from components.domain.layouts import Csv, Parquet
from components.errors import DataError
from components.records.fields import Corners
from components.records.maps import Regions
from components.records.reasons import Reason
from components.tasks import create_task

Record = dict[str, str | None]
ELSEWHERE = "paths from another place, found by their ends"
NO_OBJECT = Reason("a label or a box", "a line without either: a picture without any object", "Nothing needs doing.")
OBJECT = "object"  # the class of run lengths and boxes without a label
CSV_HINT = "; the separator must be a comma, or the `delimiter` that `layout` names."


@dataclass(frozen=True)
class _Lines:
    """What is needed to read a table's lines. classes: the columns of 0 and 1, if these hold the labels."""

    layout: Csv | Parquet
    index: Index
    wanted: Wanted
    classes: tuple[str, ...]
    split: str | None  # the column that names the split
    notes: Counter[str]


def read_table(layout: Csv | Parquet, raw: Path, wanted: Wanted) -> Reading:
    """One row per line of the table. A bare file name is looked up everywhere below the table's folder.

    With boxes wanted, one row per picture, with the boxes of all its lines. Pictures that no line lists, in folders of
    listed ones, are rows with a problem, or without annotation where regions or boxes are wanted.
    """
    _require_fit(layout, wanted)
    files = walk_files(raw)
    lines, records = _open_table(layout, raw, wanted, files)
    if wanted.boxed and (layout.crop or layout.boxes):
        return _place_boxes(lines, records, files, raw)
    read = [_read_line(lines, record, where) for record, where in records]
    if wanted.painting is not None and layout.runs:
        cells = [(record[layout.runs], where) for record, where in records]
        drawn, counts = paint_runs(read, cells, raw, wanted.painting)
        others = find_unlisted(files, drawn, "a line")
        return Reading(drawn + [Row(path=row.path) for row in others], notes={**lines.notes, **counts})
    rows = [row for row in read if row.problem != NO_OBJECT]
    empty = {row.path: str(NO_OBJECT) for row in read if row.problem == NO_OBJECT}
    if wanted.boxed or wanted.painting is not None:
        rows, counts = _read_masks(require_one_mask(rows), layout, raw, wanted)
        lines.notes.update(counts)
        read += [Row(path=row.mask, mask=row.path) for row in read if row.mask]  # masks must be listed, too
    unlisted = find_unlisted(files, read, f"a line in {layout.table} for every picture beside the listed ones")
    if wanted.boxed:
        unlisted = [Row(path=row.path) for row in unlisted]
    return Reading(
        rows + unlisted, {path: why for path, why in empty.items() if path in lines.index.files}, lines.notes
    )


def _read_masks(
    rows: list[Row], layout: Csv | Parquet, raw: Path, wanted: Wanted
) -> tuple[list[Row], Mapping[str, int]]:
    """Rows with a mask, as regions or objects, and counts for the notes."""
    if layout.ids:
        painted = paint_masks(rows, raw, _name_masks(layout, wanted))
        return box_regions(painted, "") if wanted.boxed else (painted, {})
    return box_classes(rows, raw) if wanted.boxed else paint_classes(rows, raw, wanted)


def _open_table(
    layout: Csv | Parquet, raw: Path, wanted: Wanted, files: Sequence[str]
) -> tuple[_Lines, list[tuple[Record, str]]]:
    """What is needed to read the lines of a table, and the lines with their places, for messages.

    Raises DataError if the table lacks a column.
    """
    table = resolve_inside(layout.table, "", "layout.table")
    sheet = _load(layout, raw, table)
    flags = layout.one_hot or (wanted.many and not layout.separator)
    classes = (_written_classes(wanted, sheet.frame) or find_flags(sheet.frame, layout)) if flags else ()
    unlabelled = layout.ids or _has_one_class(layout, sheet.frame, wanted)
    names = [layout.image, *(() if unlabelled else classes if flags else (layout.label,)), *wanted.columns]
    split = find_split_column(sheet.frame)
    names += [name for name in (split, layout.mask, layout.runs, layout.boxes, *list_box_columns(layout)) if name]
    if missing := [name for name in dict.fromkeys(names) if name not in sheet.frame.columns]:
        hint = "Name one of these columns in domain.yaml, or add it" + ("." if layout.kind == "parquet" else CSV_HINT)
        found = f"the columns {', '.join(repr(name[:80]) for name in sheet.frame.columns[:40])}"
        raise DataError(f"table {table}", expected=f"the columns {', '.join(missing)}", found=found, hint=hint)
    if "split" in sheet.frame.columns:  # needed by `split: given`
        wanted = replace(wanted, columns=tuple(dict.fromkeys((*wanted.columns, "split"))))
        names.append("split")
    notes = Counter(sheet.notes)
    if layout.one_hot:
        notes[f"lines of {table} whose columns of 0 and 1 are read as one label (one_hot)"] = len(sheet.lines)
    lines = _Lines(layout, Index(files, posixpath.dirname(table)), wanted, classes, split, notes)
    line = "line" if layout.kind == "csv" else "row"
    records = _as_text(sheet.frame, names, layout, table).to_dicts()
    return lines, [(record, f"{table}, {line} {n}") for n, record in zip(sheet.lines, records, strict=True)]


def _has_one_class(layout: Csv | Parquet, frame: pl.DataFrame, wanted: Wanted) -> bool:
    """Whether no column says the class of run lengths or boxes, and none is named that should."""
    unnamed = wanted.boxed and not {"label", "one_hot"} & layout.model_fields_set
    return layout.label not in frame.columns and (bool(layout.runs) or unnamed)


def _place_boxes(lines: _Lines, records: Sequence[tuple[Record, str]], files: list[str], raw: Path) -> Reading:
    """One row per picture with its objects."""
    read = [_read_boxes(lines, record, where) for record, where in records]
    rows, counts = place_lines(read, raw, lines.wanted)
    name = lines.layout.mask
    masks = {_resolve_cell(str(record[name]), lines, where)[0] for record, where in records if name and record[name]}
    unlisted = find_unlisted(files, rows + [Row(path=path) for path in masks], "a line")
    return Reading(rows + [Row(path=row.path) for row in unlisted], notes={**lines.notes, **counts})


def _read_boxes(lines: _Lines, record: Record, where: str) -> BoxLine:
    layout, wanted = lines.layout, lines.wanted
    path, problem = _resolve_cell(_require_cell(record, layout.image, where), lines, where)
    cells = [record[layout.boxes] if layout.boxes else None, _crop_text(layout, record)]
    read = [_parse_corners(cell, layout.box_form, where) for cell in cells]
    box_problem = read[0][1] or read[1][1]
    boxes = [box for found, _ in read for box in found] or ([] if box_problem else None)
    labels, label_problem = [OBJECT] if boxes else [], None
    if layout.one_hot:
        labels, label_problem = _read_labels(lines, record, where) if boxes else ([], None)
    elif layout.label in record:
        cell = record[layout.label] or ""
        parts = cell.split(layout.separator) if layout.separator else [cell]
        labels = [part.strip() for part in parts if part.strip()]
        if boxes and not labels:
            label_problem = Reason(f"a label of the box in {where}", "an empty cell", "Write it, or remove the line.")
    further = {name: record[name] for name in wanted.columns}
    columns = {"split": record[lines.split]} | further if lines.split else further
    problem = problem or box_problem or label_problem
    mask = record[layout.mask] if layout.mask else None  # beside boxes, it is only accounted for
    shown = _resolve_cell(mask, lines, where)[0] if mask else None
    return BoxLine(Row(path=path, mask=shown, columns=columns, problem=problem), labels, boxes, where)


def _require_fit(layout: Csv | Parquet, wanted: Wanted) -> None:
    """Raise DataError for options that name pixels where labels or boxes are wanted, or the other way round."""
    if wanted.boxed and not (layout.crop or layout.boxes or layout.mask):
        hint = "Name them: `crop: [xmin, ymin, xmax, ymax]`, `boxes: COLUMN` or `mask: COLUMN` in `layout`."
        expected, found = "columns of boxes, or of masks around which boxes are drawn", "no `crop`, `boxes` or `mask`"
        raise DataError(f"layout {layout.kind}", expected=expected, found=found, hint=hint)
    if wanted.painting is not None and (layout.crop or not (layout.mask or layout.runs)):
        found, hint = (
            "`crop`" if layout.crop else "no column `mask` or `runs`",
            "Correct the layout, or choose another task.",
        )
        raise DataError(f"layout {layout.kind}", expected="whole pictures with a `mask`", found=found, hint=hint)
    named = layout.ids and not (wanted.boxed and layout.mask)
    if wanted.painting is None and (pixels := "ids" if named else "runs" if layout.runs else None):
        hint = f"Remove `{pixels}` from the layout, or choose the task segmentation."
        expected = f"no `{pixels}`, which name pixels"
        raise DataError(f"layout {layout.kind}", expected=expected, found=f"`{pixels}`", hint=hint)


def _name_masks(layout: Csv | Parquet, wanted: Wanted) -> Callable[[Path, str], Regions | Reason]:
    background = wanted.painting.background if wanted.painting else None

    def name(raw: Path, mask: str) -> Regions | Reason:
        pixels = read_mask(raw, mask, colours=in_colour(layout))
        return pixels if isinstance(pixels, Reason) else name_values(pixels, mask, layout, background)

    return name


def looks_multilabel(layout: Csv | Parquet, raw: Path) -> bool:
    """Whether the table has several labels per row: columns of 0 and 1 without a label column, or joined labels."""
    frame = _load(layout, raw, resolve_inside(layout.table, "", "layout.table")).frame
    many = layout.label not in frame.columns and len(find_flags(frame, layout)) >= 2
    return not layout.one_hot and (bool(layout.separator) or many)


def list_further_columns(domain: Domain, raw: Path) -> list[str]:
    """Columns of a domain's table that the domain does not use; none where there is no table."""
    layout = domain.layout
    if not isinstance(layout, Csv | Parquet) or not (raw / layout.table).is_file():
        return []
    frame = _load(layout, raw, resolve_inside(layout.table, "", "layout.table")).frame
    flags = layout.one_hot or (create_task(domain).annotation == "labels" and not layout.separator)
    used = {
        layout.image,
        layout.mask,
        layout.runs,
        layout.boxes,
        *list_box_columns(layout),
        domain.group,
        *domain.slices,
    }
    used |= {*domain.classes, *domain.rename} if flags else {layout.label}
    return [name for name in frame.columns if name not in used and not frame.schema[name].is_nested()]


def _written_classes(wanted: Wanted, frame: pl.DataFrame) -> tuple[str, ...]:
    """The names of the columns of 0 and 1; a class to which others are renamed need not be a column itself."""
    joined = set(wanted.rename.values())
    own = [name for name in wanted.classes if name in frame.columns or name not in joined]
    return (*own, *(name for name in wanted.rename if name in frame.columns))


def find_unlisted(files: list[str], rows: list[Row], expected: str) -> list[Row]:
    """A row with a problem for every picture that no row names, in folders that contain named pictures."""
    named = {row.path for row in rows} | {row.mask for row in rows}
    folders = {posixpath.dirname(row.path) for row in rows}
    problem = Reason(expected, "none", "Add it, or take the picture out of the folder.")
    return [
        Row(path=path, problem=problem)
        for path in files
        if path.lower().endswith(SUFFIXES) and path not in named and posixpath.dirname(path) in folders
    ]


def resolve_picture(text: str, index: Index, where: str) -> tuple[str, Reason | None]:
    """The path, relative to raw/, of a picture that an annotation names, and what is wrong with it.

    Raises DataError for a name that leads out of raw/ or that several files have.
    """
    if is_outside(text) and (found := index.find_by_tail(text)):
        return _one_picture(text, found[0], found, index, where)
    path = resolve_inside(text, index.base, where)
    found = ([path] if path in index.files else index.find(text)) or _find_elsewhere(text, index)
    return _one_picture(text, path, [path for path in found if path.lower().endswith(SUFFIXES)] or found, index, where)


def _find_elsewhere(text: str, index: Index) -> list[str]:
    """Files below the index's folder whose path ends like `text`, a path from another folder or a link."""
    below = f"{index.base}/" if index.base else ""
    return (
        [path for path in index.find_by_tail(text) if path.startswith(below)] if "/" in text.replace("\\", "/") else []
    )


def _resolve_cell(text: str, lines: _Lines, where: str) -> tuple[str, Reason | None]:
    """As `resolve_picture`, for a table, which may have been written on another machine."""
    found = find_pictures(text, lines.index)
    if not found:
        return resolve_picture(text, lines.index, where)
    written = posixpath.normpath(text.replace("\\", "/"))
    if len(found) == 1 and "/" in written and not f"/{found[0]}".endswith(f"/{written.removeprefix('../')}"):
        lines.notes[ELSEWHERE] += 1
    return _one_picture(text, found[0], found, lines.index, where)


def _one_picture(text: str, path: str, found: list[str], index: Index, where: str) -> tuple[str, Reason | None]:
    if len(found) > 1:
        hint = "Write the path from the table's folder instead of the bare name."
        raise DataError(where, expected=f"one file {text!r}", found=", ".join(found[:4]), hint=hint)
    if found:
        return found[0], not_an_image(found[0])
    hint = "Add the image, or remove its line."
    return path, Reason(f"the listed image {text}", index.describe_missing(text), hint)


def parse_boxes(text: str | None, form: str = "corners") -> tuple[list[Box], Reason | None]:
    """Boxes of a cell in whole pixels, and what is wrong with the cell.

    text: `x0 y0 x1 y1; x0 y0 x1 y1`, or with the form `size`: `x y width height; ...`.
    """
    boxes, problem = _parse_corners(text, form)
    return [(round(x0), round(y0), round(x1), round(y1)) for x0, y0, x1, y1 in boxes], problem


def _parse_corners(text: str | None, form: str, where: str = "") -> tuple[list[Corners], Reason | None]:
    """Boxes of a cell as they are written, and what is wrong with the cell at this place of the table."""
    boxes: list[Corners] = []
    for part in (text or "").split(";"):
        numbers = parse_numbers(part)
        if len(numbers) == 4:
            x0, y0, x1, y1 = numbers
            boxes.append((x0, y0, x1, y1) if form == "corners" else _from_size(x0, y0, x1, y1))
        elif part.strip(EMPTY):
            hint = "Write pixels, several boxes joined by `;`."
            expected = "boxes as `x0 y0 x1 y1`" if form == "corners" else "boxes as `x y width height`"
            return [], Reason(expected, repr(part.strip()) + (f" in {where}" if where else ""), hint)
    return boxes, None


def _from_size(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x, y, x + width, y + height


def _load(layout: Csv | Parquet, raw: Path, table: str) -> Sheet:
    """Load the table; all values of a csv are text. Raises DataError if it is missing or cannot be read."""
    if not (raw / table).is_file():
        refuse_layout(raw, layout, f"the table {table}", "no such file")
    require_inside(raw, raw / table)
    return load_sheet(layout, raw / table, table)


def _as_text(frame: pl.DataFrame, names: list[str], layout: Csv | Parquet, table: str) -> pl.DataFrame:
    """The columns `names` as stripped text: an empty cell is None, a list is joined. Raises DataError for structs."""
    columns = []
    for name in dict.fromkeys(names):
        kind, column = frame.schema[name], pl.col(name)
        if isinstance(kind, pl.List) and isinstance(kind.inner, pl.List) and name in (layout.boxes, layout.crop):
            column = column.list.eval(pl.element().cast(pl.List(pl.String)).list.join(" ")).list.join(";")
        elif isinstance(kind, pl.List) and not kind.inner.is_nested():
            column = column.cast(pl.List(pl.String)).list.join(layout.separator or ";")
        elif kind.is_nested() or kind == pl.Binary:
            hint = "Save the column as text or numbers, or as lists of them, and the images as files."
            raise DataError(f"table {table}, column {name!r}", expected="plain values", found=str(kind), hint=hint)
        columns.append(column.cast(pl.String).str.strip_chars().replace("", None).alias(name))
    return frame.select(columns)


def _read_line(lines: _Lines, record: Record, where: str) -> Row:
    layout, wanted = lines.layout, lines.wanted
    image = _require_cell(record, layout.image, where)
    path, problem = _resolve_cell(image, lines, where)
    mask = record[layout.mask] if layout.mask else None
    boxes, box_problem = parse_boxes(record[layout.boxes] if layout.boxes else None, layout.box_form)
    crops, crop_problem = parse_boxes(_crop_text(layout, record), layout.box_form)
    if len(crops) > 1:
        crop_problem = Reason("one crop per row", f"{len(crops)}", "Write a row for each crop.")
    if not wanted.many and layout.crop and not layout.one_hot and not record[layout.label] and not crops:
        return Row(path=path, problem=problem or crop_problem or NO_OBJECT)
    if layout.runs and layout.label not in record:
        labels, label_problem = [OBJECT], None
    else:
        labels, label_problem = ([], None) if layout.ids else _read_labels(lines, record, where)
    further = {name: record[name] for name in wanted.columns}
    return Row(
        path=path,
        label=None if wanted.many or not labels else labels[0],
        labels=labels if wanted.many else None,
        mask=_resolve_cell(mask, lines, where)[0] if mask else None,
        boxes=boxes,
        crop=crops[0] if crops else None,
        columns={"split": record[lines.split]} | further if lines.split else further,
        problem=problem or box_problem or crop_problem or label_problem,
    )


def _crop_text(layout: Csv | Parquet, record: Record) -> str | None:
    cells = [record[name] for name in list_box_columns(layout)]
    return " ".join(cell or "?" for cell in cells) if any(cells) else None


def _read_labels(lines: _Lines, record: Record, where: str) -> tuple[list[str], Reason | None]:
    """The labels of a line (exactly one unless the task takes several), or why there are none.

    Raises DataError for a cell that holds neither 0 nor 1 in a column of 0 and 1.
    """
    layout, wanted = lines.layout, lines.wanted
    if not wanted.many and not layout.one_hot:
        return [_require_cell(record, layout.label, where)], None
    if layout.separator and wanted.many:
        parts = (record[layout.label] or "").split(layout.separator)
        return [part.strip() for part in parts if part.strip()], None
    labels = []
    for name in lines.classes:
        cell = _require_cell(record, name, where)
        flag = FLAGS.get(cell.lower())
        if flag is None:
            hint = "Write 1 where the picture shows the class; or name the `separator` that joins labels in one column."
            raise DataError(where, expected=f"0 or 1 in column {name!r}", found=repr(cell), hint=hint)
        labels += [name] if flag else []
    if wanted.many or len(labels) == 1:
        return labels, None
    found = f"{', '.join(labels) or 'none'} in {where}"
    hint = "Correct the line, or choose the task multilabel."
    return [], Reason("a 1 in exactly one column of the classes", found, hint)


def _require_cell(record: Record, name: str, where: str) -> str:
    if not (value := record[name]):
        hint = "Fill it in, or remove the line."
        raise DataError(where, expected=f"a value in column {name!r}", found="an empty cell", hint=hint)
    return value
