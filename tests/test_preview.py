"""The contact sheet shows what training sees, and masks and boxes go the way of the image."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import DOMAIN, run_tessera
from PIL import Image

from components.data.batches.preview import choose_rows, draw_preview, load_labelled
from components.data.batches.transforms import Augmentation
from components.domain.canvas import Fit, ImgSize
from components.domain.domain import PRESETS
from components.domain.reading import parse_domain
from components.records.images import Previewed
from components.records.maps import IGNORE, encode_map


def _row(tmp_path: Path, crop: list[int] | None = None) -> dict[str, object]:
    """A picture whose one white square is its mask and its box."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[20:40, 30:60] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "m.png")
    return {"path": "a.png", "mask": "m.png", "boxes": [[30, 20, 60, 40]], "crop": crop, "label": "x", "row": 0}


@pytest.mark.parametrize("crop", [None, [20, 10, 70, 50]])
@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_labels_are_brought_to_the_size_of_the_image(tmp_path: Path, fit: Fit, crop: list[int] | None) -> None:
    image, mask, ((x0, y0, x1, y1),) = load_labelled(_row(tmp_path, crop), tmp_path, ImgSize(64, 96), fit)
    assert mask.max() == 1
    white = image[..., 0] > 160
    assert (white != mask.astype(bool)).mean() < 0.02
    y, x = np.nonzero(white)
    np.testing.assert_allclose([x0, y0, x1, y1], [x.min(), y.min(), x.max() + 1, y.max() + 1], atol=1)


@pytest.mark.parametrize("preset", PRESETS)
def test_labels_go_the_way_of_the_image_that_training_sees(tmp_path: Path, preset: str) -> None:
    image, mask, boxes = load_labelled(_row(tmp_path), tmp_path, ImgSize(64, 64))
    augment = Augmentation(preset, 7)
    for epoch in range(12):
        seen, moved, around = augment.with_labels(image, mask, boxes, epoch, 3)
        np.testing.assert_array_equal(seen, augment(image, epoch, 3))
        bright = seen.astype(int).sum(axis=-1) > 300
        assert (bright != moved.astype(bool)).mean() < 0.05
        y, x = np.nonzero(moved)
        inside = [(x0 - 2 <= x) & (x <= x1 + 2) & (y0 - 2 <= y) & (y <= y1 + 2) for x0, y0, x1, y1 in around]
        assert np.any(inside, axis=0).all()


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "none"])
def test_boxes_stay_inside_of_the_image(preset: str) -> None:
    """One that an annotator drew a little too large, one in a corner, and one that shifts carry over the edge."""
    image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    boxes = [(-3.0, 10.0, 20.0, 66.0), (0.0, 0.0, 6.0, 6.0), (50.0, 50.0, 64.0, 64.0)]
    augment = Augmentation(preset, 7)
    for epoch in range(24):
        _, _, around = augment.with_labels(image, mask, boxes, epoch, 0)
        assert around
        for x0, y0, x1, y1 in around:
            assert 0 <= x0 < x1 <= 64
            assert 0 <= y0 < y1 <= 64


def test_rows_are_of_every_class_and_of_training_alone() -> None:
    labels, splits = ["a", "b", "c"] * 20, ["train", "train", "val", "test"] * 15
    frame = pl.DataFrame({"id": [f"{n:02}" for n in range(60)], "label": labels, "split": splits})
    rows = choose_rows(frame, 6)
    assert rows["label"].to_list() == ["a", "a", "b", "b", "c", "c"]
    assert set(frame[rows["row"].to_list()]["split"]) == {"train"}
    assert frame[rows["row"].to_list()]["id"].to_list() == rows["id"].to_list()


def test_a_sheet_has_a_line_an_image(tmp_path: Path) -> None:
    rows = pl.DataFrame(
        [_row(tmp_path), _row(tmp_path, [20, 10, 70, 50])], schema_overrides={"crop": pl.List(pl.Int64)}
    )
    facts = {"name": "tiles", "task": "classification", "classes": ["x", "y"], "layout": "folders"}
    sheet = draw_preview(rows, tmp_path, parse_domain(facts | {"augmentation": "xray"}, "tests"), ImgSize(32, 32))
    assert len(sheet.axes) == 2 * 7
    plain = draw_preview(rows, tmp_path, parse_domain(facts | {"augmentation": "none"}, "tests"), ImgSize(32, 32))
    assert len(plain.axes) == 2


@pytest.mark.parametrize(("fit", "img_size"), [("squash", ImgSize(32, 32)), ("letterbox", ImgSize(32, 64))])
def test_a_sheet_of_class_maps_names_the_classes_in_its_legend(tmp_path: Path, fit: str, img_size: ImgSize) -> None:
    """From the manifest's map, not from the file: here the file is gone."""
    classes = np.zeros((60, 80), np.uint8)
    classes[20:40, 30:60], classes[:5] = 1, IGNORE
    row = {**_row(tmp_path), "mask": "gone.png", "class_map": encode_map(classes)}
    rows = pl.DataFrame([row], schema_overrides={"crop": pl.List(pl.Int64)})
    facts = {"name": "tiles", "task": "classification", "classes": ["x", "mask", "z"], "layout": "folders", "fit": fit}
    sheet = draw_preview(rows, tmp_path, parse_domain(facts | {"augmentation": "industrial"}, "tests"), img_size)
    assert len(sheet.axes) == 7
    (legend,) = sheet.legends
    assert [text.get_text() for text in legend.get_texts()] == ["x", "mask", "no class (ignored, or outside)"]
    tile = np.asarray(sheet.axes[0].images[0].get_array()).astype(int)
    assert tile.shape == (*img_size, 3)
    middle = tile[img_size.height // 2, img_size.width // 2]  # white in the picture, of the class `mask`
    assert np.ptp(middle) > 60
    outside = tile[0] if fit == "squash" else tile[:, 0]  # of no class, and of one colour in the picture
    assert len(np.unique(outside[:9], axis=0)) == 2, "hatched"


@pytest.mark.slow
def test_preview_draws_a_picture(workspace: Path) -> None:
    answer = run_tessera(workspace, "preview", DOMAIN, "--images", "4", "--set", "augmentation=xray")
    assert answer.code == 0, answer.stderr
    answer.read(Previewed)
    with Image.open(answer.outcome["path"]) as sheet:
        assert min(sheet.size) > 400
