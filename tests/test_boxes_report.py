"""Boxes as people see them: drawn over pictures, in the preview and in the validation report."""

import numpy as np
import pytest

from components.data.batches.colours import HALO, choose_colours, draw_boxes
from components.records.boxes import LabelledBox

NAMES = ["crack", "rust"]
GREY = np.full((120, 160, 3), 128, np.uint8)


def find_colours(drawn: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(map(int, pixel)) for pixel in drawn.reshape(-1, 3)}


def test_a_box_is_outlined_at_its_own_edge_between_dark_lines() -> None:
    drawn = draw_boxes(GREY, [LabelledBox("rust", (20.2, 30.4, 60.4, 80.0))], NAMES)
    colour = choose_colours(NAMES, None)["rust"]
    rows, columns = np.nonzero((drawn == colour).all(axis=-1))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (20, 30, 60, 80)
    darker = (int(128 * HALO),) * 3
    assert find_colours(drawn) == {colour, darker, (128, 128, 128)}
    assert tuple(drawn[50, 19]) == tuple(drawn[50, 21]) == darker
    assert (drawn[32:78, 22:58] == 128).all(), "the inside of a box stays as it is"
    assert GREY.std() == 0, "the picture itself is not drawn on"


def test_ignored_boxes_are_dashed() -> None:
    colour = choose_colours(NAMES, None)["crack"]
    whole, dashed = (
        (draw_boxes(GREY, [LabelledBox("crack", (10, 10, 90, 90), kind)], NAMES) == colour).all(axis=-1)
        for kind in ("object", "difficult")
    )
    assert not dashed[~whole].any()
    for side in (np.s_[10, 10:90], np.s_[89, 10:90], np.s_[10:90, 10], np.s_[10:90, 89]):
        assert whole[side].all()
        assert 0.3 < dashed[side].mean() < 0.7


def test_small_boxes_lie_over_large_ones() -> None:
    boxes = [LabelledBox("rust", (30, 30, 33, 33)), LabelledBox("crack", (30, 30, 110, 110))]
    for order in (boxes, boxes[::-1]):
        assert tuple(draw_boxes(GREY, order, NAMES)[30, 30]) == choose_colours(NAMES, None)["rust"]


@pytest.mark.parametrize(
    "corners",
    [(-5, -5, 3, 3), (0, 0, 160, 120), (150, 110, 165, 125), (50, 50, 50.2, 50.1), (70, 20, 71, 100), (-9, 4, -3, 8)],
    ids=["beyond the upper left", "all", "beyond the lower right", "less than a pixel", "a line", "outside"],
)
@pytest.mark.parametrize("kind", ["object", "crowd"])
def test_any_box_can_be_drawn(corners: tuple[float, float, float, float], kind: str) -> None:
    drawn = draw_boxes(GREY, [LabelledBox("crack", corners, kind)], NAMES, ["crack .97"])  # type: ignore[arg-type]
    assert drawn.shape == GREY.shape
    assert drawn.dtype == np.uint8
    assert choose_colours(NAMES, None)["crack"] in find_colours(drawn)


def test_texts_are_written_inside_the_picture() -> None:
    boxes = [LabelledBox("crack", (140, 2, 158, 40)), LabelledBox("rust", (40, 60, 70, 90))]
    plain, written = draw_boxes(GREY, boxes, NAMES), draw_boxes(GREY, boxes, NAMES, ["crack .9712", ""])
    rows, columns = np.nonzero((plain != written).any(axis=-1))
    assert 70 < columns.min() < 140, "moved to the left until it is wholly visible"
    assert (rows.min(), rows.max() < 40) == (2, True), "inside its box, because there is no room above"
    assert draw_boxes(GREY, [], NAMES) is GREY
