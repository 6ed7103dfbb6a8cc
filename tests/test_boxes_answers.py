"""What a champion of boxes answers, and the files that are made of it, as other tools and our own readers take them."""

import base64
import contextlib
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
import torch
import yaml
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from components.data.annotations.layouts import read_layout
from components.data.batches.boxes import fit_boxes, restore_boxes
from components.data.batches.geometry import fit_image, place
from components.data.manifest import Wanted
from components.data.sources.images import Upright, read_picture
from components.domain.reading import parse_domain
from components.errors import DataError
from components.models.adapter import AdapterMeta, InputMeta, load_meta
from components.models.backbones import load_backbone
from components.models.engine import create_engine
from components.models.network import create_network
from components.models.tuners import create_tuners
from components.models.weights import load_adapter, save_adapter
from components.promotion import aliases
from components.records.jobs import load_predictions
from components.records.predictions import BoxesAnswer, Predictions
from components.serving.box_files import Answered, write_boxes
from components.serving.ids import Ids, choose_ids
from components.serving.predictor import Predictor
from components.serving.questions import Question
from components.tasks.calibration import Calibration
from components.tasks.detection import DetectionTask
from components.tracking import artifacts, runs
from components.tracking.store import Store
from components.workspace import Workspace
from flows.commands import answers
from flows.commands.predict import exit_code, predict
from flows.commands.predict_files import write_boxes as write_answers
from flows.processes.answering import Answering

CLASSES = ("dark", "ßpäl & <co>")
LEAST = (0.2, 0.3)  # confidences from which on the classes are shown
CANVAS = (48, 64)
NAME = "boxes"
IDS = {"a.png": 30, "b.png": 7, "c.png": 12}
DOMAIN = {"name": NAME, "task": "detection", "classes": list(CLASSES), "layout": "coco", "candidates": ["linear"]}
CATEGORIES = {"ßpäl & <co>": 4, "dark": 90, "supercategory": 1}
TABLE = {"image": "path", "label": "label", "crop": ["x0", "y0", "x1", "y1"]}
NAMES = {CATEGORIES[name]: name for name in CLASSES}


def save(path: Path, size: tuple[int, int], seed: int, mode: str = "RGB", **options: Any) -> Path:
    """A noisy picture of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def save_turned(path: Path, size: tuple[int, int], seed: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    return save(path, size, seed, exif=exif, quality=95)


PICTURES = {
    "plain": lambda path: save(path, (90, 60), 1),
    "wide": lambda path: save(path, (300, 9), 2),
    "line": lambda path: save(path, (1, 300), 3),
    "tiny": lambda path: save(path, (2, 1), 4),
    "grey": lambda path: save(path, (33, 80), 5, "L"),
    "turned": lambda path: save_turned(path.with_suffix(".jpg"), (80, 40), 6),
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose head answers some boxes of every picture, some of which reach their threshold."""
    backbone, (tuner,) = load_backbone("embedded", CANVAS), create_tuners([{"kind": "linear"}])
    task = DetectionTask()
    network = create_network(backbone, tuner, len(CLASSES), seed=1, task=task)
    answer, generator = network.head.answer, torch.Generator().manual_seed(3)
    with torch.no_grad():
        answer.weight.normal_(std=0.1, generator=generator)
        answer.bias[: len(CLASSES)] = 1.5
        answer.weight[len(CLASSES) :] *= 0.3
        answer.bias[len(CLASSES) :] = -1.0  # sides of six pixels on the finest level
    facts: dict[str, Any] = {"data_version": tiny.DATA_VERSION, "split_sha256": "s", "git_commit": "c", "seed": 1}
    calibration = Calibration(1.3, "", dict(zip(CLASSES, LEAST, strict=True)), 0.1)
    inputs = InputMeta(kind="picture", fit="letterbox", max_megapixels=0.05, min_side=1)
    facts |= {"classes": CLASSES, "metrics": {}, "calibration": calibration, "inputs": inputs, "task": task}
    meta = AdapterMeta.describe(network.eval(), backbone, tuner, **facts)
    folder = tmp_path_factory.mktemp("boxes") / "adapter"
    save_adapter(folder, network, meta)
    return folder


@pytest.fixture(scope="module")
def predictor(adapter: Path) -> Predictor:
    return Predictor(adapter)


# Answers


@pytest.mark.parametrize("kind", PICTURES)
def test_boxes_are_the_networks_in_pixels_of_the_picture(kind: str, predictor: Predictor, tmp_path: Path) -> None:
    path = PICTURES[kind](tmp_path / f"{kind}.png")
    (answer,) = predictor.predict([path])
    upright = read_picture(path)
    assert answer.found
    boxes = np.array([one.box for one in answer.found])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= upright.size).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    rows = _decode(predictor, path)
    left, top, right, bottom = place(upright.size, CANVAS, "letterbox").box
    rows[:, :4] = rows[:, :4].clip([left, top] * 2, [right, bottom] * 2)
    rows = np.unique(rows[(rows[:, 4] >= 0) & (rows[:, 0] < rows[:, 2]) & (rows[:, 1] < rows[:, 3]), :5], axis=0)
    again = [[*one.box, CLASSES.index(one.label), 0] for one in answer.found]
    back = fit_boxes(np.array(again, np.float32), upright.size, CANVAS, "letterbox")
    np.testing.assert_allclose(_sort(back[:, :5]), _sort(rows), atol=2e-4)


def test_boxes_that_differ_outside_of_the_picture_alone_are_one() -> None:
    rows = [[0, 8, 9, 20, 1, 0.9], [0, 2, 9, 20, 1, 0.8], [0, 2, 9, 20, 0, 0.7], [0, 14, 9, 20, 1, 0.6]]
    found = restore_boxes(np.array(rows), place((64, 24), CANVAS, "letterbox"), (64, 24))  # rows 12 to 36 of the canvas
    assert found[:, 4].tolist() == [1, -1, 0, 1]


def _decode(predictor: Predictor, path: Path) -> np.ndarray:
    """(K, 6) what the head finds on the canvas, by hand."""
    pixels = fit_image(Upright(read_picture(path)), CANVAS, "letterbox")
    engine = create_engine(tuple(predictor.meta.backbone.mean), tuple(predictor.meta.backbone.std))
    network = engine.prepare(load_adapter(predictor.resident.folder)[0])
    with torch.inference_mode():
        outputs = engine.forward(network, torch.from_numpy(pixels[None].copy()).permute(0, 3, 1, 2))
        return network.head.decode(outputs, 1.0)[0].double().numpy()


def _sort(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.round(2).T)]


def test_what_is_shown_reaches_its_threshold(predictor: Predictor, tmp_path: Path) -> None:
    path = PICTURES["plain"](tmp_path / "a.png")
    (answer,) = predictor.predict([path])
    assert answer.found
    assert {one.shown for one in answer.found} == {True, False}
    thresholds = dict(predictor.meta.thresholds)
    assert [one.shown for one in answer.found] == [one.confidence >= thresholds[one.label] for one in answer.found]
    sure = [one.confidence for one in answer.found]
    assert sure == sorted(sure, reverse=True)
    objects = [(one["label"], tuple(one["box"]), one["confidence"]) for one in answer.answer["objects"]]
    assert objects == [(one.label, one.box, one.confidence) for one in answer.found if one.shown]
    assert answer.answer["counts"] == {name: sum(one[0] == name for one in objects) for name in CLASSES}
    assert answer.label == " + ".join(name for name in CLASSES if answer.answer["counts"][name])
    assert answer.probabilities is None
    raw = _decode(predictor, path)[:, 5].clip(1e-6)
    logits = np.log(raw / (1 - raw)) / predictor.meta.temperature + predictor.meta.offset
    assert np.abs(np.array(sure)[:, None] - 1 / (1 + np.exp(-logits))).min(axis=1).max() < 1e-6


def test_a_child_answers_boxes_digit_by_digit(adapter: Path, predictor: Predictor, tmp_path: Path) -> None:
    path = PICTURES["turned"](tmp_path / "a.png")
    (expected,) = predictor.predict([path])
    with Answering() as child:
        ((_, answered),) = child.ask(adapter, [[Question(path)]], extras=["found"])
    (reply,) = answered["answers"]
    assert [tuple(map(_freeze, one)) for one in reply["found"]] == list(expected.found or ())
    assert reply["answer"] == expected.answer


def _freeze(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def test_the_predictor_gives_what_evaluation_gave(tmp_path: Path) -> None:
    training = {"epochs": 12, "batch_size": 8, "warmup_epochs": 1}
    domain = tiny.create_domain(task="detection", layout="voc", img_size=64, backbone="embedded", training=training)
    result = tiny.train(tmp_path, domain, {"kind": "linear"})
    test, predictor = load_predictions(result.folder, "test"), Predictor(result.folder / "adapter")
    answers = predictor.predict([tmp_path / "raw" / path for path in test["path"]], batch_size=5)
    for one, found, shown in zip(answers, test["found"].to_list(), test["shown"].to_list(), strict=True):
        table, expected = (
            np.array([[*box, tiny.CLASSES.index(label), confidence] for label, box, confidence in rows]).reshape(-1, 6)
            for rows in ([each[:3] for each in one.found or ()], [each.values() for each in found])
        )
        for some, others in ((table, expected), (expected, table)):  # bfloat16 sums differ with the batch
            for row in some[some[:, 5] > 0.3]:
                assert np.isclose(row, others, atol=0.1).all(axis=1).any()
        assert sum(each.shown for each in one.found or ()) == sum(shown)
    assert [one.label for one in answers] == test["predicted"].to_list()
    assert any(test["shown"].explode())


# A champion, whose domain is a COCO file with ids of its own


@pytest.fixture(scope="module")
def workspace(mlflow_workspace: Workspace, store: Store, adapter: Path, predictor: Predictor) -> Workspace:
    """The champion `boxes`; the truth of its domain are its own answers, so that every score is 1."""
    raw = mlflow_workspace.raw(NAME)
    entries, annotations = [], list[dict[str, Any]]()
    for seed, (name, number) in enumerate(IDS.items()):
        path = save(raw / "images" / name, (70 + seed, 50), seed)
        entries.append({"id": number, "file_name": name, "width": 70 + seed, "height": 50})
        for one in predictor.predict([path])[0].found or ():
            x0, y0, x1, y1 = one.box
            facts = {"id": len(annotations) + 1, "image_id": number, "category_id": CATEGORIES[one.label]}
            annotations.append(
                facts | {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            )
    categories = [{"id": number, "name": name} for name, number in CATEGORIES.items()]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (raw / "annotations.json").write_text(json.dumps(content))
    mlflow_workspace.domain_file(NAME).write_text(yaml.safe_dump(DOMAIN))
    run_id = runs.start_parent(store, parse_domain(DOMAIN, "tests"), tiny.DATA_VERSION, "f", "c0ffee")
    uri = artifacts.log_model(store, run_id, adapter)
    facts = {"adapter_sha256": load_meta(adapter).adapter_sha256, "tuner": "linear", "data_version": tiny.DATA_VERSION}
    version = aliases.register_challenger(NAME, run_id, uri, **facts)
    tiny.promote(mlflow_workspace, NAME, version, expected=None, reason="first")
    return mlflow_workspace


def find_pictures(workspace: Workspace) -> list[Path]:
    return [workspace.raw(NAME) / "images" / name for name in IDS]


def rows_of(outcome: Predictions) -> list[BoxesAnswer]:
    return [row for row in outcome.predictions if isinstance(row, BoxesAnswer)]


def test_the_command_says_what_is_shown_and_from_which_threshold(workspace: Workspace, predictor: Predictor) -> None:
    (path, *_) = find_pictures(workspace)
    outcome = predict(workspace, NAME, [path])
    (row,) = rows_of(outcome)
    (expected,) = predictor.predict([path])
    dumped = json.loads(outcome.model_dump_json())["predictions"][0]
    assert dumped["objects"] == expected.answer["objects"]
    assert dumped["counts"] == expected.answer["counts"]
    assert outcome.thresholds == dict(zip(CLASSES, LEAST, strict=True))
    assert Predictions.model_validate_json(outcome.model_dump_json()) == outcome
    screen = Console(file=io.StringIO(), width=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "OUT", screen)
        answers.show_predictions(outcome)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    first = row.objects[0]
    for name, count in row.counts.items():
        assert (f"{count} {name}" in shown) == (count > 0)
    assert f"{first.label} {first.confidence:.3f}" in shown


def test_pictures_without_any_box_are_counted(workspace: Workspace, adapter: Path, tmp_path: Path) -> None:
    """And a table names no ids."""
    paths = find_pictures(workspace)[:2]
    outcome = predict(workspace, NAME, paths)
    found = {paths[0].as_posix(): {"found": []}, paths[1].as_posix(): {"found": [["dark", [0, 0, 9, 9], 0.5, True]]}}
    for name, words in {"a.csv": "", "a.json": ", with the ids of annotations.json"}.items():
        out = tmp_path / name
        notes = write_answers(outcome, found, load_meta(adapter), out, workspace).notes
        assert notes == {f"boxes in {out}{words}": 1, "pictures without any box there": 1}


def test_results_fit_the_users_own_annotations(workspace: Workspace, predictor: Predictor, tmp_path: Path) -> None:
    """With a copy of the pictures elsewhere, too."""
    truth = COCO(str(workspace.raw(NAME) / "annotations.json"))
    shutil.copytree(workspace.raw(NAME) / "images", tmp_path / "copies")
    outcome = predict(workspace, NAME, [tmp_path / "copies"], out=tmp_path / "copies.json")
    assert any("with the ids of annotations.json" in note for note in outcome.notes)
    paths = find_pictures(workspace)
    write_boxes(tmp_path / "raw.json", answer(predictor, paths), CLASSES, choose(workspace, paths))
    for name in ("copies", "raw"):
        results = json.loads((tmp_path / f"{name}.json").read_text())
        assert {entry["image_id"]: entry["file_name"] for entry in results} == {IDS[key]: key for key in IDS}
        assert {entry["category_id"]: entry["category"] for entry in results} == {
            CATEGORIES[key]: key for key in CLASSES
        }
        assert min(entry["score"] for entry in results) < min(LEAST)  # more than what is shown
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / f"{name}.json")), "bbox")
        evaluation.params.imgIds = sorted(IDS.values())
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1.0)


def test_pictures_that_the_annotations_do_not_list_are_numbered(workspace: Workspace, tmp_path: Path) -> None:
    """By their place among those asked, one of which is damaged."""
    (tmp_path / "0.png").write_bytes(b"no picture")
    save(tmp_path / "a.png", (70, 50), 99)  # a name that is listed, of other content
    shutil.copy(find_pictures(workspace)[1], tmp_path / "b.png")
    outcome = predict(workspace, NAME, [tmp_path], out=tmp_path / "out.json")
    assert [row.error is None for row in outcome.predictions] == [False, True, True]
    assert exit_code(outcome) == 1
    (note,) = [note for note in outcome.notes if note.startswith("boxes in")]
    assert note.endswith("numbered by the order of pictures and classes (annotations.json does not list a.png)")
    results = json.loads((tmp_path / "out.json").read_text())
    assert outcome.notes[note] == len(results)
    assert {entry["image_id"]: Path(entry["file_name"]).name for entry in results} == {2: "a.png", 3: "b.png"}
    assert {entry["category_id"]: entry["category"] for entry in results} == {1: CLASSES[0], 2: CLASSES[1]}


def test_a_folder_holds_every_form(
    workspace: Workspace, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written again in place; beside other files it is refused before anything is answered."""
    paths, out = find_pictures(workspace), tmp_path / "out"
    answers, ids = answer(predictor, paths), choose(workspace, paths)
    write_boxes(out, answers, CLASSES, ids)
    outcome = predict(workspace, NAME, paths, out=out)
    for path, row in zip(paths, rows_of(outcome), strict=True):
        assert row.drawn == (out / "drawn" / f"{path.stem}.jpg").as_posix()
        with Image.open(row.drawn) as drawn, Image.open(path) as picture:
            assert drawn.size == picture.size
            assert not np.array_equal(np.asarray(drawn), np.asarray(picture))
    (out / "mine.txt").touch()
    monkeypatch.setattr(Answering, "ask", None)
    with pytest.raises(DataError, match=r"a new folder, one of earlier answers, .* found a folder with mine\.txt"):
        predict(workspace, NAME, paths, out=out)


def test_every_form_has_the_same_boxes(workspace: Workspace, predictor: Predictor, tmp_path: Path) -> None:
    paths = find_pictures(workspace)
    answers, ids = answer(predictor, paths), choose(workspace, paths)
    for target in ("out", "results.json", "table.csv"):
        write_boxes(tmp_path / target, answers, CLASSES, ids)
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [(entry["id"], entry["file_name"]) for entry in content["images"]] == [(IDS[name], name) for name in IDS]
    assert {entry["id"]: entry["name"] for entry in content["categories"]} == NAMES
    results = json.loads((tmp_path / "results.json").read_text())
    keys = ("image_id", "category_id", "bbox", "score")
    assert [[entry[key] for key in keys] for entry in content["annotations"]] == [
        [entry[key] for key in keys] for entry in results
    ]
    table = pl.read_csv(tmp_path / "table.csv")
    assert table.equals(pl.read_csv(tmp_path / "out" / "predictions.csv"))
    expected = [
        (one.path.as_posix(), each.label, *each.box, each.confidence, each.shown)
        for one in answers
        for each in one.found
    ]
    assert table.rows() == expected
    assert table.columns == ["path", "label", "x0", "y0", "x1", "y1", "confidence", "shown"]
    assert [entry["shown"] for entry in content["annotations"]] == [row[-1] for row in expected]
    boxes = table.select("x0", "y0", "x1", "y1").to_numpy().copy()
    boxes[:, 2:] -= boxes[:, :2]
    np.testing.assert_array_equal(boxes, np.array([entry["bbox"] for entry in results]))


def answer(predictor: Predictor, paths: Sequence[Path]) -> list[Answered]:
    return [Answered(Path(one.path), one.found or ()) for one in predictor.predict(paths)]


def choose(workspace: Workspace, paths: Sequence[Path], **changes: Any) -> Ids:
    domain = parse_domain({**DOMAIN, **changes}, "tests")
    return choose_ids(dict(enumerate(paths, 1)), domain.classes, domain, workspace.raw(NAME))


@pytest.mark.parametrize(
    ("form", "layout", "shown"),
    {
        "VOC": ("voc", {"kind": "voc", "images": "images", "annotations": "labels"}, True),
        "COCO": ("predictions.json", {"kind": "coco", "images": "images", "annotations": "labels"}, False),
        "YOLO": ("yolo", {"kind": "yolo", "images": "images", "labels": "labels", "names": "labels/data.yaml"}, True),
        "csv": ("predictions.csv", {"kind": "csv", "table": "labels/predictions.csv", **TABLE}, False),
    }.values(),
)
def test_our_own_files_are_read_back_as_the_same_boxes(
    form: str, layout: dict[str, Any], shown: bool, predictor: Predictor, tmp_path: Path
) -> None:
    """Of pictures in two folders, one of which is turned and one of which nothing is shown in."""
    raw = tmp_path / "raw"
    paths = [save(raw / "images" / "a.png", (70, 50), 0), save_turned(raw / "images" / "sub" / "b.jpg", (80, 40), 6)]
    answers = [*answer(predictor, paths), Answered(save(raw / "images" / "c.png", (9, 9), 0), ())]
    domain = parse_domain({**DOMAIN, "layout": layout}, "tests")
    pictures = {number: one.path for number, one in enumerate(answers, 1)}
    write_boxes(tmp_path / "out", answers, CLASSES, choose_ids(pictures, CLASSES, domain, raw))
    if (written := tmp_path / "out" / form).is_dir():
        shutil.copytree(written, raw / "labels")
    else:
        (raw / "labels").mkdir()
        shutil.copy(written, raw / "labels")
    reading = read_layout(domain.layout, raw, Wanted(annotation="boxes"))
    found = {row.path: row.objects for row in reading.rows}
    assert not [row.problem for row in reading.rows if row.problem]
    for one in answers:
        expected = [each for each in one.found if each.shown or not shown]
        objects = found[one.path.relative_to(raw).as_posix()] or ()
        assert [each.label for each in objects] == [each.label for each in expected]
        boxes = [np.array([each.box for each in some]).reshape(-1, 4) for some in (objects, expected)]
        np.testing.assert_allclose(*boxes, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    {
        "polygons": ({"polygons": True}, "--polygons: expected a champion that answers masks.* found .* detection"),
        "whole": (
            {"whole": True},
            "`whole`: expected whole pictures alone, .* found the option that says that pictures are crops",
        ),
        "box": ({"boxes": ["0,0,9,9"]}, r"a\.png: expected whole pictures alone.* found a box"),
        "ending": (
            {"out": Path("out.xml")},
            r"ends in \.json, \.csv, \.parquet or \.jsonl; found the ending \.xml",
        ),
    }.values(),
)
def test_what_has_no_meaning_for_boxes_is_refused(workspace: Workspace, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        predict(workspace, NAME, find_pictures(workspace)[:1], **options)
    assert not Path("out.xml").exists()


# Ids


@pytest.mark.parametrize(
    ("changes", "words"),
    {
        "renamed": ({"rename": {"dark": "ash"}, "classes": ["ash", CLASSES[1]]}, "with the ids of annotations.json"),
        "two names": ({"rename": {"dark": CLASSES[1]}, "classes": [CLASSES[1]]}, "has 2 categories for the class"),
        "no category": ({"classes": [*CLASSES, "new"]}, "has 0 categories for the class new"),
        "other layout": ({"layout": "folders"}, "numbered by the order of pictures and classes"),
        "no file": ({"layout": {"kind": "coco", "annotations": "gone.json"}}, "no such file"),
    }.values(),
)
def test_ids_are_those_of_the_annotations_or_places(workspace: Workspace, changes: dict[str, Any], words: str) -> None:
    ids = choose(workspace, find_pictures(workspace), **changes)
    assert words in ids.words
    own, classes = "with the ids" in ids.words, changes.get("classes", CLASSES)
    assert [key for key, _ in ids.images] == ([*IDS.values()] if own else [1, 2, 3])
    numbers = [CATEGORIES["dark"], CATEGORIES[CLASSES[1]]] if own else range(1, len(classes) + 1)
    assert ids.categories == dict(zip(classes, numbers, strict=True))


def test_a_picture_asked_twice_is_two_pictures(workspace: Workspace) -> None:
    ids = choose(workspace, find_pictures(workspace)[:1] * 2)
    assert [key for key, _ in ids.images] == [1, 2]


def test_of_two_files_that_one_counts_which_lists_the_pictures(workspace: Workspace, tmp_path: Path) -> None:
    """Its ids may be texts. Of two equal pictures the one in the folder of the same name is meant."""
    entries = [{"id": f"no {number}", "file_name": f"{folder}/a.png"} for number, folder in enumerate(("x", "y"))]
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    for name, images in (("test.json", []), ("train.json", entries)):
        content = {"images": images, "annotations": [], "categories": categories}
        (tmp_path / "lists").mkdir(exist_ok=True)
        (tmp_path / "lists" / name).write_text(json.dumps(content))
    for folder in ("x", "y", "elsewhere/y"):
        save(tmp_path / folder / "a.png", (20, 20), 0)
    domain = parse_domain({**DOMAIN, "layout": {"kind": "coco", "images": ".", "annotations": "lists"}}, "tests")
    ids = choose_ids({1: tmp_path / "elsewhere" / "y" / "a.png"}, CLASSES, domain, tmp_path)
    assert ids.images == (("no 1", "y/a.png"),)
    assert ids.words == "with the ids of lists/train.json"


def test_each_split_may_have_a_file_of_its_own(tmp_path: Path) -> None:
    """As Roboflow exports it, with ids that start anew in each file."""
    layout = {"kind": "coco", "images": "<split>", "annotations": "<split>/_annotations.coco.json"}
    domain = parse_domain({**DOMAIN, "layout": layout}, "tests")
    names = [{"id": number, "name": name} for number, name in enumerate(("things", *CLASSES))]
    for seed, split in enumerate(("train", "valid")):
        pictures = [save(tmp_path / split / f"{split}{number}.png", (20, 20), 9 * seed + number) for number in range(2)]
        entries = [{"id": number, "file_name": path.name} for number, path in enumerate(pictures)]
        content = {"images": entries, "annotations": [], "categories": names}
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
    ids = choose_ids({1: tmp_path / "valid" / "valid1.png"}, CLASSES, domain, tmp_path)
    assert ids.images == ((1, "valid1.png"),)
    assert ids.words == "with the ids of valid/_annotations.coco.json"
    both = {1: tmp_path / "valid" / "valid1.png", 2: tmp_path / "train" / "train0.png"}
    ids = choose_ids(both, CLASSES, domain, tmp_path)
    assert [key for key, _ in ids.images] == [1, 2]
    assert "does not list valid1.png; valid/_annotations.coco.json does not list train0.png" in ids.words


# MLflow


def test_the_served_model_answers_boxes(workspace: Workspace, predictor: Predictor) -> None:
    import mlflow
    import pandas as pd

    (path, *_) = find_pictures(workspace)
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    frame = model.predict(pd.DataFrame({"image": [base64.b64encode(path.read_bytes()).decode()]}))
    (expected,) = predictor.predict([path])
    assert list(frame) == [column.name for column in model.metadata.signature.outputs.inputs]
    assert frame["label"][0] == expected.label
    assert json.loads(frame["objects"][0]) == expected.answer["objects"]
    assert {name: frame[f"count_{name}"][0] for name in CLASSES} == expected.answer["counts"]
