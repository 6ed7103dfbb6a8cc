"""An export says what the manifest says: importing it gives the same rows, whatever the domain."""

import contextlib
import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from pycocotools import mask as reference
from pycocotools.coco import COCO
from samples import make_domain, save_mask, save_picture, write_coco, write_csv, write_multilabel

from components.data.annotations.layouts import read_rows
from components.data.checks.validation import check_rows
from components.data.manifest import Row, create_rows
from components.data.splits import assign_splits
from components.data.store.exporting import export_manifest
from components.domain.domain import Domain
from components.domain.reading import load_domain, parse_domain, read_yaml
from components.errors import DataError, DomainError
from components.models.features import run_features
from components.records.maps import IGNORE, Regions

NAMES = st.text("aZü-_,;'\"$ #&+\\", min_size=1, max_size=6).map(lambda text: f"x{text}x")  # blanks inside alone
CLASS_NAMES = ("good", "a;b", "ü, |", "x")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Eight pictures of 48 x 40 pixels as bytes."""
    folder = tmp_path_factory.mktemp("pictures")
    return [save_picture(folder / f"{number}.png", number).read_bytes() for number in range(8)]


@st.composite
def rows(draw: st.DrawFn, many: bool) -> list[Row]:
    """A small domain: pictures under odd names, whole or cut up, with and without masks, boxes, groups and sites."""
    paths = draw(st.lists(NAMES, min_size=1, max_size=8, unique_by=str.casefold))
    drawn: list[Row] = []
    for name in paths:
        path = f"{draw(st.sampled_from(['a', 'b c', ' d']))}/{name}.png"
        corners = st.tuples(st.integers(0, 10), st.integers(0, 10), st.integers(30, 48), st.integers(30, 40))
        crops = [] if many else draw(st.lists(corners, max_size=3, unique=True))
        boxes = draw(st.lists(corners, max_size=2))
        columns = {"lot": draw(NAMES), "site": draw(st.sampled_from(["north", 'ö, " south']))}
        mask = draw(st.sampled_from([None, f"masks/{len(drawn)}.png"]))
        for crop in crops or [None]:
            label = draw(st.sampled_from(CLASS_NAMES))
            labels = draw(st.lists(st.sampled_from(CLASS_NAMES), unique=True)) if many else None
            drawn.append(Row(path=path, label=label, labels=labels, crop=crop, boxes=boxes, mask=mask, columns=columns))
    return drawn


def check_and_split(rows: pl.DataFrame, domain: Domain, raw: Path) -> pl.DataFrame:
    """The manifest, as the stages make it where nothing is near to anything and nothing is remembered."""
    fit = check_rows(rows, raw, domain).fit
    named = dict(rows.select("id", "group").drop_nulls("id").iter_rows())
    return assign_splits(fit, [named[row] for row in fit["id"]], [], {}, domain.split).frame


def make_manifest(drawn: list[Row], domain: Domain, raw: Path, pictures: list[bytes]) -> pl.DataFrame:
    """The rows through the real checks; floors are not what is tested here."""
    for number, path in enumerate(dict.fromkeys(row.path for row in drawn)):
        (raw / path).parent.mkdir(parents=True, exist_ok=True)
        (raw / path).write_bytes(pictures[number])
    for mask in {row.mask for row in drawn if row.mask}:
        save_mask(raw / mask)
    return check_and_split(create_rows(drawn, domain, raw), domain, raw)


def read_again(folder: Path) -> pl.DataFrame:
    domain = parse_domain(read_yaml(folder / "domain.yaml"), "the export")
    return check_and_split(read_rows(domain, folder), domain, folder)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
@pytest.mark.parametrize("form", ["coco", "csv"])
@settings(max_examples=10, derandomize=True, phases=[Phase.generate])
@given(data=st.data())
def test_importing_an_export_gives_the_same_manifest(form, task, data, pictures):
    drawn = data.draw(rows(many=task == "multilabel"))
    domain = make_domain(task=task, classes=CLASS_NAMES, layout="csv", group="lot", slices=["site"], split={"seed": 3})
    with tempfile.TemporaryDirectory() as folder:
        raw, target = Path(folder) / "raw", Path(folder) / "out"
        manifest = make_manifest(drawn, domain, raw, pictures)
        facts = export_manifest(manifest, domain, raw, target, form)
        assert facts.rows == manifest.height > 0
        assert read_again(target).equals(manifest)


def draw_map(draw: st.DrawFn, number: int) -> np.ndarray:
    """A class map of 48 x 40 pixels: blots and dust of some of so many classes, and of pixels to ignore."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    values = [*draw(st.lists(st.integers(0, number - 1), max_size=3)), draw(st.sampled_from([0, 1, IGNORE]))]
    classes = np.full((40, 48), draw(st.integers(0, number - 1)), np.uint8)
    for value in values:
        x0, y0, x1, y1 = rng.integers(0, 49), rng.integers(0, 41), rng.integers(0, 49), rng.integers(0, 41)
        classes[min(y0, y1) : max(y0, y1), min(x0, x1) : max(x0, x1)] = value
        classes[rng.random(classes.shape) < draw(st.sampled_from([0, 0.02, 0.4]))] = value
    return classes


@pytest.mark.parametrize("background", ["x", None])
@pytest.mark.parametrize("form", ["coco", "masks"])
@settings(max_examples=8, derandomize=True, phases=[Phase.generate])
@given(data=st.data())
def test_importing_exported_class_maps_gives_the_same_manifest(form, background, data, pictures):
    task = {"kind": "segmentation", "background": background}
    facts = {"classes": CLASS_NAMES, "group": "lot", "slices": ["site"], "split": {"seed": 3}}
    domain = make_domain(task=task, layout={"kind": "csv", "mask": "mask"}, **facts)
    drawn = [
        replace(row, label=None, labels=None, regions=Regions.of(draw_map(data.draw, len(CLASS_NAMES)), CLASS_NAMES))
        for row in data.draw(rows(many=True))
    ]
    drawn = [row for row in drawn if row.regions and row.regions.shown]
    assume(drawn)
    with tempfile.TemporaryDirectory() as folder:
        raw, target = Path(folder) / "raw", Path(folder) / "out"
        manifest = make_manifest(drawn, domain, raw, pictures)
        facts = export_manifest(manifest, domain, raw, target, form)
        assert (facts.format, facts.rows, facts.files) == (form, manifest.height, manifest["path"].n_unique())
        again = read_again(target)
        assert again.drop("mask").equals(manifest.drop("mask"))
        assert again["mask"].null_count() == (0 if form == "masks" else again.height)
        assert export_manifest(manifest, domain, raw, Path(folder) / "default").format == "masks"


def test_class_maps_in_coco_are_what_pycocotools_expects(tmp_path):
    classes = np.zeros((40, 48), np.uint8)
    classes[2:8, 3:9], classes[8:12, 9:20], classes[30:, 40:] = 1, 1, 2
    classes[20:22] = IGNORE
    raw, task = tmp_path / "raw", {"kind": "segmentation", "background": "good"}
    save_picture(raw / "a.png", 1)
    names = ("good", "crack", "dent")
    domain = make_domain(task=task, classes=names, layout={"kind": "csv", "mask": "mask"})
    save_picture(raw / "b.png", 2)
    drawn = {"a.png": classes, "b.png": np.zeros_like(classes)}  # b shows background alone
    rows = create_rows([Row(path=path, regions=Regions.of(each, names)) for path, each in drawn.items()], domain, raw)
    manifest = check_and_split(rows, domain, raw)
    export_manifest(manifest, domain, raw, tmp_path / "out", "coco")
    assert read_again(tmp_path / "out").equals(manifest)
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO(tmp_path / "out/annotations.json")
    shown = found.loadAnns(found.getAnnIds())
    assert [(each["category_id"], each["iscrowd"], each["area"]) for each in shown] == [
        (2, 0, 80),
        (3, 0, 80),
        (2, 1, 96),
    ]
    painted = np.zeros_like(classes)
    for each in shown:
        mask = found.annToMask(each) > 0
        assert reference.toBbox(each["segmentation"]).tolist() == each["bbox"]
        painted[mask] = IGNORE if each["iscrowd"] else each["category_id"] - 1
    assert painted.tolist() == classes.tolist()
    with pytest.raises(DataError, match="one of masks, coco; found csv, which does not hold class maps"):
        export_manifest(manifest, domain, raw, tmp_path / "no", "csv")


def test_coco_is_what_other_readers_expect(tmp_path):
    domain = make_domain(layout="coco", slices=["site"], validation={"min_side": 8})
    raw = write_coco(tmp_path / "raw", pictures=3)
    manifest = check_and_split(read_rows(domain, raw), domain, raw)
    export_manifest(manifest, domain, raw, tmp_path / "out", "coco")
    content = json.loads((tmp_path / "out/annotations.json").read_text())
    assert [entry["name"] for entry in content["categories"]] == list(domain.classes)
    assert {entry["file_name"] for entry in content["images"]} == {f"images/p{k}.jpg" for k in range(3)}
    assert all((tmp_path / "out" / entry["file_name"]).is_file() for entry in content["images"])
    first = content["annotations"][0]
    assert (first["bbox"], first["area"], first["iscrowd"]) == ([0, 10, 30, 30], 900, 0)


def test_an_export_appears_whole_in_a_new_folder(tmp_path):
    domain = make_domain(layout="csv", group="lot", slices=["site"])
    raw = write_csv(tmp_path / "raw")
    manifest = check_and_split(read_rows(domain, raw), domain, raw)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("kept")
    with pytest.raises(DataError, match="a new or empty folder"):
        export_manifest(manifest, domain, raw, tmp_path / "full", "csv")
    with pytest.raises(DataError, match=r"csv, coco; found voc, which does not hold labels"):
        export_manifest(manifest, domain, raw, tmp_path / "out", "voc")
    (raw / manifest["path"][5]).unlink()
    with pytest.raises(OSError, match="No such file"):
        export_manifest(manifest, domain, raw, tmp_path / "out", "csv")
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "full"}
    clash = make_domain(layout="csv", slices=["area"])
    with pytest.raises(DomainError, match="area"):
        export_manifest(manifest, clash, raw, tmp_path / "out", "coco")


def test_a_multilabel_domain_goes_through_the_stages_and_back(tmp_path):
    from components.data.stages import STAGES
    from components.data.store.importing import import_folder
    from components.workspace import Workspace

    workspace = Workspace(tmp_path)
    write_multilabel(tmp_path / "source", pictures=48)
    domain = import_folder(workspace, tmp_path / "source", "tiles", group="lot").domain
    assert (domain.task, domain.classes) == ("multilabel", ("cracked", "good"))
    STAGES["manifest"](workspace, domain)
    run_features(workspace, domain)
    for stage in ("validate", "split"):
        STAGES[stage](workspace, domain)
    manifest = pl.read_parquet(workspace.derived("tiles") / "manifest.parquet")
    record = json.loads((workspace.derived("tiles") / "validation.json").read_text())
    assert record["classes"]["good"] == {"images": 24, "groups": 12}
    assert set(manifest["split"]) == {"train", "val", "test"}
    export_manifest(manifest, domain, workspace.raw("tiles"), tmp_path / "out", "coco")
    again = import_folder(workspace, tmp_path / "out", "again").domain
    assert load_domain(workspace.domain_file("again")) == again
    assert again.name == "again"
    rows = read_rows(again, workspace.raw("again"))
    assert rows.select("id", "path", "labels", "group").equals(manifest.select("id", "path", "labels", "group"))
