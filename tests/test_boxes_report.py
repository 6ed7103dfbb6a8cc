"""Boxes as people see them: drawn over pictures, in the preview and in the validation report."""

import io
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from PIL import Image
from samples import picture

from components.data.batches.boxes import fit_boxes
from components.data.batches.colours import HALO, choose_colours, draw_boxes, to_matplotlib
from components.data.batches.preview import choose_rows, draw_preview
from components.data.checks import report
from components.data.checks.boxes import create_drawn, measure_objects, warn_of_objects
from components.data.checks.report import render_report
from components.data.checks.validation import Validated, check_rows
from components.data.manifest import Row, create_rows
from components.domain.canvas import ImgSize
from components.domain.domain import Domain
from components.records.boxes import LabelledBox, read_objects, to_targets

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


# Preview


@pytest.fixture
def domain() -> Domain:
    return tiny.create_domain(task="detection", layout="coco", slices=[], img_size=[24, 32], augmentation="industrial")


def test_the_sheet_shows_every_class_the_rare_ones_too_and_images_without_objects() -> None:
    shown = [["red"], ["red"], [], ["red"], ["light", "red"], ["dark", "red"], [], ["red"], ["red", "light"]]
    facts = {"labels": shown, "objects": [[]] * 9, "id": [f"{k}" for k in range(9)], "split": ["train"] * 8 + ["test"]}
    rows = choose_rows(pl.DataFrame(facts), 4)
    assert rows["row"].to_list() == [5, 4, 2, 0], "dark, light, none, red: each the first by id"
    assert choose_rows(pl.DataFrame(facts), 30)["row"].to_list() == [5, 4, 2, 0, 6, 1, 3, 7], "all of train, none twice"


def test_a_sheet_draws_the_boxes_where_augmentation_moves_them(tmp_path: Path, domain: Domain) -> None:
    manifest = tiny.write_boxed_images(tmp_path)
    rows = choose_rows(manifest, 6)
    sheet = draw_preview(rows, tmp_path, domain, ImgSize(32, 32))
    assert len(sheet.axes) == 6 * 7
    colours = {to_hex(to_matplotlib(colour)): name for name, colour in choose_colours(domain.classes, None).items()}
    for axes, row in zip(sheet.axes[::7], rows.iter_rows(named=True), strict=True):
        drawn = [patch for patch in axes.patches if isinstance(patch, Rectangle)][1::2]  # after its halo
        objects = read_objects(row["objects"])
        assert [colours[to_hex(patch.get_edgecolor())] for patch in drawn] == [one.label for one in objects]
        expected = fit_boxes(to_targets(objects, domain.classes), (32, 24), (32, 32), "letterbox")
        corners = [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in drawn]
        wanted = [(x0 - 0.5, y0 - 0.5, x1 - x0, y1 - y0) for x0, y0, x1, y1 in expected[:, :4].tolist()]
        assert np.array(corners) == pytest.approx(np.array(wanted))
        assert [patch.get_linestyle() != "solid" and patch.get_linestyle() != "-" for patch in drawn] == [
            one.kind != "object" for one in objects
        ]
    moved = {tuple(patch.get_xy()) for axes in sheet.axes[8:14] for patch in axes.patches}
    assert len(moved) >= 6, "every version has its own places"
    (legend,) = sheet.legends
    assert [text.get_text() for text in legend.get_texts()] == [*tiny.CLASSES, "dashed: ignored"]
    assert {axes.get_ylabel() for axes in sheet.axes[::7]} >= {"no object", "1 object"}


# Validation


def write_rows(raw: Path, domain: Domain, shown: dict[str, list[LabelledBox]], **facts: Any) -> pl.DataFrame:
    """rows.parquet of pictures of 48 x 40 pixels; those of one first letter have one content."""
    raw.mkdir(parents=True, exist_ok=True)
    for name in shown:
        picture(ord(name[0])).save(raw / name)
    rows = [Row(path=name, objects=objects, columns={}, **facts) for name, objects in shown.items()]
    return create_rows(rows, domain, raw)


def quarantine(tmp_path: Path, domain: Domain, shown: dict[str, list[LabelledBox]]) -> dict[str, str]:
    found = check_rows(write_rows(tmp_path, domain, shown), tmp_path, domain)
    return {item.path: str(item.reason) for item in found.quarantined}


DARK = LabelledBox("dark", (1.5, 2, 30, 38.25))
RED = LabelledBox("red", (20, 5, 40, 30))


def test_boxes_outside_of_the_decoded_picture_are_quarantined(tmp_path: Path, domain: Domain) -> None:
    shown = {
        "a.png": [DARK, LabelledBox("red", (40, 5, 50.5, 30))],
        "b.png": [LabelledBox("red", (-2.1, 5, 20, 30))],
        "c.png": [LabelledBox("red", (0, 41, 20, 42))],
        "d.png": [DARK, RED],
        "e.png": [],
    }
    found = quarantine(tmp_path, domain, shown)
    assert sorted(found) == ["a.png", "b.png", "c.png"]
    assert "inside the picture of 48 x 40 pixels" in found["a.png"]
    assert "red at 40 5 50.5 30" in found["a.png"]


def test_copies_with_other_boxes_are_a_conflict_and_those_with_the_same_are_used_once(
    tmp_path: Path, domain: Domain
) -> None:
    shifted = LabelledBox("red", (20, 5, 41, 30))
    shown = {
        "a1.png": [DARK, RED],
        "a2.png": [RED, DARK],
        "b1.png": [DARK, RED],
        "b2.png": [DARK, shifted],
        "c1.png": [RED],
        "c2.png": [],
        "d1.png": [RED],
        "d2.png": [LabelledBox("red", RED.box, "difficult")],
    }
    found = quarantine(tmp_path, domain, shown)
    assert sorted(found) == ["a2.png", "b1.png", "b2.png", "c1.png", "c2.png", "d1.png", "d2.png"]
    assert "a1.png, which is kept" in found["a2.png"]
    assert "other boxes in the same content as b2.png (2 objects: dark + red)" in found["b1.png"]
    assert "c2.png (0 objects: (none))" in found["c1.png"]


def test_near_duplicates_may_show_other_objects(tmp_path: Path, domain: Domain) -> None:
    """Two photographs of one board are near duplicates, and one of them has a defect."""
    shown = {"a.png": [DARK, RED], "b.png": [RED], "c.png": [DARK], "d.png": []}
    rows = write_rows(tmp_path, domain, shown)
    ids = dict(rows.select("path", "id").iter_rows())
    pairs = [("a.png", "b.png"), ("b.png", "c.png"), ("c.png", "d.png")]
    found = check_rows(rows, tmp_path, domain, [(ids[one], ids[other]) for one, other in pairs])
    assert not [text for text in found.warnings if text.startswith("Near duplicates")]
    assert found.near_duplicates == tuple(pairs)


def test_small_objects_are_reported_with_the_size_that_helps(tmp_path: Path, domain: Domain) -> None:
    box = lambda side: LabelledBox("red", (5, 5, 5 + side, 5 + side))  # noqa: E731
    shown = {f"{letter}.png": [box(6 if letter < "d" else 30), DARK] for letter in "abcdefghij"}
    fit = check_rows(write_rows(tmp_path, domain, shown), tmp_path, domain).fit
    found = measure_objects(fit, domain)
    assert found is not None
    assert found.objects.filter(pl.col("label") == "red")["canvas"].min() == pytest.approx(
        3.6, rel=0.01
    )  # 24 of 40 rows
    assert found.each.tolist() == [2] * 10
    few, small = warn_of_objects(fit, domain)
    assert few.startswith("Classes of fewer than 30 objects: dark 10, light 0, red 10.")
    assert small.startswith("Objects of fewer than 8 x 8 pixels at img_size 24 x 32: red 30%.")
    wanted = re.search(r"img_size: \[(\d+), (\d+)\]", small)
    assert wanted is not None
    larger = domain.model_copy(update={"img_size": ImgSize(*map(int, wanted.groups()))})
    assert len(warn_of_objects(fit, larger)) == 1
    assert len(warn_of_objects(fit, domain.model_copy(update={"img_size": None}))) == 1
    huge = LabelledBox("red", (5, 5, 5.1, 5.1))
    tiles = write_rows(tmp_path, domain, {name: [huge] for name in shown})
    assert "cut the images into tiles" in warn_of_objects(check_rows(tiles, tmp_path, domain).fit, domain)[1]


def test_images_with_more_objects_than_scores_count_are_named(tmp_path: Path, domain: Domain) -> None:
    crowd = [LabelledBox("red", (column, row, column + 0.9, row + 0.9)) for column in range(30) for row in range(4)]
    rows = write_rows(tmp_path, domain, {"a.png": crowd, "b.png": crowd[:100], "c.png": [*crowd[:90], DARK]})
    text = " ".join(warn_of_objects(check_rows(rows, tmp_path, domain).fit, domain))
    assert "Images with more than 100 objects of one class: 1. " in text


# The report


@pytest.fixture
def validated(tmp_path: Path, domain: Domain) -> Validated:
    boxes = [[DARK], [DARK, RED], [RED, LabelledBox("light", (2, 2, 9, 9), "difficult")], []]
    shown = {f"{letter}.png": boxes[place % 4] for place, letter in enumerate("abcdefghijklmnop")}
    return check_rows(write_rows(tmp_path, domain, shown), tmp_path, domain)


def test_the_report_counts_objects_and_shows_them(
    tmp_path: Path, validated: Validated, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = render_report(validated, tmp_path)
    assert page == render_report(validated, tmp_path)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "An image counts for every class of which it shows an object." in text
    assert "red 8 8 0 0 22 (22 to 22) 13 (13 to 13)" in text, "objects, small, medium, large, sides"
    assert "light 0 0 0 0" in text
    assert "dashed in the pictures: 4 difficult. 4 of 16 images show no object." in text
    assert "no object at all" in text
    assert page.count('<div class="drawn">') == 4, "three classes, and none"
    assert page.count("objects in an image") == 1
    record = validated.to_record()
    assert record.objects is not None
    assert record.objects.model_dump() == {
        "counts": {"dark": 8, "light": 0, "red": 8},
        "difficult": 4,
        "crowd": 0,
        "pictures": 16,
        "empty": 4,
    }
    assert {name: counts.images for name, counts in record.classes.items()} == {"dark": 8, "light": 4, "red": 8}
    assert page.count("data:image/jpeg") == 8 + 4 + 8 + 4, "all pictures of each class, and those of none"
    monkeypatch.setattr(report, "MOST_DRAWN", 9)
    assert render_report(validated, tmp_path).count("data:image/jpeg") == 4 * 3
    empty = replace(validated, fit=validated.fit.clear())
    assert "objects in an image" not in render_report(empty, tmp_path)


def test_a_thumbnail_has_the_boxes_where_the_picture_has_them(tmp_path: Path, validated: Validated) -> None:
    row = next(row for row in validated.fit.iter_rows(named=True) if row["path"] == "b.png")
    Image.open(tmp_path / "b.png").resize((480, 400)).save(tmp_path / "large.png")
    big = {**row, "path": "large.png", "width": 480, "height": 400}
    big["objects"] = [{"label": "red", "box": [240.0, 100.0, 400.0, 300.0], "kind": "object"}]
    data = create_drawn(tmp_path, big, 240, validated.domain)
    assert data is not None
    drawn = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert drawn.shape == (200, 240, 3)
    colour = np.array(choose_colours(validated.domain.classes, None)["red"])
    close = np.abs(drawn - colour).sum(axis=-1) < 90
    rows, columns = np.nonzero(close)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == pytest.approx((120, 50, 199, 149), abs=1)
    shutil.rmtree(tmp_path)
    assert create_drawn(tmp_path, big, 240, validated.domain) is None
