"""Annotations as labelled boxes: one scene in every layout, and which boxes are clipped, ignored or refused."""

import json
import math
import random
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from samples import make_domain, picture, save_picture
from test_fuzz import check_paragraph, spoil_text

from components.data.annotations.boxes import CLIPPED
from components.data.annotations.coco import CROWDS
from components.data.annotations.coco import EXTENTS as COCO_EXTENTS
from components.data.annotations.columns import complete_table
from components.data.annotations.drawings import IGNORED, TAGS
from components.data.annotations.guessing import suggest_layout
from components.data.annotations.layouts import read_layout, read_rows, read_tree
from components.data.annotations.mask_boxes import APART, SPECKS
from components.data.annotations.names import rename_labels
from components.data.annotations.objects import (
    CROWD,
    DIFFICULT,
    EXTENTS,
    SHOWS_NOTHING,
    BoxMark,
    place_boxes,
    settle_objects,
)
from components.data.annotations.regions import AS_BACKGROUND, CUT, LEFT_OUT, UNITED
from components.data.annotations.yolo import UNLISTED
from components.data.checks.validation import check_rows
from components.data.manifest import Row, Wanted
from components.data.store.describing import describe_folder
from components.domain.layouts import Coco, Csv, Cvat, Folders, Instances, Labelme, Masks, Parquet, Voc, Yolo
from components.errors import DataError
from components.records.boxes import KINDS, LabelledBox, read_objects

#: The scene: pictures p0 (a pit and a stain), p1 (nothing, annotated) and p2 (not annotated), of 48 x 40 pixels.
PIT, STAIN = (4.0, 4.0, 10.0, 12.0), (2.5, 2.0, 40.5, 30.25)
SCENE = [LabelledBox("pit", PIT), LabelledBox("stain", STAIN)]
NAMES = ("pit", "stain")
ODD = (math.nan, math.inf, -math.inf, 1e300, 0.0, 48.0, 40.0, -2.0, 50.0)


def write_pictures(raw: Path, folder: str) -> None:
    for place in range(3):
        save_picture(raw / folder / f"p{place}.png", place)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read(raw, layout, **wanted):
    return read_layout(layout, raw, Wanted(annotation="boxes", **wanted))


def objects_of(reading, name="p0.png"):
    row = find_row(reading, name)
    assert row.problem is None, row.problem
    return row.objects if row.objects is None else list(row.objects)


def find_row(reading, name="p0.png"):
    found = [row for row in reading.rows if row.path.endswith(name)]
    assert len(found) == 1
    return found[0]


# Pascal VOC


def voc_object(label, box, more=""):
    x0, y0, x1, y1 = box
    corners = f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
    return f"<object><name>{label}</name>{more}<bndbox>{corners}</bndbox></object>"


def from_one(box):
    """The box as VOC writes it: its first pixel is number 1."""
    return box[0] + 1, box[1] + 1, box[2], box[3]


def voc(raw, *objects, size="<size><width>48</width><height>40</height></size>"):
    """objects: of p0; left out, those of the scene."""
    write_pictures(raw, "JPEGImages")
    written = objects or [voc_object(label, from_one(box)) for label, box, _ in SCENE]
    for name, inner in (("p0", "".join(written)), ("p1", "")):
        text = f"<annotation><filename>{name}.png</filename>{size}{inner}</annotation>"
        write_text(raw / f"Annotations/{name}.xml", text)
    return raw, Voc()


# COCO


def from_size(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def coco(raw, *annotations, path="annotations.json", images=(0, 1)):
    """annotations: of p0, what they say beside their ids; left out, those of the scene."""
    write_pictures(raw, "images")
    written = annotations or [{"category_id": NAMES.index(label), "bbox": from_size(box)} for label, box, _ in SCENE]
    found = [{"id": k, "image_id": 0, "category_id": 0, "iscrowd": 0} | each for k, each in enumerate(written)]
    listed = [{"id": k, "file_name": f"p{k}.png", "width": 48, "height": 40} for k in images]
    categories = [{"id": k, "name": name} for k, name in enumerate(NAMES)]
    write_text(raw / path, json.dumps({"images": listed, "annotations": found, "categories": categories}))
    return raw, Coco()


# YOLO


def in_shares(label, box):
    (x0, y0, x1, y1), number = box, NAMES.index(label)
    return f"{number} {(x0 + x1) / 96} {(y0 + y1) / 80} {(x1 - x0) / 48} {(y1 - y0) / 40}"


def yolo(raw, *lines, facts="names: [pit, stain]\n"):
    """lines: of p0; left out, those of the scene."""
    write_pictures(raw, "images")
    write_text(raw / "labels/p0.txt", "\n".join(lines or [in_shares(label, box) for label, box, _ in SCENE]))
    write_text(raw / "labels/p1.txt", "")
    write_text(raw / "data.yaml", facts)
    return raw, Yolo()


# Tables


def csv_line(label, box, name="p0"):
    return f"images/{name}.png,{label},{','.join(map(str, box))}"


def table(raw, *lines, header="image,label,xmin,ymin,xmax,ymax"):
    """lines: all of the table; left out, those of the scene."""
    write_pictures(raw, "images")
    lines = lines or (*(csv_line(label, box) for label, box, _ in SCENE), "images/p1.png,,,,,")
    write_text(raw / "labels.csv", "\n".join([header, *lines]))
    return raw, Csv(crop=("xmin", "ymin", "xmax", "ymax"))


# LabelMe and CVAT


def rectangle(label, box, **more):
    x0, y0, x1, y1 = box
    return {"label": label, "shape_type": "rectangle", "points": [[x0, y0], [x1, y1]], "group_id": None} | more


def labelme(raw, *shapes):
    """shapes: of p0; left out, those of the scene."""
    write_pictures(raw, "images")
    shapes = shapes or tuple(rectangle(label, box) for label, box, _ in SCENE)
    for name, drawn in (("p0", shapes), ("p1", ())):
        facts = {"version": "5.4.1", "flags": {}, "imagePath": f"{name}.png", "imageWidth": 48, "imageHeight": 40}
        write_text(raw / f"labels/{name}.json", json.dumps(facts | {"shapes": list(drawn)}))
    return raw, Labelme(images="images", annotations="labels")


def cvat_box(label, box, more=""):
    x0, y0, x1, y1 = box
    return f'<box label="{label}" xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}" {more}/>'


def cvat(raw, *shapes):
    """shapes: of p0; left out, those of the scene."""
    write_pictures(raw, "images")
    drawn = "".join(shapes or (cvat_box(label, box) for label, box, _ in SCENE))
    images = "".join(
        f'<image id="{k}" name="p{k}.png" width="48" height="40">{inner}</image>' for k, inner in enumerate((drawn, ""))
    )
    write_text(raw / "annotations.xml", f"<annotations><version>1.1</version>{images}</annotations>")
    return raw, Cvat()


FORMATS = {"voc": voc, "coco": coco, "yolo": yolo, "csv": table, "labelme": labelme, "cvat": cvat}
#: Formats that can say nothing of a picture: YOLO counts one without a label file as background.
SILENT = [form for form in FORMATS if form != "yolo"]


@pytest.mark.parametrize("form", FORMATS)
def test_one_scene_gives_the_same_boxes_in_every_format(tmp_path, form):
    reading = read(*FORMATS[form](tmp_path))
    assert [(each.label, pytest.approx(each.box), each.kind) for each in SCENE] == objects_of(reading)
    assert objects_of(reading, "p1.png") == []
    assert objects_of(reading, "p2.png") == (None if form in SILENT else [])
    row = find_row(reading)
    assert (row.label, row.labels, row.crop, tuple(row.boxes), row.mask) == (None, None, None, (), None)
    assert dict(reading.notes) == ({} if form in SILENT else {UNLISTED: 1})


@pytest.mark.parametrize("form", SILENT)
def test_pictures_without_annotation_are_left_out_or_show_nothing(tmp_path, form):
    reading = read(*FORMATS[form](tmp_path))
    without = settle_objects(reading, "leave_out")
    assert sorted(Path(row.path).name for row in without.rows) == ["p0.png", "p1.png"]
    assert [Path(path).name for path in without.ignored] == ["p2.png"]
    assert dict(without.notes) == {SHOWS_NOTHING: 1, LEFT_OUT: 1}
    whole = settle_objects(reading, "background")
    assert objects_of(whole, "p2.png") == []
    assert dict(whole.notes) == {SHOWS_NOTHING: 2, AS_BACKGROUND: 1}


def test_rename_joins_the_labels_of_objects(tmp_path):
    raw, layout = voc(tmp_path)
    renamed = rename_labels(read(raw, layout), {"stain": "pit"})
    assert [each.label for each in objects_of(renamed)] == ["pit", "pit"]
    twice = voc_object("pit", (5, 5, 10, 12)) + voc_object("stain", (5, 5, 10, 12))
    voc(tmp_path, twice)
    assert objects_of(read(raw, layout))
    assert "object 1 and in" in find_row(read(raw, layout, rename={"stain": "pit"})).problem.found


# Kinds, and boxes that are changed or refused


class Case(NamedTuple):
    """A picture in one format: its objects and notes, or words of its problem."""

    write: Any
    content: tuple[Any, ...]
    objects: list[LabelledBox] = []  # noqa: RUF012 (a constant)
    notes: dict[str, int] = {}  # noqa: RUF012
    problem: str = ""


def voc_case(label, box, more="", **expected):
    return Case(voc, (voc_object("stain", from_one(STAIN)), voc_object(label, box, more)), **expected)


def coco_case(more, **expected):
    return Case(coco, ({"category_id": 1, "bbox": from_size(STAIN)}, more), **expected)


def yolo_case(line, **expected):
    return Case(yolo, (in_shares("stain", STAIN), line), **expected)


def table_case(label, box, **expected):
    return Case(table, (csv_line("stain", STAIN), csv_line(label, box), "images/p1.png,,,,,"), **expected)


def labelme_case(shape, **expected):
    return Case(labelme, (rectangle("stain", STAIN), shape), **expected)


def cvat_case(shape, **expected):
    return Case(cvat, (cvat_box("stain", STAIN), shape), **expected)


def beside(label, box, kind="object"):
    return [LabelledBox("stain", STAIN), LabelledBox(label, box, kind)]


RUNS = {"size": [40, 48], "counts": [4 * 40 + 4, 8, 5 * 40 - 8, 8, 40 * 48 - 9 * 40 - 12]}
CASES = {
    "voc difficult": voc_case("pit", (5, 5, 10, 12), "<difficult>1</difficult>",
                              objects=beside("pit", PIT, "difficult"), notes={DIFFICULT: 1}),
    "voc truncated": voc_case("pit", (5, 5, 10, 12), "<truncated>1</truncated>", objects=beside("pit", PIT),
                              notes={"objects marked truncated, read as any other": 1}),
    "voc from 0": voc_case("pit", (0, 0, 10, 12), objects=beside("pit", (0, 0, 10, 12))),
    "voc below 1": voc_case("pit", (0.5, 0.25, 10, 12), objects=beside("pit", (0, 0, 10, 12))),
    "voc over an edge": voc_case("pit", (-2, 5, 50, 42), objects=beside("pit", (0, 4, 48, 40)), notes={CLIPPED: 1}),
    "voc dust over an edge": voc_case("pit", (5, 5, 48.04, 12), objects=beside("pit", (4, 4, 48, 12))),
    "voc far over an edge": voc_case("pit", (5, 5, 50.5, 12), problem=
        "a box inside its picture of 48 x 40 pixels: x0, y0, x1, y1 = 4, 4, 50.5, 12 in Annotations/p0.xml, object 2"),
    "voc far before an edge": voc_case("pit", (-2.5, 5, 10, 12), problem="-2.5, 4, 10, 12 in Annotations/p0.xml"),
    "voc outside": voc_case("pit", (50, 5, 50, 12), problem="a box inside its picture"),
    "voc one pixel": voc_case("pit", (5, 5, 5, 5), objects=beside("pit", (4, 4, 5, 5))),
    "voc flat": voc_case("pit", (5, 5, 10, 4), problem=
        "a box with an area: x0, y0, x1, y1 = 4, 4, 10, 4 in Annotations/p0.xml, object 2"),
    "voc corners swapped": voc_case("pit", (10, 5, 5, 12), problem="a box with an area"),
    "voc twice": voc_case("stain", from_one(STAIN), problem=
        "(stain) in Annotations/p0.xml, object 1 and in Annotations/p0.xml, object 2"),
    "voc same box, other label": voc_case("pit", from_one(STAIN), objects=beside("pit", STAIN)),
    "voc nan": voc_case("pit", ("nan", 5, 10, 12), problem="xmin 'nan' (object 2)"),
    "voc text": voc_case("pit", ("left", 5, 10, 12), problem="xmin 'left' (object 2)"),
    "voc turned": Case(voc, (voc_object("stain", from_one(STAIN)),
                             "<object><name>pit</name><robndbox><cx>9</cx></robndbox></object>"),
                       problem="rotated box"),
    "coco crowd": coco_case({"bbox": from_size(PIT), "iscrowd": 1}, objects=beside("pit", PIT, "crowd"),
                            notes={CROWD: 1}),
    "coco ignore": coco_case({"bbox": from_size(PIT), "ignore": 1}, objects=beside("pit", PIT, "difficult"),
                             notes={DIFFICULT: 1}),
    "coco difficult": coco_case({"bbox": from_size(PIT), "attributes": {"difficult": True}},
                                objects=beside("pit", PIT, "difficult"),
                                notes={DIFFICULT: 1, "annotations with attributes, which is not kept": 1}),
    "coco several polygons": coco_case({"segmentation": [[4, 4, 6, 4, 4, 9.5], [10, 6, 10, 12, 9, 12]]},
                                       objects=beside("pit", PIT), notes={COCO_EXTENTS: 1}),
    "coco runs": coco_case({"segmentation": RUNS}, objects=beside("pit", PIT), notes={COCO_EXTENTS: 1}),
    "coco bbox before segmentation": coco_case({"bbox": from_size(PIT), "segmentation": [[0, 0, 9, 0, 9, 9]]},
        objects=beside("pit", PIT), notes={"annotations with segmentation, which is not kept": 1}),
    "coco over an edge": coco_case({"bbox": [-1.5, 0, 50, 40.5]}, objects=beside("pit", (0, 0, 48, 40)),
                                   notes={CLIPPED: 1}),
    "coco far over an edge": coco_case({"bbox": [40, 0, 10.5, 9]}, problem=
        "48 x 40 pixels: x0, y0, x1, y1 = 40, 0, 50.5, 9 in annotations.json, annotations[1]"),
    "coco flat": coco_case({"bbox": [4, 4, 0, 8]}, problem="a box with an area"),
    "coco negative": coco_case({"bbox": [4, 4, 5, -8]}, problem="a box with an area"),
    "coco twice": coco_case({"category_id": 1, "bbox": from_size(STAIN)}, problem=
        "annotations.json, annotations[0] and in annotations.json, annotations[1]"),
    "coco nan": coco_case({"bbox": [4, float("nan"), 5, 8]}, problem="a bbox [x, y, width, height]"),
    "coco infinite": coco_case({"bbox": [4, 4, 5, float("inf")]}, problem="a bbox [x, y, width, height]"),
    "coco text": coco_case({"bbox": ["4", "x", 5, 8]}, problem="in annotations.json, annotations[1]"),
    "coco turned": coco_case({"bbox": [4, 4, 5, 8, 30]}, problem="a bbox [x, y, width, height]"),
    "coco without a box": coco_case({}, problem="a bbox [x, y, width, height]"),
    "coco whole": coco_case({"whole": True}, problem="a bbox [x, y, width, height]"),
    "coco other class": coco_case({"category_id": 7, "bbox": from_size(PIT)}, problem="category_id 7"),
    "labelme polygon": labelme_case({"label": "pit", "points": [[4, 5], [10, 4], [7.5, 12]]},
                                    objects=beside("pit", PIT), notes={EXTENTS: 1}),
    "labelme rectangle of four points": labelme_case(
        {"label": "pit", "shape_type": "rectangle", "points": [[4, 4], [10, 4], [10, 12], [4, 12]]},
        objects=beside("pit", PIT)),
    "labelme circle": labelme_case({"label": "pit", "shape_type": "circle", "points": [[10, 12], [13, 16]]},
                                   objects=beside("pit", (5, 7, 15, 17)), notes={EXTENTS: 1}),
    "labelme over an edge": labelme_case(rectangle("pit", (-1, 4, 10, 12)), objects=beside("pit", (0, 4, 10, 12)),
                                         notes={CLIPPED: 1}),
    "labelme far over an edge": labelme_case(rectangle("pit", (4, 4, 10, 43)), problem=
        "4, 4, 10, 43 in labels/p0.json, shapes[1] (pit)"),
    "labelme line": labelme_case({"label": "pit", "shape_type": "line", "points": [[4, 4], [9, 9]]}, problem=
        "shapes with an area in labels/p0.json: shapes[1] (pit): a line, which has no area"),
    "labelme point": labelme_case({"label": "pit", "shape_type": "point", "points": [[4, 4]]}, problem="a point"),
    "labelme flat": labelme_case(rectangle("pit", (4, 4, 10, 4)), problem="shapes[1] (pit): no area"),
    "labelme nan": labelme_case({"label": "pit", "points": [[4, 5], [float("nan"), 4], [7, 12]]}, problem="not a list"),
    "labelme text": labelme_case({"label": "pit", "points": [[4, 5], ["x", 4], [7, 12]]}, problem="not a list"),
    "labelme twice": labelme_case(rectangle("stain", STAIN), problem=
        "labels/p0.json, shapes[0] (stain) and in labels/p0.json, shapes[1] (stain)"),
    "cvat polygon": cvat_case('<polygon label="pit" points="4,5;10,4;7.5,12"/>', objects=beside("pit", PIT),
                              notes={EXTENTS: 1}),
    "cvat turned": cvat_case(cvat_box("pit", (10, 12, 16, 16), 'rotation="45"'), notes={EXTENTS: 1}, objects=beside(
        "pit", (13 - 12.5**0.5, 14 - 12.5**0.5, 13 + 12.5**0.5, 14 + 12.5**0.5))),
    "cvat ellipse": cvat_case('<ellipse label="pit" cx="7" cy="8" rx="3" ry="4"/>', objects=beside("pit", PIT),
                              notes={EXTENTS: 1}),
    "cvat mask": cvat_case('<mask label="pit" rle="1, 4, 1" left="7" top="9" width="3" height="2"/>',
                           objects=beside("pit", (7, 9, 10, 11)), notes={EXTENTS: 1}),
    "cvat tag": cvat_case('<tag label="good"/>', objects=[LabelledBox("stain", STAIN)], notes={TAGS: 1}),
    "cvat over an edge": cvat_case(cvat_box("pit", (4, 4, 49.5, 12)), objects=beside("pit", (4, 4, 48, 12)),
                                   notes={CLIPPED: 1}),
    "cvat points": cvat_case('<points label="pit" points="1,1;5,5"/>', problem=
        "shapes with an area in annotations.xml: shape 2 (points, pit): points, which has no area"),
    "cvat nan": cvat_case(cvat_box("pit", ("nan", 4, 10, 12)), problem="`xtl` 'nan', which is not a number"),
    "cvat flat": cvat_case(cvat_box("pit", (4, 4, 4, 12)), problem="no area"),
    "cvat twice": cvat_case(cvat_box("stain", STAIN), problem=
        "annotations.xml, shape 1 (box, stain) and in annotations.xml, shape 2 (box, stain)"),
    "csv over an edge": table_case("pit", (-1, 0, 9, 42), objects=beside("pit", (0, 0, 9, 40)), notes={CLIPPED: 1}),
    "csv far over an edge": table_case("pit", (4, 4, 50.5, 12), problem="4, 4, 50.5, 12 in labels.csv, line 3"),
    "csv flat": table_case("pit", (4, 4, 10, 4), problem="a box with an area: x0, y0, x1, y1 = 4, 4, 10, 4 in labels"),
    "csv twice": table_case("stain", STAIN, problem="in labels.csv, line 2 and in labels.csv, line 3"),
    "csv nan": table_case("pit", ("nan", 4, 10, 12), problem="boxes as `x0 y0 x1 y1`: 'nan 4 10 12' in labels.csv, li"),
    "csv infinite": table_case("pit", ("inf", 4, 10, 12), problem="'inf 4 10 12' in labels.csv, line 3"),
    "csv three numbers": table_case("pit", (4, 4, "", 12), problem="'4 4 ? 12' in labels.csv, line 3"),
    "csv tiny number": table_case("pit", ("1e-05", 0, 9, 9), objects=beside("pit", (0.00001, 0, 9, 9))),
    "csv without a label": table_case("", PIT, problem="a label of the box in labels.csv, line 3: an empty cell"),
    "csv label without a box": table_case("stain", ["", "", "", ""], problem="a box of 'stain': an empty cell in lab"),
    "csv label that never has a box": table_case("none", ["", "", "", ""], objects=[LabelledBox("stain", STAIN)],
        notes={"lines labelled 'none', which never has a box: pictures without any object": 1}),
    "yolo over an edge": yolo_case(in_shares("pit", (40, 30, 49.5, 42)), objects=beside("pit", (40, 30, 48, 40)),
                                   notes={CLIPPED: 1}),
    "yolo rounding over an edge": yolo_case("0 0.9375 0.5 0.12501 1.0001",
                                            objects=beside("pit", (41.99976, 0, 48, 40))),
    "yolo far over an edge": yolo_case(in_shares("pit", (40, 30, 51, 40)), problem=
        "48 x 40 pixels: x0, y0, x1, y1 = 40, 30, 51, 40 in labels/p0.txt, line 2"),
    "yolo twice": yolo_case(in_shares("stain", STAIN), problem="labels/p0.txt, line 1 and in labels/p0.txt, line 2"),
    "yolo flat": yolo_case("0 .5 .5 .1 0", problem="a box with width and height: 0 .5 .5 .1 0 in line 2"),
    "yolo nan": yolo_case("0 .5 nan .1 .1", problem="four numbers from 0 to 1: 0 .5 nan .1 .1 in line 2"),
    "yolo pixels": yolo_case("0 5 5 10 10", problem="four numbers from 0 to 1"),
    "yolo text": yolo_case("pit .5 .5 .1 .1", problem="one of the class numbers 0, 1: class pit in line 2"),
    "yolo other class": yolo_case("2 .5 .5 .1 .1", problem="class 2 in line 2 of labels/p0.txt"),
    "yolo outlines": Case(yolo, (
        "1 .25 .25 .75 .25 .5 .75", "0 .1 .1 .2 .1 .2 .2 .1 .2", "0 .5 .5 .5 .5"),
        objects=[LabelledBox("stain", (12, 10, 36, 30)), LabelledBox("pit", (4.8, 4, 9.6, 8)),
                 LabelledBox("pit", (12, 10, 36, 30))], notes={EXTENTS: 2}),
    "yolo outline over an edge": yolo_case("0 .5 .5 .6 .5 .5 1.2", problem="24, 20, 28.8, 48 in labels/p0.txt, line 2"),
    "yolo outline on one line": yolo_case("0 .1 .1 .2 .2 .3 .3", problem="no area, because all its points lie on one"),
    "yolo outline of an unknown class": yolo_case("5 .1 .1 .2 .2 .3 .1", problem="class 5, not one of 0, 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_box_has_its_kind_or_is_changed_or_refused(tmp_path, case):
    reading = read(*case.write(tmp_path, *case.content))
    row = find_row(reading)
    if case.problem:
        assert row.objects is None
        assert case.problem in f"{row.problem.expected}: {row.problem.found}"
    else:
        assert row.problem is None, row.problem
        assert [(each.label, pytest.approx(each.box), each.kind) for each in case.objects] == list(row.objects)
    assert {note: count for note, count in reading.notes.items() if note != UNLISTED} == case.notes
    assert not any(row.problem for row in reading.rows if not row.path.endswith("p0.png"))


def test_a_picture_of_another_size_than_stated_is_left_to_validation(tmp_path):
    box = voc_object("pit", (5, 5, 90, 80))
    raw, layout = voc(tmp_path, box, size="<size><width>96</width><height>80</height></size>")
    row = find_row(read(raw, layout))
    assert (row.problem, row.stated_size, row.objects[0].box) == (None, (96, 80), (4.0, 4.0, 90.0, 80.0))


def test_what_several_coco_files_say_of_a_picture_adds_up(tmp_path):
    pit, stain = ({"category_id": k, "bbox": from_size(box)} for k, (_, box, _) in enumerate(SCENE))
    raw, _ = coco(tmp_path, pit, path="parts/0.json")
    coco(tmp_path, stain, path="parts/1.json")
    layout = Coco(annotations="parts")
    assert objects_of(read(raw, layout)) == SCENE
    assert objects_of(read(raw, layout), "p1.png") == []
    coco(tmp_path, pit, path="parts/1.json")
    found = find_row(read(raw, layout)).problem.found
    assert "parts/0.json, annotations[0] and in parts/1.json, annotations[0]" in found


def test_crowds_are_kept_for_boxes_alone(tmp_path):
    raw, layout = coco(tmp_path, {"bbox": from_size(PIT), "iscrowd": 1})
    assert CROWDS not in read(raw, layout).notes
    assert read_layout(layout, raw, Wanted()).notes[CROWDS] == 1


def test_the_split_of_a_published_list_stays_with_the_picture(tmp_path):
    raw, layout = voc(tmp_path)
    write_text(raw / "ImageSets/Main/train.txt", "p0\np2\n")
    write_text(raw / "ImageSets/Main/test.txt", "p1\n")
    reading = read(raw, layout)
    assert [find_row(reading, f"p{k}.png").columns["split"] for k in range(3)] == ["train", "test", "train"]


YOLO_FORMS = {
    "oriented": ("0 .1 .1 .2 .1 .2 .2 .1 .2", "an oriented box or an outline of four corners (nine numbers)"),
    "confidence": ("0 .5 .5 .1 .1 .9", "a box with a confidence (six numbers)"),
    "keypoints": ("0 .5 .5 .1 .1 .1 .1 2", "a box with keypoints (pose)"),
}


@pytest.mark.parametrize(("line", "words"), YOLO_FORMS.values(), ids=YOLO_FORMS)
def test_labels_of_yolo_that_are_no_boxes_are_refused_by_name(tmp_path, line, words):
    with pytest.raises(DataError) as caught:
        read(*yolo(tmp_path, line))
    assert words in str(caught.value)
    assert "Export the annotations as boxes (YOLO detection: `class cx cy width height` per line)" in str(caught.value)


@pytest.mark.parametrize(("line", "words"), YOLO_FORMS.values(), ids=YOLO_FORMS)
def test_a_label_file_of_another_form_than_the_others_is_quarantined(tmp_path, line, words):
    raw, layout = yolo(tmp_path, in_shares("pit", PIT), line)
    write_text(raw / "labels/p2.txt", in_shares("stain", STAIN))
    reading = read(raw, layout)
    assert f"{words.split(' (')[0]}" in find_row(reading).problem.found
    assert find_row(reading).problem.found.endswith("in line 2 of labels/p0.txt")
    assert len(objects_of(reading, "p2.png")) == 1


def test_pose_is_refused_by_its_data_yaml(tmp_path):
    with pytest.raises(DataError, match="kpt_shape"):
        read(*yolo(tmp_path, facts="names: [pit, stain]\nkpt_shape: [4, 3]\n"))


TREES = {
    "ultralytics": ("images/train/a.png", "labels/train/a.txt", "data.yaml", "names: {0: pit, 1: stain}\n"),
    "roboflow": ("train/images/a.png", "train/labels/a.txt", "data.yaml", "nc: 2\nnames: [pit, stain]\n"),
    "darknet": ("data/train/a.png", "data/train/a.txt", "data/obj.names", "pit\nstain\n"),
}


@pytest.mark.parametrize(("picture", "labels", "file", "names"), TREES.values(), ids=TREES)
def test_trees_of_yolo_are_found_with_their_names_and_splits(tmp_path, picture, labels, file, names):
    for split in ("train", "valid"):
        for place, letter in enumerate("abc"):
            save_picture(tmp_path / picture.replace("train", split).replace("a.png", f"{letter}.png"), place)
        where = labels.replace("train", split)
        write_text(tmp_path / where, in_shares("stain", STAIN))
        write_text(tmp_path / where.replace("a.txt", "b.txt"), "")
    write_text(tmp_path / file, names)
    layout = suggest_layout(tmp_path)
    assert layout.kind == "yolo"
    reading = read(tmp_path, layout)
    found = {row.path: (row.columns["split"], [each.label for each in row.objects]) for row in reading.rows}
    expected = {
        picture.replace("train", folder).replace("a.png", name): (split, labels)
        for folder, split in (("train", "train"), ("valid", "val"))
        for name, labels in (("a.png", ["stain"]), ("b.png", []), ("c.png", []))
    }
    assert found == expected
    assert reading.notes[UNLISTED] == 2


FOUR = ("xmin", "ymin", "xmax", "ymax")
#: Tables as people hold them: header, lines, options that are named, and options that are found.
TABLES = {
    "corners": (
        "image,xmin,ymin,xmax,ymax,class",
        ["p0.png,4,4,10,12,pit", "p0.png,2.5,2,40.5,30.25,stain", "p1.png,,,,,"],
        {}, {"label": "class", "crop": FOUR},
    ),
    "tensorflow": (
        "filename,width,height,class,xmin,ymin,xmax,ymax",
        ["p0.png,48,40,pit,4,4,10,12", "p0.png,48,40,stain,2.5,2,40.5,30.25", "p1.png,48,40,,,,,"],
        {}, {"image": "filename", "label": "class", "crop": FOUR},
    ),
    "size": (
        "image_id,x,y,w,h,label",
        ["p0,4,4,6,8,pit", "p0,2.5,2,38,28.25,stain", "p1,,,,,"],
        {}, {"image": "image_id", "crop": ("x", "y", "w", "h"), "box_form": "size"},
    ),
    "one cell": (
        "image,bbox,label",
        ['p0.png,"[4, 4, 6, 8]",pit', 'p0.png,"[2.5, 2, 38, 28.25]",stain', "p1.png,,"],
        {"box_form": "size"}, {"crop": "bbox"},
    ),
    "boxes of a cell": (
        "image,boxes,label",
        ["p0.png,4 4 10 12,pit", "p0.png,2.5 2 40.5 30.25,stain", "p1.png,[],"],
        {"box_form": "corners"}, {"boxes": "boxes"},
    ),
    "one label per box": (
        "image,boxes,label",
        ["p0.png,4 4 10 12; 2.5 2 40.5 30.25,pit|stain", "p1.png,,"],
        {"box_form": "corners", "separator": "|"}, {"boxes": "boxes"},
    ),
    "no finding": (
        "image,label,xmin,ymin,xmax,ymax",
        ["p0.png,pit,4,4,10,12", "p0.png,stain,2.5,2,40.5,30.25", "p1.png,No finding,,,,"],
        {}, {"crop": FOUR},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("header", "lines", "named", "found"), TABLES.values(), ids=TABLES)
def test_tables_of_boxes_are_read_as_people_hold_them(tmp_path, header, lines, named, found):
    write_pictures(tmp_path, "images")
    write_text(tmp_path / "labels.csv", "\n".join([header, *lines]))
    layout = complete_table(Csv(**named), tmp_path, boxes=True)
    assert {name: getattr(layout, name) for name in found} == found
    reading = read(tmp_path, layout)
    assert objects_of(reading) == SCENE
    assert objects_of(reading, "p1.png") == []
    assert objects_of(reading, "p2.png") is None


def test_columns_without_names_are_found_where_four_hold_numbers(tmp_path):
    write_pictures(tmp_path, "images")
    lines = ["images/p0.png,4,4,10,12,pit", "images/p0.png,20,4,46,38,stain", "images/p1.png,,,,,"]
    write_text(tmp_path / "annotations.csv", "\n".join(lines))
    layout = complete_table(Csv(), tmp_path, boxes=True)
    assert (layout.header, layout.label) == (False, "column_6")
    reading = read(tmp_path, layout)
    assert objects_of(reading) == [LabelledBox("pit", PIT), LabelledBox("stain", (20, 4, 46, 38))]
    assert objects_of(reading, "p1.png") == []


def test_shares_of_a_picture_in_a_table_are_refused(tmp_path):
    table(tmp_path, csv_line("pit", (0.125, ".25", 0.5, 1)), csv_line("stain", (0, 0, 1, 1)))
    with pytest.raises(DataError, match="numbers from 0 to 1, shares of the picture"):
        complete_table(Csv(), tmp_path, boxes=True)


def test_a_few_cells_that_are_no_numbers_do_not_hide_the_columns_of_boxes(tmp_path):
    lines = [csv_line("pit", (0, 0, 10 + k, 12)) for k in range(30)]
    raw, layout = table(tmp_path, *lines, csv_line("pit", ("nan", 0, 10, 12), "p1"))
    assert complete_table(Csv(), raw, boxes=True).crop == layout.crop


def test_boxes_of_one_class_need_no_column_of_labels(tmp_path):
    raw, layout = table(tmp_path, "p0.png,4,4,10,12", "p1.png,,,,", header="image,xmin,ymin,xmax,ymax")
    reading = read(raw, layout)
    assert objects_of(reading) == [LabelledBox("object", PIT)]
    assert objects_of(reading, "p1.png") == []
    with pytest.raises(DataError, match="the columns grade"):
        read(raw, layout.model_copy(update={"label": "grade"}).model_validate(layout.model_dump() | {"label": "grade"}))


def test_one_label_stands_for_all_boxes_of_a_cell_or_each_has_its_own(tmp_path):
    lines = ("p0.png,4 4 10 12; 4 4 11 12,pit", "p1.png,4 4 10 12; 4 4 11 12; 4 4 12 12,pit|stain", "p2.png,x,pit")
    write_pictures(tmp_path, "images")
    write_text(tmp_path / "labels.csv", "\n".join(["image,boxes,label", *lines]))
    reading = read(tmp_path, Csv(boxes="boxes", separator="|"))
    assert objects_of(reading) == [LabelledBox("pit", PIT), LabelledBox("pit", (4.0, 4.0, 11.0, 12.0))]
    assert "2 labels and 3 boxes in labels.csv, line 3" in find_row(reading, "p1.png").problem.found
    assert "'x' in labels.csv, line 4" in find_row(reading, "p2.png").problem.found


def test_lines_of_a_picture_share_their_group_and_split(tmp_path):
    header = "image,label,xmin,ymin,xmax,ymax,lot,split"
    lines = [csv_line("pit", PIT) + ",a,train", csv_line("stain", STAIN) + ",,train",
             csv_line("pit", PIT, "p1") + ",a,train", csv_line("pit", STAIN, "p1") + ",b,train"]  # fmt: skip
    raw, layout = table(tmp_path, *lines, header=header)
    reading = read(raw, layout, columns=("lot",))
    assert dict(find_row(reading).columns) == {"lot": "a", "split": "train"}
    problem = find_row(reading, "p1.png").problem
    assert (problem.expected, problem.found) == ("one value of 'lot' per picture", "a and b (in labels.csv, line 5)")


def test_a_parquet_table_gives_the_boxes_of_its_csv(tmp_path):
    raw, layout = table(tmp_path)
    pl.read_csv(raw / "labels.csv").write_parquet(raw / "labels.parquet")
    options = layout.model_dump(exclude={"kind", "table", "delimiter", "encoding", "header"}, exclude_unset=True)
    assert objects_of(read(raw, Parquet(**options))) == SCENE
    lists = pl.DataFrame({"image": ["p0.png"], "label": ["pit"], "boxes": [[[4.0, 4, 10, 12], [4, 4, 11, 12]]]})
    lists.write_parquet(raw / "labels.parquet")
    assert len(objects_of(read(raw, Parquet(boxes="boxes")))) == 2


@pytest.mark.parametrize(
    ("layout", "words"),
    [(Csv(), "no `crop`, `boxes` or `mask`"), (Csv(crop="box", ids={"pit": 1}), "no `ids`, which name pixels")],
)
def test_a_table_without_boxes_is_refused(tmp_path, layout, words):
    raw, _ = table(tmp_path)
    with pytest.raises(DataError) as caught:
        read(raw, layout)
    assert words in str(caught.value)


def test_parts_of_a_labelme_group_are_one_object(tmp_path):
    raw, layout = labelme(
        tmp_path,
        rectangle("pit", (0, 0, 10, 10), group_id=3),
        rectangle("stain", (5, 5, 20, 15), group_id=3),
        rectangle("pit", (20, 2, 30, 12), group_id=3),
    )
    assert objects_of(read(raw, layout)) == [LabelledBox("pit", (0, 0, 30, 12)), LabelledBox("stain", (5, 5, 20, 15))]


@pytest.mark.parametrize("form", ["labelme", "cvat"])
def test_a_shape_to_ignore_is_ignored_in_every_class_and_is_none_itself(tmp_path, form):
    raw, layout = FORMATS[form](tmp_path)
    layout = layout.model_copy(update={"ignore": ("stain",)})
    found = read(raw, layout)  # before the classes are known
    assert objects_of(found) == [LabelledBox("pit", PIT)]
    reading = read(raw, layout, classes=("crack", "pit"))
    crowds = [LabelledBox(name, STAIN, "crowd") for name in ("crack", "pit")]
    assert objects_of(reading) == [LabelledBox("pit", PIT), *crowds]
    assert dict(reading.notes) == {IGNORED: 1, CROWD: 1}


# Masks


def save_values(path: Path, *patches: tuple[int, tuple[int, int, int, int]], dtype: type = np.uint8) -> None:
    """A mask of 48 x 40 pixels: 0, and a value in each box."""
    mask = np.zeros((40, 48), dtype)
    for value, (x0, y0, x1, y1) in patches:
        mask[y0:y1, x0:x1] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


FIRST, SECOND = (4, 4, 10, 12), (20, 10, 40, 30)  # apart; OTHER touches FIRST at a corner
OTHER = (10, 12, 14, 16)


def test_masks_in_class_folders_give_a_box_around_each_connected_component(tmp_path):
    for name in ("train/good/g0", "test/good/g1", "test/crack/c0", "test/crack/c1", "test/crack/c2", "test/pit/p0"):
        save_picture(tmp_path / f"{name}.png", len(name) + ord(name[-1]))
    save_values(tmp_path / "truth/crack/c0_mask.png", (255, FIRST), (255, OTHER), (255, SECOND))
    save_values(tmp_path / "truth/crack/c1_mask.png")
    save_values(tmp_path / "truth/pit/p0_mask.png", (1, (7, 7, 8, 9)))
    layout = Folders(images="<split>", masks="truth")
    reading = read(tmp_path, layout)
    boxes = [(4, 4, 14, 16), SECOND]
    assert objects_of(reading, "c0.png") == [LabelledBox("crack", box) for box in boxes]
    assert objects_of(reading, "c1.png") == []  # an empty mask
    assert objects_of(reading, "p0.png") == [LabelledBox("pit", (7, 7, 8, 9))]
    assert objects_of(reading, "g0.png") == objects_of(reading, "g1.png") == []  # a class without masks
    problem = find_row(reading, "c2.png").problem
    assert (problem.expected, problem.found) == ("a mask that shows where 'crack' is", "none")
    row = find_row(reading, "c0.png")
    assert (row.label, row.regions, row.mask) == (None, None, "truth/crack/c0_mask.png")
    assert dict(reading.notes) == {SPECKS: 1}
    with pytest.raises(DataError, match="a folder of masks"):
        read(tmp_path, Folders(images="<split>"))


def test_numbered_masks_beside_their_picture_are_one_object_each(tmp_path):
    for name in ("benign/b1", "benign/b2", "normal/n1"):
        save_picture(tmp_path / f"{name}.png", ord(name[-2]) + int(name[-1]))
    save_values(tmp_path / "benign/b1_mask.png", (255, FIRST))
    save_values(tmp_path / "benign/b1_mask_1.png", (255, (6, 4, 12, 12)))  # overlaps the first
    reading = read(tmp_path, Folders(masks="."))
    assert objects_of(reading, "b1.png") == [LabelledBox("benign", FIRST), LabelledBox("benign", (6, 4, 12, 12))]
    assert objects_of(reading, "n1.png") == []
    assert find_row(reading, "b2.png").problem.expected == "a mask that shows where 'benign' is"
    assert dict(reading.notes) == {UNITED: 1}
    Image.new("L", (20, 20), 255).save(tmp_path / "benign/b1_mask_1.png")
    assert find_row(read(tmp_path, Folders(masks=".")), "b1.png").problem.expected == "masks of one size"


def test_semantic_masks_give_a_box_around_each_component_of_a_class(tmp_path):
    write_pictures(tmp_path, "images")
    save_values(tmp_path / "masks/p0.png", (2, SECOND), (1, FIRST), (1, (30, 32, 40, 38)), (255, (0, 0, 2, 2)))
    save_values(tmp_path / "masks/p1.png", (3, (0, 0, 9, 9)))
    layout = Masks(ids={"pit": 1, "stain": 2, "background": 3}, ignore=[255])
    reading = read(tmp_path, layout)
    expected = [("pit", FIRST), ("pit", (30, 32, 40, 38)), ("stain", SECOND)]
    assert objects_of(reading) == [LabelledBox(label, box) for label, box in expected]
    assert objects_of(reading, "p1.png") == []
    assert objects_of(reading, "p2.png") is None
    assert find_row(reading).mask == "masks/p0.png"
    save_values(tmp_path / "masks/p2.png", (9, FIRST))
    assert "9 (48 pixels)" in find_row(read(tmp_path, layout), "p2.png").problem.found


def test_soft_masks_are_cut_at_half(tmp_path):
    save_picture(tmp_path / "images/crack/c.png", 1)
    mask = Image.new("L", (48, 40))
    mask.paste(255, SECOND)
    soft = np.asarray(mask.resize((96, 80), Image.BICUBIC).resize((48, 40), Image.BICUBIC).convert("L"))
    (tmp_path / "masks/crack").mkdir(parents=True)
    Image.fromarray(soft).save(tmp_path / "masks/crack/c.png")
    reading = read(tmp_path, Folders(images="images", masks="masks"))
    assert objects_of(reading, "images/crack/c.png") == [LabelledBox("crack", SECOND)]
    assert dict(reading.notes) == {CUT: 1}


def test_instance_ids_give_a_box_each(tmp_path):
    write_pictures(tmp_path, "images")
    touching = (10, 4, 16, 12)
    save_values(tmp_path / "instances/p0.png", (7, SECOND), (2, FIRST), (300, touching), dtype=np.uint16)
    save_values(tmp_path / "instances/p1.png", dtype=np.uint16)
    reading = read(tmp_path, Instances(label="cell"))
    assert objects_of(reading) == [LabelledBox("cell", box) for box in (FIRST, SECOND, touching)]
    assert objects_of(reading, "p1.png") == []
    assert objects_of(reading, "p2.png") is None
    assert dict(reading.notes) == {}
    save_values(tmp_path / "instances/p1.png", (1, FIRST), (1, SECOND))
    assert read(tmp_path, Instances(label="cell")).notes == {APART: 1}
    save_values(tmp_path / "instances/p1.png", (5, (0, 0, 48, 40)), (9, SECOND))  # no background
    assert objects_of(read(tmp_path, Instances(label="cell")), "p1.png") == [
        LabelledBox("cell", (0, 0, 48, 40)),
        LabelledBox("cell", SECOND),
    ]
    save_values(tmp_path / "instances/p1_mask.png", (1, FIRST))
    save_values(tmp_path / "instances/p1.tif", (1, FIRST))
    assert (
        find_row(read(tmp_path, Instances(label="cell")), "p1.png").problem.expected == "one id mask of the same name"
    )


def test_one_mask_per_object_keeps_the_boxes_of_objects_that_overlap(tmp_path):
    for group in "ab":
        save_picture(tmp_path / f"{group}/images/{group}.png", ord(group))
    save_values(tmp_path / "a/masks/x.png", (255, FIRST))
    save_values(tmp_path / "a/masks/y.png", (255, (4, 4, 20, 12)))
    save_values(tmp_path / "b/masks/x.png")
    layout = Instances(images="<group>/images", instances="<group>/masks", label="cell")
    reading = read(tmp_path, layout)
    assert objects_of(reading, "a.png") == [LabelledBox("cell", FIRST), LabelledBox("cell", (4, 4, 20, 12))]
    assert find_row(reading, "b.png").problem.found == "no pixel"
    save_values(tmp_path / "a/masks/y.png", (255, FIRST))
    assert "in a/masks/x.png and in a/masks/y.png" in find_row(read(tmp_path, layout), "a.png").problem.found
    Image.new("L", (20, 20), 255).save(tmp_path / "a/masks/y.png")
    assert find_row(read(tmp_path, layout), "a.png").problem.found == "20 x 20 and 48 x 40"


@pytest.mark.parametrize("ids", [{}, {"pit": 1}])
def test_masks_that_a_table_names_give_boxes(tmp_path, ids):
    write_pictures(tmp_path, "images")
    save_values(tmp_path / "masks/p0.png", (1, FIRST), (1, SECOND))
    write_text(tmp_path / "labels.csv", "image,label,mask\nimages/p0.png,pit,masks/p0.png\nimages/p1.png,good,\n")
    reading = read(tmp_path, Csv(mask="mask", ids=ids))
    assert objects_of(reading) == [LabelledBox("pit", FIRST), LabelledBox("pit", SECOND)]
    assert objects_of(reading, "p1.png") == (None if ids else [])
    assert objects_of(reading, "p2.png") is None
    assert find_row(reading, "images/p0.png").mask == "masks/p0.png"


# Whole trees, and damaged ones

#: The file of each format that says where objects are.
FILES = {
    "voc": "Annotations/p0.xml",
    "coco": "annotations.json",
    "yolo": "labels/p0.txt",
    "csv": "labels.csv",
    "labelme": "labels/p0.json",
    "cvat": "annotations.xml",
}
DETECTION = {"task": "detection", "classes": list(NAMES)}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_described_and_read_into_a_manifest(tmp_path, form):
    raw, _ = FORMATS[form](tmp_path / "raw")
    domain = describe_folder(raw, "tiles", None, None, Path("domain.yaml"), "detection")
    assert (domain.layout.kind, domain.classes) == (form, NAMES)
    understood = read_tree(domain, raw)
    rows = {Path(row["path"]).name: row for row in understood.rows.to_dicts()}
    assert read_objects(rows["p0.png"]["objects"]) == [
        (each.label, pytest.approx(each.box), each.kind) for each in SCENE
    ]
    assert (rows["p0.png"]["labels"], rows["p1.png"]["labels"]) == (list(NAMES), [])
    left_out = form in SILENT
    assert ("p2.png" in rows, understood.account.notes.get(LEFT_OUT)) == (not left_out, 1 if left_out else None)
    whole = read_tree(domain.model_copy(update={"task": {"kind": "detection", "unannotated": "background"}}), raw)
    assert whole.rows["objects"].list.len().to_list() == [2, 0, 0]


@pytest.mark.parametrize("form", FORMATS)
def test_a_label_that_is_no_class_is_refused(tmp_path, form):
    raw, layout = FORMATS[form](tmp_path)
    with pytest.raises(DataError, match="label 'stain' \\(1 times, first at"):
        read_tree(make_domain(**DETECTION | {"classes": ["pit"], "layout": layout.model_dump()}), raw)


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_annotations_give_sound_boxes_or_one_paragraph(tmp_path, form):
    raw, layout = FORMATS[form](tmp_path)
    domain, file, rng = make_domain(**DETECTION, layout=layout.model_dump()), raw / FILES[form], random.Random(5)
    text, outcomes = file.read_text(), Counter[str]()
    for _ in range(40):
        file.write_bytes(spoil_text(text, rng))
        try:
            validated = check_rows(read_rows(domain, raw), raw, domain)
        except DataError as error:
            outcomes["refused"] += 1
            check_paragraph(error)
            continue
        outcomes["read"] += 1
        assert validated.fit.height + len(validated.quarantined) == validated.images
        for objects in validated.fit["objects"].to_list():
            for label, (x0, y0, x1, y1), kind in read_objects(objects):
                assert label in NAMES
                assert kind in KINDS
                assert 0 <= x0 < x1 <= 48
                assert 0 <= y0 < y1 <= 40
    assert outcomes["read"] > 1, outcomes


@given(st.lists(st.tuples(st.sampled_from(NAMES), *[st.floats(-6, 55) | st.sampled_from(ODD)] * 4), max_size=4))
def test_boxes_are_inside_their_picture_or_its_problem(boxes):
    with TemporaryDirectory() as folder:
        raw = Path(folder)
        picture(1).save(raw / "p.png")
        marks = [BoxMark(label, tuple(box), f"line {number}") for number, (label, *box) in enumerate(boxes)]
        row, notes = place_boxes(Row(path="p.png"), marks, raw, Wanted(annotation="boxes"))
    if row.problem:
        assert row.objects is None
        assert "line " in row.problem.found
        assert not notes
        return
    assert len(row.objects) == len(marks) == len({(mark.label, tuple(mark.box)) for mark in marks})
    for mark, (label, box, _) in zip(marks, row.objects, strict=True):
        assert label == mark.label
        assert 0 <= box[0] < box[2] <= 48
        assert 0 <= box[1] < box[3] <= 40
        assert max(abs(one - other) for one, other in zip(box, mark.box, strict=True)) <= 2


def test_boxes_that_are_no_numbers_are_boxes_of_their_label(tmp_path):
    raw, layout = table(tmp_path, csv_line("pit", ("x", 4, 10, 12)), "images/p1.png,pit,,,,", csv_line("stain", STAIN))
    assert find_row(read(raw, layout), "p1.png").problem.expected == "a box of 'pit'"


def test_masks_beside_listed_pictures_are_no_pictures(tmp_path):
    header, line = "image,label,xmin,ymin,xmax,ymax,mask", csv_line("pit", PIT) + ",images/m0.png"
    raw, layout = table(tmp_path, line, header=header)
    save_values(raw / "images/m0.png", (1, FIRST))
    reading = read(raw, Csv(crop=layout.crop, mask="mask"))
    assert sorted(row.path for row in reading.rows) == ["images/p0.png", "images/p1.png", "images/p2.png"]
    assert find_row(reading).mask == "images/m0.png"  # accounted for, not read


def test_what_a_coco_file_says_of_other_tasks_is_no_box(tmp_path):
    raw, layout = coco(tmp_path, {"bbox": from_size(PIT)}, {"category_id": 1, "bbox": from_size(STAIN), "iscrowd": 1})
    content = json.loads((raw / "annotations.json").read_text())
    content["images"][0] |= {"boxes": "1 1 5 5", "mask": "images/p2.png"}
    write_text(raw / "annotations.json", json.dumps(content))
    row = find_row(read(raw, layout))
    assert (len(row.objects), tuple(row.boxes), row.mask) == (2, (), None)
    content["categories"][1]["name"] = "pit"
    write_text(raw / "annotations.json", json.dumps(content))
    with pytest.raises(DataError, match="category 'pit'"):
        read(raw, layout)


def test_pictures_that_share_a_mask_have_no_objects(tmp_path):
    write_pictures(tmp_path, "images")
    save_values(tmp_path / "masks/p0.png", (1, FIRST))
    picture(9).convert("RGB").save(tmp_path / "images/p0.jpg")
    layout = {"kind": "masks", "ids": {"pit": 1}}
    rows = read_tree(make_domain(**DETECTION, layout=layout), tmp_path).rows
    assert rows["objects"].to_list() == [None, None]
    assert all(problem["expected"] == "its own mask" for problem in rows["problem"].to_list())


def test_lists_name_the_split_of_masked_pictures(tmp_path):
    write_pictures(tmp_path, "images")
    for k in range(3):
        save_values(tmp_path / f"masks/p{k}.png", (1, FIRST))
    write_text(tmp_path / "train.txt", "p0\np1\n")
    write_text(tmp_path / "test.txt", "p2\n")
    reading = read(tmp_path, Masks(ids={"pit": 1}))
    assert [find_row(reading, f"images/p{k}.png").columns["split"] for k in range(3)] == ["train", "train", "test"]


def test_class_folders_with_masks_are_described(tmp_path):
    for k, name in enumerate(("train/good/0", "train/good/1", "test/good/2", "test/crack/3", "test/crack/4")):
        save_picture(tmp_path / f"{name}.png", k)
    for k in (3, 4):
        save_values(tmp_path / f"ground_truth/crack/{k}_mask.png", (255, FIRST))
    domain = describe_folder(tmp_path, "tiles", None, None, Path("domain.yaml"), "detection")
    assert (domain.layout, domain.classes) == (Folders(images="<split>", masks="ground_truth"), ("crack",))
    assert read_tree(domain, tmp_path).rows["objects"].list.len().to_list() == [1, 1, 0, 0, 0]


def test_masks_beside_the_boxes_of_a_table_are_accounted_for(tmp_path):
    for name in ("a", "b"):
        save_picture(tmp_path / f"{name}.png", seed=ord(name))
        save_picture(tmp_path / "masks" / f"{name}.png", seed=1)
    rows = "\na.png,pit,masks/a.png,1 2 9 9\nb.png,none,masks/b.png,\n"
    (tmp_path / "labels.csv").write_text(f"image,label,mask,boxes{rows}")
    domain = make_domain(task="detection", classes=["pit"], layout={"kind": "csv", "mask": "mask", "boxes": "boxes"})
    found = read_tree(domain, tmp_path)
    assert found.rows["mask"].to_list() == ["masks/a.png", "masks/b.png"]
    assert found.account.ignored == {}
