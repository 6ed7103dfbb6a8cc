"""An exported adapter answers as Tessera does: pixel by pixel, output by output, and as a whole in a clean process."""

import io
import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import fleets
import numpy as np
import polars as pl
import pytest
import tiny
import torch
import vits
from conftest import run_tessera
from numpy.typing import NDArray
from PIL import Image

from components.errors import AdapterError, DataError
from components.files import hash_file
from components.models.adapter import AdapterMeta, load_meta
from components.models.backbones import load_backbone
from components.models.heads import create_head, detection
from components.models.heads.base import Shape
from components.records.decisions import PassRule
from components.records.exports import Card, ExportJob, ModelExport
from components.serving import export, int8, prepare, proofs
from components.serving.describing import describe
from components.serving.looks import Eye, Look
from components.serving.questions import Question
from components.tasks import CLASSIFICATION, Task
from components.tasks.detection import DetectionTask
from components.tasks.multilabel import MultilabelTask
from components.tasks.segmentation import SegmentationTask
from components.tracking import artifacts
from components.tracking.store import Store
from components.workspace import Workspace
from flows.commands import export_model
from flows.processes import exporting

CLASSES = tiny.CLASSES
TASKS: dict[str, Task] = {
    "classification": CLASSIFICATION,
    "multilabel": MultilabelTask(),
    "segmentation": SegmentationTask(background="dark"),
    "detection": DetectionTask(),
}
LIMITS = dict.fromkeys(CLASSES, 0.3)
ANSWERING: dict[str, dict[str, Any]] = {
    "classification": {"temperature": 1.6},
    "multilabel": {"temperature": 1.6, "thresholds": dict.fromkeys(CLASSES, 0.45)},
    "segmentation": {"temperature": 0.7},
    "detection": {"temperature": 1.4, "offset": 0.4, "thresholds": LIMITS},
}
WIDE = {"img_size": (32, 64), "patch_size": 16}


def create_meta(tmp_path: Path, kind: str = "classification", **facts: Any) -> AdapterMeta:
    given = {**ANSWERING[kind], **facts}
    backbone, named = vits.create_backbone(WIDE), {"classes": CLASSES, "task": TASKS[kind]}
    return load_meta(fleets.write_adapter(tmp_path, backbone, {"kind": "linear"}, **named, **given))


def create_card(meta: AdapterMeta) -> Card:
    """The card as an export writes it, without the files."""
    job = ExportJob(adapter=Path(), folder=Path(), domain="plates", version=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "hash_meta", lambda folder: "0" * 64)
        return export._create_card(job, meta, type("Graph", (), {"merged": False})())  # type: ignore[arg-type]


def dump(meta: AdapterMeta) -> dict[str, Any]:
    return json.loads(create_card(meta).model_dump_json())


# Pictures


def draw(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(1).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size).convert(mode)


def save(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turn(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[prepare.ORIENTATION] = orientation
    return save(draw((70, 41)), "JPEG", exif=exif)


def change_under_its_checksum(png: bytes) -> bytes:
    """Pixels that any decoder reads, and that are not those of the chunk's checksum."""
    at = png.index(b"IDAT")
    size = int.from_bytes(png[at - 4 : at])
    pixels = zlib.decompress(png[at + 4 : at + 4 + size])
    other = zlib.compress(pixels[:-1] + bytes([pixels[-1] ^ 64]))
    return png[: at - 4] + len(other).to_bytes(4) + b"IDAT" + other + png[at + 4 + size :]


def see_through() -> Image.Image:
    image = draw((40, 40), "RGBA")
    image.putpixel((3, 3), (1, 2, 3, 100))
    return image


JPEG = save(draw((200, 120)), "JPEG", quality=90)
PNG = save(draw((90, 60)), "PNG")
PICTURES: dict[str, bytes] = {
    **{f"upright by EXIF {number}": turn(number) for number in range(1, 9)},
    "jpeg": JPEG,
    "progressive": save(draw((200, 120)), "JPEG", progressive=True),
    "grey": save(draw((50, 80), "L"), "PNG"),
    "palette": save(draw((50, 80), "P"), "PNG"),
    "one bit": save(draw((50, 80), "1"), "PNG"),
    "opaque alpha": save(draw((50, 80), "RGBA"), "PNG"),
    "webp": save(draw((64, 64)), "WEBP", lossless=True),
    "tiff, turned": save(draw((64, 40)), "TIFF", tiffinfo={prepare.ORIENTATION: 6}),
    "bmp": save(draw((33, 17)), "BMP"),
    "very wide": save(draw((900, 20)), "PNG"),
    "reduced by whole steps": save(draw((1200, 700)), "PNG"),
    "as large as the canvas": save(draw((64, 32)), "PNG"),
}
REFUSED: dict[str, bytes] = {
    "16 bits": save(Image.fromarray(np.arange(2500, dtype=np.uint16).reshape(50, 50)), "PNG"),
    "transparent": save(see_through(), "PNG"),
    "print colours": save(draw((40, 40), "CMYK"), "JPEG"),
    "animated": save(draw((40, 40)), "GIF", save_all=True, append_images=[draw((40, 40)).rotate(90)]),
    "cut jpeg": JPEG[: len(JPEG) // 2],
    "zeros in a jpeg": JPEG[: len(JPEG) * 2 // 3] + b"\0" * (len(JPEG) // 3 - 2) + b"\xff\xd9",
    "cut png": PNG[: len(PNG) // 2],
    "png of another checksum": change_under_its_checksum(PNG),
    "no image": b"GIF or not",
    "nothing": b"",
    "too small": save(draw((300, 15)), "PNG"),
    "too large": save(draw((1100, 1000)), "PNG"),
    "a bomb": save(Image.new("1", (3000, 3000)), "PNG"),
    "one colour": save(Image.new("RGB", (40, 40), (9, 9, 9)), "PNG"),
    "one colour, nearly": save(Image.fromarray(np.indices((40, 40))[0].astype(np.uint8) % 3), "PNG"),
}


def look(meta: AdapterMeta, data: bytes, box: Any = None) -> Look:
    (seen,) = Eye(meta).look([Question(io.BytesIO(data), box)])
    return seen


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_pixels_are_those_that_training_prepares(tmp_path: Path, fit: str) -> None:
    meta = create_meta(tmp_path)
    assert meta.input
    meta = meta.model_copy(update={"input": meta.input.model_copy(update={"fit": fit})})
    card = dump(meta)
    for name, data in PICTURES.items():
        expected, found = look(meta, data), prepare.look_at(card, data)
        assert expected.pixels is not None, name
        np.testing.assert_array_equal(found.pixels, expected.pixels, err_msg=name)
        assert found.size == expected.size, name


@pytest.mark.parametrize("name", REFUSED)
def test_what_training_refuses_is_refused_for_the_same_reason(tmp_path: Path, name: str) -> None:
    meta = create_meta(tmp_path)
    assert meta.input
    meta = meta.model_copy(update={"input": meta.input.model_copy(update={"max_megapixels": 1.0})})
    trouble = look(meta, REFUSED[name]).trouble
    assert trouble is not None
    with pytest.raises(prepare.Unfit) as refused:
        prepare.look_at(dump(meta), REFUSED[name])
    words = str(refused.value)
    for part in (trouble.expected, trouble.found):
        assert part.split(" (")[0] in words
    assert prepare.Image.MAX_IMAGE_PIXELS == Image.MAX_IMAGE_PIXELS > 2e6


def test_an_adapter_that_does_not_say_what_an_input_is_takes_both(tmp_path: Path) -> None:
    meta = create_meta(tmp_path).model_copy(update={"input": None})
    card, data = dump(meta), PICTURES["jpeg"]
    assert (card["input"]["known"], card["input"]["kind"]) == (False, "either")
    for box in (None, (10, 10, 90, 70)):
        np.testing.assert_array_equal(prepare.look_at(card, data, box).pixels, look(meta, data, box).pixels)


def test_changed_bytes_are_refused_or_seen_as_tessera_sees_them(tmp_path: Path) -> None:
    meta, rng, refused = create_meta(tmp_path), np.random.default_rng(2), 0
    card, files = dump(meta), [data for name, data in PICTURES.items() if len(data) < 40_000]
    for _ in range(120):
        data = bytearray(files[rng.integers(len(files))])
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        expected = look(meta, bytes(data))
        try:
            found = prepare.look_at(card, bytes(data))
        except prepare.Unfit:
            refused += 1
            assert expected.trouble is not None
        else:
            np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert 20 < refused < 120


@pytest.mark.parametrize("cut", ["box", "square"])
@pytest.mark.parametrize("kind", ["crop", "either"])
def test_crops_are_cut_as_in_training(tmp_path: Path, cut: str, kind: str) -> None:
    meta = create_meta(tmp_path)
    assert meta.input
    meta = meta.model_copy(
        update={"input": meta.input.model_copy(update={"cut": cut, "kind": kind, "fit": "letterbox"})}
    )
    card, data = dump(meta), save(draw((120, 90)), "PNG")
    boxes = [(10, 10, 40, 30), (0, 0, 120, 90), (-2, -1, 60, 50), (100, 70, 122, 92), (3, 3, 20, 19), (50, 2, 66, 88)]
    for box in boxes:
        expected, found = look(meta, data, box), prepare.look_at(card, data, box)
        np.testing.assert_array_equal(found.pixels, expected.pixels, err_msg=str(box))
        assert (found.crop, found.size) == (expected.crop, expected.size)
    for box in [(-9, 0, 20, 20), (30, 30, 30, 60), (40, 40, 10, 60), *([(5, 5, 9, 9)] if cut == "box" else [])]:
        assert look(meta, data, box).trouble is not None
        with pytest.raises(prepare.Unfit):
            prepare.look_at(card, data, box)


@pytest.mark.parametrize(("kind", "box", "whole", "fits"), [
    ("crop", None, False, False), ("crop", None, True, True), ("crop", (0, 0, 40, 40), True, False),
    ("picture", (0, 0, 40, 40), False, False), ("picture", None, False, True), ("either", (0, 0, 40, 40), False, True),
])  # fmt: skip
def test_boxes_are_asked_for_where_training_had_them(
    tmp_path: Path, kind: str, box: Any, whole: bool, fits: bool
) -> None:
    card = dump(create_meta(tmp_path))
    card["input"]["kind"] = kind
    if fits:
        prepare.look_at(card, PICTURES["jpeg"], box, whole=whole)
        return
    with pytest.raises(prepare.Unfit, match="box"):
        prepare.look_at(card, PICTURES["jpeg"], box, whole=whole)


# Answers


def answer_both(meta: AdapterMeta, size: tuple[int, int], rows: Any, candidates: Any = None) -> tuple[Any, Any]:
    """What Tessera and what prepare.py say of a network's output for a picture of this size."""
    pixels = np.zeros((*meta.backbone.img_size, 3), np.uint8)
    found = describe(meta, Look(Question(io.BytesIO()), None, pixels, size), rows)
    expected = export._flatten(meta, found)
    expected.pop("mask", None)
    answer = prepare.describe(dump(meta), prepare.Look(pixels, size), rows if candidates is None else candidates)
    mask = answer.pop("mask", None)
    if mask is not None:
        np.testing.assert_array_equal(mask, found.class_map)
    return json.loads(json.dumps(expected)), json.loads(json.dumps(answer))


@pytest.mark.parametrize(("rule", "said"), [
    (None, set(CLASSES)),
    (PassRule(label="dark", threshold=0.5, escape=0.01), set(CLASSES)),
    (PassRule(label="light", threshold=0.6, escape=0.1, abstain=True), {*CLASSES, None}),
    (PassRule(label="red", threshold=2.0, escape=0.1, abstain=True), {"dark", "light", None}),
])  # fmt: skip
def test_labels_and_decisions_are_tesseras(tmp_path: Path, rule: PassRule | None, said: set[str | None]) -> None:
    meta, answered = create_meta(tmp_path, decision=rule), set()
    for row in np.random.default_rng(3).dirichlet((0.8, 0.8, 0.8), 100):
        expected, found = answer_both(meta, (90, 40), row)
        assert found == expected
        answered.add(found["label"])
    assert answered == said


def test_several_labels_are_tesseras(tmp_path: Path) -> None:
    meta = create_meta(tmp_path, "multilabel")
    for row in np.random.default_rng(4).random((50, 3)):
        expected, found = answer_both(meta, (90, 40), row)
        assert found == expected


@pytest.mark.parametrize("size", [(64, 32), (200, 150), (33, 71), (7, 300)])
@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_masks_are_tesseras(tmp_path: Path, size: tuple[int, int], fit: str) -> None:
    meta = create_meta(tmp_path, "segmentation")
    assert meta.input
    meta = meta.model_copy(update={"input": meta.input.model_copy(update={"fit": fit})})
    row = torch.softmax(torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(5)) * 2, 0).double().numpy()
    expected, found = answer_both(meta, size, row)
    sure = [[one.pop("confidence") for one in answer["components"]] for answer in (expected, found)]
    assert found == expected
    assert sure[1] == pytest.approx(sure[0], abs=1e-12)
    assert len(found["components"]) > 1


def test_a_threshold_of_two_classes_is_tesseras(tmp_path: Path) -> None:
    two = {"classes": ("dark", "light"), "thresholds": {"light": 0.7}}
    meta = create_meta(tmp_path, "segmentation").model_copy(update=two)
    row = torch.softmax(torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(6)), 0).double().numpy()
    expected, found = answer_both(meta, (80, 50), row)
    assert found["areas"] == expected["areas"]
    plain = prepare.decide_pixels(dump(meta.model_copy(update={"thresholds": {}})), row.astype(np.float32))
    assert (plain == 1).mean() > found["areas"]["light"] / (80 * 50)


@pytest.mark.parametrize("seed", range(6))
def test_components_are_joined_at_corners_and_round_corners(tmp_path: Path, seed: int) -> None:
    """Spirals, combs and noise, whose runs meet late."""
    from components.records.objects import find_components

    rng = np.random.default_rng(seed)
    mask = (rng.random((40, 60)) < (0.2, 0.35, 0.41, 0.5, 0.6, 0.95)[seed]).astype(np.uint8)
    card = dump(create_meta(tmp_path, "segmentation"))
    card["calibration"]["temperature"] = 1
    chances = rng.random((2, 40, 60)).astype(np.float32)
    expected = sorted(find_components(mask, 1), key=lambda one: -one.area)
    found = prepare.find_components(card, mask, chances, 1)
    assert [(tuple(one["box"]), one["area"]) for one in found] == [(one.box, one.area) for one in expected]
    whole = [chances[1, one.box[1] : one.box[3], one.box[0] : one.box[2]][one.mask].mean() for one in expected]
    assert [one["confidence"] for one in found] == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("size", [(640, 480), (50, 300)])
def test_boxes_are_tesseras(tmp_path: Path, size: tuple[int, int]) -> None:
    """Of heads whose answers overlap, beyond the edges of the canvas and of the picture, and are more than are kept."""
    meta = create_meta(tmp_path, "detection")
    generator = torch.Generator().manual_seed(7)
    head = create_head(meta.task, Shape(24, 3, (16, 16)), 3)
    assert isinstance(head, detection.DetectionHead)
    corners = torch.rand(4, 900, 2, generator=generator) * torch.tensor([70.0, 40.0]) - 4
    sides = torch.rand(4, 900, 2, generator=generator) * torch.tensor([[[4.0]], [[20.0]], [[60.0]], [[9.0]]])
    logits = torch.randn(4, 900, 3, generator=generator) * 3 - torch.tensor([0.0, 3.0, 3.0, -2.0])[:, None, None]
    outputs = torch.cat([logits, corners, corners + sides, corners], dim=2)
    counts = []
    for row, candidates in zip(head.decode(outputs).double().numpy(), head.decode_graph(outputs).numpy(), strict=True):
        expected, found = answer_both(meta, size, row, candidates)
        assert found == expected
        counts.append(len(found["objects"]))
    assert max(counts) > 100
    of_the_head = detection.LEAST, detection.OVERLAP, detection.MOST_FOUND
    assert of_the_head == (prepare.LEAST, prepare.OVERLAP, prepare.MOST_FOUND)


# Graphs


def write_export(folder: Path, kind: str, tuner: dict[str, Any], options: dict[str, Any]) -> Card:
    """An adapter of random weights, exported in this process."""
    backbone, named = vits.create_backbone(options), {"classes": CLASSES, "task": TASKS[kind]}
    adapter = fleets.write_adapter(folder / "adapter", backbone, tuner, **named, **ANSWERING[kind])
    (folder / "export").mkdir()
    return export.export(ExportJob(adapter=adapter, folder=folder / "export", domain="plates", version=3), backbone)


def require_proven(card: Card) -> None:
    assert card.verified
    assert card.verified.equal == card.verified.pixels == card.verified.images == proofs.MANY
    assert card.verified.synthetic
    assert max(card.verified.largest_difference, card.verified.graph_difference) < 1e-5


FORMS = vits.VITS | vits.EVAS | vits.JOINED
EVERY = pytest.mark.skipif("TESSERA_EXPORTS" not in os.environ, reason="minutes of tracing: set TESSERA_EXPORTS=1")
#: The first is exported in every run of the suite, beside the classifier of the command.
ORDINARY = [
    pytest.param(("detection", {"kind": "lora"}, WIDE), id="detection"),
    pytest.param(("segmentation", {"kind": "vapt", "static_blocks": 1}, WIDE), id="segmentation", marks=EVERY),
]


@pytest.fixture(scope="module", params=ORDINARY)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Card]:
    folder = tmp_path_factory.mktemp("exported")
    kind, tuner, options = request.param
    return folder / "export", write_export(folder, kind, tuner, options)


def test_an_export_proves_itself(exported: tuple[Path, Card]) -> None:
    """All that follows on the files of one export, because tracing a network takes seconds."""
    folder, card = exported
    require_proven(card)
    files = {"model.onnx", "card.json", "prepare.py", "proofs"}
    assert {path.name for path in folder.iterdir()} == files
    assert Card.model_validate_json((folder / "card.json").read_text()) == card
    assert card.files == {"model.onnx": hash_file(folder / "model.onnx")}
    assert card.graph.merged == (card.tuner == "lora")
    assert str(Path(__file__).parents[1]).encode() not in (folder / "model.onnx").read_bytes()
    assert "import components" not in (folder / "prepare.py").read_text()
    assert "from components" not in (folder / "prepare.py").read_text()


def test_an_export_that_answers_otherwise_is_found_out(exported: tuple[Path, Card], tmp_path: Path) -> None:
    folder = shutil.copytree(exported[0], tmp_path / "copy")
    expected = json.loads((folder / "proofs" / "expected.json").read_text())
    expected["proofs"][0]["answer"]["label"] = "rust"
    (folder / "proofs" / "expected.json").write_text(json.dumps(expected))
    report = export.verify_folder(folder)
    assert (report["equal"], report["images"]) == (7, 8)
    assert "expected 'rust'" in report["problems"][0]
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    assert "model.onnx: expected the sha256" in export.verify_folder(folder)["problems"][0]


def test_other_probabilities_are_other_answers() -> None:
    answer = {"label": "dark", "probabilities": {"dark": 0.7, "red": 0.3}}
    assert prepare.compare(answer, answer) == (0, True)
    difference, same = prepare.compare({**answer, "probabilities": {"dark": 0.6998, "red": 0.3002}}, answer)
    assert difference > prepare.CLOSE
    assert same


TUNERS: list[dict[str, Any]] = [
    *({"kind": kind} for kind in ("linear", "full", "ssf", "dora", "bitfit", "lora", "adaptformer", "dtl")),
    *({"kind": "vpt", "deep": deep} for deep in (True, False)),
    {"kind": "vapt", "static_blocks": 1},
]


@EVERY
@pytest.mark.slow
@pytest.mark.parametrize("tuner", TUNERS, ids=lambda tuner: "-".join(map(str, tuner.values())))
@pytest.mark.parametrize("kind", TASKS)
def test_every_tuner_and_task_is_exported(tmp_path: Path, kind: str, tuner: dict[str, Any]) -> None:
    dense = kind in ("segmentation", "detection")
    require_proven(write_export(tmp_path, kind, tuner, WIDE if dense else {}))


@EVERY
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["segmentation", "detection"])
def test_the_control_of_dense_tasks_is_exported(tmp_path: Path, kind: str) -> None:
    require_proven(write_export(tmp_path, kind, {"kind": "pixels"}, WIDE))


@EVERY
@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_every_kind_of_backbone_is_exported(tmp_path: Path, name: str) -> None:
    require_proven(write_export(tmp_path, "classification", {"kind": "vpt", "num_prompts": 3}, FORMS[name]))


# Quantisation


@pytest.fixture(scope="module")
def tests_of_three(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """Predictions of 30 images in 15 groups, with their files."""
    folder = tmp_path_factory.mktemp("tests")
    rows = []
    for number in range(30):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
        sha256 = hash_file(folder / f"{number}.png")
        label = CLASSES[number % 3]
        rows.append(
            {"id": sha256, "path": f"{number}.png", "label": label, "group": f"g{number // 2}", "split": "test"}
        )
    frame = pl.DataFrame(rows).with_columns(crop=pl.Series([None] * 30, dtype=pl.List(pl.Int64)))
    return proofs.find_tests(frame, folder)


class Said:
    """A graph that knows each image by its place and says what it was told to."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        now, self.numbers = self.numbers[: len(pixels)], self.numbers[len(pixels) :]
        return np.eye(3, dtype=np.float32)[now] * 0.6 + 0.2


@pytest.mark.parametrize(("wrong", "kept", "words"), [
    ((), True, "kept: 100.00% of the answers for 30 of 40 test images"),
    ((1,), False, "refused: 96.67% of the answers for 30 of 40 test images are those of the graph in float32, and at"),
])  # fmt: skip
def test_int8_is_kept_only_if_answers_stay(
    tmp_path: Path,
    tests_of_three: pl.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
    wrong: tuple[int, ...],
    kept: bool,
    words: str,
) -> None:
    meta = create_meta(tmp_path)
    plain = [number % 3 for number in range(30)]
    small = [(number + 1) % 3 if place in wrong else number for place, number in enumerate(plain)]
    for name in (int8.GRAPH, int8.INT8):
        (tmp_path / name).write_bytes(b"graph")
    monkeypatch.setattr(int8, "Model", lambda folder, int8: Said(small if int8 else plain))
    found = int8.judge_int8(tmp_path, meta, tests_of_three, 40)
    assert found.kept == kept
    assert found.reason.startswith(words)
    assert set(found.classes) == set(CLASSES)


def test_int8_is_refused_where_a_class_is_surely_worse(
    tmp_path: Path, tests_of_three: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although so few answers differ that their share alone would do."""
    meta = create_meta(tmp_path)
    plain = [number % 3 for number in range(30)]
    small = [0 if number == 2 else number for number in plain]
    for name in (int8.GRAPH, int8.INT8):
        (tmp_path / name).write_bytes(b"graph")
    monkeypatch.setattr(int8, "Model", lambda folder, int8: Said(small if int8 else plain))
    monkeypatch.setattr(int8, "LEAST_EQUAL", 0.5)
    found = int8.judge_int8(tmp_path, meta, tests_of_three, 30)
    assert not found.kept
    assert "surely worse: red by 1.000" in found.reason
    assert (found.classes["red"].value, found.classes["dark"].value) == (-1.0, 0.0)


def test_int8_is_judged_on_what_the_task_answers(exported: tuple[Path, Card], tmp_path: Path) -> None:
    """A real quantised graph of each task, on pictures with labels, boxes and class maps."""
    folder = shutil.copytree(exported[0], tmp_path / "copy")
    meta = load_meta(exported[0].parent / "adapter")
    writers = {"label": tiny.write_images, "mask": tiny.write_masked_images, "boxes": tiny.write_boxed_images}
    frame = writers[meta.task.annotation](tmp_path / "raw")
    tests = proofs.find_tests(frame, tmp_path / "raw").filter(pl.col("split") == "test")
    int8.write_int8(folder)
    found = int8.judge_int8(folder, meta, tests, tests.height)
    assert found.bytes < found.bytes_before
    assert 0 < found.equal <= 1
    assert (found.images, set(found.classes) <= set(CLASSES), bool(found.classes)) == (tests.height, True, True)
    same = int8.Model(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "Model", lambda folder, *, int8: same)
        found = int8.judge_int8(folder, meta, tests, tests.height)
    assert (found.equal, found.kept) == (1.0, True)
    assert {change.value for change in found.classes.values()} == {0.0}


@pytest.mark.parametrize("changes", [{}, {"kind": "crop"}, {"kind": "crop", "cut": "square", "min_side": 100}])
def test_drawn_proofs_can_be_asked_about(tmp_path: Path, changes: dict[str, Any]) -> None:
    meta = create_meta(tmp_path / "adapter")
    assert meta.input
    meta = meta.model_copy(update={"input": meta.input.model_copy(update=changes)})
    drawn = proofs.draw_proofs(tmp_path, meta)
    assert len(drawn) == proofs.MANY
    for seen in Eye(meta).look([Question(proof.image, proof.box) for proof in drawn]):
        assert seen.trouble is None


def test_the_box_of_a_square_is_about_what_was_annotated(tmp_path: Path) -> None:
    meta = create_meta(tmp_path / "adapter")
    assert meta.input
    meta = meta.model_copy(update={"input": meta.input.model_copy(update={"kind": "crop", "cut": "square"})})
    draw((200, 150)).save(tmp_path / "a.png")
    rows = {"id": [f"{hash_file(tmp_path / 'a.png')}#30,30,90,90"], "path": ["a.png"], "label": ["dark"]}
    frame = pl.DataFrame(rows).with_columns(crop=pl.Series([[30, 30, 90, 90]]))
    (proof,) = proofs.choose_proofs(frame, tmp_path, meta)
    assert proof.box == (40, 40, 80, 80)
    (seen,) = Eye(meta).look([Question(proof.image, proof.box)])
    assert seen.crop == (30, 30, 90, 90)


def test_only_files_that_were_predicted_are_tests(tests_of_three: pl.DataFrame, tmp_path: Path) -> None:
    rows = tests_of_three.drop("file")
    for path in rows["path"]:
        shutil.copyfile(Path(tests_of_three["file"][0]).parent / path, tmp_path / path)
    assert proofs.find_tests(rows, tmp_path).height == 30
    changed = {f"{number}.png" for number in range(20)}
    for name in changed:
        (tmp_path / name).write_bytes(b"another")
    (tmp_path / "0.png").unlink()
    found = proofs.find_tests(rows, tmp_path)
    assert (found.height, set(rows["path"]) - set(found["path"])) == (10, changed)
    chosen = proofs.choose_proofs(rows, tmp_path, create_meta(tmp_path / "adapter"))
    assert len(chosen) == proofs.MANY
    labels = [rows.filter(pl.col("path") == proof.image.name)["label"][0] for proof in chosen]
    assert {labels.count(name) for name in CLASSES} == {2, 3}
    assert not changed & {proof.image.name for proof in chosen}


# The command


@pytest.fixture(scope="module")
def champion(store: Store, mlflow_workspace: Workspace) -> Workspace:
    """A workspace with a registered champion whose test images and predictions are there."""
    place = mlflow_workspace.root
    backbone = load_backbone("embedded", 32)
    facts = {"classes": CLASSES, **ANSWERING["classification"], "data_licence": "cc0-1.0"}
    adapter = fleets.write_adapter(place / "adapter", backbone, {"kind": "vpt"}, **facts)
    version = fleets.promote_adapter(mlflow_workspace, store, "tiny", adapter)
    tiny.write_images(mlflow_workspace.raw("tiny")).write_parquet(place / artifacts.PREDICTIONS)
    with store.client() as client:
        client.log_artifact(version.run_id, str(place / artifacts.PREDICTIONS))
    file = mlflow_workspace.domain_file("tiny")
    shown = {"classes": list(tiny.CLASSES), "layout": "folders", "backbone": "embedded", "img_size": 32}
    shown |= {"licence": "CC0-1.0"}
    file.write_text(json.dumps({"name": "tiny", "task": "classification", **shown}))
    return mlflow_workspace


def test_the_command_writes_proves_logs_and_verifies(champion: Workspace, store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    answer = run_tessera(champion.root, "export-model", "tiny", str(folder), "--int8")
    said = answer.read(ModelExport)
    assert said.card.int8
    assert answer.code == int(not said.card.int8.kept)
    assert said.card.verified
    assert not said.card.verified.synthetic
    assert said.card.verified.equal == 8
    assert [str(link) for link in said.card.licences[::2]] == ["backbone embedded: apache-2.0", "data tiny: cc0-1.0"]
    assert (folder / "model.int8.onnx").exists() == said.card.int8.kept
    with store.client() as client:
        version = client.get_model_version("tiny", "1")
        assert version.tags[artifacts.EXPORT_TAG] == hash_file(folder / "model.onnx")
        logged = {item.path for item in client.list_artifacts(version.run_id, artifacts.EXPORT)}
    assert {f"export/{name}" for name in said.files} | {"export/proofs"} == logged
    again = run_tessera(champion.root, "export-model", "tiny", "1", str(folder), "--verify", as_json=False)
    assert (again.code, "8 of 8" in again.stdout) == (0, True), again.stderr
    raw = next((champion.raw("tiny")).rglob("*.png"))
    done = subprocess.run(
        [sys.executable, "-I", str(folder / "prepare.py"), str(raw), __file__],
        capture_output=True,
        text=True,
        check=False,
    )
    good, bad = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, good["label"] in tiny.CLASSES, "no image" in str(bad) or "error" in bad) == (1, True, True)
    (folder / "card.json").write_text((folder / "card.json").read_text().replace(said.card.adapter, "0" * 64))
    changed = run_tessera(champion.root, "export-model", "tiny", str(folder), "--verify")
    assert changed.code == 1
    assert "which is registered" in changed.outcome["problems"][0]


@pytest.mark.parametrize(("words", "expected"), [
    (["7", "DIR"], "a registered version"), (["3"], "[VERSION] DIR"), (["DIR", "2"], "[VERSION] DIR"),
    (["FULL"], "a new or empty folder"), (["EMPTY", "--verify"], "its card.json"),
])  # fmt: skip
def test_what_cannot_be_exported_is_refused(
    champion: Workspace, tmp_path: Path, words: list[str], expected: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("mine")
    places = {"DIR": str(tmp_path / "new"), "FULL": str(tmp_path / "full"), "EMPTY": str(tmp_path)}
    answer = run_tessera(champion.root, "export-model", "tiny", *(places.get(word, word) for word in words))
    assert answer.code == 2
    assert expected in answer.outcome["error"]["expected"]
    assert not (tmp_path / "new").exists()


def test_a_failing_export_leaves_nothing(champion: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: ExportJob) -> Card:
        (job.folder / "model.onnx").write_bytes(b"half")
        raise AdapterError("export", expected="equal answers", found="others", hint="")

    monkeypatch.setattr(export_model, "export_adapter", fail)
    with pytest.raises(AdapterError):
        export_model.export_model(champion, "tiny", None, tmp_path / "new", int8=False)
    assert list(tmp_path.iterdir()) == []


def test_int8_without_test_images_is_refused_before_any_work(
    champion: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workspace, "raw", lambda self, name: tmp_path / "gone")
    with pytest.raises(DataError, match="images of its test split"):
        export_model.export_model(champion, "tiny", None, tmp_path / "new", int8=True)
    assert list(tmp_path.iterdir()) == []


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(AdapterError, match=r"found no onnxruntime\. Install them: `pip install 'tessera\[export\]'`"):
        exporting.require_libraries()
