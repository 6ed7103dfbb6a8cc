"""Raw trees become rows: what each layout reads, how crops are cut, what a wrong layout is told."""

import hashlib

import numpy as np
import polars as pl
import pytest
from PIL import Image
from samples import (
    make_domain,
    save_mask,
    save_picture,
    write_csv,
    write_folders,
    write_instances,
    write_table,
    write_voc,
)

from components.data.crops import draw_background, find_boxes
from components.data.guessing import guess_layout, suggest_layout
from components.data.layouts import READERS, find_classes, read_rows
from components.domain import LAYOUTS, Csv, Folders, Instances, Voc
from components.errors import DataError


def test_every_layout_has_a_reader():
    assert READERS.keys() == LAYOUTS.keys()


def test_folders(tmp_path):
    rows = read_rows(make_domain(), write_folders(tmp_path))
    assert rows["path"].to_list() == sorted(rows["path"].to_list())
    assert rows["label"].value_counts(sort=True)["count"].to_list() == [6, 6]
    first = rows.row(0, named=True)
    assert first["path"] == "cracked/cracked00.png"
    assert first["id"] == hashlib.sha256((tmp_path / first["path"]).read_bytes()).hexdigest()
    assert first["mask"] is None
    assert first["crop"] is None
    assert first["boxes"] == []


def test_folders_take_masks_of_the_same_stem_and_deeper_files(tmp_path):
    write_folders(tmp_path, masks=True)
    save_picture(tmp_path / "good/monday/x.jpg", 77)
    save_mask(tmp_path / "masks/good/monday/x.png")
    rows = read_rows(make_domain(layout={"kind": "folders", "masks": "masks"}), tmp_path)
    assert rows.height == 13  # the masks themselves are no images
    assert rows.filter(path="good/monday/x.jpg")["mask"].item() == "masks/good/monday/x.png"
    assert rows["problem"].null_count() == rows.height


def test_a_class_without_a_folder_of_masks_needs_none(tmp_path):
    write_folders(tmp_path)
    for index in range(6):
        save_mask(tmp_path / f"masks/cracked/cracked{index:02d}.png")
    rows = read_rows(make_domain(layout={"kind": "folders", "masks": "masks"}), tmp_path)
    assert rows.filter(label="good")["mask"].null_count() == 6
    assert rows.filter(label="cracked")["mask"].null_count() == 0


def test_hidden_and_system_files_are_passed_over(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "good/.DS_Store").write_bytes(b"x")
    (tmp_path / "good/Thumbs.db").write_bytes(b"x")
    (tmp_path / "README.txt").write_text("about")
    assert read_rows(make_domain(), tmp_path).height == 12


def test_csv_reads_groups_slices_masks_and_boxes(tmp_path):
    layout = {"kind": "csv", "mask": "mask", "boxes": "boxes"}
    rows = read_rows(make_domain(layout=layout, group="lot", slices=["site"]), write_csv(tmp_path))
    row = rows.filter(path="images/lot3_good1.png").row(0, named=True)
    assert (row["group"], row["site"], row["mask"]) == ("lot3", "north", "masks/lot3_good1.png")
    assert row["boxes"] == [[8, 8, 20, 16]]


def test_csv_paths_are_relative_to_the_table_and_bare_names_are_found(tmp_path):
    save_picture(tmp_path / "pictures/a.png", 1)
    save_picture(tmp_path / "meta/deep/b.png", 2)
    rows = [("image", "label"), ("../pictures/a.png", " good "), ("b", "cracked"), ("deep\\b.png", "cracked")]
    write_table(tmp_path / "meta/labels.csv", rows)
    read = read_rows(make_domain(layout={"kind": "csv", "table": "meta/labels.csv"}), tmp_path)
    assert read["path"].to_list() == ["meta/deep/b.png", "meta/deep/b.png", "pictures/a.png"]
    assert read["label"].to_list() == ["cracked", "cracked", "good"]


def test_voc_counts_pixels_from_one(tmp_path):
    rows = read_rows(make_domain(layout="voc"), write_voc(tmp_path, pictures=2))
    assert rows.filter(label="good")["crop"].to_list() == [[0, 10, 30, 40]] * 2
    sha = hashlib.sha256((tmp_path / "JPEGImages/p0.jpg").read_bytes()).hexdigest()
    assert rows.filter(path="JPEGImages/p0.jpg")["id"].to_list() == [f"{sha}#0,10,30,40", f"{sha}#40,10,70,40"]


def test_instances_are_cut_with_their_surroundings_and_background_without_any(tmp_path):
    domain = make_domain(classes=["background", "object"], layout="instances")
    rows = read_rows(domain, write_instances(tmp_path, pictures=1))
    assert rows["label"].value_counts().sort("label").rows() == [("background", 3), ("object", 3)]
    objects = rows.filter(label="object")["crop"].to_list()
    assert [0, 0, 24, 24] in objects  # at the corner: moved inside, at least 24 pixels
    assert [52, 37, 97, 82] in objects  # half as large again as 30 x 20
    ids = np.asarray(Image.open(tmp_path / "instances/p0.png"))
    for x0, y0, x1, y1 in rows.filter(label="background")["crop"].to_list():
        assert not ids[y0:y1, x0:x1].any()
    assert read_rows(domain, tmp_path).equals(rows)


def test_background_depends_on_the_picture_and_gives_up_where_there_is_none():
    ids = np.zeros((64, 64), dtype=np.int64)
    assert draw_background(ids, [24], "a" * 64) != draw_background(ids, [24], "b" * 64)
    assert draw_background(np.ones_like(ids), [24], "a" * 64) == []
    assert find_boxes(ids) == []


@pytest.mark.parametrize(
    ("write", "layout"),
    [
        (write_folders, Folders()),
        (write_csv, Csv()),
        (write_voc, Voc()),
        (write_instances, Instances()),
    ],
)
def test_layouts_are_guessed_and_their_classes_found(tmp_path, write, layout):
    write(tmp_path)
    assert guess_layout(tmp_path) == layout.kind
    assert suggest_layout(tmp_path) == layout
    expected = ["background", "object"] if layout.kind == "instances" else ["cracked", "good"]
    assert find_classes(layout, tmp_path) == expected


def test_folders_below_other_folders_are_suggested_by_name(tmp_path):
    write_folders(tmp_path / "images", masks=False)
    save_mask(tmp_path / "masks/good/good00.png")
    save_mask(tmp_path / "masks/cracked/cracked00.png")
    assert suggest_layout(tmp_path) == Folders(images="images", masks="masks")
    assert guess_layout(tmp_path / "masks/good") is None
    assert guess_layout(tmp_path / "nowhere") is None


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
@pytest.mark.parametrize("write", [write_folders, write_csv, write_voc, write_instances])
def test_a_wrong_layout_is_told_what_the_folder_looks_like(tmp_path, write, kind):
    write(tmp_path)
    guess = guess_layout(tmp_path)
    if guess == kind:
        return
    with pytest.raises(DataError) as caught:
        read_rows(make_domain(layout=kind), tmp_path)
    assert f"This looks like {guess}: write `layout: " in str(caught.value)


def test_rows_keep_their_types_when_columns_are_empty(tmp_path):
    rows = read_rows(make_domain(), write_folders(tmp_path))
    assert rows.schema["boxes"] == pl.List(pl.List(pl.Int64))
    assert rows.schema["crop"] == pl.List(pl.Int64)
    assert rows.schema["group"] == pl.String
