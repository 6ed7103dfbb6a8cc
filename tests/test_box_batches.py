"""Boxes on their way from the manifest to a batch and back: canvas, augmentation, filling up."""

import albumentations
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from components.data.batches.boxes import fit_boxes, load_boxes, pad_boxes, restore_boxes
from components.data.batches.geometry import place
from components.data.batches.loading import Samples, StepOrder, create_loader
from components.data.batches.transforms import VISIBLE, Augmentation, require_fit
from components.domain.canvas import Fit, ImgSize
from components.errors import DomainError
from components.records.boxes import NONE, OBJECTS, LabelledBox, read_objects, to_found, to_targets, write_objects

SIDE = 96
CLASSES = ("crack", "pit")
sides = st.integers(1, 700)


def draw_boxes(rng: np.random.Generator, size: tuple[int, int], number: int) -> NDArray[np.float32]:
    corners = np.sort(rng.random((number, 2, 2)), axis=1) * np.array(size)
    return np.concatenate([corners.reshape(-1, 4), rng.integers(0, 2, (number, 2))], axis=1).astype(np.float32)


@given(sides, sides, st.sampled_from([(64, 64), (32, 96), (320, 160)]), st.sampled_from(["squash", "letterbox"]))
def test_boxes_come_back_from_any_canvas(width: int, height: int, canvas: tuple[int, int], fit: Fit) -> None:
    boxes = draw_boxes(np.random.default_rng(0), (width, height), 5)
    placed = place((width, height), canvas, fit)
    moved = fit_boxes(boxes, (width, height), canvas, fit)
    left, top, right, bottom = placed.box
    assert (moved[:, :4] >= np.array([left, top] * 2) - 1e-3).all()
    assert (moved[:, :4] <= np.array([right, bottom] * 2) + 1e-3).all()
    back = restore_boxes(moved.astype(np.float64), placed, (width, height))
    np.testing.assert_allclose(back[:, :4], boxes[:, :4], atol=1e-3 * max(width, height))
    np.testing.assert_array_equal(moved[:, 4:], boxes[:, 4:])


def test_what_is_answered_outside_of_the_picture_is_cut_off() -> None:
    placed = place((100, 50), (64, 64), "letterbox")  # rows 16 to 48 of the canvas
    found = np.array([[0, 0, 20, 10, 1, 0.9], [10, 10, 30, 30, 0, 0.8], [-9, 20, 99, 40, 1, 0.7]])
    back = restore_boxes(found, placed, (100, 50))
    assert back[:, 4].tolist() == [NONE, 0, 1]  # the first lies in the grey part alone
    np.testing.assert_allclose(back[1:, :4], [[15.625, 0, 46.875, 21.875], [0, 6.25, 100, 37.5]])


def test_objects_of_the_manifest_are_filled_up() -> None:
    lists = [[LabelledBox("pit", (0.5, 1, 10, 20)), LabelledBox("crack", (1, 2, 3, 4), "crowd")], []]
    columns = pl.Series("objects", [write_objects(each) for each in lists], OBJECTS)
    frame = pl.DataFrame({"width": [20, 40], "height": [20, 10]}).with_columns(columns)
    boxes = load_boxes(frame, (40, 40), "letterbox", CLASSES)
    assert boxes.tolist() == [[[1, 2, 20, 40, 1, 0], [2, 4, 6, 8, 0, 2]], [[NONE] * 6] * 2]
    assert [read_objects(value) for value in frame["objects"]] == lists
    assert pad_boxes([np.zeros((0, 6), np.float32)]).shape == (1, 1, 6)
    with pytest.raises(KeyError):
        to_targets(lists[0], ["crack"])
    found = [{"label": "pit", "box": [1, 2, 3, 4], "confidence": 0.5}]
    assert to_found(found, CLASSES).tolist() == [[1, 2, 3, 4, 1, 0.5]]


# Augmentation


def draw_disc(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A white disc on black, and its box with class and kind."""
    (x, y), radius = rng.uniform(20, SIDE - 20, 2), rng.uniform(8, 19)
    down, across = np.mgrid[:SIDE, :SIDE] + 0.5
    disc = (across - x) ** 2 + (down - y) ** 2 <= radius**2
    box = [x - radius, y - radius, x + radius, y + radius, 1, 2]
    return np.repeat(disc[..., None] * np.uint8(255), 3, axis=2), np.array([box], np.float32)


def overlap(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    sides_of = [min(one[k + 2], other[k + 2]) - max(one[k], other[k]) for k in (0, 1)]
    shared = max(sides_of[0], 0) * max(sides_of[1], 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(shared / (sum(areas) - shared))


@pytest.mark.parametrize("preset", ["industrial", "pathology", "xray"])
def test_boxes_move_with_what_they_are_around(preset: str) -> None:
    rng, augment, compared = np.random.default_rng(0), Augmentation(preset, 3), 0
    for index in range(40):
        image, box = draw_disc(rng)
        seen, moved = augment.with_boxes(image, box, 1, index)
        assert np.array_equal(seen, augment(image, 1, index)), "boxes must not change what is drawn"
        assert (moved[:, 4:] == [1, 2]).all()
        assert moved[:, :4].min() >= 0
        assert moved[:, :4].max() <= SIDE
        labelled, _ = ndimage.label(seen.mean(axis=2) > 128)
        for rows, columns in ndimage.find_objects(labelled):
            if rows.stop - rows.start > 8 and columns.stop - columns.start > 8:
                truth = np.array([columns.start, rows.start, columns.stop, rows.stop], float)
                assert max(overlap(truth, each) for each in moved) > 0.7, "a box for every disc, mirrored ones too"
                compared += 1
    assert compared >= 40


def test_a_turned_box_does_not_grow_by_its_corners() -> None:
    turn = albumentations.Compose([albumentations.Affine(rotate=(10, 10), border_mode=0, p=1)]).to_dict()
    box = np.array([[32, 32, 64, 64, 0, 0]], np.float32)
    _, moved = Augmentation(turn, 0).with_boxes(np.zeros((SIDE, SIDE, 3), np.uint8), box, 0, 0)
    assert moved[0, 2] - moved[0, 0] == pytest.approx(32, abs=1)  # 37 around its corners


def test_little_that_remains_of_a_box_is_left_out() -> None:
    shift = albumentations.Compose([albumentations.Affine(translate_px=(-48, -48), border_mode=0, p=1)]).to_dict()
    boxes = np.array([[0, 40, 50, 90, 0, 0], [0, 48, 60, 96, 1, 0], [NONE] * 6], np.float32)
    _, moved = Augmentation(shift, 0).with_boxes(np.zeros((SIDE, SIDE, 3), np.uint8), boxes, 0, 0)
    assert VISIBLE == 0.1
    np.testing.assert_allclose(moved, [[0, 0, 12, 48, 1, 0]], atol=0.01)


def test_a_pipeline_of_ones_own_is_tried_with_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    own = albumentations.Compose([albumentations.HorizontalFlip(p=0.5)]).to_dict()
    require_fit(own, ImgSize(32, 32), "boxes")
    monkeypatch.setattr(Augmentation, "with_boxes", lambda self, image, boxes, epoch, index: (image + 1, boxes))
    with pytest.raises(DomainError, match=r"HorizontalFlip.*Remove the transform"):
        require_fit(own, ImgSize(32, 32), "boxes")


def test_batches_are_filled_up_and_repeat() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
    targets = pad_boxes([draw_boxes(rng, (SIDE, SIDE), number) for number in (3, 0, 1, 2, 0)])
    plain = Samples(pixels, np.arange(5), targets, None)
    first, second, third = (boxes for _, boxes in create_loader(plain, 2))
    assert [tuple(boxes.shape) for boxes in (first, second, third)] == [(2, 3, 6), (2, 3, 6), (1, 3, 6)]
    torch.testing.assert_close(torch.cat([first, second, third]), torch.from_numpy(targets))
    augmented = Samples(pixels, np.arange(5), targets, Augmentation("industrial", 0))
    runs = [list(create_loader(augmented, 2, order=StepOrder(augmented, 2, 0))) for _ in range(2)]
    for (images, boxes), (again, same) in zip(*runs, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(boxes, same)
        assert boxes.shape[1] >= 1
