"""Shapes of COCO annotations: `segmentation` as polygons, or as a run-length mask, compressed or not."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from components.data.annotations.shapes import Bitmap, Ring, Shape, ring_of
from components.records.objects import decode_rle, read_rle_size


def read_segmentation(annotation: Mapping[str, Any], name: str | None, where: str, size: tuple[int, int]) -> Shape:
    """The shape of an annotation in a picture of `size` (width, height); its polygons are united.

    name: its class; None where its pixels are to be ignored. Raises ValueError if it has no legal segmentation.
    """
    found = annotation.get("segmentation")
    if isinstance(found, Mapping):
        return Shape(name, (_read_mask(found, where, size),), where)
    if not found:
        what = "a bbox alone, which does not say which pixels" if annotation.get("bbox") else "no segmentation"
        raise ValueError(f"{where}: {what}")
    if not isinstance(found, list) or not all(isinstance(polygon, list) for polygon in found):
        raise ValueError(f"{where}: a segmentation that is neither a list of polygons nor a run-length mask")
    return Shape(name, tuple(_read_polygon(polygon, where) for polygon in found), where)


def _read_mask(rle: Mapping[str, Any], where: str, size: tuple[int, int]) -> Bitmap:
    try:
        height, width = read_rle_size(rle)
        if (width, height) != size:
            raise ValueError(f"a run-length mask of {width} x {height} pixels, not {size[0]} x {size[1]}")
        return Bitmap(decode_rle(rle))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _read_polygon(values: list[Any], where: str) -> Ring:
    try:
        numbers = np.asarray(values, np.float64)
        if numbers.ndim == 1:
            return ring_of(numbers.tolist())
    except (ValueError, TypeError, OverflowError):
        pass  # the same as a nested list
    raise ValueError(f"{where}: a polygon that is not a list of numbers `x1, y1, x2, y2, ...`")
