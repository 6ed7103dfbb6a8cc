"""Tables and annotations as people write them: what is read, what is refused, and what is said of the rest."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from samples import explain, make_domain, picture, save_picture, save_text

from components.data.annotations.boxes import clip_boxes
from components.data.annotations.columns import complete_table
from components.data.annotations.guessing import suggest_layout
from components.data.annotations.layouts import READERS, find_classes, read_layout, read_rows
from components.data.annotations.names import warn_of_alike
from components.data.annotations.tables import looks_multilabel
from components.data.checks.pictures import inspect_image
from components.data.checks.validation import check_rows
from components.data.manifest import Reading, Row, Wanted
from components.data.sources.images import ORIENTATION
from components.data.splits import assign_splits
from components.data.store.exporting import export_manifest
from components.data.store.importing import import_folder
from components.domain.layouts import Coco, Csv, Folders, Layout, Voc, Yolo
from components.domain.reading import parse_domain
from components.domain.settings import Validation
from components.errors import DataError, DomainError
from components.workspace import Workspace

NAMES = [f"p{number:02d}" for number in range(8)]
GRADES = ["good", "bad"] * 4


def write_pictures(raw: Path, folder: str = "img") -> Path:
    for number, name in enumerate(NAMES):
        save_picture(raw / folder / f"{name}.png", number)
    return raw


def lines(pattern: str = "img/{}.png,{}", grades: list[str] = GRADES) -> str:
    return "".join(f"{pattern.format(name, grade)}\n" for name, grade in zip(NAMES, grades, strict=True))


def understand(raw: Path, named: dict[str, object] | None = None) -> Layout:
    """The layout as import settles it."""
    layout = Csv(**named) if named is not None else suggest_layout(raw)
    return complete_table(layout, raw) if isinstance(layout, Csv) else layout


def read_labels(layout: Layout, raw: Path) -> dict[str, str]:
    many = isinstance(layout, Csv) and looks_multilabel(layout, raw)
    classes = find_classes(layout, raw, many=many)
    facts = {"task": "multilabel" if many else "classification", "classes": classes, "layout": layout.model_dump()}
    rows = read_rows(parse_domain({"name": "tiles", **facts}, "tests"), raw)
    assert rows["problem"].null_count() == rows.height, rows["problem"].drop_nulls()[0]
    return {Path(path).stem: label for path, label in rows.select("path", "label").iter_rows()}


TABLES = {
    "plain": ("labels.csv", "image,label\n" + lines(), {}),
    "other names": ("list.csv", "Filename,Class\n" + lines(), {"image": "Filename", "label": "Class"}),
    "semicolons": ("labels.csv", "image;label\n" + lines("img/{}.png;{}"), {"delimiter": ";"}),
    "semicolons and decimal commas": (
        "labels.csv",
        "image;mm;label\n" + lines("img/{}.png;1,5;{}"),
        {"delimiter": ";"},
    ),
    "Excel's sep": ("labels.csv", "sep=;\nimage;label\n" + lines("img/{}.png;{}"), {"delimiter": ";"}),
    "tabs": ("labels.tsv", "image\tlabel\n" + lines("img/{}.png\t{}"), {"delimiter": "\t"}),
    "bars": ("labels.csv", "image|label\n" + lines("img/{}.png|{}"), {"delimiter": "|"}),
    "byte order mark": ("labels.csv", ("image,label\n" + lines()).encode("utf-8-sig"), {}),
    "UTF-16": ("labels.csv", ("image,label\n" + lines()).encode("utf-16"), {"encoding": "utf-16"}),
    "UTF-16 without a mark": ("a.csv", ("image,label\n" + lines()).encode("utf-16-le"), {"encoding": "utf-16-le"}),
    "Windows": ("a.csv", ("image,label,by\n" + lines("img/{}.png,{},Müller")).encode("cp1252"), {"encoding": "cp1252"}),
    "CR": ("labels.csv", ("image,label\n" + lines()).replace("\n", "\r"), {}),
    "CRLF": ("labels.csv", ("image,label\n" + lines()).replace("\n", "\r\n"), {}),
    "no header": ("labels.csv", lines(), {"header": False, "image": "column_1", "label": "column_2"}),
    "trailing commas": ("labels.csv", "image,label,,\n" + lines("img/{}.png,{},,"), {}),
    "trailing commas below": ("labels.csv", "image,label\n" + lines("img/{}.png,{},,"), {}),
    "blank lines": ("labels.csv", "\nimage,label\n" + lines().replace("\n", "\n\n") + " , \n", {}),
    "comments": ("labels.csv", "# made by hand\nimage,label\n# first lot\n" + lines(), {}),
    "a header in a comment": ("labels.csv", "# image,label\n" + lines(), {}),
    "index column": ("labels.csv", ",image,label\n" + lines("7,img/{}.png,{}"), {}),
    "quoted newline": ("labels.csv", "image,label,text\n" + lines('img/{}.png,{},"a\nb, c"'), {}),
    "blanks": ("labels.csv", "image, label\n" + lines('img/{}.png, "{}"'), {}),
    "backslashes": ("labels.csv", "image,label\n" + lines("img\\{}.png,{}"), {}),
    "absolute": ("labels.csv", "image,label\n" + lines("D:\\set 1\\img\\{}.png,{}"), {}),
    "from above": ("labels.csv", "image,label\n" + lines("../input/set/img/{}.png,{}"), {}),
    "below a folder that is not here": ("labels.csv", "image,label\n" + lines("set/img/{}.png,{}"), {}),
    "from the top": ("meta/labels.csv", "image,label\n" + lines(), {}),
    "bare names": ("meta/labels.csv", "image,label\n" + lines("{}.png,{}"), {}),
    "ids": ("labels.csv", "image_id,dx\n" + lines("{},{}"), {"image": "image_id", "label": "dx"}),
    "kaggle": ("train.csv", "image,target,fold,is_train\n" + lines("{},{},0,1"), {"label": "target"}),
    "one column left": ("labels.csv", "image,finish,fold\n" + lines("img/{}.png,{},3"), {"label": "finish"}),
    "two names of the classes": (
        "labels.csv",
        "image,class_id,class_name\n"
        + "".join(f"{n},{int(g == 'bad')},{g}\n" for n, g in zip(NAMES, GRADES, strict=True)),
        {"label": "class_name"},
    ),
    "one-hot": (
        "truth.csv",
        "image,bad,good,rare\n"
        + "".join(f"{n},{g == 'bad':d}.0,{g == 'good':d}.0,0.0\n" for n, g in zip(NAMES, GRADES, strict=True)),
        {"one_hot": True},
    ),
}


@pytest.mark.parametrize(("table", "text", "found"), TABLES.values(), ids=TABLES)
def test_a_table_is_understood_and_its_form_written_down(tmp_path, table, text, found):
    write_pictures(tmp_path)
    (tmp_path / table).parent.mkdir(exist_ok=True)
    (tmp_path / table).write_bytes(text if isinstance(text, bytes) else text.encode())
    layout = understand(tmp_path)
    named = {} if table == "labels.csv" else {"table": table}
    assert layout.model_dump(exclude_defaults=True) == named | found
    assert read_labels(layout, tmp_path) == dict(zip(NAMES, GRADES, strict=True))


def test_options_that_are_named_are_not_searched_for(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "labels.csv").write_text("file;grade;label\n" + lines("img/{}.png;{};x"))
    named = {"image": "file", "label": "grade", "separator": ";"}  # meant: between the columns
    layout = understand(tmp_path, named)
    assert layout == Csv(image="file", label="grade", delimiter=";")
    assert read_labels(layout, tmp_path)["p01"] == "bad"


def test_labels_joined_in_one_column_stay_several(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "labels.csv").write_text("image;tags\n" + lines("img/{}.png;{}|worn"))
    layout = understand(tmp_path, {"label": "tags", "separator": "|"})
    assert read_labels(layout, tmp_path)["p01"] == "bad + worn"


def test_one_hot_lines_with_other_than_one_label_are_quarantined(tmp_path):
    write_pictures(tmp_path)
    rows = [f"{name},{int(k % 2)},{int(k % 2 == 0)}" for k, name in enumerate(NAMES)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,a,b", *rows[:6], "p06,1,1", "p07,0,0"]))
    read = read_rows(make_domain(classes=["a", "b"], layout={"kind": "csv", "one_hot": True}), tmp_path)
    problems = {path: explain(cell) for path, cell in read.select("path", "problem").iter_rows()}
    assert "found a, b in labels.csv, line 8" in problems["img/p06.png"]
    assert "found none in labels.csv, line 9" in problems["img/p07.png"]
    assert read["label"].drop_nulls().to_list() == ["b", "a"] * 3
    assert looks_multilabel(understand(tmp_path), tmp_path)  # two lines say that it is no one-hot table


EYES = lines("{},{},ok").replace("bad,ok", "bad,no")
GRADED_TWICE = lines("{},{},x").replace("p03,bad,x", "p03,bad,z")
FLAGGED = lines("{},{}").replace("good", "1,0").replace("bad", "0,1")
UNCLEAR = {
    "two columns": ("image,left_eye,right_eye\n" + EYES, ["left_eye", "right_eye"]),
    "two words": ("image,grade,diagnosis\n" + GRADED_TWICE, ["diagnosis", "grade"]),
    "two pictures": ("before,after,label\n" + lines("{0}.png,{0}.png,{1}"), ["before", "after"]),
    "no label": ("image,comment\n" + lines("{},{}"), ["comment"]),
    "one row of several": ("image,good,bad\n" + FLAGGED.replace("p03,0,1", "p03,1,1"), ["good", "bad", "1 of 8 rows"]),
    "one row of none": (
        "image,good,bad\n" + FLAGGED.replace("p03,0,1", "p03,0,0"),
        ["one_hot: true", "one_hot: false"],
    ),
    "a flag besides": ("image,good,bad,old\n" + FLAGGED.replace("\n", ",1\n"), ["the column 'old'"]),
    "labels joined": (
        "image,label\n" + lines("{},{}").replace("p03,bad", "p03,good|bad"),
        ["good|bad", 'separator: "|"'],
    ),
    "Cyrillic": (("image,label\n" + lines("{},{}").replace("bad", "брак")).encode("cp1251"), ["áðàê", "cp1251"]),
    "Chinese": (("image,label\n" + lines("{},{}").replace("bad", "缺陷")).encode("gbk"), ["cp1252", "gb18030"]),
}


@pytest.mark.parametrize(("text", "columns"), UNCLEAR.values(), ids=UNCLEAR)
def test_an_unclear_table_is_refused_with_its_columns_and_the_line_to_write(tmp_path, text, columns):
    write_pictures(tmp_path)
    (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        understand(tmp_path, {})
    for name in columns:
        assert name in str(caught.value)
    assert "--layout '{kind: csv, table: labels.csv, " in str(caught.value)
    assert suggest_layout(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,label,label\n" + lines("{0},{1},{1}"), "'label' twice"),
        ("image,label\n" + lines("{}.PNG,{}"), "a column that names pictures of this folder"),
        ("", "an empty file"),
        ("image,label\n", "only a header"),
    ],
)
def test_a_table_that_nothing_else_explains_is_refused_for_its_own_fault(tmp_path, text, words):
    write_pictures(tmp_path)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=f"table labels.csv: .*{words}"):
        import_folder(Workspace(tmp_path / "w"), tmp_path, "tiles")


@pytest.mark.parametrize("name", ["labels.xlsx", "Labels.XLS", "labels.jsonl"])
def test_a_spreadsheet_is_named(tmp_path, name):
    write_pictures(tmp_path)
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(DomainError, match=f"{name}, which is not read: save it as csv"):
        import_folder(Workspace(tmp_path / "w"), tmp_path, "tiles")


@pytest.mark.parametrize(("images", "labels"), [("Images/Train", "Labels/Train"), ("JPEGImages", "labels"), ("i", "t")])
def test_yolo_folders_of_other_names_are_found(tmp_path, images, labels):
    for number in range(4):
        save_picture(tmp_path / f"{images}/p{number}.png", number)
        save_text(tmp_path / f"{labels}/p{number}.txt", f"{number % 2}{BOLT[1:]}")
    (tmp_path / f"{labels}/p3.txt").unlink()
    save_text(tmp_path / "data.yaml", "names: [bolt, nut]")
    layout = suggest_layout(tmp_path)
    assert (layout.images, layout.labels) == (images.split("/")[0], labels.split("/")[0])
    assert [row.label for row in READERS["yolo"](layout, tmp_path, Wanted()).rows] == ["bolt", "nut", "bolt"]


@pytest.mark.parametrize(
    ("images", "annotations"),
    [("{}/JPEGImages", "{}/Annotations"), ("images/{}", "xmls/{}"), ("set/{}", "set/{}")],
)
def test_voc_of_several_sets_is_read_whole(tmp_path, images, annotations):
    for name in ("VOC2007", "VOC2012"):
        save_picture(tmp_path / images.format(name) / "p0.png", len(name))
        save_text(tmp_path / annotations.format(name) / "p0.xml", f"<annotation>{named('p0.png')}</annotation>")
    layout = suggest_layout(tmp_path)
    assert (layout.images, layout.annotations) == (images.format("<folder>"), annotations.format("<folder>"))
    rows = read_layout(layout, tmp_path, Wanted()).rows
    assert [(row.path, row.columns["folder"], row.problem) for row in rows] == [
        (f"{images.format(name)}/p0.png", name, None) for name in ("VOC2007", "VOC2012")
    ]


def test_boxes_of_shares_are_refused(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "labels.csv").write_text("image,label,xmin,ymin,xmax,ymax\n" + lines("{},{},0.1,0,1,0.9"))
    with pytest.raises(
        DataError, match=r"columns xmin, ymin, xmax, ymax: expected boxes in pixels; found numbers from 0"
    ):
        import_folder(Workspace(tmp_path / "w"), tmp_path, "tiles")


@pytest.mark.parametrize("mark", ["", "-1", "NaN", "?"])
def test_a_column_of_flags_with_unknown_cells_is_not_lost(tmp_path, mark):
    write_pictures(tmp_path)
    text = "image,good,bad,ugly\n" + FLAGGED.replace("\n", ",0\n").replace("p03,0,1,0", f"p03,0,1,{mark}")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=r"labels.csv, line 5.*'ugly'"):
        import_folder(Workspace(tmp_path / "w"), tmp_path, "tiles")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.csv": "image,label\n" + lines("{},{}"), "b.csv": "image,label\n" + lines("{},x{}")}, ["a.csv", "b.csv"]),
        ({"meta.csv": "image,type\n" + lines("{},T{}")}, ["'Tbad' in meta.csv", "'bad' by folders"]),
        ({"labels.csv": "image,label\n" + lines("{},{}").replace("00,good", "00,bad")}, ["'bad' in labels.csv"]),
    ],
)
def test_tables_and_folders_that_say_other_classes_are_refused_with_the_choices(tmp_path, files, words):
    for name, grade in zip(NAMES, GRADES, strict=True):
        save_picture(tmp_path / "source" / grade / f"{name}.png", int(name[1:]))
    for name, text in files.items():
        save_text(tmp_path / "source" / name, text)
    with pytest.raises(DomainError) as caught:
        import_folder(Workspace(tmp_path / "w"), tmp_path / "source", "tiles")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert str(caught.value).count("--layout") >= 2


def test_a_table_that_agrees_with_the_folders_is_read(tmp_path):
    for name, grade in zip(NAMES, GRADES, strict=True):
        save_picture(tmp_path / "source" / grade / f"{name}.png", int(name[1:]))
    save_text(tmp_path / "source/labels.csv", "image,label\n" + lines("{},{}"))
    imported = import_folder(Workspace(tmp_path / "w"), tmp_path / "source", "tiles")
    assert imported.understood.pictures.used == 8


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.csv", "item,price\nbolt,3\nnut,4\n"),
        ("README.csv", "column,meaning\nimage,a picture\n"),
        ("sizes.csv", "file,width,height\n" + lines("{}.png,640,480")),
        ("qc.csv", "file,shift\np00.png,early\np01.png,late\n"),
        ("log.csv", b"\x00\x01\xff\xfe\x80"),
    ],
)
def test_a_stray_table_hides_no_folders(tmp_path, name, text):
    write_pictures(tmp_path, "good")
    save_picture(tmp_path / "bad/q00.png", 99)
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert suggest_layout(tmp_path) == Folders()


def test_a_path_whose_folder_is_here_is_never_found_elsewhere(tmp_path):
    """`img/p00.png` is missing; another p00.png is another picture."""
    write_pictures(tmp_path)
    (tmp_path / "img/p00.png").unlink()
    save_picture(tmp_path / "old/p00.png", 5)
    for pattern in ("img/{}.png,{}", "D:/x/img/{}.png,{}"):
        (tmp_path / "labels.csv").write_text("image,label\n" + lines(pattern))
        if pattern.startswith("D"):
            with pytest.raises(DataError, match="inside the raw folder"):
                read_rows(make_domain(classes=["good", "bad"], layout="csv"), tmp_path)
            continue
        rows = read_rows(make_domain(classes=["good", "bad"], layout="csv"), tmp_path)
        assert rows["problem"].drop_nulls().len() == 1
        assert "old/p00.png" not in rows["path"].to_list()


def test_paths_from_elsewhere_are_counted(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "labels.csv").write_text("image,label\n" + lines("/data/set/img/{}.png,{}"))
    reading = READERS["csv"](Csv(), tmp_path, Wanted())
    assert reading.notes == {"paths from another place, found by their ends": 8}


BOXES = {
    "corners": ("image,label,xmin,ymin,xmax,ymax\n", "{},{},4,5,30,31", {"crop": ("xmin", "ymin", "xmax", "ymax")}),
    "fractions": ("image,label,x1,y1,x2,y2\n", "{},{},4.2,4.8,30.4,30.9", {"crop": ("x1", "y1", "x2", "y2")}),
    "size": ("image,label,x,y,w,h\n", "{},{},4,5,26,26", {"crop": ("x", "y", "w", "h"), "box_form": "size"}),
    "one column": ("image,label,crop\n", "{},{},4 5 30 31", {"crop": "crop"}),
    "COCO's": ("image,label,bbox\n", '{},{},"[4.0, 5.0, 26.0, 26.0]"', {"crop": "bbox", "box_form": "size"}),
}


@pytest.mark.parametrize(("head", "pattern", "found"), BOXES.values(), ids=BOXES)
def test_columns_of_boxes_are_crops(tmp_path, head, pattern, found):
    write_pictures(tmp_path)
    text = head + lines(pattern)
    if "bbox" in head:  # a box that ends inside its picture in one reading alone
        text += 'p00.png,bad,"[20, 20, 10, 10]"\n'
    (tmp_path / "labels.csv").write_text(text)
    layout = understand(tmp_path)
    assert layout.model_dump(exclude_defaults=True) == found
    rows = read_rows(make_domain(classes=["good", "bad"], layout=layout.model_dump()), tmp_path)
    assert Counter(map(tuple, rows["crop"]))[4, 5, 30, 31] == 8


# COCO


def coco(raw: Path, *, images=None, annotations=None, categories=None, file: str = "annotations.json") -> Path:
    """Four pictures 48 x 40 with one object each; a list given takes the place of the usual one."""
    for number in range(4):
        if not (raw / f"images/p{number}.png").exists():
            save_picture(raw / f"images/p{number}.png", number)
    usual = [{"id": k, "file_name": f"p{k}.png", "width": 48, "height": 40} for k in range(4)]
    objects = [box_of(k, image=k, category=k % 2) for k in range(4)]
    names = [{"id": 0, "name": "good"}, {"id": 1, "name": "cracked"}]
    content = {
        "images": usual if images is None else images,
        "annotations": objects if annotations is None else annotations,
        "categories": names if categories is None else categories,
    }
    (raw / file).parent.mkdir(parents=True, exist_ok=True)
    (raw / file).write_text(json.dumps(content))
    return raw


def box_of(number, image=0, category=0, box=(4, 4, 20, 20), **facts):
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(box), **facts}


def image_of(number, name, **facts):
    return {"id": number, "file_name": name, **facts}


FOUR = [image_of(k, f"p{k}.png") for k in range(4)]
CONTRADICTIONS = {
    "an image id of two pictures": ({"images": [*FOUR, image_of(0, "p3.png")]}, ["image id 0", "p0.png", "p3.png"]),
    "as text and number": ({"images": [*FOUR, image_of("1", "p3.png")]}, ["image id '1'", "p1.png", "p3.png"]),
    "as a float": ({"images": [*FOUR, image_of(2.0, "p3.png")]}, ["image id 2.0", "p2.png", "p3.png"]),
    "a category id of two names": (
        {"categories": [{"id": 0, "name": "good"}, {"id": 1, "name": "cracked"}, {"id": 0, "name": "nut"}]},
        ["category id 0", "'good'", "'nut'"],
    ),
    "a category of two ids": (
        {"categories": [{"id": 0, "name": "good"}, {"id": 1, "name": "good "}]},
        ["category 'good'", "id 0", "id 1"],
    ),
    "an id that is none": ({"images": [image_of(1.5, "p0.png")]}, ["images[0]", "an entry with id"]),
    "an id that is true": ({"images": [image_of(True, "p0.png")]}, ["images[0]", "an entry with id"]),
}


@pytest.mark.parametrize(("changes", "words"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_coco_ids_that_contradict_are_refused_with_both(tmp_path, changes, words):
    coco(tmp_path, **changes)
    with pytest.raises(DataError) as caught:
        read_rows(make_domain(layout="coco"), tmp_path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("write", [str, float, lambda value: f" {value} "])
def test_ids_written_as_text_or_floats_are_the_ids_they_mean(tmp_path, write):
    plain = read_rows(make_domain(layout="coco"), coco(tmp_path / "plain"))
    categories = [{"id": write(k), "name": name} for k, name in enumerate(("good", "cracked"))]
    images = [image_of(write(k), f"p{k}.png", width=48, height=40) for k in range(4)]
    same = read_rows(make_domain(layout="coco"), coco(tmp_path / "other", images=images, categories=categories))
    assert same.equals(plain)


@pytest.mark.parametrize(
    ("images", "written", "elsewhere"),
    [
        ("images", "images/p{}.png", 0),
        ("images", "./images/p{}.png", 0),
        ("images", "images\\p{}.png", 0),
        ("images", "https://labels.example/data/p{}.png", 4),
        ("images", "old/p{}.png", 4),
        (".", "p{}.png", 0),
    ],
)
def test_file_names_of_coco_may_start_at_any_folder(tmp_path, images, written, elsewhere):
    listed = [image_of(k, written.format(k), width=48, height=40) for k in range(4)]
    raw = coco(tmp_path, images=listed)
    reading = READERS["coco"](Coco(images=images), raw, Wanted())
    assert [row.path for row in reading.rows if not row.problem] == [f"images/p{k}.png" for k in range(4)]
    assert reading.notes.get("paths from another place, found by their ends", 0) == elsewhere


def test_a_file_name_never_leads_into_the_folder_of_another_split(tmp_path):
    for split in ("train", "val"):
        save_picture(tmp_path / f"{split}/p0.png", 1)
        listed = [image_of(0, "p0.png"), image_of(1, "p1.png"), image_of(2, f"old/{split}2.png")]
        objects = [box_of(0, 0), box_of(1, 1, 1), box_of(2, 2)]
        coco(tmp_path, images=listed, annotations=objects, file=f"{split}/boxes.json")
    save_picture(tmp_path / "val/p1.png", 2)
    save_picture(tmp_path / "val/train2.png", 3)
    rows = read_layout(Coco(images="<split>", annotations="<split>/boxes.json"), tmp_path, Wanted()).rows
    fit = [(row.path, row.columns["split"]) for row in rows if not row.problem]
    assert fit == [("train/p0.png", "train"), ("val/p0.png", "val"), ("val/p1.png", "val")]


def pack(counts):
    """Counts of runs as COCO packs them into text."""
    text = ""
    for place, count in enumerate(counts):
        value, more = count - (counts[place - 2] if place > 2 else 0), True
        while more:
            code, value = value & 31, value >> 5
            more = value != (-1 if code & 16 else 0)
            text += chr(code + 32 * more + 48)
    return text


@pytest.mark.parametrize("form", [list, pack])
@pytest.mark.parametrize("box", [(4, 6, 24, 30), (0, 0, 48, 40), (10, 0, 30, 40), (5, 7, 6, 8)])
def test_run_length_masks_give_their_extent(tmp_path, form, box):
    x0, y0, x1, y1 = box
    mask = np.zeros((40, 48), dtype=bool)
    mask[y0:y1, x0:x1] = True
    flat = np.concatenate([[False], mask.ravel(order="F"), [not mask[-1, -1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], ends])).tolist()
    annotation = {"id": 0, "image_id": 0, "category_id": 0, "segmentation": {"size": [40, 48], "counts": form(counts)}}
    rows = READERS["coco"](Coco(), coco(tmp_path, annotations=[annotation]), Wanted()).rows
    assert [row.crop for row in rows] == [box]
    annotation["segmentation"]["counts"] = "~~"
    rows = READERS["coco"](Coco(), coco(tmp_path, annotations=[annotation]), Wanted()).rows
    assert "a bbox [x, y, width, height]" in str(rows[0].problem)


def test_text_that_is_no_number_stays_text(tmp_path):
    images = [image_of("p0", "p0.png"), image_of("01", "p1.png"), image_of(1, "p2.png")]
    annotations = [box_of(0, "p0"), box_of(1, "01", 1), box_of(2, 1)]
    rows = read_rows(make_domain(layout="coco"), coco(tmp_path, images=images, annotations=annotations))
    labels = rows.drop_nulls("label").select("path", "label").rows()
    assert labels == [("images/p0.png", "good"), ("images/p1.png", "cracked"), ("images/p2.png", "good")]


def test_a_picture_listed_under_two_annotated_ids_is_quarantined(tmp_path):
    images = [*FOUR, image_of(9, "p0.png")]
    annotations = [box_of(0, 0), box_of(1, 9, 1), box_of(2, 1)]
    rows = read_rows(make_domain(layout="coco"), coco(tmp_path, images=images, annotations=annotations))
    assert set(rows.filter(path="images/p1.png")["problem"]) == {None}
    (problem,) = set(map(explain, rows.filter(path="images/p0.png")["problem"]))
    assert "the ids 0 and 9 of images/p0.png" in problem


def test_every_file_of_coco_has_its_own_ids(tmp_path):
    coco(tmp_path, images=FOUR[:2], annotations=[box_of(0, 0), box_of(1, 1, 1)], file="annotations/a.json")
    swapped = [{"id": 1, "name": "good"}, {"id": 0, "name": "cracked"}]
    images = [image_of(0, "p2.png"), image_of(1, "p3.png")]
    coco(
        tmp_path,
        images=images,
        annotations=[box_of(0, 0), box_of(1, 1, 1)],
        categories=swapped,
        file="annotations/b.json",
    )
    rows = read_rows(make_domain(layout={"kind": "coco", "annotations": "annotations"}), tmp_path)
    assert rows["label"].to_list() == ["good", "cracked", "cracked", "good"]


def test_coco_says_what_it_passed_over(tmp_path):
    annotations = [
        box_of(0, 0, iscrowd=1),
        box_of(1, 1, 1, segmentation=[[4, 4, 24, 4, 24, 24]], score=0.9),
        box_of(1, 2, attributes={"occluded": True}, keypoints=[1, 2, 2]),
        {"id": 5, "image_id": 0, "caption": "a part"},
    ]
    reading = READERS["coco"](make_domain(layout="coco").layout, coco(tmp_path, annotations=annotations), Wanted())
    assert reading.ignored == dict.fromkeys(["images/p0.png", "images/p3.png"], "listed without any object to cut out")
    assert reading.notes == {
        "crowd annotations (iscrowd: 1) left out": 1,
        "captions left out": 1,
        "annotations with segmentation, which is not kept": 1,
        "annotations with score, which is not kept": 1,
        "annotations with attributes, which is not kept": 1,
        "annotations with keypoints, which is not kept": 1,
        "annotations marked occluded, read as any other": 1,
        "annotation ids given twice, both read (first: 1 in images/p1.png and images/p2.png)": 1,
    }


# Pascal VOC


def voc(raw: Path, files: dict[str, str], pictures: int = 4) -> Path:
    """Pictures p0, p1... of 48 x 40, and annotation files: name to `<filename>` and further elements."""
    for number in range(pictures):
        save_picture(raw / f"JPEGImages/p{number}.png", number)
    for name, inside in files.items():
        (raw / "Annotations" / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / "Annotations" / name).write_text(f"<annotation>{inside}</annotation>")
    return raw


def thing(label="good", box=(5, 5, 30, 30), more=""):
    corners = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{label}</name>{more}<bndbox>{corners}</bndbox></object>"


def named(name, *things):
    return f"<filename>{name}</filename><folder>other</folder><path>/x/p3.png</path>{''.join(things or [thing()])}"


def read_voc_rows(raw: Path) -> dict[str, str]:
    """Label or problem of every picture, the labels of several objects joined."""
    rows = read_rows(make_domain(layout="voc"), raw)
    seen: dict[str, list[str]] = {}
    for path, label, problem in rows.select("path", "label", "problem").iter_rows():
        seen.setdefault(path.removeprefix("JPEGImages/"), []).append(explain(problem) or label)
    return {path: " + ".join(found) for path, found in seen.items()}


def test_files_that_exchange_their_pictures_are_quarantined_with_both(tmp_path):
    files = {"p0.xml": named("p1.png", thing("cracked")), "p1.xml": named("p0.png"), "p2.xml": named("p2.png")}
    found = read_voc_rows(voc(tmp_path, files, 3))
    for name, other in (("p0", "p1"), ("p1", "p0")):
        assert (
            f"{other}.png, so that it may describe JPEGImages/{other}.png or JPEGImages/{name}.png"
            in found[f"{name}.png"]
        )
    assert found["p2.png"] == "good"


@pytest.mark.parametrize("written", ["sub\\p1.png", "C:\\photos\\p1.png", "/home/me/p1.png", "p1"])
def test_a_path_in_filename_is_compared_by_its_name(tmp_path, written):
    found = read_voc_rows(voc(tmp_path, {"p0.xml": named(written), "p1.xml": named(written)}, 2))
    assert "may describe JPEGImages/p1.png or JPEGImages/p0.png" in found["p0.png"]
    assert found["p1.png"] == "good"


@pytest.mark.parametrize("written", ["p1.jpg", "p1.PNG", "P1.png", "old/P1.jpeg"])
def test_a_filename_of_another_picture_in_other_case_or_suffix_is_no_stale_name(tmp_path, written):
    found = read_voc_rows(voc(tmp_path, {"p0.xml": named(written), "p1.xml": named("P1.jpg")}, 2))
    assert f"{written}, so that it may describe JPEGImages/p1.png or JPEGImages/p0.png" in found["p0.png"]
    assert found["p1.png"] == "good"


@pytest.mark.parametrize("line", ["{}", "{}.png", "{} -1", "JPEGImages/{}.png", "JPEGImages\\{}.png 1"])
def test_lists_of_splits_name_pictures_in_any_form(tmp_path, line):
    raw = voc(tmp_path, {f"p{n}.xml": named(f"p{n}.png") for n in range(3)}, 3)
    save_text(raw / "ImageSets/Main/train.txt", "".join(f"{line.format(name)}\n" for name in ("p0", "p1")))
    save_text(raw / "ImageSets/Main/test.txt", f"{line.format('p2')}\n")
    rows = read_layout(Voc(), raw, Wanted()).rows
    assert [row.columns.get("split") for row in rows] == ["train", "train", "test"]


def test_files_that_describe_pictures_of_another_split_are_no_orphans(tmp_path):
    for name, split in (("p0", "train"), ("p1", "val")):
        save_picture(tmp_path / f"images/{split}/{name}.png", 1)
        save_text(tmp_path / f"xmls/{name}.xml", f"<annotation>{named(f'{name}.png')}</annotation>")
    save_text(tmp_path / "xmls/p2.xml", f"<annotation>{named('p2.png')}</annotation>")
    rows = read_layout(Voc(images="images/<split>", annotations="xmls"), tmp_path, Wanted()).rows
    assert [(row.path, row.columns.get("split"), bool(row.problem)) for row in rows] == [
        ("images/train/p0.png", "train", False),
        ("images/val/p1.png", "val", False),
        ("xmls/p2.xml", None, True),
    ]


def test_two_files_of_one_picture_are_quarantined_with_both(tmp_path):
    files = {"p0.xml": named("p0.png"), "copy of p0.xml": named("p0.png", thing("cracked")), "p1.xml": thing()}
    found = read_voc_rows(voc(tmp_path, files, 2))
    assert "Annotations/copy of p0.xml and Annotations/p0.xml" in found["p0.png"]
    assert found["p1.png"] == "good"


def test_a_filename_that_is_nowhere_leaves_the_stem_to_decide(tmp_path):
    raw = voc(tmp_path, {"p0.xml": named("000001.jpg"), "p1.xml": named("p1.jpg"), "x.xml": named("p2.png")}, 3)
    assert set(read_voc_rows(raw).values()) == {"good"}
    notes = READERS["voc"](make_domain(layout="voc").layout, raw, Wanted()).notes
    assert notes == {"annotation files whose <filename> names no picture, taken by their own name": 2}


def test_voc_says_what_it_passed_over(tmp_path):
    flags = "<difficult>1</difficult><truncated>0</truncated><occluded>1</occluded><attributes/>"
    raw = voc(
        tmp_path, {"p0.xml": named("p0.png", thing(more=flags), thing()), "p1.xml": "<filename>p1.png</filename>"}, 2
    )
    reading = READERS["voc"](make_domain(layout="voc").layout, raw, Wanted())
    assert reading.ignored == {"JPEGImages/p1.png": "annotated as a picture without any object"}
    assert reading.notes == {
        "objects marked difficult, read as any other": 1,
        "objects marked occluded, read as any other": 1,
        "objects whose attributes are not read": 1,
    }
    assert len(reading.rows) == 2


# Edges


def test_boxes_a_little_over_the_edge_are_clipped_and_counted(tmp_path):
    boxes = [(-1, 10, 30, 30), (30, 20, 49, 42), (30, 20, 51, 40), (-3, 10, 30, 30), (46, 10, 50, 30), (0, 0, 48, 40)]
    rows = [Row(path="a.png", label="good", crop=box, stated_size=size) for box in boxes for size in ((48, 40), None)]
    save_picture(tmp_path / "a.png", 1)
    reading = clip_boxes(Reading([*rows, Row(path="a.png", label="good", boxes=boxes[:2])]), tmp_path)
    clipped = [(0, 10, 30, 30), (30, 20, 48, 40), *boxes[2:4], (46, 10, 48, 30), boxes[5]]
    assert [row.crop for row in reading.rows[:-1]] == [box for box in clipped for _ in range(2)]
    assert list(reading.rows[-1].boxes) == clipped[:2]
    assert reading.notes == {"boxes up to 2 pixels over the edge of their picture, clipped": 8}


def test_clipping_is_the_same_for_voc_coco_and_tables(tmp_path):
    voc(tmp_path / "voc", {"p0.xml": named("p0.png", thing(box=(20, 10, 50, 41)))}, 1)
    coco(tmp_path / "coco", annotations=[box_of(0, 0, box=(19.0, 9.0, 31.4, 32.3))])
    write_pictures(tmp_path / "csv", "")
    (tmp_path / "csv/labels.csv").write_text("image,label,crop\np00.png,good,19 9 50 41\n")
    layouts = {"voc": "voc", "coco": "coco", "csv": {"kind": "csv", "crop": "crop"}}
    for name, layout in layouts.items():
        rows = read_rows(make_domain(layout=layout), tmp_path / name)
        assert rows["crop"].drop_nulls().to_list() == [[19, 9, 48, 40]], name
        assert rows["id"][0].endswith("#19,9,48,40")


def test_a_box_on_a_turned_picture_is_clipped_at_its_upright_edge(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture(1).save(tmp_path / "a.jpg", exif=exif)  # 48 x 40, shown as 40 x 48
    (row,) = clip_boxes(Reading([Row(path="a.jpg", crop=(10, 10, 41, 49))]), tmp_path).rows
    assert row.crop == (10, 10, 40, 48)


# YOLO

BOLT = "0 0.5 0.5 0.5 0.5"  # of 48 x 40: 12 10 36 30
YOLO_TREES = {
    "images/train, labels/train": ("images/{split}/{name}.png", "labels/{split}/{name}.txt"),
    "train/images, train/labels": ("{split}/images/{name}.png", "{split}/labels/{name}.txt"),
    "below a folder": ("set/images/{split}/{name}.png", "set/labels/{split}/{name}.txt"),
    "flat": ("images/{name}.png", "labels/{name}.txt"),
    "beside": ("obj_train_data/{name}.png", "obj_train_data/{name}.txt"),
    "all in one": ("{name}.png", "{name}.txt"),
    "one folder of labels": ("images/{split}/{name}.png", "labels/{name}.txt"),
}


def yolo(raw, texts, picture="images/{name}.png", label="labels/{name}.txt", names="[bolt, nut]"):
    """Pictures of 48 x 40, a label file for each text that is not None; every third one is in val."""
    for number, text in enumerate(texts):
        where = {"split": "val" if number % 3 == 2 else "train", "name": f"p{number}"}
        save_picture(raw / picture.format(**where), number)
        if text is not None:
            save_text(raw / label.format(**where), text)
    if names:
        save_text(raw / "data.yaml", f"path: .\nnames: {names}\n")
    return raw


def read_yolo_rows(raw: Path) -> Reading:
    layout = suggest_layout(raw)
    assert layout is not None
    assert layout.kind == "yolo"
    return clip_boxes(READERS["yolo"](layout, raw, Wanted()), raw)


@pytest.mark.parametrize(("picture", "label"), YOLO_TREES.values(), ids=YOLO_TREES)
def test_yolo_trees_are_read_with_their_splits(tmp_path, picture, label):
    reading = read_yolo_rows(yolo(tmp_path, [BOLT, f"1{BOLT[1:]}\n", BOLT], picture, label))
    assert [row.label for row in reading.rows] == ["bolt", "nut", "bolt"]
    assert {row.crop for row in reading.rows} == {(12, 10, 36, 30)}
    given = ["train", "train", "val"] if "split" in picture else [None] * 3
    assert [row.columns.get("split") for row in reading.rows] == given
    assert not reading.ignored
    assert not reading.notes


NAMES_FILES = {
    "a mapping": ("data.yaml", "names: {0: bolt, 1: nut}"),
    "a list": ("dataset.yml", "nc: 2\nnames:\n- bolt\n- nut\n"),
    "numbers as text": ("data.yaml", 'names: {"1": nut, "0": bolt}'),
    "classes.txt": ("classes.txt", "bolt\nnut\n"),
    "among the labels": ("labels/classes.txt", "bolt\r\nnut"),
    "darknet": ("obj.names", "bolt\nnut\n"),
}


@pytest.mark.parametrize(("file", "text"), NAMES_FILES.values(), ids=NAMES_FILES)
def test_yolo_class_names_are_found(tmp_path, file, text):
    yolo(tmp_path, [BOLT, f"1{BOLT[1:]}"], names="")
    save_text(tmp_path / file, text)
    assert [row.label for row in read_yolo_rows(tmp_path).rows] == ["bolt", "nut"]
    assert suggest_layout(tmp_path).names == file


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["a file that names the classes", "Add data.yaml with `names:"]),
        ({"data.yaml": "train: images"}, ["data.yaml", "no key `names`", "Write `names: ["]),
        ({"data.yaml": "names: [bolt, nut]\nnc: 8"}, ["data.yaml", "2 names and `nc: 8`"]),
        ({"data.yaml": "names: [no, yes]"}, ["False for the number 0", "without quotes"]),
        ({"classes.txt": "bolt\nbolt\n"}, ["classes.txt", "'bolt' under the numbers 0 and 1"]),
        (
            {"data.yaml": "names: [bolt, nut]", "classes.txt": "nut\nbolt"},
            ["data.yaml (bolt, nut)", "classes.txt (nut, bolt)", "--layout '{kind: yolo, names: data.yaml}'"],
        ),
    ],
)
def test_yolo_without_one_list_of_names_is_refused(tmp_path, files, words):
    yolo(tmp_path, [BOLT], names="")
    for file, text in files.items():
        save_text(tmp_path / file, text)
    with pytest.raises(DataError) as caught:
        read_yolo_rows(tmp_path)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("names", "words"),
    [("[bolt, bolt]", "'bolt' under the numbers 0 and 1"), ("[bolt]\nnc: 2", "1 names and `nc: 2`"), ("7", "found 7")],
)
def test_yolo_names_that_contradict_are_refused(tmp_path, names, words):
    yolo(tmp_path, [BOLT], names=names)
    with pytest.raises(DataError, match=re.escape(words)):
        READERS["yolo"](Yolo(names="data.yaml"), tmp_path, Wanted())


OTHER_FORMS = {
    "segmentation": ("0 .1 .1 .4 .1 .4 .4", "an outline (a polygon"),
    "odd segmentation": ("0 " + ".1 " * 22, "an outline (a polygon"),
    "oriented boxes": ("0 .1 .1 .4 .1 .4 .4 .1 .4", "an oriented box"),
    "predictions": (f"{BOLT} 0.93", "a box with a confidence"),
    "pose": (BOLT + " .1 .1 2", "keypoints"),
}


@pytest.mark.parametrize(("line", "words"), OTHER_FORMS.values(), ids=OTHER_FORMS)
def test_yolo_of_another_form_is_refused_by_name(tmp_path, line, words):
    yolo(tmp_path, [line, line, BOLT])
    with pytest.raises(DataError) as caught:
        read_yolo_rows(tmp_path)
    assert words in str(caught.value)
    assert "labels/p0.txt" in str(caught.value)
    yolo(tmp_path, [line, BOLT, BOLT])  # one file alone is quarantined
    assert [bool(row.problem) for row in read_yolo_rows(tmp_path).rows] == [True, False, False]


UNFIT_LINES = {
    "over 1": ("0 1.5 0.5 0.2 0.2", "numbers from 0 to 1"),
    "pixels": ("0 24 20 10 10", "numbers from 0 to 1"),
    "below 0": ("0 -0.1 0.5 0.2 0.2", "numbers from 0 to 1"),
    "no number": ("0 nan 0.5 0.2 inf", "numbers from 0 to 1"),
    "no size": ("0 0.5 0.5 0 0.2", "width and height"),
    "an unknown class": ("7 0.5 0.5 0.2 0.2", "one of the class numbers 0, 1; found class 7"),
    "a negative class": ("-1 0.5 0.5 0.2 0.2", "found class -1"),
    "a class by name": ("bolt 0.5 0.5 0.2 0.2", "found class bolt"),
    "half a line": ("0 0.5 0.5", "3 values in line 2"),
}


@pytest.mark.parametrize(("line", "words"), UNFIT_LINES.values(), ids=UNFIT_LINES)
def test_unfit_yolo_lines_quarantine_their_file(tmp_path, line, words):
    rows = read_yolo_rows(yolo(tmp_path, [f"{BOLT}\n{line}", BOLT, BOLT])).rows
    assert words in str(rows[0].problem)
    assert "labels/p0.txt" in str(rows[0].problem)
    assert [row.label for row in rows] == [None, "bolt", "bolt"]


def test_every_file_of_a_yolo_tree_is_accounted_for(tmp_path):
    yolo(tmp_path, [BOLT, "", None, f"0.0{BOLT[1:]}"])
    save_text(tmp_path / "labels/lost.txt", BOLT)
    save_text(tmp_path / "labels/notes.txt", "made in May")
    save_picture(tmp_path / "images/p0.jpg", 9)  # two pictures of one stem, one label file
    reading = read_yolo_rows(tmp_path)
    problems = {row.path: str(row.problem) for row in reading.rows if row.problem}
    assert problems.keys() == {"images/p0.jpg", "images/p0.png", "labels/lost.txt"}
    assert "labels/p0.txt shared by images/p0.jpg and images/p0.png" in problems["images/p0.jpg"]
    assert reading.ignored == {
        "images/p1.png": "annotated as background: its label file is empty",
        "images/p2.png": "no label file p2.txt",
    }
    assert reading.notes == {
        "pictures annotated as background (an empty label file), left out": 1,
        "text files that hold no labels, passed over": 1,
    }


def test_yolo_boxes_of_turned_pictures_and_beyond_the_edge(tmp_path):
    yolo(tmp_path, ["0 0.99 0.5 0.1 0.5", "0 0.9 0.5 0.6 0.5"])  # 1.4 and 8 pixels over
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture(7).save(tmp_path / "images/t.jpg", exif=exif)  # shown as 40 x 48
    save_text(tmp_path / "labels/t.txt", BOLT)
    reading = read_yolo_rows(tmp_path)
    assert [row.crop for row in reading.rows] == [(45, 10, 48, 30), (29, 10, 58, 30), (10, 12, 30, 36)]
    assert reading.notes == {"boxes up to 2 pixels over the edge of their picture, clipped": 1}


def test_yolo_lists_and_data_yaml_name_the_splits(tmp_path):
    yolo(tmp_path, [BOLT] * 4, names="[bolt]\ntrain: /content/set/train.txt\nval: ../images")
    save_text(tmp_path / "train.txt", "/content/set/images/p0.png\n./images/p1.png\n")
    splits = [row.columns.get("split") for row in read_yolo_rows(tmp_path).rows]
    assert splits == ["val"] * 4  # data.yaml decides
    save_text(tmp_path / "data.yaml", "names: [bolt]")
    splits = [row.columns.get("split") for row in read_yolo_rows(tmp_path).rows]
    assert splits == ["train", "train", None, None]


@pytest.mark.parametrize("text", ["a bolt on a plate", "12 15 30 40 1", "0.5", ""])
def test_text_files_that_are_no_labels_are_no_yolo(tmp_path, text):
    yolo(tmp_path, [text] * 3)
    assert getattr(suggest_layout(tmp_path), "kind", None) != "yolo"


# Class names

ALIKE = {
    "case": (["Good", "good"], "in case alone: 'Good' (1), 'good' (2)", "rename: {Good: good}"),
    "blanks": (["no defect", "no  defect"], "in spaces alone", "rename: {no defect: no  defect}"),
    "underscores": (["no_defect", "no-defect"], "in spaces alone", "rename: {no_defect: no-defect}"),
    "accents": (["de\u0301faut", "d\u00e9faut"], "'de\\u0301faut' (1), 'défaut' (2)", '"de\\u0301faut": "d\\xE9faut"'),
    "zero width": (["bad\u200b", "bad"], "invisible characters alone: 'bad\\u200b' (1)", '{"bad\\u200B": bad}'),
    "soft hyphen": (["scra\u00adtch", "scratch"], "'scra\\xadtch'", '{"scra\\xADtch": scratch}'),
    "no-break": (
        ["no\u00a0defect", "no defect"],
        "characters that look alike alone: 'no\\xa0defect'",
        '{"no\\_defect": no defect}',
    ),
    "dash": (["a\u2013b", "a-b"], "kinds of dashes alone: 'a\\u2013b' (1), 'a-b' (2)", '{"a\\u2013b": a-b}'),
    "number": (["1.0", "1"], "the form of a number alone", "rename: {'1.0': '1'}"),
    "full width": (["\uff21", "A"], "Unicode form alone", '{"\\uFF21": A}'),
    "full stop": (["crack.", "crack"], "punctuation at an end alone: 'crack.' (1)", "rename: {crack.: crack}"),
    "Cyrillic": (["cr\u0430\u0441k", "crack"], "letters of another alphabet alone", '{"cr\\u0430\\u0441k": crack}'),
    "two ways": (["Good ", "good"], "in spaces and case alone: 'Good ' (1)", "{'Good ': good}"),
}


@pytest.mark.parametrize(("names", "shown", "line"), ALIKE.values(), ids=ALIKE)
def test_names_that_look_alike_are_shown_with_what_differs_and_how_to_join_them(names, shown, line):
    (warning,) = warn_of_alike(dict(zip(names, (1, 2), strict=True)) | {"other": 5})
    assert shown in warning
    assert line in warning
    key, _, _ = warning.partition("` into domain.yaml")
    assert yaml.safe_load(key.partition("`")[2]) == {"rename": {names[0]: names[1]}}


@pytest.mark.parametrize(
    "names", [["a", "b"], ["1", "11"], ["1 1", "11"], ["défaut", "defaut"], ["1", "2.0"], ["a1", "a2"]]
)
def test_names_that_differ_in_what_is_read_are_not_warned_of(names):
    assert warn_of_alike(dict.fromkeys(names, 3)) == []


def test_check_warns_of_names_and_rename_joins_them(tmp_path):
    for name in ("Good", "good", "défaut", "de\u0301faut"):
        for number in range(4):
            save_picture(tmp_path / f"{name}/{number}.png", len(ascii(name)) * 100 + number)
    classes = find_classes(Folders(), tmp_path)
    domain = make_domain(classes=classes)
    warnings = check_rows(read_rows(domain, tmp_path), tmp_path, domain).warnings
    assert sum("names differ in" in line for line in warnings) == 2
    domain = make_domain(classes=["good", "défaut"], rename={"Good": "good", "de\u0301faut": "défaut"})
    rows = read_rows(domain, tmp_path)
    assert Counter(rows["label"]) == {"good": 8, "défaut": 8}
    assert not any("names differ in" in line for line in check_rows(rows, tmp_path, domain).warnings)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_rename_joins_columns_of_labels(tmp_path, task):
    write_pictures(tmp_path)
    flags = lines("img/{}.png,{}").replace("good", "0,1").replace("bad", "1,0")
    (tmp_path / "labels.csv").write_text("image,NG,OK\n" + flags)
    layout = {"kind": "csv", "one_hot": task == "classification"}
    rename = {"NG": "bad", "OK": "good"}
    rows = read_rows(make_domain(task=task, classes=["good", "bad"], layout=layout, rename=rename), tmp_path)
    assert rows["label"].to_list() == GRADES


@pytest.mark.parametrize(
    ("rename", "words"),
    [
        ({"NG": "bad"}, "renames to bad; the classes are"),
        ({"good": "cracked"}, "renames 'good', which `classes` names"),
    ],
)
def test_rename_leads_from_labels_to_classes(rename, words):
    with pytest.raises(DomainError, match=words):
        make_domain(rename=rename)


# Given splits, further columns, masks


def test_the_split_that_a_table_or_coco_names_is_passed_along(tmp_path):
    write_pictures(tmp_path / "csv")
    save_text(tmp_path / "csv/labels.csv", "image,label,Split\n" + lines("img/{}.png,{},Train"))
    reading = READERS["csv"](Csv(), tmp_path / "csv", Wanted())
    assert {row.columns["split"] for row in reading.rows} == {"Train"}
    images = [image_of(0, "p0.png", split="val"), *FOUR[1:]]
    raw = coco(tmp_path / "coco", images=images)
    rows = READERS["coco"](make_domain(layout="coco").layout, raw, Wanted()).rows
    assert [row.columns.get("split") for row in rows] == ["val", None, None, None]


def manifest_of(domain, raw):
    fit = check_rows(read_rows(domain, raw), raw, domain).fit
    return assign_splits(fit, fit["group"].to_list(), [], {}, domain.split).frame


@pytest.mark.parametrize("form", ["csv", "coco"])
def test_columns_that_are_not_used_survive_export(tmp_path, form):
    raw = write_pictures(tmp_path / "raw")
    text = "image,label,split,operator,camera\n" + lines("img/{0}.png,{1},train,Müller {0},")
    domain = make_domain(classes=["good", "bad"], layout="csv", slices=["camera"])
    save_text(raw / "labels.csv", text.replace(",\n", ",c7\n"))
    export_manifest(manifest_of(domain, raw), domain, raw, tmp_path / "out", form)
    known = make_domain(classes=["good", "bad"], layout={"kind": form, **({"image": "path"} if form == "csv" else {})})
    again = known.layout.model_copy(update={"images": "."}) if form == "coco" else known.layout
    names = ("operator", "original_split", "camera")
    rows = READERS[form](again, tmp_path / "out", Wanted(names)).rows
    assert {Path(row.path).stem: [row.columns[name] for name in names] for row in rows} == {
        name: [f"Müller {name}", "train", "c7"] for name in NAMES
    }


@pytest.mark.parametrize("form", ["csv", "coco"])
def test_keys_of_coco_that_are_not_used_survive_export(tmp_path, form):
    images = [image_of(k, f"p{k}.png", width=48, height=40, lot=f"L{k}") for k in range(4)]
    annotations = [box_of(k, k, k % 2, (0, 0, 20 + k, 22), score=k / 4) for k in range(4)]
    raw = coco(tmp_path / "raw", images=images, annotations=annotations)
    domain = make_domain(layout="coco")
    export_manifest(manifest_of(domain, raw), domain, raw, tmp_path / "out", form)
    layout = Csv(image="path", crop="crop") if form == "csv" else Coco(images=".")
    rows = READERS[form](layout, tmp_path / "out", Wanted(("lot", "score"))).rows
    found = {Path(row.path).stem: (row.columns["lot"], row.columns["score"]) for row in rows}
    assert found == {f"p{k}": (f"L{k}", str(k / 4)) for k in range(4)}


MASKS = {
    "0 and 1": (Image.fromarray(np.eye(40, 48, dtype=np.uint8)), 1),
    "0 and 255": (Image.fromarray(np.eye(40, 48, dtype=np.uint8) * 255), 255),
    "one bit": (Image.fromarray(np.eye(40, 48, dtype=bool)), 1),
    "grey and opaque": (Image.fromarray(np.stack([np.eye(40, 48), np.full((40, 48), 255)], -1).astype(np.uint8)), 1),
    "palette": (None, 2),
    "16 bits": (Image.fromarray(np.eye(40, 48).astype(np.uint16) * 300), 300),
}


def create_palette() -> Image.Image:
    """Ids 0 and 2, whose colours are nearly the same."""
    image = Image.fromarray(np.eye(40, 48, dtype=np.uint8) * 2).convert("P")
    image.putpalette([0, 0, 0, 9, 9, 9, 1, 1, 1])
    return image


@pytest.mark.parametrize(("mask", "value"), MASKS.values(), ids=MASKS)
def test_masks_are_read_by_their_exact_values(tmp_path, mask, value):
    for number in range(4):
        save_picture(tmp_path / f"images/{number}.png", number)
        (tmp_path / "masks").mkdir(exist_ok=True)
        (mask or create_palette()).save(tmp_path / f"masks/{number}.png")
    classes = ["background", f"class_{value}"]
    domain = make_domain(classes=classes, layout="masks")
    checked = check_rows(read_rows(domain, tmp_path), tmp_path, domain)
    assert not checked.quarantined
    assert set(checked.fit["label"]) == {f"class_{value}"}


def test_small_values_are_never_called_one_value(tmp_path):
    Image.fromarray(np.eye(40, 48, dtype=np.uint8)).save(tmp_path / "ids.png")
    Image.fromarray(np.full((40, 48), 7, np.uint8)).save(tmp_path / "flat.png")
    problems = [str(inspect_image(tmp_path / name, (), Validation()).problem) for name in ("ids.png", "flat.png")]
    assert "only the values 0 to 1, like the class ids of a mask" in problems[0]
    assert "one value in every pixel" in problems[1]


def test_import_names_the_columns_of_an_unclear_table(tmp_path):
    write_pictures(tmp_path / "source")
    save_text(tmp_path / "source/labels.csv", "image,left_eye,right_eye\n" + EYES)
    with pytest.raises(
        DataError, match=r"'left_eye', 'right_eye'.*--layout '\{kind: csv, table: labels.csv, label: left"
    ):
        import_folder(Workspace(tmp_path / "place"), tmp_path / "source", "tiles")
