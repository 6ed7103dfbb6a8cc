"""Annotated boxes under suspicion: models that agree against the annotation, and those that do not agree."""

from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest

from components.records.boxes import FOUND, OBJECTS, LabelledBox, write_objects
from components.tasks.suspects import Suspect, find_suspects

CLASSES = ("cell", "platelet")
HERE, BESIDE, FAR = (10.0, 10.0, 30.0, 30.0), (14.0, 10.0, 34.0, 30.0), (60.0, 60.0, 80.0, 80.0)
Found = tuple[str, tuple[float, float, float, float], float]


def create_frame(objects: Sequence[LabelledBox], *found: Found, path: str = "a.png") -> pl.DataFrame:
    row = {
        "id": path,
        "path": path,
        "split": "val",
        "objects": write_objects(objects),
        "found": [{"label": label, "box": list(box), "confidence": sure} for label, box, sure in found],
    }
    return pl.DataFrame([row], schema_overrides={"objects": OBJECTS, "found": FOUND})


def suspect(objects: Sequence[LabelledBox], *models: Sequence[Found], known: int = 20) -> list[Suspect]:
    """known: so many objects of each class that every model finds, in another picture."""
    places = [(number % 10 * 40.0, number // 10 * 40.0) for number in range(2 * known)]
    others = [LabelledBox(CLASSES[n % 2], (x, y, x + 30, y + 30)) for n, (x, y) in enumerate(places)]
    right = create_frame(others, *((one.label, one.box, 0.9) for one in others), path="right.png")
    return find_suspects([pl.concat([create_frame(objects, *found), right]) for found in models], CLASSES)


CELL = LabelledBox("cell", HERE)
CASES: dict[str, tuple[Sequence[LabelledBox], Sequence[Sequence[Found]], list[tuple[Any, ...]]]] = {
    "nobody disagrees": ([CELL], [[("cell", HERE, 0.9)], [("cell", BESIDE, 0.6)]], []),
    "all find what is not annotated": (
        [],
        [[("cell", HERE, 0.9)], [("cell", BESIDE, 0.6)]],
        [("missing", "cell", 0.6)],
    ),
    "one of them is not sure": ([], [[("cell", HERE, 0.9)], [("cell", BESIDE, 0.4)]], []),
    "one of them finds nothing": ([], [[("cell", HERE, 0.9)], []], []),
    "they find other classes": ([], [[("cell", HERE, 0.9)], [("platelet", HERE, 0.9)]], []),
    "they find other places": ([], [[("cell", HERE, 0.9)], [("cell", FAR, 0.9)]], []),
    "in a region to ignore": ([LabelledBox("cell", (0, 0, 50, 50), "crowd")], [[("cell", HERE, 0.9)]] * 2, []),
    "it touches an annotated one": (
        [LabelledBox("cell", (20, 20, 40, 40))],
        [[("cell", HERE, 0.9)]] * 2,
        [("unconfirmed", "cell", 0.0)],
    ),
    "nobody finds what is annotated": ([CELL], [[("cell", FAR, 0.4)], []], [("unconfirmed", "cell", 0.0)]),
    "somebody finds it, barely": ([CELL], [[("cell", BESIDE, 0.06)], []], []),
    "somebody finds another class there": ([CELL], [[("platelet", HERE, 0.9)], []], []),
    "all find another class there": (
        [CELL],
        [[("platelet", HERE, 0.9)], [("platelet", BESIDE, 0.7)]],
        [("other class", "cell", 0.7)],
    ),
    "all but one, which finds the annotated class": (
        [CELL],
        [[("platelet", HERE, 0.9), ("cell", HERE, 0.1)], [("platelet", HERE, 0.9)]],
        [],
    ),
    "a difficult object is not expected": ([LabelledBox("cell", HERE, "difficult")], [[], []], []),
    "a third model is not sure": ([], [[("cell", HERE, 0.9)], [("cell", HERE, 0.9)], [("cell", HERE, 0.2)]], []),
    "one box speaks for one": (
        [],
        [[("cell", HERE, 0.9), ("cell", BESIDE, 0.8)], [("cell", HERE, 0.7)]],
        [("missing", "cell", 0.7)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_all_models_say_against_an_annotation_is_suspicious(case: str) -> None:
    objects, models, expected = CASES[case]
    found = suspect(objects, *models)
    assert [(one.why, one.label, pytest.approx(one.confidence)) for one in found] == expected


def test_boxes_are_those_annotated_or_the_mean_of_those_found() -> None:
    (missing,) = suspect([], [("cell", HERE, 0.9)], [("cell", BESIDE, 0.6)])
    assert missing.box == (12.0, 10.0, 32.0, 30.0)
    (other,) = suspect([CELL], [("platelet", BESIDE, 0.9)], [("platelet", BESIDE, 0.6)])
    assert (other.box, other.answered) == (HERE, "platelet")


def test_the_most_suspicious_come_first() -> None:
    """By kind; by the least confidence; without one, by how well the models know the class, then by size."""
    large, small = LabelledBox("cell", (0, 0, 50, 50)), LabelledBox("cell", (60, 0, 70, 10))
    lost = LabelledBox("platelet", (0, 60, 20, 80))
    found = [("cell", (90.0, 90.0, 99.0, 99.0), 0.6), ("cell", (90.0, 0.0, 99.0, 9.0), 0.8)]
    suspects = suspect([small, large, lost], found, found)
    assert [one.confidence for one in suspects[:2]] == [0.8, 0.6]
    expected = [(lost.box, 20 / 21), (large.box, 20 / 22), (small.box, 20 / 22)]
    assert [(one.box, one.known) for one in suspects[2:]] == expected


@pytest.mark.parametrize(("known", "suspicious"), [(9, 1), (8, 0)])
def test_an_object_says_nothing_where_the_models_miss_many_of_its_class(known: int, suspicious: int) -> None:
    assert len(suspect([CELL], [], [], known=known)) == suspicious


def test_suspicion_needs_two_models_and_the_same_pictures() -> None:
    frame = create_frame([CELL])
    with pytest.raises(ValueError, match="needs 2 models"):
        find_suspects([frame], CLASSES)
    with pytest.raises(ValueError, match="same pictures"):
        find_suspects([frame, create_frame([CELL], path="b.png")], CLASSES)
