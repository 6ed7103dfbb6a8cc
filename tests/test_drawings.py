"""Shapes in the formats that people hold (COCO, LabelMe, CVAT, YOLO): one scene in each, and what is refused."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference
from samples import make_domain, save_picture

from components.data.annotations.coco import CROWDS_IGNORED
from components.data.annotations.drawings import EMPTY, IGNORED, TAGS
from components.data.annotations.guessing import suggest_layout
from components.data.annotations.labelme import BY_STEM, OTHERS
from components.data.annotations.layouts import READERS, read_layout, read_tree
from components.data.annotations.painting import OVERLAP
from components.data.manifest import Wanted
from components.domain.layouts import Coco, Csv, Cvat, Labelme, Yolo
from components.errors import DataError
from components.records.maps import IGNORE, Painting, decode_map

SIZE = (48, 40)
SMALL, LARGE = [4.0, 4.0, 10.0, 4.0, 10.0, 12.0, 4.0, 12.0], [2.0, 2.0, 40.5, 2.0, 40.5, 30.25, 2.0, 20.0]
#: The scene: pictures p0 (a pit below a stain), p1 (nothing, annotated) and p2 (not annotated).
SCENE = (("pit", SMALL), ("stain", LARGE))
NAMES = ("pit", "stain")


def write_pictures(raw: Path, number: int = 3, folder: str = "images") -> Path:
    for place in range(number):
        save_picture(raw / folder / f"p{place}.png", place)
    return raw


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def as_polygons(values):
    return [values]


def as_counts(values, compressed=False):
    rle = reference.frPyObjects([values], SIZE[1], SIZE[0])[0]  # whatever the rasteriser: what matters is its coding
    mask = reference.decode(rle)
    text = {"size": list(SIZE[::-1]), "counts": reference.encode(np.asfortranarray(mask))["counts"].decode()}
    if compressed:
        return text
    flat = mask.T.ravel() > 0
    runs = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    return text | {"counts": np.diff(runs, prepend=0).tolist()}


def coco(raw, segment=as_polygons, **changes):
    write_pictures(raw)
    images = [{"id": k, "file_name": f"p{k}.png", "width": 48, "height": 40} for k in range(3)]
    images[1]["annotated"] = True
    found = [
        {"id": k, "image_id": 0, "category_id": NAMES.index(name), "segmentation": segment(values), "iscrowd": 0}
        for k, (name, values) in enumerate(SCENE)
    ]
    categories = [{"id": k, "name": name} for k, name in enumerate(NAMES)]
    content = {"images": images, "annotations": found, "categories": categories} | changes
    write_json(raw / "annotations.json", content)
    return raw, Coco()


def labelme_file(shapes, name="p0.png", **changes):
    facts = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None}
    return facts | {"imageHeight": 40, "imageWidth": 48} | changes


def shape_of(label, points, kind="polygon", **changes):
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **changes}


def pairs(values):
    return [list(pair) for pair in zip(values[::2], values[1::2], strict=True)]


def labelme(raw, shapes=None, folder="labels", **changes):
    write_pictures(raw)
    shapes = [shape_of(name, pairs(values)) for name, values in SCENE] if shapes is None else shapes
    write_json(raw / folder / "p0.json", labelme_file(shapes, **changes))
    write_json(raw / folder / "p1.json", labelme_file([], "p1.png"))
    return raw, Labelme(images="images", annotations=folder)


def polygon(label, values, more=""):
    points = ";".join(f"{x},{y}" for x, y in pairs(values))
    return f'<polygon label="{label}" source="manual" occluded="0" points="{points}" {more}></polygon>'


def cvat(raw, shapes=None, images=None, meta=""):
    write_pictures(raw)
    shapes = "".join(polygon(*each) for each in SCENE) if shapes is None else shapes
    images = f'<image id="0" name="p0.png" width="48" height="40">{shapes}</image>' if images is None else images
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{meta}{images}</annotations>'
    (raw / "annotations.xml").write_text(text)
    return raw, Cvat()


def yolo_line(name, values):
    shares = np.array(values).reshape(-1, 2) / SIZE
    return f"{NAMES.index(name)} {' '.join(map(str, shares.ravel().tolist()))}\n"


def yolo(raw, text=None):
    write_pictures(raw)
    (raw / "labels").mkdir(exist_ok=True)
    (raw / "labels/p0.txt").write_text("".join(yolo_line(*each) for each in SCENE) if text is None else text)
    (raw / "labels/p1.txt").write_text("")
    (raw / "data.yaml").write_text("names: [pit, stain]\n")
    return raw, Yolo()


def read(raw, layout, painting=None):
    return read_layout(layout, raw, Wanted(annotation="mask", painting=painting or Painting()))


def read_map(row):
    assert row.problem is None, row.problem
    return decode_map(row.regions.data)


def find_row(reading, name="p0.png"):
    found = [row for row in reading.rows if row.path.endswith(name)]
    assert len(found) == 1
    return found[0]


def name_pixels(row):
    """The class of every pixel by name, so that readers with other numbers compare."""
    return np.array([*row.regions.names, *[""] * (IGNORE + 1)])[read_map(row)].tolist()


FORMATS = {"coco": coco, "labelme": labelme, "cvat": cvat, "yolo": yolo}


@pytest.mark.parametrize("overlap", ["later", "smaller"])
@pytest.mark.parametrize("form", FORMATS)
def test_one_scene_is_the_same_class_map_in_every_format(tmp_path, form, overlap):
    raw, layout = FORMATS[form](tmp_path)
    reading = read(raw, layout, Painting(overlap=overlap))
    x, y = np.meshgrid(np.arange(48) + 0.5, np.arange(40) + 0.5)
    large = (x > 2) & (x < 40.5) & (y > 2) & (y < 20 + (x - 2) * 10.25 / 38.5)
    small = (x > 4) & (x < 10) & (y > 4) & (y < 12)
    expected = np.where(large, "stain", np.where(small, "pit", "background"))
    if overlap == "smaller":
        expected[small] = "pit"
    assert name_pixels(find_row(reading)) == expected.tolist()
    assert reading.notes[OVERLAP[overlap]] == 48
    assert find_row(reading, "p2.png").regions is None  # not annotated: the task's option decides
    if form != "cvat":  # which cannot say that a picture without shapes is finished
        assert not read_map(find_row(reading, "p1.png")).any()


@pytest.mark.parametrize("compressed", [False, True])
def test_run_lengths_of_coco_are_painted_and_crowds_ignored(tmp_path, compressed):
    raw, layout = coco(tmp_path, lambda values: as_counts(values, compressed))
    mask = reference.decode(reference.frPyObjects([LARGE], 40, 48))[..., 0] > 0
    painted = read_map(find_row(read(raw, layout)))
    assert (painted == 2).tolist() == mask.tolist()
    content = json.loads((raw / "annotations.json").read_text())
    content["annotations"][1]["iscrowd"] = 1
    write_json(raw / "annotations.json", content)
    reading = read(raw, layout)
    painted = read_map(find_row(reading))
    assert (painted == 1).sum() == 48  # what is annotated lies above what is ignored
    assert (painted == IGNORE).sum() == mask.sum() - 48
    assert reading.notes[CROWDS_IGNORED] == 1
    assert "annotations with segmentation, which is not kept" not in reading.notes


def test_what_several_coco_files_say_of_a_picture_is_painted_together(tmp_path):
    raw, _ = coco(tmp_path)
    content = json.loads((raw / "annotations.json").read_text())
    for place in (0, 1):
        write_json(raw / f"parts/{place}.json", content | {"annotations": content["annotations"][place : place + 1]})
    together = read(raw, Coco(annotations="parts"))
    assert name_pixels(find_row(together)) == name_pixels(find_row(read(raw, Coco())))


def png(mask):
    data = io.BytesIO()
    Image.fromarray(mask).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


BLOB = np.array([[0, 1, 1], [1, 1, 0]], np.uint8) * 255
#: (LabelMe shape, CVAT shape, number of pixels, pixels that it covers)
AREAS = {
    "rectangle": (
        shape_of("pit", [[10, 12], [4, 4]], "rectangle"),
        '<box label="pit" xtl="4" ytl="4" xbr="10" ybr="12"/>',
        48,
        [(4, 4), (9, 11)],
    ),
    "circle": (
        shape_of("pit", [[20, 20], [23, 24]], "circle"),
        '<ellipse label="pit" cx="20" cy="20" rx="5" ry="5"/>',
        80,
        [(20, 15), (15, 20), (24, 20), (20, 24)],
    ),
    "mask": (
        shape_of("pit", [[7, 9], [9, 10]], "mask", mask=png(BLOB)),
        '<mask label="pit" rle="1, 4, 1" left="7" top="9" width="3" height="2"/>',
        4,
        [(8, 9), (9, 9), (7, 10), (8, 10)],
    ),
    "turned": (
        shape_of("pit", [[16, 12], [20, 16], [16, 20], [12, 16]], "rectangle"),
        f'<box label="pit" xtl="{16 - 8**0.5}" ytl="{16 - 8**0.5}" xbr="{16 + 8**0.5}" ybr="{16 + 8**0.5}" '
        'rotation="45"/>',
        24 + 8,
        [(15, 13), (16, 18), (13, 15)],
    ),
}


@pytest.mark.parametrize("form", ["labelme", "cvat"])
@pytest.mark.parametrize("kind", AREAS)
def test_every_form_with_an_area_is_painted(tmp_path, form, kind):
    drawn, marked, number, pixels = AREAS[kind]
    raw, layout = labelme(tmp_path, [drawn]) if form == "labelme" else cvat(tmp_path, marked)
    painted = read_map(find_row(read(raw, layout)))
    assert all(painted[y, x] == 1 for x, y in pixels)
    assert abs((painted == 1).sum() - number) <= (
        8 if kind == "turned" else 0
    )  # corners of pixels are a matter of 1e-15


def test_cvat_draws_in_the_order_of_z(tmp_path):
    shapes = polygon("stain", LARGE, 'z_order="2"') + polygon("pit", SMALL, 'z_order="1"') + polygon("dent", SMALL)
    painted = find_row(read(*cvat(tmp_path, shapes)))
    assert painted.regions.shown == ["background", "stain"]


def test_labels_to_ignore_are_pixels_to_ignore(tmp_path):
    for form in ("labelme", "cvat"):
        raw, layout = FORMATS[form](tmp_path / form)
        reading = read(raw, layout.model_copy(update={"ignore": ("stain",)}))
        row = find_row(reading)
        assert row.regions.shown == ["background"]
        assert (read_map(row) == IGNORE).sum() > 800
        assert reading.notes[IGNORED] == 1


def test_parts_of_a_labelme_group_are_one_object(tmp_path):
    parts = [
        shape_of("pit", [[0, 0], [10, 10]], "rectangle", group_id=3),
        shape_of("stain", [[5, 5], [20, 15]], "rectangle"),  # 150 pixels: fewer than both parts have, more than one
        shape_of("pit", [[20, 0], [30, 10]], "rectangle", group_id=3),
    ]
    raw, layout = labelme(tmp_path, parts)
    assert (read_map(find_row(read(raw, layout, Painting(overlap="smaller")))) == 2).sum() == 150
    crops = [row.crop for row in READERS["labelme"](layout, raw, Wanted()).rows if row.crop]
    assert crops == [(0, 0, 30, 10), (5, 5, 20, 15)]


# What is refused

FLAWS = {
    "line": ({"shape_type": "line", "points": [[1, 1], [5, 5]]}, "a line, which has no area"),
    "linestrip": ({"shape_type": "linestrip"}, "a line strip, which has no area"),
    "point": ({"shape_type": "point", "points": [[1, 1]]}, "a point, which has no area"),
    "unknown": ({"shape_type": "blob"}, "a shape_type 'blob', which is not read"),
    "two points": ({"points": [[1, 1], [5, 5]]}, "2 points, of at least 3"),
    "one corner": ({"shape_type": "rectangle", "points": [[1, 1]]}, "a rectangle of 1 points, not 2"),
    "flat": ({"shape_type": "rectangle", "points": [[1, 1], [1, 9]]}, "on one line"),
    "no radius": ({"shape_type": "circle", "points": [[1, 1], [1, 1]]}, "a radius is not above 0"),
    "no points": ({"points": None}, "`points` that is not a list"),
    "text": ({"points": [[1, 2], ["x", 3], [5, 6]]}, "`points` that is not a list"),
    "nan": ({"points": [[1, 2], [float("nan"), 3], [5, 6]]}, "`points` that is not a list"),
    "far out": ({"points": [[1, 2], [51, 3], [5, 6]]}, "in a picture of 48 x 40 pixels"),
    "no mask": ({"shape_type": "mask", "points": [[1, 1], [3, 3]]}, "not a PNG in base64"),
    "no PNG": ({"shape_type": "mask", "points": [[1, 1], [3, 3]], "mask": "AAAA"}, "not a PNG in base64"),
    "mask of another size": (
        {"shape_type": "mask", "points": [[1, 1], [30, 30]], "mask": png(BLOB)},
        "a `mask` of 3 x 2 pixels in a box of 30 x 30",
    ),
    "empty mask": ({"shape_type": "mask", "points": [[1, 1], [3, 2]], "mask": png(BLOB * 0)}, "a mask without a pixel"),
}


@pytest.mark.parametrize(("changes", "words"), FLAWS.values(), ids=FLAWS)
def test_a_labelme_shape_that_cannot_be_painted_is_named(tmp_path, changes, words):
    shapes = [shape_of("stain", pairs(LARGE)), shape_of("pit", pairs(SMALL)) | changes]
    row = find_row(read(*labelme(tmp_path, shapes)))
    assert row.regions is None
    assert row.problem.expected == "shapes that can be painted in labels/p0.json"
    assert row.problem.found.startswith("shapes[1] (pit): ")
    assert words in row.problem.found


FILES = {
    "no JSON": ("{", "a LabelMe file labels/p0.json"),
    "no shapes": ('{"version": "5"}', "no list `shapes`"),
    "shapes of another kind": ('{"shapes": {}}', "`shapes` that is not a list"),
    "no object": ('{"shapes": [3]}', "shapes[0] that is not an object"),
    "no label": ('{"shapes": [{"points": []}]}', "shapes[0] without a label"),
    "half a character": ('{"shapes": [{"label": "\\ud800", "points": []}]}', "surrogates not allowed"),
    "deep": ('{"shapes": ' + "[" * 100_000, "a LabelMe file labels/p0.json"),
    "other picture": (json.dumps(labelme_file([], "p2.png")), "may describe images/p2.png or images/p0.png"),
    "other size": (json.dumps(labelme_file([], imageWidth=50)), "a picture of 50 x 40 pixels"),
}


@pytest.mark.parametrize(("text", "words"), FILES.values(), ids=FILES)
def test_a_labelme_file_that_cannot_be_read_is_named(tmp_path, text, words):
    raw, layout = labelme(tmp_path)
    (raw / "labels/p0.json").write_text(text)
    row = find_row(read(raw, layout))
    assert words in f"{row.problem.expected} {row.problem.found}"


def test_a_labelme_file_names_its_picture_or_is_named_like_it(tmp_path):
    raw, layout = labelme(tmp_path, imagePath="D:\\old\\photo.png")
    write_json(raw / "labels/classes.json", {"classes": ["pit"]})
    write_json(raw / "labels/other.json", labelme_file([shape_of("pit", pairs(SMALL))], "..\\images\\p2.png"))
    reading = read(raw, layout)
    assert read_map(find_row(reading)).any()
    assert (read_map(find_row(reading, "p2.png")) == 1).sum() == 48
    assert (reading.notes[BY_STEM], reading.notes[OTHERS]) == (1, 1)
    write_json(raw / "labels/again.json", labelme_file([], "p2.png"))
    assert "labels/again.json and labels/other.json" in find_row(read(raw, layout), "p2.png").problem.found


CVAT_FLAWS = {
    "line": ('<polyline label="pit" points="1,1;5,5"/>', "a line, which has no area"),
    "points": ('<points label="pit" points="1,1;5,5"/>', "points, which has no area"),
    "skeleton": ('<skeleton label="pit"><points label="a" points="1,1"/></skeleton>', "a skeleton, which has no area"),
    "unknown": ('<blob label="pit"/>', "<blob>, which is not read"),
    "two points": ('<polygon label="pit" points="1,1;5,5"/>', "2 points, of at least 3"),
    "no points": ('<polygon label="pit"/>', "0 points, of at least 3"),
    "text": ('<polygon label="pit" points="1,1;x,5;3,3"/>', "`points` that are not"),
    "three numbers": ('<polygon label="pit" points="1,1,1;2,5;3,3"/>', "`points` that are not"),
    "nan": ('<box label="pit" xtl="nan" ytl="4" xbr="10" ybr="12"/>', "`xtl` 'nan', which is not a number"),
    "no corner": ('<box label="pit" xtl="1" ytl="4" xbr="10"/>', "no number `ybr`"),
    "far out": ('<box label="pit" xtl="1" ytl="4" xbr="51" ybr="12"/>', "in a picture of 48 x 40 pixels"),
    "few runs": ('<mask label="pit" rle="1, 3" left="7" top="9" width="3" height="2"/>', "`rle` of 4 pixels"),
    "no runs": ('<mask label="pit" left="7" top="9" width="3" height="2"/>', "`rle` that is not a list"),
    "endless": (
        '<mask label="pit" rle="0, 999998000001" left="0" top="0" width="999999" height="999999"/>',
        "in a box of 999999 x 999999",
    ),
}


@pytest.mark.parametrize(("shape", "words"), CVAT_FLAWS.values(), ids=CVAT_FLAWS)
def test_a_cvat_shape_that_cannot_be_painted_is_named(tmp_path, shape, words):
    row = find_row(read(*cvat(tmp_path, polygon("stain", LARGE) + shape)))
    assert row.regions is None
    assert row.problem.found.startswith("shape 2 (")
    assert words in row.problem.found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotations><image", "found unclosed token"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "a document type or entity declaration"),
        ("<annotation><object/></annotation>", "found <annotation>"),
        ("<annotations><track/></annotations>", "tracks, as CVAT for video writes them"),
        ('<annotations><image id="0"/></annotations>', "the attribute `name`"),
    ],
)
def test_a_file_that_is_not_of_cvat_is_refused(tmp_path, text, words):
    raw, layout = cvat(tmp_path)
    (raw / "annotations.xml").write_text(text)
    with pytest.raises(DataError) as caught:
        read(raw, layout)
    assert words in str(caught.value)


def test_cvat_names_pictures_in_folders_splits_and_the_labels_of_the_task(tmp_path):
    meta = (
        "<meta><project><tasks><task><labels><label><name>pit</name></label></labels></task></tasks></project></meta>"
    )
    images = "".join(
        f'<image id="{k}" name="{name}" subset="{subset}" width="48" height="40">{polygon(label, SMALL)}</image>'
        for k, (name, subset, label) in enumerate(
            [
                ("p0.png", "Train", "pit"),
                ("sub/p0.png", "test", "pit"),
                ("p1.png", "test", "dent"),
                ("gone.png", "", "pit"),
            ]
        )
    )
    raw, layout = cvat(tmp_path, images=images, meta=meta)
    save_picture(raw / "images/sub/p0.png", 9)
    rows = {row.path: row for row in read(raw, layout).rows}
    assert rows["images/p0.png"].columns["split"] == "Train"
    assert rows["images/sub/p0.png"].regions.shown == ["background", "pit"]
    assert "'dent' in annotations.xml, <image> 3" in rows["images/p1.png"].problem.found
    assert "no such file" in rows["images/gone.png"].problem.found
    twice = '<image name="p0.png">{0}</image><image name="p0.png">{1}</image>'
    for shapes, problem in (
        ((polygon("pit", SMALL), ""), False),
        ((polygon("pit", SMALL), polygon("pit", LARGE)), True),
    ):
        raw, layout = cvat(tmp_path, images=twice.format(*shapes))
        assert bool([row for row in read(raw, layout).rows if row.problem]) == problem


YOLO_FLAWS = {
    "box": ("0 0.5 0.5 0.1 0.1", "line 2: a box"),
    "two points": ("0 0.1 0.1 0.2 0.2 0.3", "6 values, not a class and at least three points"),
    "odd": ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "8 values"),
    "unknown class": ("7 0.1 0.1 0.2 0.1 0.3 0.3", "class 7, not one of 0, 1"),
    "name": ("pit 0.1 0.1 0.2 0.1 0.3 0.3", "class pit, not one of 0, 1"),
    "text": ("0 0.1 x 0.2 0.1 0.3 0.3", "'x', which is not a number"),
    "nan": ("0 0.1 nan 0.2 0.1 0.3 0.3", "'nan', which is not a number"),
    "pixels": ("0 10 10 20 10 30 30", "in a picture of 48 x 40 pixels"),
    "flat": ("0 0.1 0.1 0.2 0.2 0.3 0.3", "on one line"),
}


@pytest.mark.parametrize(("line", "words"), YOLO_FLAWS.values(), ids=YOLO_FLAWS)
def test_a_yolo_line_that_cannot_be_painted_is_named(tmp_path, line, words):
    raw, layout = yolo(tmp_path, f"{yolo_line('stain', LARGE)}{line}\n")
    row = find_row(read(raw, layout))
    assert row.problem.expected == "shapes that can be painted in labels/p0.txt"
    assert words in row.problem.found


def test_yolo_boxes_are_no_outlines_and_outlines_no_boxes(tmp_path):
    raw, layout = yolo(tmp_path, "0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match=r"polygons for the task segmentation; found a box .* \(first in labels/p0.txt"):
        read(raw, layout)
    raw, layout = yolo(tmp_path)
    with pytest.raises(DataError, match="Outlines are read with `--task segmentation`"):
        READERS["yolo"](layout, raw, Wanted())


COCO_FLAWS = {
    "box": ({"segmentation": None, "bbox": [1, 1, 5, 5]}, "a bbox alone, which does not say which pixels"),
    "nothing": ({"segmentation": []}, "no segmentation"),
    "flat list": ({"segmentation": SMALL}, "neither a list of polygons nor a run-length mask"),
    "two points": ({"segmentation": [[1, 1, 5, 5]]}, "2 points, of at least 3"),
    "odd": ({"segmentation": [[1, 1, 5, 5, 6, 7, 8]]}, "not a list of numbers"),
    "pairs": ({"segmentation": [[[1, 1], [5, 5], [6, 9]]]}, "not a list of numbers"),
    "text": ({"segmentation": [["a", 1, 5, 5, 6, 7]]}, "not a list of numbers"),
    "nothing in it": ({"segmentation": [[None, 1, 5, 5, 6, 7]]}, "not a finite number"),
    "far out": ({"segmentation": [[1, 1, 60, 5, 6, 9]]}, "in a picture of 48 x 40 pixels"),
    "runs of another size": ({"segmentation": {"size": [4, 4], "counts": [16]}}, "of 4 x 4 pixels, not 48 x 40"),
    "few runs": ({"segmentation": {"size": [40, 48], "counts": [16]}}, "of 16 pixels, not 48 x 40"),
    "unknown class": ({"category_id": 9}, "category_id 9"),
}


@pytest.mark.parametrize(("changes", "words"), COCO_FLAWS.values(), ids=COCO_FLAWS)
def test_a_coco_annotation_that_cannot_be_painted_is_named(tmp_path, changes, words):
    raw, layout = coco(tmp_path)
    content = json.loads((raw / "annotations.json").read_text())
    content["annotations"][1] |= changes
    write_json(raw / "annotations.json", content)
    row = find_row(read(raw, layout))
    assert row.regions is None
    assert words in row.problem.found
    assert "annotations.json, annotations[1]" in f"{row.problem.expected} {row.problem.found}"


TABLE_IDS = {"kind": "csv", "mask": "mask", "ids": {"pit": 7, "stain": 9}, "ignore": (3,)}


def test_a_table_names_masks_whose_numbers_are_classes(tmp_path):
    write_pictures(tmp_path)
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[:4], mask[4:6], mask[6:7] = 7, 9, 3
    (tmp_path / "masks").mkdir()
    for name, values in (("p0", mask), ("p1", mask * 5)):
        Image.fromarray(values).save(tmp_path / f"masks/{name}.png")
    lines = [f"images/p{k}.png,masks/p{k}.png,north" for k in range(3)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,mask,site", *lines]))
    layout = Csv.model_validate(TABLE_IDS)
    reading = read(tmp_path, layout)
    assert np.bincount(read_map(find_row(reading)).ravel()).tolist()[-1] == 48
    assert find_row(reading).regions.shown == ["background", "pit", "stain"]
    assert "15 (48 pixels)" in find_row(reading, "p1.png").problem.found
    assert find_row(reading, "p2.png").problem.expected == "its mask masks/p2.png"
    with pytest.raises(DataError, match="no `ids`, which name pixels"):
        READERS["csv"](layout, tmp_path, Wanted())


# Other tasks, and what a folder looks like


def test_shapes_give_crops_and_labels_as_well(tmp_path):
    for form in ("labelme", "cvat"):
        raw, layout = FORMATS[form](tmp_path / form)
        reading = READERS[form](layout, raw, Wanted())
        crops = [(row.label, row.crop) for row in reading.rows if row.label]
        assert crops == [("pit", (4, 4, 10, 12)), ("stain", (2, 2, 41, 31))]
        labels = READERS[form](layout, raw, Wanted(annotation="labels"))
        assert find_row(labels).labels == ["pit", "stain"]
        assert find_row(labels, "p2.png").problem is not None  # nobody annotated it
    assert reading.notes == {}
    ignored = READERS["labelme"](Labelme(images="images", annotations="labels"), tmp_path / "labelme", Wanted()).ignored
    assert ignored == {"images/p1.png": EMPTY}


def test_flags_and_tags_are_labels_of_whole_pictures(tmp_path):
    raw, layout = labelme(tmp_path / "l", [], flags={"good": True, "bad": False})
    assert find_row(READERS["labelme"](layout, raw, Wanted())).label == "good"
    raw, layout = cvat(tmp_path / "c", '<tag label="good"/><tag label="worn"/>')
    assert find_row(READERS["cvat"](layout, raw, Wanted(annotation="labels"))).labels == ["good", "worn"]
    assert "good, worn" in find_row(READERS["cvat"](layout, raw, Wanted())).problem.found
    raw, layout = cvat(tmp_path / "t", '<tag label="good"/>' + polygon("pit", SMALL))
    reading = READERS["cvat"](layout, raw, Wanted())
    assert [row.label for row in reading.rows if row.crop] == ["pit"]
    assert reading.notes == {TAGS: 1}


@pytest.mark.parametrize("form", FORMATS)
def test_a_folder_of_drawings_is_recognised(tmp_path, form):
    raw, layout = FORMATS[form](tmp_path)
    if form == "coco":
        layout = layout.model_copy(update={"images": "images"})
    guess = suggest_layout(raw)
    assert guess.model_copy(update={"names": None}) == layout if form == "yolo" else guess == layout


def test_drawings_lie_beside_their_pictures_and_in_folders_of_splits(tmp_path):
    for split, number in (("train", 3), ("test", 2)):
        write_pictures(tmp_path, number, split)
        for place in range(number):
            content = labelme_file([shape_of("pit", pairs(SMALL))], f"p{place}.png")
            write_json(tmp_path / split / f"p{place}.json", content)
    layout = suggest_layout(tmp_path)
    assert layout == Labelme(images="<split>", annotations="<split>")
    rows = read(tmp_path, layout).rows
    assert [row.columns["split"] for row in rows] == ["test"] * 2 + ["train"] * 3
    assert all(row.regions for row in rows)
    flat = read(tmp_path, Labelme())
    assert [row.path for row in flat.rows if row.regions] == [row.path for row in rows]
    shared = read(tmp_path, Labelme(images="<split>"))
    assert [row.path for row in shared.rows if row.regions] == [row.path for row in rows]


def test_crops_of_drawings_go_through_the_checks(tmp_path):
    raw, layout = labelme(tmp_path)
    tree = read_tree(make_domain(classes=NAMES, layout=layout.model_dump()), raw)
    assert (tree.pictures.found, tree.pictures.used, tree.pictures.quarantined) == (3, 1, 1)
