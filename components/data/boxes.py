"""Annotated boxes to rows: Pascal VOC and COCO. Each box becomes one crop of its picture."""

import json
import math
import posixpath
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from components.data.guessing import refuse_layout, require_folder
from components.data.images import SUFFIXES, Box, brief, reason
from components.data.manifest import Reading, Row, Wanted
from components.data.tables import find_unlisted, parse_boxes, resolve_picture
from components.data.tree import Index, require_inside, resolve_inside, walk_files
from components.domain import Coco, Voc
from components.errors import DataError

Entry = Mapping[str, Any]  # one object of a COCO file


# Pascal VOC


def read_voc(layout: Voc, raw: Path, _wanted: Wanted) -> Reading:
    """A row an annotated object, cut out by its box. A picture annotated as empty gives no row."""
    images, annotations = require_folder(raw, layout.images, layout), require_folder(raw, layout.annotations, layout)
    pictures = [path for path in walk_files(raw, images) if path.lower().endswith(SUFFIXES)]
    files = [path for path in walk_files(raw, annotations) if path.lower().endswith(".xml")]
    if not pictures or not files:
        refuse_layout(raw, layout, f"images in {layout.images!r} and .xml files in {layout.annotations!r}", "none")
    index, rows, seen = Index(pictures, images), list[Row](), set[str]()
    for path in files:
        found = _voc_rows(path, raw, index)
        seen.update(row.path for row in found)
        seen.update(index.find(posixpath.splitext(posixpath.basename(path))[0]))
        rows += found
    mend = "Add its annotation file, or remove the picture."
    problem = reason("an annotation file of the same name", "none", mend)
    return Reading(rows + [Row(path=path, problem=problem) for path in pictures if path not in seen])


def _voc_rows(path: str, raw: Path, index: Index) -> list[Row]:
    """The objects of one annotation file; one row with a problem when it cannot be read."""
    stem = posixpath.splitext(posixpath.basename(path))[0]
    try:
        root = _parse_xml((raw / path).read_bytes())
        named = (root.findtext("filename") or "").strip()
        found = index.find(named) or index.find(stem)
        if len(found) != 1:
            files = ", ".join(found[:4]) or index.describe_missing(named or stem)
            problem = reason(f"one picture {named or stem!r}", files, "Correct <filename>, or add the picture.")
            return [Row(path=path, problem=problem)]
        size = _parse_size(root)
        objects = [_parse_object(element, number) for number, element in enumerate(root.iter("object"), 1)]
        return [Row(path=found[0], label=label, crop=crop, stated_size=size) for label, crop in objects]
    except (ElementTree.ParseError, ValueError, OverflowError, OSError) as error:
        mend = "Export the annotation again."
        picture = next(iter(index.find(stem)), path)
        return [Row(path=picture, problem=reason(f"a Pascal VOC annotation {path}", brief(error), mend))]


def _parse_xml(data: bytes) -> ElementTree.Element:
    if b"\0" in data:  # would hide what is looked for next
        raise ValueError("UTF-16 text or binary data instead of UTF-8")
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # nothing VOC needs, and how small files blow up
        raise ValueError("a document type or entity declaration")
    return ElementTree.fromstring(data)


def _parse_size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Width and height where the file states them; some tools write 0."""
    texts = [root.findtext(f"size/{key}") for key in ("width", "height")]
    width, height = (int(text) if text and text.strip().isdecimal() else 0 for text in texts)
    return (width, height) if 0 < width < 10**6 and 0 < height < 10**6 else None


def _parse_object(element: ElementTree.Element, number: int) -> tuple[str, Box]:
    """Name and box; VOC counts pixels from 1 and includes the last, though some tools start at 0."""
    label, box = (element.findtext("name") or "").strip(), element.find("bndbox")
    if not label or box is None:
        raise ValueError(f"an object (number {number}) without a name or a bndbox")
    corners = {key: box.findtext(key) for key in ("xmin", "ymin", "xmax", "ymax")}
    for key, text in corners.items():
        if text is None:
            raise ValueError(f"a bndbox without {key} (object {number})")
        if not _is_number(text):
            raise ValueError(f"{key} {text.strip()[:40]!r} (object {number})")
    x0, y0, x1, y1 = (round(float(text or "")) for text in corners.values())
    return label, (x0 - (x0 > 0), y0 - (y0 > 0), x1, y1)


def _is_number(value: object) -> bool:
    """A finite number that fits a column of pixels, or its text."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(value)) and abs(float(value)) < 1e9  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False


# COCO


def read_coco(layout: Coco, raw: Path, wanted: Wanted) -> Reading:
    """A row an annotation, cut out by its box, or, where all labels are wanted, a row a picture."""
    images = require_folder(raw, layout.images, layout)
    pictures = [path for path in walk_files(raw, images) if path.lower().endswith(SUFFIXES)]
    if not pictures:
        refuse_layout(raw, layout, f"images in {layout.images!r}", "none")
    index, rows, listed = Index(walk_files(raw), images), list[Row](), list[Row]()
    for path in _annotation_files(layout, raw):
        found, entries = _coco_rows(path, raw, index, wanted)
        rows, listed = rows + found, listed + entries
    expected = f"an entry in `images` of {layout.annotations} for every picture beside the listed ones"
    return Reading(rows + find_unlisted(pictures, rows + listed, expected))


def _annotation_files(layout: Coco, raw: Path) -> list[str]:
    named = resolve_inside(layout.annotations, "", f"layout {layout.kind}")
    if (raw / named).is_dir():
        if found := [path for path in walk_files(raw, named) if path.lower().endswith(".json")]:
            return found
        refuse_layout(raw, layout, f".json files in {layout.annotations!r}", "none")
    if not (raw / named).is_file():
        refuse_layout(raw, layout, f"the annotations {layout.annotations!r}", "no such file")
    require_inside(raw, raw / named)
    return [named]


def _coco_rows(path: str, raw: Path, index: Index, wanted: Wanted) -> tuple[list[Row], list[Row]]:
    """Rows of one file, and a row for every picture it lists, with or without annotations."""
    content = _load_coco(raw / path, path)
    names = {entry.get("id"): str(entry.get("name") or "").strip() for entry in content["categories"]}
    pictures: dict[Any, Row] = {}
    for number, entry in enumerate(content["images"]):
        where = f"{path}, images[{number}]"
        if not isinstance(name := entry.get("file_name"), str) or not name:
            mend = "Export the file again."
            raise DataError(where, expected="an id and a file_name", found=repr(dict(entry))[:100], mend=mend)
        picture, problem = resolve_picture(name, index, where)
        pictures[entry.get("id")] = Row(
            path=picture,
            labels=[] if wanted.many else None,
            mask=_coco_mask(entry, where),
            boxes=parse_boxes(_text(entry.get("boxes")))[0],
            stated_size=_coco_size(entry),
            columns={column: _text(entry.get(column)) for column in wanted.columns},
            problem=problem,
        )
    rows = [
        _coco_row(annotation, number, path, pictures, names, wanted, index)
        for number, annotation in enumerate(content["annotations"])
        if annotation.get("iscrowd") != 1
    ]
    listed = list(pictures.values())
    return (_join_labels(listed, rows), listed) if wanted.many else (rows + [r for r in listed if r.problem], listed)


def _load_coco(file: Path, path: str) -> dict[str, list[Entry]]:
    """The three lists of a COCO file. Ids must be plain, because they are looked up."""
    expected, mend = "a COCO file with the lists images, annotations and categories", "Export the file again."
    try:
        data = file.read_bytes()
        content = json.loads(data)
        if re.search(rb"\\u[dD][89abAB]", data):  # halves of a sign, which no table can hold
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DataError(path, expected=expected, found=f"no legal JSON: {brief(error)}", mend=mend) from None
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DataError(path, expected=expected, found=f"no list {key!r}", mend=mend)
        ids = ("image_id", "category_id") if key == "annotations" else ("id",)
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or not all(isinstance(entry.get(name), int | str) for name in ids):
                found = repr(entry)[:100]
                wanted = f"an entry with {' and '.join(ids)}"
                raise DataError(f"{path}, {key}[{number}]", expected=wanted, found=found, mend=mend)
    return content  # type: ignore[no-any-return]


def _coco_row(
    annotation: Entry,
    number: int,
    path: str,
    pictures: Mapping[Any, Row],
    names: Mapping[Any, str],
    wanted: Wanted,
    index: Index,
) -> Row:
    """One annotation; what is wrong with it becomes the row's problem, at its picture where that is known."""
    where = f"{path}, annotations[{number}]"
    picture = pictures.get(annotation["image_id"])
    label = names.get(annotation["category_id"])
    if picture is None or not label:
        key = "image_id" if picture is None else "category_id"
        missing = f"{key} {annotation[key]!r}"
        problem = reason(f"an id that the file declares in {where}", missing, "Export the annotations again.")
        return Row(path=picture.path if picture else path, problem=problem)
    box = None if annotation.get("whole") is True or wanted.many else _coco_box(annotation)
    boxes, box_problem = parse_boxes(_text(annotation.get("boxes")))
    if box is None and not (annotation.get("whole") is True or wanted.many):
        found = repr(annotation.get("bbox"))[:80]
        box_problem = reason(f"a bbox [x, y, width, height] in {where}", found, "Correct or remove the annotation.")
    return Row(
        path=picture.path,
        label=None if wanted.many else label,
        labels=[label] if wanted.many else None,
        mask=_coco_mask(annotation, where) or picture.mask,
        boxes=boxes or picture.boxes,
        crop=box,
        stated_size=picture.stated_size,
        columns={name: _text(annotation.get(name)) or picture.columns[name] for name in wanted.columns},
        problem=picture.problem or box_problem,
    )


def _coco_box(annotation: Entry) -> Box | None:
    """The box in whole pixels, ends exclusive; from the polygons where there is no box; None where neither will do."""
    bbox, polygons = annotation.get("bbox"), annotation.get("segmentation")
    if isinstance(bbox, list) and len(bbox) == 4 and all(_is_number(value) for value in bbox):
        x, y, width, height = map(float, bbox)
        return round(x), round(y), round(x + width), round(y + height)
    if bbox is None and isinstance(polygons, list) and polygons:
        points = [value for polygon in polygons if isinstance(polygon, list) for value in polygon]
        if len(points) >= 6 and len(points) % 2 == 0 and all(_is_number(value) for value in points):
            xs, ys = [float(x) for x in points[::2]], [float(y) for y in points[1::2]]
            return math.floor(min(xs)), math.floor(min(ys)), math.ceil(max(xs)), math.ceil(max(ys))
    return None


def _coco_mask(entry: Entry, where: str) -> str | None:
    mask = _text(entry.get("mask"))
    return resolve_inside(mask, "", where) if mask else None


def _coco_size(entry: Entry) -> tuple[int, int] | None:
    width, height = entry.get("width"), entry.get("height")
    stated = all(isinstance(side, int) and 0 < side < 10**6 for side in (width, height))
    return (int(width), int(height)) if stated else None  # type: ignore[arg-type]


def _join_labels(pictures: Iterable[Row], rows: Iterable[Row]) -> list[Row]:
    """One row a picture, with the labels of all its annotations; what cannot be read stays a row of its own."""
    joined = {row.path: row for row in pictures}
    broken = []
    for row in rows:
        if row.labels is None or row.path not in joined:
            broken.append(row)
            continue
        above = joined[row.path]
        joined[row.path] = Row(
            path=row.path,
            labels=[*(above.labels or ()), *row.labels],
            mask=above.mask or row.mask,
            boxes=above.boxes or row.boxes,
            stated_size=row.stated_size,
            columns={name: above.columns[name] or row.columns[name] for name in row.columns},
            problem=above.problem or row.problem,
        )
    return [*joined.values(), *broken]


def _text(value: object) -> str | None:
    """A further key as text; what is no plain value counts as missing."""
    return str(value).strip() or None if isinstance(value, str | int | float) and not isinstance(value, bool) else None
