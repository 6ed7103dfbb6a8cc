"""Labelled boxes as the annotations of other tools: text of one picture each, in pixels or shares of the picture."""

from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np

from components.records.boxes import LabelledBox
from components.records.fields import Corners


def render_voc(name: str, size: tuple[int, int], boxes: Sequence[LabelledBox]) -> bytes:
    """A Pascal VOC file of the picture `name`. VOC counts pixels from 1 and includes the last one.

    size: width and height. Difficult objects are marked; a crowd cannot be.
    """
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = name
    dimensions = ElementTree.SubElement(root, "size")
    for key, side in zip(("width", "height", "depth"), (*size, 3), strict=True):
        ElementTree.SubElement(dimensions, key).text = str(side)
    for label, (x0, y0, x1, y1), kind in boxes:
        entry = ElementTree.SubElement(root, "object")
        marks = {"name": label, "pose": "Unspecified", "truncated": "0", "difficult": str(int(kind == "difficult"))}
        for key, text in marks.items():
            ElementTree.SubElement(entry, key).text = text
        box = ElementTree.SubElement(entry, "bndbox")
        for key, value in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
            ElementTree.SubElement(box, key).text = write_number(value)
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8")
    return data + b"\n"


def render_yolo(size: tuple[int, int], boxes: Sequence[LabelledBox], names: Sequence[str]) -> bytes:
    """Lines `class cx cy width height`, in shares of the picture's width and height."""
    width, height = size
    lines = []
    for label, (x0, y0, x1, y1), _ in boxes:
        shares = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height
        lines.append(" ".join([str(names.index(label)), *map(write_number, shares)]))
    return "".join(f"{line}\n" for line in lines).encode()


def to_bbox(box: Corners) -> list[float]:
    """COCO's `[x, y, width, height]`."""
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


def write_number(value: float) -> str:
    """The shortest text that reads as the same number, without an exponent, which some readers do not know."""
    return np.format_float_positional(value, trim="-")
