"""Pascal VOC: each annotated object becomes one crop of its picture, or all of them the boxes of one row."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from components.data.annotations.boxes import is_number
from components.data.annotations.guessing import refuse_layout, require_folder
from components.data.annotations.objects import BoxMark, place_boxes
from components.data.annotations.pairing import choose_picture, claimed_twice, find_beside, find_named
from components.data.annotations.tree import Index, walk_files
from components.data.manifest import Reading, Row, Wanted
from components.data.sources.images import Box, brief
from components.data.sources.names import SUFFIXES
from components.domain.layouts import Voc
from components.records.fields import Corners
from components.records.reasons import Reason

NAME = "<filename>"
EMPTY = "annotated as a picture without any object"
BY_STEM = "annotation files whose <filename> names no picture, taken by their own name"
DIFFICULT = "difficult"
FLAGS = (DIFFICULT, "truncated", "occluded")
DETAILS = {"polygon": "polygons", "part": "parts of objects", "attributes": "attributes", "keypoints": "keypoints"}


@dataclass(frozen=True)
class _File:
    """One annotation file: its picture, and every object with whether it is marked difficult."""

    picture: str
    size: tuple[int, int] | None
    objects: list[tuple[str, Corners, bool]]


def read_voc(layout: Voc, raw: Path, wanted: Wanted) -> Reading:
    """One row per annotated object, cropped by its box. A picture annotated as empty gives no row and is ignored.

    With boxes wanted, one row per picture with all its objects.

    The picture of an annotation file is the one that `<filename>` names, or the one with the file's stem; `<folder>`
    and `<path>` are never used.
    """
    images, annotations = require_folder(raw, layout.images, layout), require_folder(raw, layout.annotations, layout)
    pictures = [path for path in walk_files(raw, images) if path.lower().endswith(SUFFIXES)]
    files = [path for path in walk_files(raw, annotations) if path.lower().endswith(".xml")]
    if not pictures or not files:
        refuse_layout(raw, layout, f"images in {layout.images!r} and .xml files in {layout.annotations!r}", "none")
    index, notes = Index(pictures, images), Counter[str]()
    read = {path: _voc_rows(path, raw, index, annotations, wanted, notes) for path in files}
    claims: dict[str, list[str]] = {}
    for path, (picture, _) in read.items():
        claims.setdefault(picture or path, []).append(path)
    rows, ignored, seen = list[Row](), dict[str, str](), set[str]()
    for path, (picture, found) in read.items():
        seen |= {row.path for row in found} | set(find_beside(path, annotations, index))
        if picture and (same := claims[picture])[1:]:
            rows += [Row(path=picture, problem=claimed_twice(picture, same, NAME))] if path == same[0] else []
            seen.add(picture)
        elif picture and not found:
            ignored[picture] = EMPTY
        else:
            rows += found
    seen |= ignored.keys()
    hint = "Add its annotation file, or remove the picture."
    problem = None if wanted.boxed else Reason("an annotation file of the same name", "none", hint)
    rows += [Row(path=path, problem=problem) for path in pictures if path not in seen]
    return Reading(rows, ignored, dict(+notes))


def read_voc_file(file: Path, index: Index) -> Reading:
    """The boxes of one file anywhere on disk, for its picture in the index; a row without a box where it has none."""
    notes = Counter[str]()
    picture, rows = _voc_rows(file.name, file.parent, index, "", Wanted(), notes)
    return Reading(rows or [Row(path=picture or file.name)], notes=dict(+notes))


def _voc_rows(
    path: str, raw: Path, index: Index, annotations: str, wanted: Wanted, notes: Counter[str]
) -> tuple[str | None, list[Row]]:
    """The picture of one annotation file and its rows; one row with a problem when it cannot be read."""
    file = _read_file(path, raw, index, annotations, wanted, notes)
    if isinstance(file, Row):
        return None, [file]
    row = Row(path=file.picture, stated_size=file.size)
    if not wanted.boxed:
        return file.picture, [replace(row, label=label, crop=_round(box)) for label, box, _ in file.objects]
    marks = [
        BoxMark(label, _count_from_zero(box), f"{path}, object {number}", "difficult" if difficult else "object")
        for number, (label, box, difficult) in enumerate(file.objects, 1)
    ]
    placed, counts = place_boxes(row, marks, raw, wanted)
    notes.update(counts)
    return file.picture, [placed]


def _read_file(
    path: str, raw: Path, index: Index, annotations: str, wanted: Wanted, notes: Counter[str]
) -> _File | Row:
    """The content of one annotation file; a row with a problem when it cannot be read."""
    beside = find_beside(path, annotations, index)
    try:
        root = parse_xml((raw / path).read_bytes())
        named = (root.findtext("filename") or "").strip()
        found, problem = choose_picture(named, beside, path, index, NAME)
        if problem:
            return Row(path=next(iter(beside), path), problem=problem)
        notes[BY_STEM] += bool(named and not find_named(named, index))
        elements = list(root.iter("object"))
        objects = [_parse_object(element, number) for number, element in enumerate(elements, 1)]
        notes.update(note for element in elements for note in _passed_over(element, wanted))
        return _File(found, _parse_size(root), objects)
    except (ElementTree.ParseError, ValueError, OverflowError, OSError) as error:
        hint = "Export the annotation again."
        picture = next(iter(beside), path)
        return Row(path=picture, problem=Reason(f"a Pascal VOC annotation {path}", brief(error), hint))


def _passed_over(element: ElementTree.Element, wanted: Wanted) -> Iterator[str]:
    """A note for every mark and detail of an object that Tessera does not use."""
    for flag in FLAGS:
        if _is_marked(element, flag) and not (wanted.boxed and flag == DIFFICULT):
            yield f"objects marked {flag}, read as any other"
    for name, words in DETAILS.items():
        if element.find(name) is not None:
            yield f"objects whose {words} are not read"


def _is_marked(element: ElementTree.Element, flag: str) -> bool:
    return (element.findtext(flag) or "").strip().lower() not in ("", "0", "false", "no", "unspecified")


def parse_xml(data: bytes) -> ElementTree.Element:
    """The root of a document. Raises ParseError or ValueError, also for declarations that can fill the memory."""
    if b"\0" in data:  # zero bytes would hide the declarations that are refused next
        raise ValueError("UTF-16 text or binary data instead of UTF-8")
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # annotations need neither
        raise ValueError("a document type or entity declaration")
    return ElementTree.fromstring(data)


def _parse_size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Width and height if the file states them; None if not, or if it states 0, as some tools do."""
    texts = [root.findtext(f"size/{key}") for key in ("width", "height")]
    width, height = (int(text) if text and text.strip().isdecimal() else 0 for text in texts)
    return (width, height) if 0 < width < 10**6 and 0 < height < 10**6 else None


def _parse_object(element: ElementTree.Element, number: int) -> tuple[str, Corners, bool]:
    """Name, box as it is written, and mark `difficult` of an object.

    Raises ValueError for an object without a name, without a box, or with a rotated box.
    """
    label, box = (element.findtext("name") or "").strip(), element.find("bndbox")
    if box is None and element.find("robndbox") is not None:
        raise ValueError(f"a rotated box (robndbox, object {number}), which is not read")
    if not label or box is None:
        raise ValueError(f"an object (number {number}) without a name or a bndbox")
    corners = {key: box.findtext(key) for key in ("xmin", "ymin", "xmax", "ymax")}
    for key, text in corners.items():
        if text is None:
            raise ValueError(f"a bndbox without {key} (object {number})")
        if not is_number(text):
            raise ValueError(f"{key} {text.strip()[:40]!r} (object {number})")
    x0, y0, x1, y1 = (float(text or "") for text in corners.values())
    return label, (x0, y0, x1, y1), _is_marked(element, DIFFICULT)


def _count_from_zero(box: Corners) -> Corners:
    """VOC counts pixels from 1 and includes the last one; some tools start at 0."""
    x0, y0, x1, y1 = box
    return min(x0, max(x0 - 1, 0.0)), min(y0, max(y0 - 1, 0.0)), x1, y1


def _round(box: Corners) -> Box:
    """The crop of a box, in whole pixels."""
    x0, y0, x1, y1 = map(round, box)
    return x0 - (x0 > 0), y0 - (y0 > 0), x1, y1
