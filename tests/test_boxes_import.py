"""What an import for detection understands of a tree: layout, classes, canvas; what it says, and what it refuses."""

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from samples import save_picture, write_coco, write_csv, write_folders
from test_boxes_read import FIRST, FORMATS, OTHER, SECOND, csv_line, labelme, rectangle, save_values, table, write_text

from components.data.accounts import summarise
from components.data.annotations.layouts import read_tree
from components.data.store.describing import describe_folder, write_domain
from components.data.store.importing import import_folder
from components.data.store.versions import compare_annotations, list_annotations
from components.domain.domain import Domain
from components.domain.reading import load_domain, parse_domain
from components.errors import DataError, DomainError, TesseraError
from components.records.boxes import LabelledBox
from components.tasks.detection import DetectionTask
from components.workspace import Workspace
from flows.commands import console

WHERE = Path("domain.yaml")
FOUR = ["xmin", "ymin", "xmax", "ymax"]


def describe(raw: Path, layout: str | None = None, task: str = "detection") -> Domain:
    return describe_folder(raw, "tiles", layout, None, WHERE, task)


def write_table(header: str, *lines: str) -> Any:
    def write(raw: Path) -> None:
        for place in range(3):
            save_picture(raw / f"images/p{place}.png", place)
        write_text(raw / "labels.csv", "\n".join([header, *lines]))

    return write


def write_class_folders(raw: Path) -> None:
    for name in ("good/g0", "good/g1", "crack/c0", "crack/c1", "pit/p0"):
        save_picture(raw / f"test/{name}.png", ord(name[0]) + ord(name[-1]))
    save_values(raw / "ground_truth/crack/c0_mask.png", (255, FIRST), (255, SECOND))
    save_values(raw / "ground_truth/crack/c1_mask.png", (255, FIRST))
    save_values(raw / "ground_truth/pit/p0_mask.png", (255, OTHER))


def write_maps(raw: Path) -> None:
    for place in range(4):
        save_picture(raw / f"images/p{place}.png", place)
        save_values(raw / f"masks/p{place}.png", *[(1, FIRST), (2, SECOND)][: place % 3])
    write_text(raw / "labelmap.txt", "background 0\npit 1\nstain 2\n")


def write_drawn_maps(raw: Path) -> None:
    write_maps(raw)
    for place in range(4):
        save_values(raw / f"preview/{place}.png", (1, FIRST))


def write_ids(raw: Path) -> None:
    for place in range(4):
        save_picture(raw / f"images/p{place}.png", place)
        save_values(raw / f"instances/p{place}.png", (1, FIRST), (2, SECOND), (3, OTHER))


def form(name: str) -> Any:
    return lambda raw: FORMATS[name](raw)


#: A tree, the layout of its domain file, its classes, and its pictures: with objects, without any, not annotated.
TREES: dict[str, tuple[Any, dict[str, Any], list[str], tuple[int, int, int]]] = {
    "voc": (form("voc"), {"kind": "voc"}, ["pit", "stain"], (1, 1, 1)),
    "coco": (form("coco"), {"kind": "coco"}, ["pit", "stain"], (1, 1, 1)),
    "yolo": (form("yolo"), {"kind": "yolo", "names": "data.yaml"}, ["pit", "stain"], (1, 2, 0)),
    "labelme": (
        form("labelme"),
        {"kind": "labelme", "images": "images", "annotations": "labels"},
        ["pit", "stain"],
        (1, 1, 1),
    ),
    "cvat": (form("cvat"), {"kind": "cvat"}, ["pit", "stain"], (1, 1, 1)),
    "four columns": (form("csv"), {"kind": "csv", "crop": FOUR}, ["pit", "stain"], (1, 1, 1)),
    "class folders with masks": (
        write_class_folders,
        {"kind": "folders", "images": "test", "masks": "ground_truth"},
        ["crack", "pit"],
        (3, 2, 0),
    ),
    "class maps": (write_maps, {"kind": "masks", "ids": {"pit": 1, "stain": 2}}, ["pit", "stain"], (2, 2, 0)),
    "class maps beside drawings of them": (
        write_drawn_maps,
        {"kind": "masks", "ids": {"pit": 1, "stain": 2}},
        ["pit", "stain"],
        (2, 2, 4),
    ),
    "instances": (write_ids, {"kind": "instances"}, ["object"], (4, 0, 0)),
    "no column of labels": (
        write_table("image,xmin,ymin,xmax,ymax,truncated", "p0.png,1,2,20,30,0", "p0.png,3,2,20,30,1", "p1.png,,,,,"),
        {"kind": "csv", "crop": FOUR},
        ["object"],
        (1, 1, 1),
    ),
    "x, y, width, height": (
        write_table("file,category,x,y,width,height", "p0.png,pit,1,2,20,30", "p2.png,dent,30,2,18,30"),
        {"kind": "csv", "image": "file", "label": "category", "crop": ["x", "y", "width", "height"]}
        | {"box_form": "size"},
        ["dent", "pit"],
        (2, 0, 1),
    ),
    "a cell per box": (
        write_table("image_id,bbox", '"p0","[30.0, 2.0, 18.0, 30.5]"', '"p0","[3.0, 20.0, 18.0, 20.0]"', "p1,"),
        {"kind": "csv", "image": "image_id", "crop": "bbox", "box_form": "size"},
        ["object"],
        (1, 1, 1),
    ),
    "a cell of boxes": (
        write_table("image,label,boxes", "p0.png,pit,1 2 20 30; 5 6 40 39", "p1.png,,", "p2.png,dent,30 2 48 39"),
        {"kind": "csv", "boxes": "boxes"},
        ["dent", "pit"],
        (2, 1, 0),
    ),
    "further names of corners": (
        write_table("image,label,xtl,ytl,xbr,ybr", "p0.png,pit,1,2,20,30", "p1.png,dent,5,6,40,39"),
        {"kind": "csv", "crop": ["xtl", "ytl", "xbr", "ybr"]},
        ["dent", "pit"],
        (2, 0, 1),
    ),
}


@pytest.mark.parametrize("tree", TREES)
def test_a_tree_is_understood_without_a_word(tree: str, tmp_path: Path) -> None:
    write, layout, classes, (shown, empty, unannotated) = TREES[tree]
    write(tmp_path / "set")
    domain = describe(tmp_path / "set")
    assert domain.layout.model_dump(mode="json", exclude_defaults=True) | {"kind": domain.layout.kind} == layout
    assert list(domain.classes) == classes
    write_domain(domain, tmp_path / "domain.yaml")
    written = yaml.safe_load((tmp_path / "domain.yaml").read_text())
    assert list(written) == ["name", "task", "classes", "layout", "img_size", "training"], "letterbox by itself"
    assert written["task"] == "detection"
    assert written["training"] == {"epochs": 100, "batch_size": 4, "warmup_epochs": 1.0}
    understood = read_tree(domain, tmp_path / "set")
    known = summarise(domain, understood.rows)
    assert known.objects is not None
    assert (known.objects.pictures - known.objects.empty, known.objects.empty) == (shown, empty)
    assert len(understood.account.ignored) == unannotated
    assert all(count > 0 for count in known.objects.counts.values())
    assert (known.cut, known.unlabelled) == (False, empty)


def test_a_layout_that_is_named_is_completed(tmp_path: Path) -> None:
    FORMATS["csv"](tmp_path)
    assert describe(tmp_path, "csv") == describe(tmp_path)
    assert describe(tmp_path, "{kind: csv, crop: [xmin, ymin, xmax, ymax]}") == describe(tmp_path)
    named = describe(tmp_path, "{kind: csv, crop: [xmin, ymin, xmax, ymax], label: image}")
    assert list(named.classes) == ["images/p0.png"]


def test_boxes_go_before_masks_and_masks_are_no_lost_pictures(tmp_path: Path) -> None:
    write_csv(tmp_path)  # with a column of boxes and one of masks
    domain = describe(tmp_path)
    assert domain.layout.model_dump(exclude_defaults=True) | {"kind": "csv"} == {"kind": "csv", "boxes": "boxes"}
    table = pl.read_csv(tmp_path / "labels.csv").drop("boxes")
    table.write_csv(tmp_path / "labels.csv")
    assert describe(tmp_path).layout.model_dump(exclude_defaults=True) == {"mask": "mask"}


def test_mostly_unannotated_sets_are_imported(tmp_path: Path) -> None:
    """Annotation is under way: nine of ten pictures wait for it."""
    labelme(tmp_path)
    for place in range(20):
        save_picture(tmp_path / f"images/new{place}.png", 100 + place)
    domain = describe(tmp_path)
    understood = read_tree(domain, tmp_path)
    assert (understood.rows.height, len(understood.account.ignored)) == (2, 21)
    whole = describe(tmp_path, task="{kind: detection, unannotated: background}")
    assert read_tree(whole, tmp_path).rows.height == 23


# What is refused

REFUSED: dict[str, tuple[Any, str | None, str]] = {
    "class folders": (
        write_folders,
        None,
        r"task detection: expected annotations that say where objects are \(.*voc, coco, yolo, .*\); found `folders`\. "
        "If there are masks, name them: `masks: <folder>` in `--layout`",
    ),
    "class folders by name": (write_folders, "folders", "expected annotations that say where objects are"),
    "folders where VOC lies": (
        lambda raw: FORMATS["voc"](raw),
        "folders",
        r"found `folders`\. This looks like voc: `--layout voc`",
    ),
    "a table of labels": (
        write_table("image,label", "p0.png,pit", "p1.png,dent", "p2.png,pit"),
        "csv",
        r"table labels\.csv for boxes: expected four columns of corners \(xmin, .*found the columns 'image', 'label'\. "
        r"Name them: `--layout '\{kind: csv, table: labels.csv, crop: \[xmin, ymin, xmax, ymax\]\}'`",
    ),
    "corners or a size": (
        write_table("image,bbox", '"p0","[3.0, 2.0, 18.0, 30.5]"', '"p1","[3.0, 20.0, 18.0, 20.5]"'),
        "csv",
        "column 'bbox', whose numbers may be corners .* or a size",
    ),
    "shares": (
        write_table("image,xmin,ymin,xmax,ymax", "p0.png,0.1,0.2,0.5,0.9"),
        "csv",
        "expected boxes in pixels; found numbers from 0 to 1",
    ),
    "two columns of classes": (
        write_table("image,defect,species,xmin,ymin,xmax,ymax", "p0.png,a,x,1,2,20,30", "p1.png,a,y,1,2,20,30"),
        "csv",
        "one column of classes of the boxes; found the columns 'defect', 'species'",
    ),
    "nothing shown": (
        write_table("image,label,xmin,ymin,xmax,ymax", "p0.png,,,,,", "p1.png,,,,,"),
        "{kind: csv, crop: [xmin, ymin, xmax, ymax]}",
        "expected at least one class; found none",
    ),
    "oriented boxes": (
        lambda raw: FORMATS["yolo"](raw, "0 .1 .1 .3 .1 .3 .3 .1 .3"),
        None,
        "oriented box",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_unclear_is_refused_with_what_to_write(case: str, tmp_path: Path) -> None:
    write, layout, words = REFUSED[case]
    write(tmp_path)
    with pytest.raises((DataError, DomainError), match=words) as caught:
        describe(tmp_path, layout)
    assert "\n\n" not in str(caught.value), "one paragraph"


def test_a_table_of_labels_beside_boxes_is_found_by_the_boxes(tmp_path: Path) -> None:
    """A table of whole pictures describes more of them, but says nothing of boxes."""
    FORMATS["csv"](tmp_path)
    lines = [f"images/p{place}.png,{'ok' if place else 'bad'}" for place in range(3)]
    write_text(tmp_path / "all.csv", "\n".join(["image,quality", *lines]))
    domain = describe(tmp_path)
    assert (domain.layout.table, list(domain.classes)) == ("labels.csv", ["pit", "stain"])  # type: ignore[union-attr]


def test_a_guess_that_loses_pictures_lists_choices_of_one_class_too(tmp_path: Path) -> None:
    write_table("image,label,xmin,ymin,xmax,ymax", "p0.png,pit,1,2,20,30", "p1.png,,,,,", "p2.png,,,,,")(tmp_path)
    for place in range(4):
        save_picture(tmp_path / f"others/q{place}.png", 20 + place)
    with pytest.raises(DomainError, match="expected a layout that reads nearly all pictures; found 4 of 7") as caught:
        describe(tmp_path)
    assert "--layout '{kind: csv, crop: [xmin, ymin, xmax, ymax]}'    3 of 7 pictures, classes pit" in str(caught.value)


# What is advised


def boxes(side: float, label: str = "pit", kind: str = "object") -> list[LabelledBox]:
    return [LabelledBox(label, (0, 0, side, side), kind)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "objects", "img_size"),
    [
        ((640, 480), boxes(40) + boxes(100, "stain"), [240, 320]),
        ((640, 480), boxes(40, kind="crowd") + boxes(100, "stain"), [192, 256]),
        ((640, 480), [], [192, 256]),
        ((640, 640), boxes(32), 400),
        ((4000, 3000), boxes(30), [448, 592]),
        ((100, 100), boxes(4), 96),
    ],
    ids=["blood", "what is ignored", "nothing", "circuit boards", "at most", "not larger than the pictures"],
)
def test_the_smallest_class_decides_on_the_canvas(size: Any, objects: Any, img_size: Any) -> None:
    advice = DetectionTask().advise(364, [size] * 9, [objects] * 9)
    assert advice["img_size"] == img_size
    assert advice["training"] == {"epochs": 27, "warmup_epochs": 1, "batch_size": 4}
    assert set(advice) == {"img_size", "training"}


def test_pictures_of_many_shapes_get_a_square() -> None:
    sizes = [(640, 240), (240, 640), (480, 480)]
    assert DetectionTask().advise(9, sizes, [boxes(60)] * 3)["img_size"] == 224
    assert DetectionTask().advise(9, [], []) == {"training": {"epochs": 100, "warmup_epochs": 1, "batch_size": 4}}


# What a person reads


def test_an_import_says_objects_and_pictures_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labelme(tmp_path, rectangle("pit", FIRST), rectangle("pit", SECOND), rectangle("stain", OTHER))
    domain = describe(tmp_path)
    known = summarise(domain, read_tree(domain, tmp_path).rows)
    assert known.objects is not None
    assert console._count_objects(known.objects) == "pit 2, stain 1; 1 of 2 pictures without any"
    marked = known.objects.model_copy(update={"difficult": 3, "crowd": 1})
    assert "; ignored: 3 difficult and 1 crowd; 1 of" in console._count_objects(marked)


def test_without_a_task_boxes_are_crops_as_before(tmp_path: Path) -> None:
    write_coco(tmp_path)
    domain = describe_folder(tmp_path, "tiles", None, None, WHERE)
    assert domain.task == "classification"
    assert summarise(domain, read_tree(domain, tmp_path).rows).cut
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(TesseraError):
        describe(tmp_path)


# Growing sets and versions


def test_a_second_import_adds_and_refuses_other_boxes_of_a_known_picture(tmp_path: Path) -> None:
    workspace, first, second = Workspace(tmp_path / "w"), tmp_path / "first", tmp_path / "second"
    FORMATS["csv"](first)
    assert import_folder(workspace, first, "tiles", task="detection").domain.classes == ("pit", "stain")
    table(second, csv_line("pit", (1.5, 1, 9, 9), "p3"), csv_line("stain", (2, 2, 30, 30), "p3"))
    shutil.rmtree(second / "images")
    save_picture(second / "images/p3.png", 9)
    assert import_folder(workspace, second, "tiles", task="detection").added == 1
    assert read_tree(load_domain(workspace.domain_file("tiles")), workspace.raw("tiles")).rows.height == 3
    save_picture(second / "images/p0.png", 0)
    write_text(second / "labels.csv", f"image,label,xmin,ymin,xmax,ymax\n{csv_line('pit', (1.5, 1, 9, 9.5))}")
    with pytest.raises(DataError, match=r"for images/p0\.png .* in place, .* in the folder") as caught:
        import_folder(workspace, second, "tiles")
    assert len(str(caught.value)) < 600, "boxes are not listed one by one"
    with pytest.raises(DomainError, match="--task classification"):
        import_folder(workspace, second, "tiles", task="classification")


@pytest.mark.parametrize(
    ("change", "relabelled"),
    [({}, 0), ({"box": [4.0, 4.0, 10.0, 12.5]}, 1), ({"kind": "crowd"}, 1), ({"label": "stain"}, 1)],
    ids=["nothing", "a box", "its kind", "its label"],
)
def test_versions_differ_by_boxes(change: dict[str, Any], relabelled: int, tmp_path: Path) -> None:
    raw, layout = FORMATS["voc"](tmp_path)
    domain = parse_domain(
        {"name": "tiles", "task": "detection", "classes": ["pit", "stain"], "layout": layout.kind}, "tests"
    )
    rows = read_tree(domain, raw).rows
    listing = dict(rows.select("path", "id").iter_rows())
    changed = [
        [one | change if place == 0 else one for place, one in enumerate(each)] for each in rows["objects"].to_list()
    ]
    turned = [list(reversed(each)) for each in changed]  # the order in the file says nothing
    other = rows.with_columns(pl.Series("objects", turned, rows.schema["objects"]))
    found = compare_annotations(list_annotations(rows, listing), list_annotations(other, listing))
    assert found.model_dump() == {"added": 0, "removed": 0, "relabelled": relabelled}
