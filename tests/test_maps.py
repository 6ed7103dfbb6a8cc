"""The class of every pixel, from training to the answer and its files, on tiles with coloured patches."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import tiny
from conftest import DOMAIN as PARTS
from conftest import create_workspace, run_tessera
from PIL import Image
from sklearn.metrics import jaccard_score

from components.data.annotations.painting import Shape, paint
from components.domain.domain import Domain
from components.errors import DataError
from components.models.adapter import load_meta
from components.records.jobs import Result, load_predictions
from components.records.maps import Painting, decode_map
from components.records.objects import decode_rle, find_components
from components.serving.map_files import Answered, trace_outlines, write_answers
from components.serving.predictor import Predictor

CLASSES = tiny.CLASSES
DOMAIN = {
    "task": {"kind": "segmentation", "background": "dark", "head_lr": 0.005},
    "layout": "masks",
    "backbone": "embedded",
    "img_size": [32, 48],
    "training": {"epochs": 8, "batch_size": 4, "warmup_epochs": 1},
}


@pytest.fixture(scope="module", params=["squash", "letterbox"])
def domain(request: pytest.FixtureRequest) -> Domain:
    return tiny.create_domain(**DOMAIN, fit=request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, domain: Domain) -> Path:
    return tmp_path_factory.mktemp(domain.fit)


@pytest.fixture(scope="module")
def result(folder: Path, domain: Domain) -> Result:
    return tiny.train(folder, domain, {"kind": "linear"})


@pytest.mark.parametrize("split", ["val", "test"])
def test_metrics_are_those_of_the_answers_at_the_size_of_the_pictures(result: Result, split: str) -> None:
    frame = load_predictions(result.folder, split)
    truth, answers = (
        np.concatenate([decode_map(data).reshape(-1) for data in frame[name]]) for name in ("class_map", "answer_map")
    )
    assert len(truth) == frame.height * 24 * 32
    expected = jaccard_score(truth, answers, average=None, labels=range(3))
    assert result.metrics[f"{split}/mean_iou"] == pytest.approx(expected.mean())
    assert result.metrics[f"{split}/iou/red"] == pytest.approx(expected[2])
    assert result.metrics[f"{split}/mean_iou"] > 0.6  # the patches are plain to see
    assert {"ece", "ece_uncalibrated", "loss"} <= {name.removeprefix(f"{split}/") for name in result.metrics}


def test_the_adapter_answers_as_its_training_did(result: Result, folder: Path, domain: Domain) -> None:
    meta = load_meta(result.folder / "adapter")
    assert (meta.task.kind, meta.fit, meta.backbone.img_size.plain) == ("segmentation", domain.fit, [32, 48])
    frame = load_predictions(result.folder, "test")
    answers = Predictor(result.folder / "adapter").predict([folder / "raw" / path for path in frame["path"]])
    for answer, data in zip(answers, frame["answer_map"], strict=True):
        assert answer.class_map is not None
        assert (answer.class_map == decode_map(data)).mean() > 0.999  # batches of another size round otherwise
        areas = np.bincount(answer.class_map.reshape(-1), minlength=3).tolist()
        assert list(answer.answer["areas"].values()) == areas
        parts = [(found.box, found.area) for k in (1, 2) for found in find_components(answer.class_map, k)]
        told = [(tuple(found["box"]), found["area"]) for found in answer.answer["components"]]
        assert sorted(told) == sorted(parts)


def test_a_picture_of_another_size_is_answered_at_its_own(result: Result, folder: Path, tmp_path: Path) -> None:
    path = folder / "raw" / load_predictions(result.folder, "test")["path"][0]
    with Image.open(path) as picture:
        picture.resize((96, 72), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    small, large = Predictor(result.folder / "adapter").predict([path, tmp_path / "large.png"])
    assert small.class_map is not None
    assert large.class_map is not None
    assert large.class_map.shape == (72, 96)
    assert (large.class_map[1::3, 1::3] == small.class_map).mean() > 0.97


def test_the_served_model_answers_a_mask(result: Result, folder: Path) -> None:
    from components.serving.pyfunc import AdapterModel

    path = folder / "raw" / load_predictions(result.folder, "test")["path"][0]
    model = AdapterModel()
    model.predictor = Predictor(result.folder / "adapter")
    table = model.predict(None, pd.DataFrame({"image": [base64.b64encode(path.read_bytes()).decode()]}))
    assert list(table.columns) == list(model.predictor.meta.task.outputs(CLASSES))
    (expected,) = model.predictor.predict([path])
    with Image.open(io.BytesIO(base64.b64decode(table["mask"][0]))) as mask:
        np.testing.assert_array_equal(np.asarray(mask), expected.class_map)
    assert table["area_red"][0] == expected.answer["areas"]["red"]
    assert table["components_red"][0] == sum(found["label"] == "red" for found in expected.answer["components"])


def test_pixels_are_calibrated_on_validation_alone(result: Result) -> None:
    assert load_meta(result.folder / "adapter").calibration == result.calibration
    assert result.metrics["val/ece"] <= result.metrics["val/ece_uncalibrated"] + 0.02


@pytest.mark.parametrize("tuner", ["pixels", "lora"])
def test_other_candidates_train(folder: Path, domain: Domain, tuner: str) -> None:
    found = tiny.train(folder, domain, {"kind": tuner})
    assert found.metrics["val/mean_iou"] > 0.4
    assert (found.trainable_params == 0) == (tuner == "pixels")
    assert len(found.history) == 8


def test_a_trial_of_a_search_is_the_training_that_it_stops(tmp_path: Path) -> None:
    domain = tiny.create_domain(**DOMAIN | {"training": {"epochs": 3, "batch_size": 4, "warmup_epochs": 1}})
    first, last = tiny.climb(tmp_path, domain, {"kind": "vpt"}, [1, 3])
    whole = tiny.train(tmp_path, domain, {"kind": "vpt"})
    scores = [row["val/mean_iou"] for row in whole.history]
    assert (first.epochs, last.epochs) == (1, 3)
    assert (first.score, last.score) == (scores[0], max(scores))


# Files


def answered(path: Path, classes: Any) -> Answered:
    array = np.array(classes, np.uint8)
    Image.new("RGB", array.shape[::-1], (90, 90, 90)).save(path)
    boxes = {(CLASSES[k], part.box): 0.75 for k in (1, 2) for part in find_components(array, k)}
    return Answered(path, array, boxes)


RING = [[1, 1, 1, 0, 2], [1, 0, 1, 0, 2], [1, 1, 1, 0, 0], [0, 0, 0, 0, 1]]


@pytest.mark.parametrize("polygons", [False, True])
def test_answers_are_written_as_masks_drawings_and_coco(tmp_path: Path, polygons: bool) -> None:
    one = answered(tmp_path / "a.png", RING)
    (written,) = write_answers(tmp_path / "out", [one], CLASSES, "dark", polygons=polygons)
    with Image.open(str(written.mask)) as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), one.classes)
    with Image.open(str(written.overlay)) as overlay:
        assert overlay.size == (5, 4)
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [entry["name"] for entry in content["categories"]] == ["light", "red"]
    again = np.zeros_like(one.classes)
    for entry in content["annotations"]:
        number = entry["category_id"] - 1
        shape = entry["segmentation"]
        assert entry["score"] == 0.75
        if isinstance(shape, dict):
            again[decode_rle(shape)] = number
        else:
            rings = [np.array(ring).reshape(-1, 2) for ring in shape]
            painted = paint([Shape("x", (*rings,))], (5, 4), Painting(background="none"))
            again[decode_map(painted.regions.renumber(["none", "x"])) == 1] = number
    np.testing.assert_array_equal(again, one.classes)
    kinds = {type(entry["segmentation"]) for entry in content["annotations"]}
    assert kinds == ({dict, list} if polygons else {dict})  # the ring has a hole, which polygons cannot have


def test_a_coco_file_alone_and_names_that_would_collide(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    pictures = [answered(tmp_path / name, RING) for name in ("a.png", "a.bmp", "b/a.png")]
    write_answers(tmp_path / "coco.json", pictures, CLASSES, "dark")
    assert len(json.loads((tmp_path / "coco.json").read_text())["images"]) == 3
    written = write_answers(tmp_path / "out", pictures, CLASSES, "dark")
    names = [Path(str(file.mask)).relative_to(tmp_path / "out" / "masks").as_posix() for file in written]
    assert names == ["a.png.png", "a.bmp.png", "b/a.png"]
    write_answers(tmp_path / "out", pictures, CLASSES, "dark")  # again
    with pytest.raises(DataError, match="a new folder, one of earlier answers"):
        write_answers(tmp_path, pictures, CLASSES, "dark")


def test_an_outline_goes_between_the_centres_of_pixels() -> None:
    (line,) = trace_outlines(np.ones((2, 3), np.bool_), (10, 20)) or []
    points = np.array(line).reshape(-1, 2)
    assert points.min(axis=0).tolist() == [10.0, 20.0]
    assert points.max(axis=0).tolist() == [13.0, 22.0]


# The whole road, through the command line


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """The domain `parts` with its masks: defects of any kind."""
    kinds = ("scratch", "pit", "crack", "inclusion", "stain")
    return create_workspace(
        tmp_path_factory.mktemp("road") / "workspace",
        images,
        task={"kind": "segmentation", "background": "none"},
        layout={"kind": "csv", "mask": "mask"},
        classes=["none", "defect"],
        rename=dict.fromkeys(kinds, "defect"),
        candidates=["linear"],
        slices=["surface"],
        training={"epochs": 3, "warmup_epochs": 0.5, "batch_size": 8},
    )


@pytest.mark.slow
def test_a_domain_of_masks_is_retrained_promoted_and_reproduced(road: Path, tmp_path: Path) -> None:
    retrained = run_tessera(road, "retrain", PARTS)
    assert retrained.code == 0, retrained.stderr
    outcome = retrained.outcome
    assert (outcome["verdict"], outcome["metric"]) == ("PROMOTE", "mean_iou")
    assert {row["tuner"] for row in outcome["candidates"]} == {"linear", "pixels"}
    assert any(row["over_control"] for row in outcome["tuners"] if row["tuner"] == "linear")
    report = Path(outcome["report"])
    assert "mean IoU" in report.read_text()
    picture = next((road / "data" / PARTS / "raw" / "images").glob("*.jpg"))
    predicted = run_tessera(road, "predict", PARTS, str(picture), "--out", str(tmp_path / "out")).outcome
    (answer,) = predicted["predictions"]
    with Image.open(picture) as shown, Image.open(answer["mask"]) as mask:
        assert mask.size == shown.size
        counts = np.bincount(np.asarray(mask).reshape(-1), minlength=2).tolist()
    assert list(answer["areas"].values()) == counts
    again = run_tessera(road, "reproduce", PARTS, "1")
    assert (again.code, again.outcome["bit_equal"]) == (0, True), again.stderr
    exported = run_tessera(road, "export", PARTS, str(tmp_path / "masks"), "--format", "masks")
    assert exported.code == 0, exported.stderr
    assert pl.read_parquet(road / ".tessera" / "data" / PARTS / "manifest.parquet").height <= exported.outcome["rows"]
