"""Raw trees become rows: what each layout reads, how crops are cut, what a wrong layout is told."""

import hashlib

import numpy as np
import polars as pl
import pytest
from PIL import Image
from samples import (
    explain,
    make_domain,
    save_coco,
    save_ids,
    save_mask,
    save_picture,
    write_coco,
    write_csv,
    write_folders,
    write_instances,
    write_masks,
    write_multilabel,
    write_parquet,
    write_table,
    write_voc,
    write_yolo,
)

from components.data.annotations.crops import draw_background, find_boxes
from components.data.annotations.guessing import guess_layout, suggest_layout
from components.data.annotations.layouts import READERS, find_classes, read_rows
from components.data.annotations.masks import count_values
from components.domain.layouts import LAYOUTS, Coco, Csv, Folders, Instances, Masks, Parquet, Voc, Yolo
from components.errors import DataError, DomainError
from components.tasks import create_task


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
        (write_parquet, Parquet()),
        (write_voc, Voc()),
        (write_coco, Coco()),
        (write_yolo, Yolo(names="data.yaml")),
        (write_instances, Instances()),
        (write_masks, Masks()),
    ],
)
def test_layouts_are_guessed_and_their_classes_found(tmp_path, write, layout):
    write(tmp_path)
    assert guess_layout(tmp_path) == layout.kind
    assert suggest_layout(tmp_path) == layout
    expected = {"instances": ["background", "object"], "masks": ["background", "class_1"]}.get(layout.kind)
    expected = expected or ["cracked", "good"]
    assert find_classes(layout, tmp_path) == expected


def test_folders_below_other_folders_are_suggested_by_name(tmp_path):
    write_folders(tmp_path / "images", masks=False)
    save_mask(tmp_path / "masks/good/good00.png")
    save_mask(tmp_path / "masks/cracked/cracked00.png")
    assert suggest_layout(tmp_path) == Folders(images="images", masks="masks")
    assert guess_layout(tmp_path / "masks/good") is None
    assert guess_layout(tmp_path / "nowhere") is None


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
@pytest.mark.parametrize(
    "write", [write_folders, write_csv, write_parquet, write_voc, write_coco, write_instances, write_masks, write_yolo]
)
def test_a_wrong_layout_gets_a_hint_what_the_folder_looks_like(tmp_path, write, kind):
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


# Tables


def test_a_parquet_table_gives_the_rows_of_the_csv(tmp_path):
    options = {"mask": "mask", "boxes": "boxes"}
    facts = {"group": "lot", "slices": ["site"]}
    rows = read_rows(make_domain(layout={"kind": "csv", **options}, **facts), write_csv(tmp_path / "csv"))
    same = read_rows(make_domain(layout={"kind": "parquet", **options}, **facts), write_parquet(tmp_path / "parquet"))
    assert same.equals(rows)


def test_parquet_columns_may_be_numbers_or_lists_but_not_blobs(tmp_path):
    save_picture(tmp_path / "a.png", 1)
    table = pl.DataFrame({"image": ["a.png"], "label": [["good", "cracked"]], "lot": [7]})
    table.write_parquet(tmp_path / "labels.parquet")
    layout = {"kind": "parquet", "separator": "|"}
    row = read_rows(make_domain(task="multilabel", layout=layout, group="lot"), tmp_path).row(0, named=True)
    assert (row["labels"], row["label"], row["group"]) == (["good", "cracked"], "good + cracked", "7")
    table.with_columns(label=pl.lit(b"good")).write_parquet(tmp_path / "labels.parquet")
    with pytest.raises(DataError, match=r"column 'label': expected plain values; found Binary"):
        read_rows(make_domain(layout="parquet"), tmp_path)


def test_a_csv_may_cut_crops(tmp_path):
    save_picture(tmp_path / "a.png", 1)
    rows = [("image", "label", "part"), ("a.png", "good", "0 0 20 20"), ("a.png", "cracked", "20 0 48 40")]
    write_table(tmp_path / "labels.csv", rows)
    read = read_rows(make_domain(layout={"kind": "csv", "crop": "part"}), tmp_path)
    assert read["crop"].to_list() == [[0, 0, 20, 20], [20, 0, 48, 40]]
    assert [name.partition("#")[2] for name in read["id"]] == ["0,0,20,20", "20,0,48,40"]


def test_several_labels_as_columns_and_joined(tmp_path):
    columns = read_rows(make_domain(task="multilabel", layout="csv"), write_multilabel(tmp_path, pictures=4))
    assert columns["labels"].to_list() == [[], ["good"], ["cracked"], ["good", "cracked"]]
    assert columns["label"].to_list() == ["(none)", "good", "cracked", "good + cracked"]
    lines = [(f"images/p0{k}.png", text) for k, text in enumerate(["", "good", "cracked", " cracked; good;"])]
    write_table(tmp_path / "labels.csv", [("image", "label"), *lines])
    joined = read_rows(make_domain(task="multilabel", layout={"kind": "csv", "separator": ";"}), tmp_path)
    assert joined.equals(columns)
    with pytest.raises(DataError, match="label 'cracked; good;'"):
        read_rows(make_domain(layout="csv"), write_table_of(tmp_path, lines[1:]))


def write_table_of(raw, lines):
    write_table(raw / "labels.csv", [("image", "label"), *lines])
    return raw


def test_names_that_differ_in_case_or_accents_are_reported_and_backslashes_found(tmp_path):
    for name in ("A.PNG", "u\u0308ber.png", "back\\slash.png"):
        save_picture(tmp_path / name, len(name))
    lines = [("a.png", "good"), ("\u00fcber.png", "good"), ("back\\slash.png", "cracked")]
    rows = read_rows(make_domain(layout="csv"), write_table_of(tmp_path, lines))
    problems = {path: explain(cell) for path, cell in rows.select("path", "problem").rows()}
    assert "no such file, but A.PNG" in problems["a.png"]
    assert "no such file, but u\u0308ber.png" in problems["\u00fcber.png"]
    assert problems["back\\slash.png"] == ""


def test_pictures_beside_listed_ones_need_a_line_but_masks_do_not(tmp_path):
    write_csv(tmp_path)
    save_picture(tmp_path / "images/new.png", 5)
    save_picture(tmp_path / "elsewhere/other.png", 6)
    rows = read_rows(make_domain(layout="csv"), tmp_path)
    unlisted = rows.filter(pl.col("problem").is_not_null())
    assert unlisted["path"].to_list() == ["images/new.png"]
    assert "a line in labels.csv" in explain(unlisted["problem"][0])


# COCO


def test_coco_boxes_are_crops_in_whole_pixels_with_columns_of_the_image(tmp_path):
    domain = make_domain(layout="coco", slices=["site"])
    rows = read_rows(domain, write_coco(tmp_path, pictures=2))
    assert rows.filter(label="good")["crop"].to_list() == [[0, 10, 30, 40]] * 2
    assert rows["site"].to_list() == ["s0", "s0", "s1", "s1"]
    assert rows["stated_size"].to_list() == [[96, 80]] * 4
    assert rows["problem"].null_count() == 4


def test_coco_without_boxes_takes_polygons_and_passes_over_crowds(tmp_path):
    save_picture(tmp_path / "images/a.png", 1)
    polygon = [[3.2, 4.0, 30.5, 4.0, 30.5, 22.1]]
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 1, "segmentation": polygon},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"id": 3, "image_id": 7, "category_id": 1, "bbox": [0, 0, 48, 40], "whole": True},
    ]
    categories = [{"id": 1, "name": "good"}]
    save_coco(tmp_path / "annotations.json", [{"id": 7, "file_name": "a.png"}], annotations, categories)
    rows = read_rows(make_domain(layout="coco"), tmp_path)
    assert rows["crop"].to_list() == [None, [3, 4, 31, 23]]


def test_coco_in_several_files_gives_one_row_a_picture_with_all_labels(tmp_path):
    write_coco(tmp_path, pictures=2)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations.json").rename(tmp_path / "annotations/first.json")
    save_picture(tmp_path / "images/empty.png", 9)
    save_coco(tmp_path / "annotations/second.json", [{"id": 0, "file_name": "empty.png"}], [], [])
    layout = {"kind": "coco", "annotations": "annotations"}
    assert suggest_layout(tmp_path) == Coco(annotations="annotations")
    rows = read_rows(make_domain(task="multilabel", layout=layout), tmp_path)
    assert rows["labels"].to_list() == [[], ["good", "cracked"], ["good", "cracked"]]
    assert rows["crop"].null_count() == 3
    assert read_rows(make_domain(layout=layout), tmp_path).height == 4  # a picture without objects gives no crop


# Semantic masks


def test_a_picture_has_the_class_its_mask_shows(tmp_path):
    domain = make_domain(classes=["background", "class_1"], layout="masks")
    rows = read_rows(domain, write_masks(tmp_path, pictures=4))
    assert rows["label"].to_list() == ["background", "class_1"] * 2
    assert rows["mask"].to_list() == [f"masks/p0{k}.png" for k in range(4)]
    save_ids(tmp_path / "masks/p00.png", [1, 2, 255])
    named = {"kind": "masks", "ids": {"crack": 1, "pit": 2}, "ignore": [255]}
    rows = read_rows(make_domain(classes=["background", "crack", "pit"], layout=named), tmp_path)
    assert "crack (96 pixels), pit (96 pixels)" in explain(rows["problem"][0])
    rows = read_rows(make_domain(task="multilabel", classes=["pit", "crack"], layout=named), tmp_path)
    assert rows["labels"].to_list() == [["pit", "crack"], ["crack"], [], ["crack"]]


def test_masks_in_colour_and_ids_in_three_equal_channels(tmp_path):
    write_masks(tmp_path, pictures=2)
    colours = np.zeros((40, 48, 3), dtype=np.uint8)
    colours[5:10, 5:10] = (255, 0, 128)
    for name in ("p00", "p01"):
        Image.fromarray(colours).save(tmp_path / f"masks/{name}.png")
    layout = {"kind": "masks", "ids": {"crack": "#FF0080"}}
    rows = read_rows(make_domain(classes=["background", "crack"], layout=layout), tmp_path)
    assert rows["label"].to_list() == ["crack", "crack"]
    Image.fromarray(np.full((40, 48, 3), 1, dtype=np.uint8)).save(tmp_path / "masks/p00.png")
    assert count_values(tmp_path / "masks/p00.png", colours=False) == {1: 1920}
    rows = read_rows(make_domain(classes=["background", "crack"], layout=layout), tmp_path)
    assert "found #010101 (1,920 pixels)" in explain(rows["problem"][0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "multilabel"}, "one of the layouts csv, parquet, coco, masks for the task multilabel"),
        ({"layout": {"kind": "csv", "separator": ";"}}, "Remove it, or choose the task multilabel"),
        ({"layout": {"kind": "masks", "ids": {"crack": "red"}}}, "whole numbers, or else colours"),
        ({"layout": {"kind": "masks", "ids": {"crack": 1, "pit": 1}}}, "one value to two classes"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(DomainError, match=words):
        create_task(make_domain(**changes))
