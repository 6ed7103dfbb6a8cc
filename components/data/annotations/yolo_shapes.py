"""YOLO segmentation: each line of a label file is a polygon, `class x1 y1 x2 y2 x3 y3 ...`, in shares of the size."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from components.data.annotations.boxes import is_number
from components.data.annotations.shapes import Shape

BOX = "a box (`class cx cy width height`), which does not say which pixels"


def read_polygons(file: Path, names: Mapping[int, str], size: tuple[int, int]) -> list[Shape]:
    """The shapes of a label file in a picture of `size` (width, height); none for an empty file.

    Raises ValueError, with the line, for anything but polygons of known classes.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("other bytes than text") from None
    return [
        read_polygon(line.split(), f"line {number}", names, size)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip()
    ]


def read_polygon(parts: list[str], where: str, names: Mapping[int, str], size: tuple[int, int]) -> Shape:
    """The shape of one line. Raises ValueError for anything but a polygon of a known class."""
    if len(parts) == 5:
        raise ValueError(f"{where}: {BOX}")
    if len(parts) < 7 or len(parts) % 2 == 0:
        raise ValueError(f"{where}: {len(parts)} values, not a class and at least three points")
    number = next((key for key in names if parts[0] in (str(key), f"{key}.0")), None)
    if number is None:
        listed = ", ".join(map(str, sorted(names)[:20]))
        raise ValueError(f"{where}: class {parts[0][:40]}, not one of {listed}")
    if strange := next((part for part in parts[1:] if not is_number(part)), None):
        raise ValueError(f"{where}: {strange[:40]!r}, which is not a number")
    shares = np.array(parts[1:], np.float64).reshape(-1, 2)
    return Shape(names[number], (shares * np.array(size),), f"{where} ({names[number]})")


def holds_boxes(file: Path) -> bool:
    """Whether the first line of a label file is a box."""
    with file.open("rb") as opened:
        return len(opened.read(4096).lstrip().partition(b"\n")[0].split()) == 5
