"""What an import understands: a table of trees, and for each what is read, counted and left out."""

import json
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    make_domain,
    save_coco,
    save_ids,
    save_mask,
    save_picture,
    write_annotation,
    write_coco,
    write_csv,
    write_folders,
    write_instances,
    write_masks,
    write_multilabel,
    write_parquet,
    write_voc,
)

from components.data.accounts import explain_given, warn_of_ignored
from components.data.annotations.foreign import HINTS, PICTURES
from components.data.annotations.layouts import read_tree
from components.data.stages import STAGES
from components.data.store.describing import describe_folder, write_domain
from components.data.store.importing import import_folder
from components.domain.layouts import LAYOUTS
from components.domain.reading import load_domain, parse_domain, parse_layout, render_layout
from components.errors import DataError, DomainError
from components.models.features import run_features
from components.workspace import Workspace


class Seeds:
    """A new picture each time."""

    count = 0


def put(raw, *names, **size):
    """Pictures under these names; a name that ends in `*3` stands for three."""
    for name in names:
        stem, _, many = name.partition("*")
        for number in range(int(many or 1)):
            Seeds.count += 1
            path = f"{stem}{number:02d}.png" if many else stem
            save_picture(raw / path, Seeds.count, **size)


def put_masks(raw, *names):
    for name in names:
        stem, _, many = name.partition("*")
        for number in range(int(many or 1)):
            save_mask(raw / (f"{stem}{number:02d}.png" if many else stem))


def put_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def put_coco(path, names, label="good"):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    boxes = [
        {"id": 2 * n + k, "image_id": n, "category_id": k, "bbox": [1, 1, 20, 20]}
        for n in range(len(names))
        for k in (0, 1)
    ]
    save_coco(path, images, boxes, [{"id": 0, "name": label}, {"id": 1, "name": "cracked"}])


# The table of trees


def split_folders(raw):
    for split, count in (("Train", 6), ("valid", 2), ("TEST", 4)):
        put(raw, f"{split}/NORMAL/{split}n*{count}", f"{split}/PNEUMONIA/{split}p*{count}")


def split_folders_deeper(raw):
    for split in ("training_set", "test_set"):
        put(raw, f"data/{split}/cats/{split}*3", f"data/{split}/dogs/{split}*3")


def split_folders_twice(raw):
    for split in ("train", "test"):
        put(raw, f"seg_{split}/seg_{split}/sea/{split}*3", f"seg_{split}/seg_{split}/street/{split}*3")


def split_folders_joined_words(raw):
    for split in ("Train", "Test"):
        put(raw, f"{split}Images/sea/{split}*3", f"{split}Images/street/{split}*3")


def split_patients(raw):
    for split, patients in (("train", ("P00", "P01")), ("test", ("P02",))):
        for patient in patients:
            put(raw, f"{split}/{patient}/good/{patient}g*2", f"{split}/{patient}/bad/{patient}b*2")


def class_then_split(raw):
    for label in ("good", "bad"):
        put(raw, f"{label}/train/{label}*3", f"{label}/test/{label}t*2")


def mvtec(raw):
    put(raw, "train/good/*6", "test/good/*2", "test/crack/*3", "test/hole/*3")
    put_masks(raw, *(f"ground_truth/{label}/{n:02d}_mask.png" for label in ("crack", "hole") for n in range(3)))


def mvtec_plain_names(raw):
    put(raw, "train/good/*6", "test/good/*2", "test/crack/*3")
    put_masks(raw, "ground_truth/crack/*3")


def mvtec_objects(raw):
    for name in ("bottle", "cable"):
        put(raw, f"{name}/train/good/*4", f"{name}/test/good/*2", f"{name}/test/crack/*2")
        put_masks(raw, *(f"{name}/ground_truth/crack/{n:02d}_mask.png" for n in range(2)))


def visa(raw):
    put(raw, "Data/Images/Normal/*5", "Data/Images/Anomaly/*3")
    put_masks(raw, "Data/Masks/Anomaly/*3")
    (raw / "split_csv").mkdir()
    (raw / "split_csv/1cls.csv").write_text("object,split,label,image,mask\ncandle,train,normal,elsewhere/000.JPG,\n")


def patients(raw):
    for patient in range(6):
        put(raw, f"P{patient:02d}/good/{patient}*2", f"P{patient:02d}/bad/{patient}*2")


def numbered_patients(raw):
    for patient in (10253, 10254, 10255):
        put(raw, f"{patient}/0/{patient}*2", f"{patient}/1/{patient}*2")


def lots_and_numbered_classes(raw):
    for lot in range(3):
        put(raw, f"lot{lot}/type1/a*2", f"lot{lot}/type2/b*2")


def classes_above_kinds(raw):
    put(
        raw,
        "benign/SOB/adenosis/a*3",
        "benign/SOB/tubular/b*3",
        "malignant/SOB/ductal/c*3",
        "malignant/SOB/lobular/d*3",
    )


def equal_names_in_two_classes(raw):
    put(raw, "mask/*3", "no_mask/*3")


def visa_objects(raw):
    for name in ("candle", "pcb"):
        put(raw, f"{name}/Data/Images/Normal/*3", f"{name}/Data/Images/Anomaly/*2")
        put_masks(raw, f"{name}/Data/Masks/Anomaly/*2")


def lots_below_classes(raw):
    for lot in range(3):
        put(raw, f"good/lot{lot}/g*2", f"cracked/lot{lot}/c*2")


def images_and_masks(raw, images="images", masks="masks"):
    put(raw, f"{images}/p*6")
    for number in range(6):
        save_ids(raw / f"{masks}/p{number:02d}.png", [1] if number % 2 else [])


def unnamed_images_and_masks(raw):
    images_and_masks(raw, "one", "two")


def jpeg_images_and_segmentation(raw):
    images_and_masks(raw, "JPEGImages", "SegmentationClass")


def images_and_png_labels(raw):
    images_and_masks(raw, "imgs", "labels")


def split_masks_inside(raw):
    for split in ("train", "val"):
        images_and_masks(raw, f"{split}/images", f"{split}/masks")


def split_masks_outside(raw):
    for split in ("train", "val"):
        images_and_masks(raw, f"images/{split}", f"masks/{split}")


def masks_beside(raw):
    put(raw, "p*4")
    for number in range(4):
        save_ids(raw / f"p{number:02d}_mask.png", [1] if number % 2 else [])


def masks_beside_in_classes(raw):
    for label in ("benign", "malignant"):
        put(raw, f"{label}/{label} *3")
        put_masks(raw, *(f"{label}/{label} {n:02d}_mask.png" for n in range(3)))


def masks_numbered_beside(raw):
    masks_beside_in_classes(raw)
    save_mask(raw / "benign/benign 00_mask_1.png")


def masks_of_other_folders(raw):
    for split in ("train", "val"):
        images_and_masks(raw, f"img_dir/{split}", f"ann_dir/{split}")


def masks_named_as_street_scenes(raw):
    put(raw, "leftImg8bit/p*6")
    for number in range(6):
        save_ids(raw / f"gtFine/p{number:02d}_gtFine.png", [1] if number % 2 else [])


def several_classes_per_mask(raw):
    put(raw, "images/p*4")
    for number in range(4):
        save_ids(raw / f"masks/p{number:02d}.png", [1, 2])


def coco_split(raw):
    for split in ("train2017", "val2017"):
        put(raw, f"images/{split}/{split}*3")
        put_coco(raw / f"annotations/instances_{split}.json", [f"{split}{n:02d}.png" for n in range(3)])
        put_json(raw / f"annotations/captions_{split}.json", {"images": [], "annotations": []})


def coco_roboflow(raw):
    for split in ("train", "valid", "test"):
        put(raw, f"{split}/{split}*3")
        put_coco(raw / f"{split}/_annotations.coco.json", [f"{split}{n:02d}.png" for n in range(3)])


def coco_one_folder(raw):
    for split in ("train", "val"):
        put(raw, f"images/{split}*3")
        put_coco(raw / f"annotations/{split}.json", [f"{split}{n:02d}.png" for n in range(3)])


def voc_lists(raw):
    write_voc(raw, pictures=6)
    (raw / "ImageSets/Main").mkdir(parents=True)
    (raw / "ImageSets/Main/trainval.txt").write_text("p0\np1\np2\np3\n")
    (raw / "ImageSets/Main/val.txt").write_text("p3 1\n")
    (raw / "ImageSets/Main/test.txt").write_text("p4\np5\n")


def voc_split(raw):
    for split in ("train", "test"):
        for number in range(3):
            name = f"{split}{number}"
            put(raw, f"{split}/{name}.png")
            objects = [("good", (1, 1, 20, 20)), ("cracked", (20, 1, 40, 20))]
            write_annotation(raw / f"{split}/{name}.xml", f"{name}.png", objects)


def stray_csv(raw):
    write_folders(raw)
    (raw / "notes.csv").write_text("date,author,remark\n2024,me,nothing\n")


def foreign_beside(raw):
    write_folders(raw)
    for suffix in (".dcm", ".heic", ".svs", ".mp4"):
        (raw / f"scans{suffix}").write_bytes(b"\0" * 200)
    (raw / "elsewhere").mkdir()
    (raw / "elsewhere/IM0001").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 20)


class Tree(NamedTuple):
    """What is written, and what is understood of it."""

    write: object
    layout: str
    classes: dict[str, int]
    found: int
    used: int
    given: Mapping[str, int] = MappingProxyType({})
    ignored: int = 0
    group: str | None = None
    slices: tuple[str, ...] = ()
    task: str = "classification"


TREES = [
    Tree(split_folders, "{kind: folders, images: <split>}", {"NORMAL": 12, "PNEUMONIA": 12}, 24, 24,
         {"train": 12, "val": 4, "test": 8}),
    Tree(split_folders_deeper, "{kind: folders, images: data/<split>}", {"cats": 6, "dogs": 6}, 12, 12,
         {"train": 6, "test": 6}),
    Tree(split_folders_twice, "{kind: folders, images: <split>/<folder>}", {"sea": 6, "street": 6}, 12, 12,
         {"train": 6, "test": 6}),
    Tree(split_folders_joined_words, "{kind: folders, images: <split>}", {"sea": 6, "street": 6}, 12, 12,
         {"train": 6, "test": 6}),
    Tree(split_patients, "{kind: folders, images: <split>/<group>}", {"bad": 6, "good": 6}, 12, 12,
         {"train": 8, "test": 4}, group="group"),
    Tree(class_then_split, "{kind: folders, images: <class>/<split>}", {"bad": 5, "good": 5}, 10, 10,
         {"train": 6, "test": 4}),
    Tree(mvtec, "{kind: folders, images: <split>, masks: ground_truth}", {"crack": 3, "good": 8, "hole": 3}, 20, 20,
         {"train": 6, "test": 8}),
    Tree(mvtec_plain_names, "{kind: folders, images: <split>, masks: ground_truth}", {"crack": 3, "good": 8}, 14, 14,
         {"train": 6, "test": 5}),
    Tree(mvtec_objects, "{kind: folders, images: <folder>/<split>, masks: <folder>/ground_truth}",
         {"crack": 4, "good": 12}, 20, 20, {"train": 8, "test": 8}, slices=("folder",)),
    Tree(visa, "{kind: folders, images: Data/Images, masks: Data/Masks}", {"Anomaly": 3, "Normal": 5}, 11, 11),
    Tree(patients, "{kind: folders, images: <group>}", {"bad": 12, "good": 12}, 24, 24, group="group"),
    Tree(numbered_patients, "{kind: folders, images: <group>}", {"0": 6, "1": 6}, 12, 12, group="group"),
    Tree(lots_and_numbered_classes, "{kind: folders, images: <group>}", {"type1": 6, "type2": 6}, 12, 12,
         group="group"),
    Tree(classes_above_kinds, "folders", {"benign": 6, "malignant": 6}, 12, 12),
    Tree(equal_names_in_two_classes, "folders", {"mask": 3, "no_mask": 3}, 6, 6),
    Tree(visa_objects, "{kind: folders, images: <folder>/Data/Images, masks: <folder>/Data/Masks}",
         {"Anomaly": 4, "Normal": 6}, 14, 14, slices=("folder",)),
    Tree(lots_below_classes, "{kind: folders, images: <class>/<group>}", {"cracked": 6, "good": 6}, 12, 12,
         group="group"),
    Tree(images_and_masks, "masks", {"background": 3, "class_1": 3}, 12, 12),
    Tree(unnamed_images_and_masks, "{kind: masks, images: one, masks: two}", {"background": 3, "class_1": 3}, 12, 12),
    Tree(jpeg_images_and_segmentation, "{kind: masks, images: JPEGImages, masks: SegmentationClass}",
         {"background": 3, "class_1": 3}, 12, 12),
    Tree(images_and_png_labels, "{kind: masks, images: imgs, masks: labels}", {"background": 3, "class_1": 3}, 12, 12),
    Tree(split_masks_inside, "{kind: masks, images: <split>/images, masks: <split>/masks}",
         {"background": 6, "class_1": 6}, 24, 24, {"train": 6, "val": 6}),
    Tree(split_masks_outside, "{kind: masks, images: images/<split>, masks: masks/<split>}",
         {"background": 6, "class_1": 6}, 24, 24, {"train": 6, "val": 6}),
    Tree(masks_beside, "{kind: masks, images: ., masks: .}", {"background": 2, "class_1": 2}, 8, 8),
    Tree(masks_beside_in_classes, "{kind: folders, masks: .}", {"benign": 3, "malignant": 3}, 12, 12),
    Tree(masks_numbered_beside, "{kind: folders, masks: .}", {"benign": 3, "malignant": 3}, 13, 12, ignored=1),
    Tree(masks_of_other_folders, "{kind: masks, images: img_dir/<split>, masks: ann_dir/<split>}",
         {"background": 6, "class_1": 6}, 24, 24, {"train": 6, "val": 6}),
    Tree(masks_named_as_street_scenes, "{kind: masks, images: leftImg8bit, masks: gtFine}",
         {"background": 3, "class_1": 3}, 12, 12),
    Tree(several_classes_per_mask, "masks", {"class_1": 4, "class_2": 4}, 8, 8, task="multilabel"),
    Tree(coco_split, "{kind: coco, images: images/<split>, annotations: annotations/instances_<split>.json}",
         {"cracked": 6, "good": 6}, 6, 6, {"train": 3, "val": 3}),
    Tree(coco_roboflow, "{kind: coco, images: <split>, annotations: <split>/_annotations.coco.json}",
         {"cracked": 9, "good": 9}, 9, 9, {"train": 3, "val": 3, "test": 3}),
    Tree(coco_one_folder, "{kind: coco, annotations: annotations/<split>.json}", {"cracked": 6, "good": 6}, 6, 6,
         {"train": 3, "val": 3}),
    Tree(voc_lists, "voc", {"cracked": 6, "good": 6}, 6, 6, {"train": 3, "val": 1, "test": 2}),
    Tree(voc_split, "{kind: voc, images: <split>, annotations: <split>}", {"cracked": 6, "good": 6}, 6, 6,
         {"train": 3, "test": 3}),
    Tree(stray_csv, "folders", {"cracked": 6, "good": 6}, 12, 12),
    Tree(foreign_beside, "folders", {"cracked": 6, "good": 6}, 17, 12, ignored=5),
]  # fmt: skip


def understand(raw, layout=None):
    domain = describe_folder(raw, "tiles", layout, None, raw / "domain.yaml")
    return domain, read_tree(domain, raw)


def count_labels(rows):
    column = "labels" if "labels" in rows.columns else "label"
    found = rows.explode(column) if column == "labels" else rows
    return dict(found[column].drop_nulls().value_counts().sort(column).iter_rows())


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.write.__name__)
def test_a_tree_is_read_whole(tmp_path, tree):
    tree.write(tmp_path)
    domain, understood = understand(tmp_path)
    assert render_layout(domain.layout) == tree.layout
    assert (domain.task, domain.group, domain.slices) == (tree.task, tree.group, tree.slices)
    assert count_labels(understood.rows) == tree.classes
    pictures = understood.pictures
    assert (pictures.found, pictures.used, len(pictures.ignored)) == (tree.found, tree.used, tree.ignored)
    assert pictures.quarantined == 0
    assert understood.account.given == tree.given
    assert load_again(domain, tmp_path) == domain


def load_again(domain, folder):
    path = folder / "written/tiles/domain.yaml"
    write_domain(domain, path)
    return load_domain(path)


# Layouts are written so that they load again, and import and check agree

LEGAL = {
    "images": ["images", "<split>", "a b/<lot>", "."],
    "masks": [None, "masks", "<split>"],
    "annotations": ["annotations/<split>.json", "x.json", "."],
    "instances": ["ids"],
    "label": ["grade", "0", "yes: no", "#x"],
    "background": ["none", "~"],
    "ids": [{"crack": 1, "no": 2}, {"crack": "#ff0080"}],
    "ignore": [[255], ["#000000"]],
    "separator": [";", "|"],
    "one_hot": [True],
    "delimiter": [";"],
    "crop": ["part"],
}


@st.composite
def layouts(draw):
    """A layout of any kind with any of its options changed; only legal ones."""
    model = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
    names = [name for name in model.model_fields if name != "kind"]
    chosen = draw(st.lists(st.sampled_from(names), unique=True))
    options = {name: draw(st.sampled_from(LEGAL.get(name, ["other", "a: b"]))) for name in chosen}
    try:
        return parse_layout(yaml.safe_dump({"kind": model().kind, **options}))
    except DomainError:
        return model()


@settings(max_examples=200)
@given(layout=layouts(), group=st.sampled_from([None, "lot", "a: b"]))
def test_what_is_written_loads_again_and_the_command_line_takes_it(layout, group):
    many = bool(getattr(layout, "separator", None))
    facts = {"name": "tiles", "task": "multilabel" if many else "classification", "classes": ["no", "1", "yes"]}
    try:
        domain = parse_domain(facts | {"layout": layout, "group": group, "slices": ["site"]}, "tests")
    except DomainError:
        return
    with tempfile.TemporaryDirectory() as folder:
        assert load_again(domain, Path(folder)) == domain
    assert parse_layout(render_layout(layout)) == layout


WRITERS = (write_folders, write_csv, write_parquet, write_voc, write_coco, write_masks)
WRITERS += (write_instances, write_multilabel)
SHOWN = (".png", ".jpg", *PICTURES)


@pytest.mark.parametrize(
    "write", [*WRITERS, write_multilabel, *(tree.write for tree in TREES)], ids=lambda write: write.__name__
)
def test_import_and_the_stages_agree_on_every_picture(tmp_path, write):
    workspace, source = Workspace(tmp_path / "workspace"), tmp_path / "source"
    source.mkdir()
    write(source)
    (source / "stray").mkdir()
    put(source, "stray/elsewhere.png")
    (source / "stray/old.heic").write_bytes(b"x")
    layout = render_layout(understand_first(write, tmp_path / "alone"))
    imported = import_folder(workspace, source, "tiles", layout)
    domain = load_domain(workspace.domain_file("tiles"))
    assert domain == imported.domain
    pictures = imported.understood.pictures
    again = read_tree(domain, workspace.raw("tiles"))
    assert again.pictures == pictures
    found = [
        path
        for path in source.rglob("*")
        if path.suffix.lower() in (".png", ".jpg", *PICTURES) or path.name == "IM0001"
    ]
    assert pictures.found == len(found)
    assert pictures.found == pictures.used + pictures.quarantined + len(pictures.ignored)
    names = {item.path for item in pictures.ignored}
    rows = set(again.rows["path"]) | set(again.rows["mask"].drop_nulls())
    assert not names & rows
    assert {"stray/old.heic"} <= names | rows


def understand_first(write, folder):
    folder.mkdir()
    write(folder)
    return describe_folder(folder, "tiles", None, None, folder / "domain.yaml").layout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{kind: csv, imgae: file}", "Did you mean 'image'"),
        ("{kind: cvs}", "Did you mean 'csv'"),
        ("foldres", "Did you mean 'folders'"),
        ("{image: file}", "a kind (folders, csv"),
        ("[csv]", "a kind (folders, csv"),
        ("{kind: csv", "legal YAML"),
        ("{kind: &a csv, image: *a}", "an alias"),
        ("{kind: voc, images: '<class>'}", "only `images` of the layout folders"),
        ("{kind: masks, masks: <lot>/masks}", "does not occur in `images`"),
        ("{kind: folders, images: <a>/<a>}", "twice"),
    ],
)
def test_a_layout_on_the_command_line_is_checked_strictly(text, words):
    with pytest.raises(DomainError) as caught:
        parse_layout(text)
    assert words in str(caught.value), str(caught.value)


# Refusals


def label_studio(raw):
    put(raw, "p*3")
    put_json(raw / "project.json", [{"id": 1, "data": {"image": "p00.png"}, "annotations": []}])


def createml(raw):
    put(raw, "p*3")
    box = {"label": "a", "coordinates": {"x": 9, "y": 9, "width": 4, "height": 4}}
    put_json(raw / "boxes.json", [{"image": "p00.png", "annotations": [box]}])


def via(raw):
    put(raw, "p*3")
    put_json(raw / "via.json", {"p00.png123": {"filename": "p00.png", "size": 123, "regions": []}})


def via_csv(raw):
    put(raw, "p*3")
    (raw / "via.csv").write_text("filename,file_size,region_count,region_shape_attributes\np00.png,1,0,{}\n")


def supervisely(raw):
    put(raw, "ds/img/p*3")
    put_json(raw / "ds/ann/p00.png.json", {"size": {"height": 40, "width": 48}, "objects": [], "tags": []})


def darwin(raw):
    put(raw, "images/p*3")
    paths = [[{"x": 1, "y": 1}, {"x": 9, "y": 1}, {"x": 9, "y": 9}]]
    shape = {"name": "crack", "polygon": {"paths": paths}}
    put_json(raw / "annotations/p00.json", {"version": "2.0", "item": {"name": "p00.png"}, "annotations": [shape]})


def hasty(raw):
    put(raw, "images/p*3")
    put_json(raw / "export.json", {"label_classes": [{"class_name": "crack"}], "images": [{"image_name": "p00.png"}]})


def outlines(raw):
    put(raw, "p*3")
    put_json(raw / "p00.geojson", [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": []}}])


def coco_keypoints(raw):
    put(raw, "images/p*3")
    points = {"id": 1, "image_id": 1, "category_id": 1, "keypoints": [1, 2, 2], "num_keypoints": 1}
    images, categories = [{"id": 1, "file_name": "p00.png"}], [{"id": 1, "name": "x"}]
    put_json(raw / "annotations.json", {"images": images, "categories": categories, "annotations": [points]})


def texts(line):
    def write(raw):
        put(raw, "images/p*3")
        (raw / "labels").mkdir()
        for number in range(3):
            (raw / f"labels/p{number:02d}.txt").write_text(f"{line}\n")

    return write


def point_json(raw):
    put(raw, "p*3")
    put_json(raw / "p00.json", {"points": [[1, 2], [3.5, 4]]})


def pictures_of(name):
    def write(raw):
        for number in range(3):
            (raw / f"scan{number}{name}").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 40)

    return write


REFUSED = [
    ("Label Studio JSON", label_studio),
    ("CreateML JSON", createml),
    ("VGG Image Annotator", via),
    ("VGG Image Annotator", via_csv),
    ("Supervisely JSON", supervisely),
    ("Darwin JSON (V7)", darwin),
    ("Hasty JSON", hasty),
    ("GeoJSON outlines", outlines),
    ("COCO keypoints", coco_keypoints),
    ("point labels", texts("12.5 30")),
    ("point labels", point_json),
    ("oriented boxes (OBB)", texts("0 0.1 0.1 0.2 0.1 0.2 0.3 0.1 0.3")),
    ("DOTA", texts("10 10 20 10 20 30 10 30 plane 0")),
    ("x1 y1 x2 y2 type", texts("10 10 20 30 4")),
    ("a DICOM file (.dcm)", pictures_of(".dcm")),
    ("a DICOM file without a suffix", pictures_of("")),
    ("a whole-slide image (.svs)", pictures_of(".svs")),
    ("not read (.heic)", pictures_of(".heic")),
    ("a video (.mp4)", pictures_of(".mp4")),
    ("a container", pictures_of(".npz")),
    (".zip, an archive", pictures_of(".zip")),
]


@pytest.mark.parametrize(("name", "write"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_not_read_is_refused_by_name_at_import_and_in_check(tmp_path, name, write):
    write(tmp_path)
    with pytest.raises(DataError) as caught:
        understand(tmp_path)
    assert name in str(caught.value), str(caught.value)
    assert any(hint in caught.value.hint for hint in [*HINTS.values(), *(hint for _, hint in PICTURES.values())]) or (
        any(word in caught.value.hint for word in ("csv", "8-bit", "Unpack"))
    )
    for kind in ("folders", "voc", "coco"):
        with pytest.raises(DataError) as caught:
            read_tree(make_domain(layout=kind), tmp_path)
        assert name in str(caught.value), (kind, str(caught.value))


def test_a_guess_that_leaves_out_a_third_names_the_choices(tmp_path):
    big_split(("train", "val"))(tmp_path)
    put(tmp_path, "unlabelled/x*30")
    with pytest.raises(DomainError) as caught:
        understand(tmp_path)
    lines = [line.strip() for line in caught.value.hint.splitlines() if "--layout" in line]
    assert lines
    assert "78 of 78 pictures" in lines[0]
    assert any("images: <split>" in line and "48 of 78 pictures" in line for line in lines)
    chosen = shlex.split(lines[0])[1]
    assert understand(tmp_path, chosen)[1].pictures.used == 78


@pytest.mark.parametrize("name", ["test/unknown", "test/images", "Testing/all", "val/0"])
def test_a_split_whose_one_folder_no_other_has_is_no_class_unasked(tmp_path, name):
    put(tmp_path, "train/cat/c*6", "train/dog/d*6", f"{name}/x*3")
    with pytest.raises(DomainError) as caught:
        understand(tmp_path)
    assert "images: train}' " in caught.value.hint
    assert "12 of 15 pictures, classes cat, dog" in caught.value.hint


@pytest.mark.parametrize(("image", "mask"), [("{}/image.png", "{}/seg.png"), ("{}/a/x{}.png", "{}/b/y{}.png")])
def test_masks_are_never_pictures_of_a_class_unasked(tmp_path, image, mask):
    for number in range(6):
        case = f"case{number}"
        put(tmp_path, image.format(case, number))
        save_ids(tmp_path / mask.format(case, number), [1] if number % 2 else [])
    with pytest.raises(DomainError, match="images with few values, like masks") as caught:
        understand(tmp_path)
    assert mask.format("case0", 0) in str(caught.value)
    assert understand(tmp_path, "{kind: folders}")[1].pictures.used == 12


def test_masks_in_jpeg_are_refused(tmp_path):
    put(tmp_path, "images/p*3")
    (tmp_path / "masks").mkdir()
    for number in range(3):
        save_mask(tmp_path / f"masks/p{number:02d}.jpg")
    with pytest.raises(DataError, match="a JPEG, whose compression"):
        understand(tmp_path, "masks")


def test_names_that_join_split_and_class_are_no_classes(tmp_path):
    put(tmp_path, *(f"{split}{label}/{split}{label}*3" for split in ("train", "test") for label in "AB"))
    with pytest.raises(DomainError, match="layout can be recognised"):
        understand(tmp_path)


def test_one_class_alone_is_refused_with_what_is_wrong(tmp_path):
    put(tmp_path, "images/p*3")
    put_masks(tmp_path, "masks/p*3")
    with pytest.raises(DataError, match="at least two classes; found class_255"):
        understand(tmp_path)


def test_a_layout_that_is_asked_for_does_not_hide_annotations_that_are_not_read(tmp_path):
    supervisely(tmp_path)
    for layout in ("folders", "voc", "masks"):
        with pytest.raises(DataError, match=r"Supervisely JSON \(as in ds/ann/.*Export to COCO"):
            understand(tmp_path, layout)


def test_pictures_in_one_folder_alone_are_refused_with_what_to_add(tmp_path):
    put(tmp_path, "p*5")
    with pytest.raises(DomainError, match=r"found 5 pictures in one folder.*one folder per class, or add a csv"):
        understand(tmp_path)


@pytest.mark.parametrize("missing", [1, 2])
def test_pictures_that_a_reader_finds_no_annotations_for_count_as_left_out(tmp_path, missing):
    put_coco(tmp_path / "train/boxes.json", ["t00.png", "t01.png"])
    put_coco(tmp_path / "val/boxes.json", ["v00.png"])
    put(tmp_path, "train/t*2", "val/v*1", f"test/x*{missing}")
    if missing == 1:
        assert understand(tmp_path)[1].pictures.used == 3
        return
    with pytest.raises(DomainError, match=r"2 of 5 pictures left out by .*no <split>/boxes\.json"):
        understand(tmp_path)


def test_foreign_pictures_count_as_left_out(tmp_path):
    write_folders(tmp_path, images=3)
    (tmp_path / "scans").mkdir()
    for number in range(4):
        (tmp_path / f"scans/{number}.dcm").write_bytes(b"x")
    with pytest.raises(DomainError, match="a DICOM file"):
        understand(tmp_path)
    warned = warn_of_ignored(understand(tmp_path, "folders")[1].pictures)
    assert "4 of 10 pictures are not used" in warned[0]
    assert "DICOM" in warned[0]


# The given split


def run_stages(workspace, domain):
    STAGES["manifest"](workspace, domain)
    run_features(workspace, domain)
    for stage in ("validate", "split"):
        STAGES[stage](workspace, domain)
    return pl.read_parquet(workspace.derived("tiles") / "manifest.parquet")


def import_with(tmp_path, write, split):
    workspace = Workspace(tmp_path / "workspace")
    write(tmp_path / "source")
    file = workspace.domain_file("tiles")
    domain = import_folder(workspace, tmp_path / "source", "tiles").domain
    file.write_text(f"{file.read_text()}split: {split}\nvalidation: {{near_duplicate_bits: 0}}\n")
    return workspace, load_domain(file), domain


def big_split(splits):
    def write(raw):
        for split in splits:
            put(raw, f"{split}/good/{split}g*12", f"{split}/bad/{split}b*12", width=64, height=64)

    return write


def test_a_given_split_is_kept_and_otherwise_said_to_be_dropped(tmp_path):
    workspace, domain, before = import_with(tmp_path, big_split(("train", "valid", "test")), "given")
    manifest = run_stages(workspace, domain)
    folders = {"train": "train", "valid": "val", "test": "test"}
    assert all(folders[path.split("/")[0]] == side for path, side in manifest.select("path", "split").iter_rows())
    account = read_tree(before, workspace.raw("tiles")).account
    assert "is not used" in explain_given(account, before)[0]
    assert "`split: given`" in explain_given(account, before)[0]
    assert "which needs" not in explain_given(account, before)[0]
    assert "which needs pictures for train and for test" in explain_given(replace(account, given={"val": 3}), before)[0]
    assert "is kept" in explain_given(account, domain)[0]


def test_a_missing_val_is_drawn_from_train_and_stays(tmp_path):
    workspace, domain, _ = import_with(tmp_path, big_split(("train", "test")), "given")
    manifest = run_stages(workspace, domain)
    sides = dict(manifest.select("path", "split").iter_rows())
    assert all(side == "test" for path, side in sides.items() if path.startswith("test/"))
    drawn = [path for path, side in sides.items() if side == "val"]
    assert drawn
    assert all(path.startswith("train/") for path in drawn)
    assert run_stages(workspace, domain).equals(manifest)


def test_a_missing_test_is_refused(tmp_path):
    workspace, domain, _ = import_with(tmp_path, big_split(("train", "val")), "given")
    with pytest.raises(DataError, match="pictures for train and for test"):
        STAGES["manifest"](workspace, domain)
