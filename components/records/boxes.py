"""Labelled boxes of a picture: what its annotations say of objects, and what a model answers.

A box is `x0, y0, x1, y1` in pixels of the upright picture, ends exclusive; (0, 0) is the upper left corner, and numbers
need not be whole. The manifest's column `objects` holds the annotated ones, in the order of the annotation.

For training and scoring, boxes are arrays of rows:

    targets   (M, 6)            x0, y0, x1, y1, number of the class, number of the kind (place in KINDS)
    found     (K, 6)            x0, y0, x1, y1, number of the class, confidence

Rows of class NONE fill an array up.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.records.fields import Corners

#: An object that counts; one that is too hard to count (VOC's `difficult`); a region of many (COCO's `iscrowd`). The
#: last two are ignored in training and scoring: what is found there is neither right nor wrong.
Kind = Literal["object", "difficult", "crowd"]
KINDS: tuple[Kind, ...] = ("object", "difficult", "crowd")

NONE = -1  # class of a row that only fills an array up
MOST_FOUND = 300  # boxes that are answered for a picture
LEAST = 0.05  # confidence under which nothing is answered
OBJECTS = pl.List(pl.Struct({"label": pl.String(), "box": pl.List(pl.Float64), "kind": pl.String()}))
FOUND = pl.List(pl.Struct({"label": pl.String(), "box": pl.List(pl.Float64), "confidence": pl.Float64()}))


class LabelledBox(NamedTuple):
    """One annotated object."""

    label: str
    box: Corners
    kind: Kind = "object"


class FoundBox(NamedTuple):
    """One answered object. confidence: calibrated. shown: whether it reaches the threshold of its class."""

    label: str
    box: Corners
    confidence: float
    shown: bool


def write_objects(objects: Sequence[LabelledBox]) -> list[dict[str, Any]]:
    """As a value of the column `objects`."""
    return [{"label": each.label, "box": list(map(float, each.box)), "kind": each.kind} for each in objects]


def read_objects(value: Sequence[Mapping[str, Any]]) -> list[LabelledBox]:
    """From a value of the column `objects`."""
    return [LabelledBox(each["label"], (*map(float, each["box"]),), each["kind"]) for each in value]  # type: ignore[arg-type]


def to_targets(objects: Sequence[LabelledBox], classes: Sequence[str]) -> NDArray[np.float64]:
    """(M, 6), unrounded, so that scores are those of the annotation. Raises KeyError for a label that is no class."""
    place = {name: number for number, name in enumerate(classes)}
    rows = [(*each.box, place[each.label], KINDS.index(each.kind)) for each in objects]
    return np.array(rows, np.float64).reshape(-1, 6)


def to_found(value: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> NDArray[np.float64]:
    """(K, 6) of a value of the column `found`. Raises KeyError for a label that is no class."""
    place = {name: number for number, name in enumerate(classes)}
    rows = [(*each["box"], place[each["label"]], each["confidence"]) for each in value]
    return np.array(rows, np.float64).reshape(-1, 6)


def write_found(found: NDArray[np.floating[Any]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """(K, 6) as a value of the column `found`; rows of class NONE are left out."""
    return [
        {"label": classes[int(row[4])], "box": row[:4].tolist(), "confidence": float(row[5])}
        for row in found.astype(np.float64)
        if row[4] != NONE
    ]


def list_found(
    found: NDArray[np.floating[Any]], shown: NDArray[np.bool_], classes: Sequence[str]
) -> tuple[FoundBox, ...]:
    """(K, 6) and (K,) as `BoxTask.decide` returns them, in the same order."""
    return tuple(
        FoundBox(each["label"], (*each["box"],), each["confidence"], bool(reaches))
        for each, reaches in zip(write_found(found, classes), shown, strict=True)
    )
