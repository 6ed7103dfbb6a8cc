"""COCO: each annotation's box becomes one crop of its picture; for multilabel, each picture gets all its categories.

Where regions are wanted, the polygons and run-length masks of a picture's annotations are painted into its class map;
where boxes are wanted, its annotations become the labelled boxes of one row.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

from components.data.annotations.boxes import is_number
from components.data.annotations.coco_files import (
    DIFFICULT,
    IMAGE_KEYS,
    KNOWN,
    CocoFile,
    Entry,
    as_text,
    find_columns,
    find_files,
    find_mask_of,
    identify,
    is_crowd,
    is_marked,
    load_coco,
    name_unread,
    open_file,
)
from components.data.annotations.coco_shapes import read_segmentation
from components.data.annotations.guessing import refuse_layout, require_folder
from components.data.annotations.objects import BoxMark, place_boxes
from components.data.annotations.painting import Drawn, paint_all, paint_row
from components.data.annotations.tables import find_unlisted, parse_boxes
from components.data.annotations.tree import (
    Index,
    walk_files,
)
from components.data.manifest import Reading, Row, Wanted
from components.data.sources.images import Box
from components.data.sources.names import SUFFIXES
from components.domain.domain import Domain
from components.domain.layouts import Coco
from components.records.boxes import Kind
from components.records.fields import Corners
from components.records.maps import Painting
from components.records.objects import read_counts, read_rle_size
from components.records.reasons import Reason

CROWDS = "crowd annotations (iscrowd: 1) left out"
CROWDS_IGNORED = "crowd regions (iscrowd: 1), whose pixels are ignored"
EMPTY = "listed without any object to cut out"
EXTENTS = "annotations without a bbox, whose box is the extent of their segmentation"


def read_coco(layout: Coco, raw: Path, wanted: Wanted) -> Reading:
    """One row per annotation, cropped by its box; for multilabel, one row per picture with all its labels.

    With regions or boxes wanted, one row per picture, with what all files annotate in it, in their order.

    Raises DataError for a file that is not COCO, or whose ids contradict one another.
    """
    images = require_folder(raw, layout.images, layout)
    pictures = [path for path in walk_files(raw, images) if path.lower().endswith(SUFFIXES)]
    if not pictures:
        refuse_layout(raw, layout, f"images in {layout.images!r}", "none")
    index, rows, listed, notes = Index(walk_files(raw), images), list[Row](), list[Row](), Counter[str]()
    wanted = replace(wanted, columns=tuple(dict.fromkeys((*wanted.columns, "split"))))  # needed by `split: given`
    expected = f"an entry in `images` of {layout.annotations} for every picture beside the listed ones"
    if wanted.painting is not None or wanted.boxed:
        rows, listed = _read_pictures(find_files(layout, raw), raw, index, wanted, notes)
        unlisted = [replace(row, problem=None) for row in find_unlisted(pictures, listed, expected)]
        return Reading(rows + unlisted, notes=dict(+notes))
    for path, parts in find_files(layout, raw).items():
        found, entries = _coco_rows(path, raw, index, wanted, notes)
        rows += [replace(row, columns={**row.columns, **parts}) for row in found]
        listed += entries
    used = {row.path for row in rows}
    ignored = {} if wanted.many else {row.path: EMPTY for row in listed if row.path not in used}
    return Reading(rows + find_unlisted(pictures, rows + listed, expected), ignored, dict(+notes))


def read_coco_file(file: Path, index: Index) -> Reading:
    """The boxes of one file anywhere on disk, in pictures of the index; a picture without boxes gives a row without."""
    notes = Counter[str]()
    rows, listed = _coco_rows(file.name, file.parent, index, Wanted(), notes)
    named = {row.path for row in rows}
    return Reading(rows + [row for row in listed if row.path not in named], notes=dict(+notes))


def _coco_rows(path: str, raw: Path, index: Index, wanted: Wanted, notes: Counter[str]) -> tuple[list[Row], list[Row]]:
    """The rows of one file, and one row for every picture that it lists, with or without annotations."""
    file, annotations = open_file(path, raw, index, wanted, notes)
    numbered = [(number, entry) for number, entry in annotations if not is_crowd(entry)]
    notes[CROWDS] += len(annotations) - len(numbered)
    rows = [_coco_row(file, annotation, number) for number, annotation in numbered]
    notes.update(note for _, annotation in numbered for note in name_unread(annotation, wanted))
    listed = list(file.pictures.values())
    return (_join_labels(listed, rows), listed) if wanted.many else (rows + [r for r in listed if r.problem], listed)


def _coco_row(file: CocoFile, annotation: Entry, number: int) -> Row:
    """The row of one annotation. A fault becomes the row's problem, with the picture's path if that is known."""
    where, many = f"{file.path}, annotations[{number}]", file.wanted.annotation != "label"
    picture = file.pictures.get(identify(annotation["image_id"]))
    label = file.names.get(identify(annotation["category_id"]))
    if picture is None or not label:
        key = "image_id" if picture is None else "category_id"
        missing = f"{key} {annotation[key]!r}"
        problem = Reason(f"an id that the file declares in {where}", missing, "Export the annotations again.")
        return Row(path=picture.path if picture else file.path, problem=problem)
    whole = annotation.get("whole") is True or many
    box = None if whole else _coco_box(annotation)
    boxes, box_problem = parse_boxes(as_text(annotation.get("boxes")))
    if box is None and not whole:
        box_problem = _without_box(annotation, where)
    return Row(
        path=picture.path,
        label=None if many else label,
        labels=[label] if many else None,
        mask=find_mask_of(annotation, where) or picture.mask,
        boxes=boxes or picture.boxes,
        crop=box,
        stated_size=picture.stated_size,
        columns=find_columns(annotation, file.wanted, picture.columns),
        problem=picture.problem or box_problem,
    )


def _coco_box(annotation: Entry) -> Box | None:
    """The box in whole pixels, ends exclusive; None if it has none that is valid."""
    if annotation.get("bbox"):
        box = _read_bbox(annotation)
        return None if box is None else (round(box[0]), round(box[1]), round(box[2]), round(box[3]))
    extent = _find_extent(annotation.get("segmentation"))
    return extent and (math.floor(extent[0]), math.floor(extent[1]), math.ceil(extent[2]), math.ceil(extent[3]))


def _read_box(annotation: Entry) -> Corners | None:
    """The box as it is written, or the extent of the segmentation if there is no bbox; None if neither is valid."""
    return _read_bbox(annotation) if annotation.get("bbox") else _find_extent(annotation.get("segmentation"))


def _read_bbox(annotation: Entry) -> Corners | None:
    bbox = annotation.get("bbox")
    if isinstance(bbox, list) and len(bbox) == 4 and all(is_number(value) for value in bbox):
        x, y, width, height = map(float, bbox)
        return x, y, x + width, y + height
    return None


def _find_extent(segmentation: object) -> Corners | None:
    """The box around all parts of a segmentation; None if it is none."""
    if isinstance(segmentation, list) and segmentation:
        points = [value for polygon in segmentation if isinstance(polygon, list) for value in polygon]
        if len(points) >= 6 and len(points) % 2 == 0 and all(is_number(value) for value in points):
            xs, ys = [float(x) for x in points[::2]], [float(y) for y in points[1::2]]
            return min(xs), min(ys), max(xs), max(ys)
    return _run_box(segmentation) if isinstance(segmentation, dict) else None


def _run_box(rle: Entry) -> Box | None:
    """The extent of a run-length mask; None if it is empty or invalid."""
    try:
        (height, _), ends = read_rle_size(rle), list(accumulate(read_counts(rle).tolist()))
    except ValueError:
        return None
    runs = [(start, end) for start, end in zip(ends[::2], ends[1::2], strict=False) if end > start]
    if not runs:
        return None
    tall = any(start // height != (end - 1) // height for start, end in runs)
    top = 0 if tall else min(start % height for start, _ in runs)
    bottom = height if tall else max((end - 1) % height for _, end in runs) + 1
    return runs[0][0] // height, top, (runs[-1][1] - 1) // height + 1, bottom


@dataclass
class _Picture:
    """What all files say of one picture. annotated: whether a file says that it is, even where it shows nothing.

    marks: each annotation, its class, and its place.
    """

    row: Row
    source: str
    marks: list[tuple[Entry, str, str]] = field(default_factory=list)
    annotated: bool = False


def _read_pictures(
    files: Mapping[str, Mapping[str, str]], raw: Path, index: Index, wanted: Wanted, notes: Counter[str]
) -> tuple[list[Row], list[Row]]:
    """One row per listed picture, and one per annotation of no picture; and the rows of the listed pictures."""
    found: dict[str, _Picture] = {}
    strays = [row for path, parts in files.items() for row in _gather(path, parts, raw, index, wanted, notes, found)]
    drawn, counts = _paint(found, raw, wanted.painting) if wanted.painting else _place(found, raw, wanted)
    notes.update(counts)
    return drawn + strays, [picture.row for picture in found.values()]


def _place(found: Mapping[str, _Picture], raw: Path, wanted: Wanted) -> tuple[list[Row], Mapping[str, int]]:
    """The rows of the pictures with their objects, and counts for the notes."""
    rows, notes = list[Row](), Counter[str]()
    for picture in found.values():
        row, counts = _place_picture(picture, raw, wanted)
        rows.append(row)
        notes.update(counts)
    return rows, notes


def _place_picture(picture: _Picture, raw: Path, wanted: Wanted) -> tuple[Row, Mapping[str, int]]:
    marks, row = list[BoxMark](), replace(picture.row, boxes=())
    for annotation, label, where in picture.marks:
        box = _read_box(annotation)
        if box is None:
            return replace(row, problem=row.problem or _without_box(annotation, where)), {}
        marks.append(BoxMark(label, box, where, _kind_of(annotation)))
    row, notes = place_boxes(row, marks, raw, wanted)
    extents = sum(not annotation.get("bbox") for annotation, _, _ in picture.marks)
    return row, Counter(notes) + Counter({EXTENTS: 0 if row.problem else extents})


def _kind_of(annotation: Entry) -> Kind:
    if is_crowd(annotation):
        return "crowd"
    return "difficult" if any(is_marked(annotation, mark) for mark in DIFFICULT) else "object"


def _without_box(annotation: Entry, where: str) -> Reason:
    found = repr(annotation.get("bbox"))[:80]
    return Reason(f"a bbox [x, y, width, height] in {where}", found, "Correct or remove the annotation.")


def _paint(found: Mapping[str, _Picture], raw: Path, painting: Painting) -> tuple[list[Row], Mapping[str, int]]:
    """The rows of the pictures with their regions, and counts for the notes."""

    def draw(path: str) -> Drawn:
        picture = found[path]
        if picture.row.problem or not (picture.marks or picture.annotated):
            return picture.row, {}
        marks = [(entry, None if is_crowd(entry) else label, where) for entry, label, where in picture.marks]
        first = sorted(marks, key=lambda mark: mark[1] is not None)  # what is to be ignored lies below
        return paint_row(
            picture.row, lambda size: [read_segmentation(*mark, size) for mark in first], raw, painting, picture.source
        )

    rows, counts = paint_all(draw, list(found))
    return rows, counts


def _gather(
    path: str,
    parts: Mapping[str, str],
    raw: Path,
    index: Index,
    wanted: Wanted,
    notes: Counter[str],
    found: dict[str, _Picture],
) -> list[Row]:
    """Add what one file says of its pictures to `found`; the rows of annotations that belong to no picture."""
    file, annotations = open_file(path, raw, index, wanted, notes)
    strays = []
    for row in file.pictures.values():
        whole = replace(row, mask=None, columns={**row.columns, **parts})
        picture = found.setdefault(row.path, _Picture(whole, path))
        picture.annotated |= row.path in file.annotated
        picture.row = replace(picture.row, problem=picture.row.problem or row.problem)
    for number, annotation in annotations:
        row = _coco_row(file, annotation, number)
        picture_of = found.get(row.path)
        if picture_of is None:
            strays.append(row)
            continue
        above = picture_of.row
        columns = {name: above.columns.get(name) or value for name, value in row.columns.items()} | dict(parts)
        picture_of.row = replace(above, columns={**above.columns, **columns}, problem=above.problem or row.problem)
        notes[CROWDS_IGNORED] += is_crowd(annotation) and not wanted.boxed
        if row.labels:
            picture_of.marks.append((annotation, row.labels[0], f"{path}, annotations[{number}]"))
    notes.update(note for _, annotation in annotations for note in name_unread(annotation, wanted))
    return strays


def _join_labels(pictures: Iterable[Row], rows: Iterable[Row]) -> list[Row]:
    """One row per picture with the labels of all its annotations; an annotation with a problem keeps its own row."""
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
            columns={name: above.columns.get(name) or row.columns[name] for name in row.columns},
            problem=above.problem or row.problem,
        )
    return [*joined.values(), *broken]


def list_further_keys(domain: Domain, raw: Path) -> list[str]:
    """Keys of images and annotations that a COCO domain does not use and that hold plain values."""
    if not isinstance(domain.layout, Coco) or domain.layout.parts or not (raw / domain.layout.annotations).exists():
        return []
    used = KNOWN | IMAGE_KEYS | {domain.group, *domain.slices}
    keys = dict[str, None]()
    for path in find_files(domain.layout, raw):
        content = load_coco(raw / path, path, Counter())
        for entry in (*content["images"], *content["annotations"]):
            keys |= {key: None for key, value in entry.items() if key not in used and as_text(value) is not None}
    return list(keys)
