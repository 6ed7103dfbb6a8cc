"""CVAT for images 1.1: one XML file with the shapes of all pictures of a task or project."""

import re
from collections import Counter
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from components.data.annotations.boxes import is_number
from components.data.annotations.coco_files import find_files
from components.data.annotations.drawings import Drawing, Mark, read_drawings
from components.data.annotations.guessing import refuse_layout, require_folder
from components.data.annotations.shapes import Bitmap, Ellipse, Part, box_ring, ring_of
from components.data.annotations.tables import find_unlisted, resolve_picture
from components.data.annotations.tree import Index, walk_files
from components.data.annotations.voc import parse_xml
from components.data.manifest import Reading, Row, Wanted
from components.data.sources.images import brief
from components.data.sources.names import SUFFIXES
from components.domain.layouts import Cvat
from components.errors import DataError
from components.records.reasons import Reason

NO_AREA = {"polyline": "a line", "points": "points", "skeleton": "a skeleton", "cuboid": "a cuboid"}
READ = ("polygon", "box", "ellipse", "mask")
LISTED_TWICE = "pictures listed twice, annotated once"
LARGEST = 10**9  # pixels of a mask
FORM = "CVAT for images 1.1"


def read_cvat(layout: Cvat, raw: Path, wanted: Wanted) -> Reading:
    """One row per object, cropped by its extent; one row per picture where all labels, boxes or regions are wanted.

    Raises DataError for a file that is not CVAT for images.
    """
    images = require_folder(raw, layout.images, layout)
    pictures = [path for path in walk_files(raw, images) if path.lower().endswith(SUFFIXES)]
    if not pictures:
        refuse_layout(raw, layout, f"images in {layout.images!r}", "none")
    index, notes = Index(walk_files(raw), images), Counter[str]()
    rows, drawings = list[Row](), dict[str, Drawing]()
    for path, parts in find_files(layout, raw, ".xml").items():
        for drawing, problem in _read_file(path, raw, index, parts):
            before = drawings.get(drawing.picture)
            if problem or (before and before.marks and drawing.marks):
                problem = problem or _listed_twice(drawing, before)
                rows.append(Row(path=drawing.picture, columns=drawing.columns, problem=problem))
                continue
            notes[LISTED_TWICE] += before is not None
            if not before or drawing.marks:
                drawings[drawing.picture] = drawing
    unfit = {row.path for row in rows}
    fit = [drawing for picture, drawing in drawings.items() if picture not in unfit]
    reading = read_drawings(fit, raw, wanted, layout.ignore)
    listed = [Row(path=picture) for picture in drawings] + rows
    expected = f"an <image> in {layout.annotations} for every picture beside the listed ones"
    unlisted = find_unlisted(pictures, listed, expected)
    if wanted.boxed or wanted.painting is not None:
        unlisted = [Row(path=row.path) for row in unlisted]
    return Reading(reading.rows + rows + unlisted, reading.ignored, dict(+(notes + Counter(reading.notes))))


def _listed_twice(drawing: Drawing, before: Drawing | None) -> Reason:
    sources = " and ".join(dict.fromkeys([before.source if before else "", drawing.source]))
    return Reason("one <image> with shapes per picture", f"two in {sources}", "Remove one of them.")


def _read_file(path: str, raw: Path, index: Index, parts: dict[str, str]) -> list[tuple[Drawing, Reason | None]]:
    """What a file draws in each of its pictures, or what is wrong with the picture."""
    expected, hint = f"a file of {FORM}", f"In CVAT export the task as `{FORM}`."
    try:
        root = parse_xml((raw / path).read_bytes())
    except (ElementTree.ParseError, ValueError, OverflowError) as error:
        raise DataError(path, expected=expected, found=brief(error), hint=hint) from None
    if root.tag != "annotations" or root.find("track") is not None:
        found = f"<{root.tag[:40]}>" if root.tag != "annotations" else "tracks, as CVAT for video writes them"
        raise DataError(path, expected=expected, found=found, hint=hint)
    declared = {(element.text or "").strip() for element in root.iterfind("meta//labels/label/name")}
    return [
        _read_image(element, f"{path}, <image> {number}", path, index, parts, declared)
        for number, element in enumerate(root.iterfind("image"), 1)
    ]


def _read_image(
    element: ElementTree.Element, where: str, source: str, index: Index, parts: dict[str, str], declared: set[str]
) -> tuple[Drawing, Reason | None]:
    name = (element.get("name") or "").strip()
    if not name:
        hint = "Export the file again."
        raise DataError(where, expected="the attribute `name`", found="none", hint=hint)
    picture, problem = resolve_picture(name, index, where)
    columns = ({"split": subset} if (subset := element.get("subset")) else {}) | parts
    sides = [int(text) if (text := element.get(key) or "").isdecimal() else 0 for key in ("width", "height")]
    stated = (sides[0], sides[1]) if all(0 < side < 10**6 for side in sides) else None
    shapes = [shape for shape in element if shape.tag != "tag"]
    labels = [_label_of(shape) for shape in element]
    strange = next((label for label in labels if not label or (declared and label not in declared)), None)
    if strange is not None and not problem:
        found = f"{strange[:40]!r} in {where}"
        problem = Reason("labels that the task declares", found, "Correct the label, or export the file again.")
    numbered = enumerate(shapes, 1)
    marks = [Mark(_label_of(one), _place(one, number), partial(_read_parts, one)) for number, one in numbered]
    ordered = [mark for _, mark in sorted(zip(map(_order, shapes), marks, strict=True), key=lambda each: each[0])]
    tags = [_label_of(shape) for shape in element if shape.tag == "tag"]
    drawing = Drawing(picture, source, ordered, tags, stated, columns, annotated=bool(ordered))
    return drawing, problem


def _label_of(shape: ElementTree.Element) -> str:
    return (shape.get("label") or "").strip()


def _place(shape: ElementTree.Element, number: int) -> str:
    return f"shape {number} ({shape.tag[:20]}, {_label_of(shape)[:40]})"


def _order(shape: ElementTree.Element) -> int:
    text = shape.get("z_order") or "0"
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else 0


# Shapes


def _read_parts(shape: ElementTree.Element) -> tuple[Part, ...]:
    """The area of a shape. Raises ValueError for one without, and for attributes that are no numbers."""
    if shape.tag in NO_AREA:
        raise ValueError(f"{NO_AREA[shape.tag]}, which has no area")
    if shape.tag not in READ:
        raise ValueError(f"<{shape.tag[:40]}>, which is not read")
    if shape.tag == "polygon":
        pairs = [pair for pair in (shape.get("points") or "").split(";") if pair.strip()]
        values = [value for pair in pairs for value in pair.split(",")]
        if not all(is_number(value) for value in values) or any(pair.count(",") != 1 for pair in pairs):
            raise ValueError("`points` that are not `x,y;x,y;...`")
        return (ring_of([float(value) for value in values]),)
    if shape.tag == "mask":
        return (_read_mask(shape),)
    angle = _number(shape, "rotation", "0")
    if shape.tag == "ellipse":
        x, y, across, down = (_number(shape, key) for key in ("cx", "cy", "rx", "ry"))
        return (Ellipse(x, y, across, down, angle),)
    x0, y0, x1, y1 = (_number(shape, key) for key in ("xtl", "ytl", "xbr", "ybr"))
    return (box_ring(x0, y0, x1, y1, angle),)


def _number(shape: ElementTree.Element, key: str, default: str | None = None) -> float:
    text = shape.get(key, default)
    if not is_number(text):
        raise ValueError(f"no number `{key}`" if text is None else f"`{key}` {text[:40]!r}, which is not a number")
    return float(text or "")


def _read_mask(shape: ElementTree.Element) -> Bitmap:
    """A run-length mask: alternating runs of 0 and 1, beginning with 0, row by row inside its box."""
    left, top, width, height = (int(_number(shape, key)) for key in ("left", "top", "width", "height"))
    runs = [text.strip() for text in (shape.get("rle") or "").split(",")]
    if not all(text.isdecimal() and len(text) < 13 for text in runs):
        raise ValueError("`rle` that is not a list of whole numbers")
    counts = list(map(int, runs))
    if not (width > 0 and height > 0 and width * height <= LARGEST) or sum(counts) != width * height:
        raise ValueError(f"`rle` of {sum(counts):,} pixels in a box of {width} x {height}")
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
    return Bitmap(pixels, left, top)
