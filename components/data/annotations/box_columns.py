"""Which columns of a table hold boxes, and whether as corners or as a size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from components.data.annotations.column_cells import (
    NEARLY,
    SAMPLE,
    Table,
    UnclearTableError,
    complete_mask,
    find_pictures,
    holds_numbers,
    parse_numbers,
    read_size,
    read_texts,
    to_word,
    with_options,
    write_option,
)
from components.data.annotations.tree import Index
from components.domain.layouts import Csv

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


def list_box_columns(layout: Table) -> tuple[str, ...]:
    return () if layout.crop is None else (layout.crop,) if isinstance(layout.crop, str) else layout.crop


def find_crops(layout: Table, frame: pl.DataFrame, raw: Path, index: Index, *, boxes: bool = False) -> Table:
    """The layout with the columns that hold one box per row, if there are any.

    boxes: whether more names of columns are known, and a column of several boxes per cell will do. Raises
    UnclearTableError if there is none of these.
    """
    if "crop" in layout.model_fields_set or (boxes and (layout.boxes or layout.mask)):
        return layout
    words = {to_word(name): name for name in reversed(frame.columns)}
    more = (MORE_CORNERS, MORE_SIZES) if boxes else ((), ())
    share = NEARLY if boxes else 1  # the reader quarantines a picture whose box is no number
    for form, sets in (("corners", CORNERS + more[0]), ("size", SIZES + more[1])):
        for four in sets:
            if set(four) <= words.keys() and all(holds_numbers(frame, words[word], share) for word in four):
                _refuse_shares(frame, [words[word] for word in four], layout)
                return with_options(layout, crop=tuple(words[word] for word in four), box_form=form)
    for name in (words[word] for word in BOX_WORDS if word in words):
        if name not in (layout.image, layout.label, layout.boxes):
            texts = enumerate(frame[name].cast(pl.String, strict=False))
            written = [(row, parse_numbers(text)) for row, text in texts if text]
            if written and all(len(numbers) == 4 for _, numbers in written):
                form = _find_box_form(with_options(layout, crop=name), frame, written, raw, index)
                return with_options(layout, crop=name, box_form=form)
    return _find_unnamed(layout, frame, raw, index) if boxes else layout


def _find_unnamed(layout: Table, frame: pl.DataFrame, raw: Path, index: Index) -> Table:
    """The layout with the only four columns of numbers, if columns have no names; else as `_find_lists`."""
    numbers = [name for name in frame.columns if name != layout.image and holds_numbers(frame, name, NEARLY)]
    if not isinstance(layout, Csv) or layout.header or len(numbers) != 4:
        return _find_lists(layout, frame, raw, index)
    cells = enumerate(zip(*(frame[name] for name in numbers), strict=True))
    written = [(row, parse_numbers(" ".join(four))) for row, four in cells if all(four)]
    found = with_options(layout, crop=tuple(numbers))
    whole = [(row, four) for row, four in written if len(four) == 4]
    return with_options(found, box_form=_find_box_form(found, frame, whole, raw, index))


def _find_lists(layout: Table, frame: pl.DataFrame, raw: Path, index: Index) -> Table:
    """The layout with the column that holds several boxes per cell, or else masks. Raises UnclearTableError."""
    words = {to_word(name): name for name in reversed(frame.columns)}
    for name in (words[word] for word in BOX_LISTS if word in words and words[word] != layout.image):
        cells = enumerate(frame[name].cast(pl.String, strict=False))
        written = [
            (row, parse_numbers(part)) for row, text in cells for part in (text or "").split(";") if part.strip(EMPTY)
        ]
        if written and all(len(numbers) == 4 for _, numbers in written):
            form = _find_box_form(with_options(layout, boxes=name), frame, written, raw, index)
            return with_options(layout, boxes=name, box_form=form)
    if (masked := complete_mask(layout, raw)).mask:
        return masked
    four = write_option(layout, crop=["xmin", "ymin", "xmax", "ymax"])
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
    numbers = [number for name in names for text in read_texts(frame, name) for number in parse_numbers(text)]
    if max(numbers) <= 1 and any(0 < number < 1 for number in numbers):
        where, found = f"table {layout.table}, columns {', '.join(names)}", "numbers from 0 to 1, shares of the picture"
        hint = "Multiply them by the width and height of their picture."
        raise UnclearTableError(where, expected="boxes in pixels", found=found, hint=hint)


def _find_box_form(
    layout: Table, frame: pl.DataFrame, boxes: Sequence[tuple[int, list[float]]], raw: Path, index: Index
) -> Literal["corners", "size"]:
    """Corners or size: the form in which boxes lie inside their pictures. Raises UnclearTableError if both fit."""
    name = layout.crop or layout.boxes
    if to_word(str(name)) in ("crop", "boxes") or "box_form" in layout.model_fields_set:
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
        hint = f"Name the form: `{write_option(layout, box_form='size')}`, or the same with `box_form: corners`."
        raise UnclearTableError(f"table {layout.table}", expected="boxes that have one meaning", found=both, hint=hint)
    return "size" if size else "corners"
