"""An export of boxes says what the manifest says, as far as its format can; what it cannot is counted."""

import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from samples import make_domain, save_picture
from test_exporting import NAMES, make_manifest, read_again

from components.data.annotations.layouts import read_tree
from components.data.manifest import Row
from components.data.store.exporting import export_manifest
from components.domain.domain import Domain
from components.domain.reading import parse_domain, read_yaml
from components.errors import DataError
from components.records.boxes import KINDS, LabelledBox, read_objects

CLASSES = ("good", "a;b", "ü, |", "x")
PICTURES = 8


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Eight pictures of 48 x 40 pixels as bytes."""
    folder = tmp_path_factory.mktemp("pictures")
    return [save_picture(folder / f"{number}.png", number).read_bytes() for number in range(PICTURES)]


def create_domain(**changes: object) -> Domain:
    facts = {"group": "lot", "slices": ["site"], "split": {"seed": 3}, **changes}
    return make_domain(task="detection", classes=CLASSES, layout={"kind": "csv", "boxes": "boxes"}, **facts)


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    """Pictures under odd names with any number of boxes: whole numbers and others, of every class and kind."""
    drawn = []
    for name in draw(st.lists(NAMES, min_size=1, max_size=PICTURES, unique_by=str.casefold)):
        path = f"{draw(st.sampled_from(['a', 'b c', ' d', 'images/e']))}/{name}.png"
        side = st.one_of(st.integers(0, 30).map(float), st.floats(0, 30))
        corners = st.tuples(side, side, st.floats(30.001, 48), st.floats(30.001, 40))
        kinds = st.sampled_from(KINDS)
        objects = draw(
            st.lists(st.builds(LabelledBox, st.sampled_from(CLASSES), corners, kinds), max_size=4, unique=True)
        )
        once = {(one.label, one.box): one for one in objects}
        columns = {"lot": draw(NAMES), "site": draw(st.sampled_from(["north", 'ö, " south']))}
        drawn.append(Row(path=path, objects=list(once.values()), columns=columns))
    return drawn


@settings(max_examples=25, derandomize=True, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_importing_exported_boxes_gives_the_same_manifest(data, pictures):
    domain = create_domain()
    with tempfile.TemporaryDirectory() as folder:
        raw, target = Path(folder) / "raw", Path(folder) / "out"
        manifest = make_manifest(data.draw(rows()), domain, raw, pictures)
        facts = export_manifest(manifest, domain, raw, target)
        assert (facts.format, facts.rows, facts.files, facts.notes) == ("coco", manifest.height, manifest.height, {})
        again = read_again(target)
        assert again.drop("objects").equals(manifest.drop("objects"))
        compare(again, manifest)


def write_set(raw: Path, folder: str = "images/") -> list[Row]:
    """Six pictures: with one box of each kind, with two boxes, and without any."""
    box = (3.25, 1 / 3, 30.123456789, 39.5)
    kinds = [LabelledBox("good", (place / 7, *box[1:]), kind) for place, kind in enumerate(KINDS)]
    lists = [
        [LabelledBox("x", box), *kinds],
        [LabelledBox("a;b", (0, 0, 48, 40)), LabelledBox("ü, |", (1e-7, 2, 3, 4))],
        [],
    ]
    drawn = []
    for number in range(6):
        path = f"{folder}{number % 2}/{number}.png"
        save_picture(raw / path, number)
        columns = {"lot": f"lot{number % 4}", "site": "north"}
        drawn.append(Row(path=path, objects=lists[number % 3], columns=columns))
    return drawn


def compare(one: pl.DataFrame, other: pl.DataFrame) -> None:
    """Equal labels and kinds, and boxes equal but for rounding of the last digits."""
    assert one["path"].to_list() == other["path"].to_list()
    for mine, yours in zip(one["objects"], other["objects"], strict=True):
        assert [(each["label"], each["kind"]) for each in mine] == [(each["label"], each["kind"]) for each in yours]
        boxes = [[each["box"] for each in objects] for objects in (mine, yours)]
        assert np.array(boxes[0]) == pytest.approx(np.array(boxes[1]), abs=1e-9)


@pytest.mark.parametrize("folder", ["images/", "JPEGImages/", "some/pictures/"])
@pytest.mark.parametrize("form", ["voc", "yolo", "csv"])
def test_other_formats_give_the_same_boxes_and_splits_and_count_what_they_lose(form, folder, tmp_path, pictures):
    domain, raw = create_domain(), tmp_path / "raw"
    manifest = make_manifest(write_set(raw, folder=folder), domain, raw, pictures[:6])
    splits = pl.Series("split", ["train", "test", "val", "train", "train", "test"])
    manifest = manifest.with_columns(splits)
    facts = export_manifest(manifest, domain, raw, tmp_path / "out", form)
    known = parse_domain(read_yaml(tmp_path / "out/domain.yaml"), "the export")
    understood = read_tree(known, tmp_path / "out")
    lost = {"voc": ("crowd",), "yolo": ("crowd", "difficult"), "csv": ("crowd", "difficult")}[form]
    kept = [[one for one in objects if one["kind"] not in lost] for objects in manifest["objects"].to_list()]
    compare(understood.rows.sort("path"), manifest.with_columns(pl.Series("objects", kept, manifest["objects"].dtype)))
    assert understood.account.given == {"train": 3, "val": 1, "test": 2}
    counts = {f"{kind} objects, which the format cannot mark, left out": 2 for kind in lost}
    if form != "csv":
        counts["column 'site', which the format does not have"] = 6
        counts["groups, which the format does not have"] = 4
        assert known.split.given
        assert understood.rows["given"].to_list() == splits.to_list()
    assert facts.notes == counts
    assert "".join(understood.account.notes).count("orphan") == 0


def test_names_that_a_format_confuses_are_kept_apart_or_refused(tmp_path, pictures):
    domain, raw = create_domain(), tmp_path / "raw"
    drawn = write_set(raw)[:4]
    twins = [
        Row(path=name, objects=row.objects, columns=row.columns)
        for name, row in zip(("a/p.png", "a/p.jpg", "b/p.png", "b/q.png"), drawn, strict=True)
    ]
    manifest = make_manifest(twins, domain, raw, pictures)
    facts = export_manifest(manifest, domain, raw, tmp_path / "voc", "voc")
    assert any("stems" in what for what in facts.notes)
    assert sorted(path.name for path in (tmp_path / "voc/Annotations/a").iterdir()) == ["p.jpg.xml", "p.png.xml"]
    facts = read_yaml(tmp_path / "voc/domain.yaml") | {"split": {}}
    rows = read_tree(parse_domain(facts, "the export"), tmp_path / "voc").rows
    assert rows["problem"].null_count() == rows.height == 4
    assert [len(objects) for objects in rows["objects"]] == [2, 3, 0, 3]
    with pytest.raises(
        DataError, match=r"suffix; found a/p\.(jpg|png), a/p\.(jpg|png)\. Rename one, or export as COCO"
    ):
        export_manifest(manifest, domain, raw, tmp_path / "yolo", "yolo")
    assert not (tmp_path / "yolo").exists()


def test_coco_is_what_pycocotools_expects(tmp_path, pictures):
    domain, raw = create_domain(), tmp_path / "raw"
    manifest = make_manifest(write_set(raw), domain, raw, pictures[:6])
    export_manifest(manifest, domain, raw, tmp_path / "out")
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO(tmp_path / "out/annotations.json")
    assert len(found.imgs) == 6
    first = next(row for row in manifest.iter_rows(named=True) if row["path"].endswith("0.png"))
    (image,) = [each for each in found.imgs.values() if each["file_name"] == first["path"]]
    shown = found.loadAnns(found.getAnnIds(imgIds=image["id"]))
    assert [(each["category_id"], each["iscrowd"], each.get("ignore", 0)) for each in shown] == [
        (4, 0, 0),
        (1, 0, 0),
        (1, 0, 1),
        (1, 1, 0),
    ]
    x, y, width, height = shown[0]["bbox"]
    assert (x, y, x + width, y + height) == pytest.approx(read_objects(first["objects"])[0].box)
    assert shown[0]["area"] == width * height
    content = json.loads((tmp_path / "out/annotations.json").read_text())
    assert {each["site"] for each in content["images"]} == {"north"}


@pytest.mark.parametrize(("task", "form"), [("classification", "voc"), ("multilabel", "yolo"), ("detection", "masks")])
def test_a_format_for_other_annotations_is_refused(task, form, tmp_path):
    domain = create_domain() if task == "detection" else make_domain(task=task, layout="csv")
    with pytest.raises(DataError, match=f"found {form}, which does not hold"):
        export_manifest(pl.DataFrame({"path": []}), domain, tmp_path, tmp_path / "out", form)
