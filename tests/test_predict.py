"""What a champion is asked and what it answers: crops, folders, bad pictures, changed adapters, moved aliases."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
from PIL import Image
from samples import save_coco, write_annotation, write_table
from tiny import promote

from components.data.annotations.crops import square_around
from components.domain.domain import Domain
from components.errors import DataError, PromotionError, TesseraError
from components.models.adapter import load_meta
from components.models.weights import load_adapter, save_adapter
from components.promotion import aliases, ledger, verify, versions
from components.records.jobs import Result, load_predictions
from components.records.predictions import Predictions, Unanswered
from components.serving.box_lists import ask_with_file
from components.serving.predictor import Predictor
from components.serving.questions import find_pictures, parse_box
from components.tracking import artifacts, runs
from components.tracking.store import Store
from components.workspace import Workspace
from flows import retrain
from flows.commands import predict as command
from flows.commands.doctor import check_champions
from flows.steps import history

LIMITS = {"max_megapixels": 0.05, "min_side": 16}


def predict(*arguments: Any, **options: Any) -> dict[str, Any]:
    """What `tessera predict --json` prints."""
    return command.predict(*arguments, **options).model_dump()


def code_of(outcome: dict[str, Any]) -> int:
    """The exit code of `tessera predict`."""
    record = Unanswered if "error" in outcome else Predictions
    return command.exit_code(record.model_validate(outcome))


@pytest.fixture(scope="module")
def workspace(mlflow_workspace: Workspace) -> Workspace:
    return mlflow_workspace


def create_domain(name: str, layout: Any) -> Domain:
    return tiny.create_domain(name=name, layout=layout, validation=LIMITS, candidates=["linear"])


def cut_up(folder: Path) -> None:
    """The tiny tiles pasted two by two into larger pictures, and the manifest of the crops they are there."""
    rows = tiny.write_images(folder / "tiles")
    crops = []
    for number in range(rows.height):
        row = rows.row(number, named=True)
        sheet = Image.new("RGB", (150, 100), (5, 90, 5))
        box = [20 + number % 60, 10 + number % 40, 20 + number % 60 + 32, 10 + number % 40 + 24]
        sheet.paste(Image.open(folder / "tiles" / row["path"]), box[:2])
        (path := folder / "raw" / f"{number:02}.png").parent.mkdir(exist_ok=True)
        sheet.save(path)
        digest = tiny.hashlib.sha256(path.read_bytes()).hexdigest()
        crops.append(row | {"id": f"{digest}#{','.join(map(str, box))}", "path": path.name, "crop": box})
    schema = {"crop": pl.List(pl.Int64)}
    pl.DataFrame(crops, schema_overrides=schema).sort("path", "id").write_parquet(folder / "manifest.parquet")


def register(store: Store, domain: Domain, result: Result) -> versions.Version:
    run_id = runs.start_parent(store, domain, tiny.DATA_VERSION, "f", "c0ffee")
    uri = artifacts.log_model(store, run_id, result.folder / "adapter")
    facts = {"adapter_sha256": result.adapter_sha256, "tuner": result.label, "data_version": tiny.DATA_VERSION}
    version = aliases.register_challenger(domain.name, run_id, uri, **facts)
    found = versions.load_version(domain.name, version)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def crops(store: Store, workspace: Workspace) -> Result:
    """A champion of crops named `parts`."""
    folder, domain = workspace.root / "crops", create_domain("parts", {"kind": "csv", "crop": "crop"})
    folder.mkdir()
    cut_up(folder)
    result = tiny.train(folder, domain, {"kind": "linear"})
    version = register(store, domain, result)
    promote(workspace, "parts", version.version, expected=None, reason="first")
    return result


@pytest.fixture(scope="module")
def pictures(store: Store, workspace: Workspace) -> Result:
    """A champion of whole pictures named `plain`."""
    folder, domain = workspace.root / "plain", create_domain("plain", "folders")
    folder.mkdir()
    result = tiny.train(folder, domain, {"kind": "linear"})
    version = register(store, domain, result)
    promote(workspace, "plain", version.version, expected=None, reason="first")
    return result


def read_crops(result: Result) -> tuple[Path, pl.DataFrame]:
    """The folder of pictures, and the test crops with what evaluation said of them."""
    root = result.folder.parents[1]
    manifest = pl.read_parquet(root / "manifest.parquet").select("id", "crop")
    return root / "raw", load_predictions(result.folder, "test").join(manifest, on="id").sort("path")


@pytest.mark.slow
def test_the_adapter_says_what_an_input_is(crops: Result, pictures: Result) -> None:
    asked = [load_meta(result.folder / "adapter").input for result in (crops, pictures)]
    assert [one and one.model_dump() for one in asked] == [
        {"kind": kind, "cut": "box", "fit": "squash"} | LIMITS for kind in ("crop", "picture")
    ]


# Boxes


def write_csv_boxes(folder: Path, raw: Path, rows: pl.DataFrame) -> Path:
    lines = [(str(raw / row["path"]), " ".join(map(str, row["crop"]))) for row in rows.to_dicts()]
    return write_table(folder / "boxes.csv", [("image", "box"), *lines])


def write_corners(folder: Path, raw: Path, rows: pl.DataFrame) -> Path:
    lines = [(row["path"], *map(str, row["crop"])) for row in rows.to_dicts()]
    path = write_table(folder / "boxes.csv", [("File_Name", "xmin", "ymin", "xmax", "ymax"), *lines])
    path.write_text(path.read_text().replace(",", ";"))
    return path


def write_coco_boxes(folder: Path, raw: Path, rows: pl.DataFrame) -> Path:
    images = [{"id": number, "file_name": row["path"]} for number, row in enumerate(rows.to_dicts())]
    boxes = [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in rows["crop"]]
    annotations = [
        {"id": number, "image_id": number, "category_id": 1, "bbox": list(box)} for number, box in enumerate(boxes)
    ]
    save_coco(folder / "boxes.json", images, annotations, [{"id": 1, "name": "red"}])
    return folder / "boxes.json"


def write_voc_boxes(folder: Path, raw: Path, rows: pl.DataFrame) -> Path:
    for row in rows.to_dicts():
        x0, y0, x1, y1 = row["crop"]
        objects = [("red", (x0 + 1, y0 + 1, x1, y1))]
        write_annotation(folder / "voc" / f"{row['path'][:-4]}.xml", row["path"], objects)
    return folder / "voc"


WRITERS = [write_csv_boxes, write_corners, write_coco_boxes, write_voc_boxes]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_boxes_give_what_evaluation_gave(
    write: Callable[..., Path], crops: Result, workspace: Workspace, tmp_path: Path
) -> None:
    raw, rows = read_crops(crops)
    outcome = predict(workspace, "parts", [raw], boxes_file=write(tmp_path, raw, rows))
    answered = [row for row in outcome["predictions"] if row["error"] is None]
    assert [Path(row["path"]).name for row in answered] == rows["path"].to_list()
    assert [list(row["crop"]) for row in answered] == rows["crop"].to_list()
    for name in tiny.CLASSES:
        found = [row["probabilities"][name] for row in answered]
        assert found == pytest.approx(rows[f"p_{name}"].to_list(), abs=2e-2)
    unnamed = [row for row in outcome["predictions"] if row["error"] is not None]
    assert len(answered) + len(unnamed) == len(list(raw.iterdir()))
    assert all(row["error"]["expected"].startswith("boxes of it in") for row in unnamed)
    assert (outcome["failed"], code_of(outcome)) == (len(unnamed), 1)


def test_a_file_of_boxes_finds_its_pictures(crops: Result, workspace: Workspace) -> None:
    raw, rows = read_crops(crops)
    file = write_coco_boxes(raw.parent, raw, rows)
    outcome = predict(workspace, "parts", [], boxes_file=file)
    assert [Path(row["path"]).name for row in outcome["predictions"]] == rows["path"].to_list()
    assert code_of(outcome) == 0
    one = predict(workspace, "parts", [raw / rows["path"][0]], boxes_file=file)
    assert len(one["predictions"]) == 1


def test_the_same_box_by_hand(crops: Result, workspace: Workspace) -> None:
    raw, rows = read_crops(crops)
    row = rows.row(0, named=True)
    text = ",".join(map(str, row["crop"]))
    (by_hand, wide) = predict(workspace, "parts", [raw / row["path"]], boxes=[text, "0 0 150 100"])["predictions"]
    assert by_hand["label"] == row["predicted"]
    assert by_hand["probabilities"] != wide["probabilities"]


REFUSED = {
    "parts": [
        ({}, "expected a box, because this adapter was trained on crops"),
        ({"boxes": ["0,0,32,24"], "whole": True}, "a whole picture without a box, as `whole` says"),
        ({"boxes": ["0,0,32"]}, "a box x0,y0,x1,y1 in pixels; found '0,0,32'"),
        ({"boxes": ["0,0,1.5,9"]}, "a box x0,y0,x1,y1"),
        ({"boxes": ["0,0,9,9"], "boxes_file": Path("x.csv")}, "--box or --boxes; found both"),
        ({"boxes_file": Path("gone.csv")}, "found nothing there"),
    ],
    "plain": [({"boxes": ["0,0,32,24"]}, "a whole picture without a box, because this adapter was trained on whole")],
}


@pytest.mark.parametrize(
    ("name", "options", "words"), [(name, *case) for name, cases in REFUSED.items() for case in cases]
)
def test_what_cannot_be_asked_is_refused(
    name: str, options: dict[str, Any], words: str, crops: Result, pictures: Result, workspace: Workspace
) -> None:
    (path, *_) = sorted((workspace.root / "crops" / "raw").iterdir())
    with pytest.raises(DataError) as caught:
        predict(workspace, name, [path], **options)
    assert words in str(caught.value)


def test_crops_that_somebody_cut_are_whole_pictures(crops: Result, workspace: Workspace, tmp_path: Path) -> None:
    raw, rows = read_crops(crops)
    row = rows.row(0, named=True)
    Image.open(raw / row["path"]).crop(row["crop"]).save(tmp_path / "crop.png")
    (answer,) = predict(workspace, "parts", [tmp_path / "crop.png"], whole=True)["predictions"]
    assert answer["probabilities"]["red"] == pytest.approx(row["p_red"], abs=2e-2)


BOXES = {
    "0,0,160,24": "inside the 150 x 100 picture",
    "40,0,20,24": "inside the 150 x 100 picture",
    "-3,0,30,24": "inside the 150 x 100 picture",
    "0,0,8,24": "an object of at least 16 x 16 pixels",
    "110,60,150,100": "one value in every pixel",
}


def test_a_box_is_refused_as_check_refuses_it(crops: Result, workspace: Workspace) -> None:
    (path, *_) = sorted((workspace.root / "crops" / "raw").iterdir())
    rows = predict(workspace, "parts", [path], boxes=[*BOXES, "0,0,80,80"])["predictions"]
    for row, words in zip(rows, BOXES.values(), strict=False):
        assert words in row["error"]["message"]
    assert rows[-1]["label"] in tiny.CLASSES
    (answer,) = predict(workspace, "parts", [path], boxes=["-2,0,80,102"])["predictions"]
    assert (answer["box"], answer["crop"]) == ((-2, 0, 80, 102), (0, 0, 80, 100))  # clipped, as import clips it


def test_instances_are_cut_as_training_cuts_them(pictures: Result, workspace: Workspace, tmp_path: Path) -> None:
    """The box of an object becomes the square around it."""
    predictor = Predictor(pictures.folder / "adapter")
    known = predictor.meta.input
    assert known is not None
    meta = predictor.meta.model_copy(update={"input": known.model_copy(update={"kind": "crop", "cut": "square"})})
    save_adapter(tmp_path / "adapter", load_adapter(predictor.resident.folder)[0], meta)
    path = next((workspace.root / "plain" / "raw").rglob("*.png"))
    (answer,) = Predictor(tmp_path / "adapter").predict([path], boxes=[(1, 2, 9, 8)])
    assert (answer.box, answer.crop) == ((1, 2, 9, 8), square_around((1, 2, 9, 8), 32, 24))


@pytest.mark.parametrize(("crops_of", "kind"), [((), "picture"), ((0, 1), "crop"), ((1,), "either")])
def test_what_training_was_given_is_recorded(crops_of: tuple[int, ...], kind: str, tmp_path: Path) -> None:
    from components.training.run import _describe_input

    job = tiny.create_job(tmp_path, create_domain("parts", "folders"), {"kind": "linear"}, 0, tmp_path)
    cells = [[0, 0, 20, 20] if number in crops_of else None for number in range(2)]
    manifest = pl.DataFrame({"crop": cells}, schema={"crop": pl.List(pl.Int64)})
    assert _describe_input(job, manifest).kind == kind


def encode(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_the_served_model_takes_boxes(crops: Result, pictures: Result, workspace: Workspace) -> None:
    import mlflow
    import pandas as pd

    raw, rows = read_crops(crops)
    row = rows.row(0, named=True)
    model = mlflow.pyfunc.load_model("models:/parts@champion")
    assert [(column.name, column.required) for column in model.metadata.signature.inputs.inputs] == [
        ("image", True),
        ("box", False),
    ]
    image, box = encode(raw / row["path"]), " ".join(map(str, row["crop"]))
    answer = model.predict(pd.DataFrame({"image": [image], "box": [box]}))
    assert answer["p_red"][0] == pytest.approx(row["p_red"], abs=2e-2)
    for frame in (pd.DataFrame({"image": [image]}), pd.DataFrame({"image": [image] * 2, "box": [box, None]})):
        with pytest.raises(DataError, match=r"image in row \d: expected a box"):
            model.predict(frame)
    assert len(model.predict(pd.DataFrame({"image": [image]}), params={"whole": True})) == 1
    with pytest.raises(DataError, match="box in row 0: expected a box x0,y0,x1,y1"):
        model.predict(pd.DataFrame({"image": [image], "box": ["left"]}))
    plain = mlflow.pyfunc.load_model("models:/plain@champion")
    with pytest.raises(DataError, match="image in row 0: expected a whole picture without a box"):
        plain.predict(pd.DataFrame({"image": [image], "box": [box]}))


def test_an_adapter_that_does_not_say_is_doubted(pictures: Result, tmp_path: Path) -> None:
    predictor = Predictor(pictures.folder / "adapter")
    save_adapter(
        tmp_path / "old", load_adapter(predictor.resident.folder)[0], predictor.meta.model_copy(update={"input": None})
    )
    old = Predictor(tmp_path / "old")
    assert predictor.doubt == ""
    assert "trained before adapter.json said what an input is" in old.doubt
    path = next((pictures.folder.parents[1] / "raw").rglob("*.png"))
    assert len(old.predict([path, path], boxes=[None, (0, 0, 20, 20)])) == 2


# Bad pictures


def _with_hole(path: Path) -> None:
    Image.open(path).convert("RGBA").save(path)
    holed = Image.open(path)
    holed.putpixel((2, 2), (1, 2, 3, 0))
    holed.save(path)


def _deepen(path: Path) -> None:
    Image.fromarray(np.arange(32 * 24, dtype=np.uint16).reshape(24, 32) * 80).save(path)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "transparent": (_with_hole, "transparent pixels"),
    "deep": (_deepen, "8 bits per channel"),
    "large": (lambda path: Image.effect_noise((400, 200), 50).save(path), "at most 0.05 megapixels"),
    "narrow": (lambda path: Image.effect_noise((40, 9), 50).save(path), "sides of at least 16 pixels"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-300]), "decoded to its end"),
    "text": (lambda path: path.write_text("no image"), "found a file in another format"),
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
}


def test_a_bad_picture_never_fails_the_others(pictures: Result, workspace: Workspace, tmp_path: Path) -> None:
    good = next((workspace.root / "plain" / "raw").rglob("*.png"))
    for name, (spoil, _) in BAD.items():
        (path := tmp_path / "sub" / f"{name}.png").parent.mkdir(exist_ok=True)
        path.write_bytes(good.read_bytes())
        spoil(path)
    (tmp_path / "a.png").write_bytes(good.read_bytes())
    (tmp_path / "z.PNG").write_bytes(good.read_bytes())
    (tmp_path / "notes.txt").write_text("not asked")
    outcome = predict(workspace, "plain", [tmp_path, tmp_path / "gone.png"])
    names = [str(Path(row["path"]).relative_to(tmp_path)) for row in outcome["predictions"]]
    assert names == ["a.png", *(f"sub/{name}.png" for name in sorted(BAD)), "z.PNG", "gone.png"]
    errors = {Path(row["path"]).stem: row["error"] for row in outcome["predictions"] if row["error"]}
    for name, (_, words) in BAD.items():
        assert words in errors[name]["message"]
        assert all(errors[name][key] for key in ("expected", "found", "hint"))
    assert outcome["predictions"][0]["probabilities"] == outcome["predictions"][-2]["probabilities"]
    assert (outcome["answered"], outcome["failed"], code_of(outcome)) == (2, len(BAD) + 1, 1)
    assert [Path(item["path"]).name for item in outcome["ignored"]] == ["notes.txt"]
    assert "error" not in outcome
    none = predict(workspace, "plain", [tmp_path / "sub"])
    assert (code_of(none), none["error"]) == (2, none["predictions"][0]["error"])
    assert code_of(predict(workspace, "plain", [tmp_path / "a.png"])) == 0


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one picture"):
        find_pictures([tmp_path])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"found 1 other files: .*notes\.txt"):
        find_pictures([tmp_path])
    with pytest.raises(DataError, match=r"gone\.jpg: expected an image file or a folder; found nothing there"):
        find_pictures([tmp_path / "gone.jpg"])


@pytest.mark.parametrize("text", ["1,2,30,40", "1 2 30 40", " [1, 2, 30, 40] ", "1.0,2.0,30.0,40.0"])
def test_boxes_as_people_write_them(text: str) -> None:
    assert parse_box(text, "--box") == (1, 2, 30, 40)


@pytest.mark.parametrize("text", ["0 0 9 9" + " " * 1_000_000 + "x", "1" * 1_000_000])
def test_a_text_of_any_length_that_is_no_box_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(DataError, match="expected a box") as refused:
        parse_box(text, "--box")
    assert len(str(refused.value)) < 500


def test_yolo_label_files_are_refused_with_the_form_to_write(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "000.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "000.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.3 0.5 0.2 0.2\n")
    for file in (tmp_path / "labels", tmp_path / "labels" / "000.txt"):
        with pytest.raises(DataError, match=r"csv with the columns image, x0, y0, x1 and y1: YOLO"):
            ask_with_file([tmp_path / "000.png"], file)


# Changed adapters


def change(folder: Path, **changes: Any) -> None:
    path = folder / "adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def swap(folder: Path, other: Result) -> None:
    """The whole adapter of another domain, which is right in itself."""
    for path in (other.folder / "adapter").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


EDITS: dict[str, Callable[[Path, Result], object]] = {
    "classes": lambda folder, _: change(folder, classes=["light", "dark", "red"]),
    "temperature": lambda folder, _: change(folder, temperature=40.0),
    "thresholds": lambda folder, _: change(folder, thresholds={"red": 0.01}),
    "input": lambda folder, _: change(folder, input=None),
    "another adapter": swap,
    "a further file": lambda folder, _: (folder / "notes.py").write_text("1"),
    "no weights": lambda folder, _: (folder / "adapter.safetensors").unlink(),
    "no record": lambda folder, _: (folder / "adapter.json").unlink(),
}


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """The folder's files as they were, afterwards."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    try:
        yield
    finally:
        for path in folder.iterdir():
            path.unlink()
        for path, data in before.items():
            path.write_bytes(data)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("where", ["store", "cache"])
def test_an_edited_adapter_is_refused_everywhere(
    where: str, edit: Callable[[Path, Result], object], crops: Result, pictures: Result, workspace: Workspace
) -> None:
    import mlflow

    path = next((workspace.root / "plain" / "raw").rglob("*.png"))
    champion = aliases.require_champion("plain")
    cached = versions.fetch_adapter(champion, workspace.adapters)
    (stored,) = (workspace.state / "mlflow" / "artifacts" / "plain").glob("models/*/**/adapter")
    with kept(cached), kept(stored):
        edit(cached if where == "cache" else stored, crops)
        if where == "store":
            for copy in cached.iterdir():
                copy.unlink()
            cached.rmdir()
        try:
            with pytest.raises(PromotionError, match="plain version 1: expected"):
                predict(workspace, "plain", [path])
            assert history.verify_ledger(workspace, "plain", None).problems
            assert history.find_faults(workspace, "plain")
            if where == "store":
                with pytest.raises(TesseraError):
                    mlflow.pyfunc.load_model("models:/plain@champion")
        finally:
            cached.mkdir(exist_ok=True)
    assert history.verify_ledger(workspace, "plain", None).problems == ()


TAGS = {
    "a path": (ledger.WEIGHTS_TAG, "../../x", "which is no sha256"),
    "a path, too": (ledger.META_TAG, "../../x", "which is no sha256"),
    "upper case": (ledger.META_TAG, "A" * 64, "which is no sha256"),
    "other weights": (ledger.WEIGHTS_TAG, "0" * 64, "an adapter with sha256 000"),
    "another record": (ledger.META_TAG, "0" * 64, "record 1 is of another adapter than version 1 names"),
    "gone": (ledger.META_TAG, None, "record 1 is of another adapter than version 1 names"),
}


@pytest.mark.parametrize(("tag", "value", "words"), TAGS.values(), ids=TAGS)
def test_an_edited_tag_is_refused(
    tag: str, value: str | None, words: str, pictures: Result, workspace: Workspace
) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    before = client.get_model_version("plain", "1").tags[tag]
    if value is None:
        client.delete_model_version_tag("plain", "1", tag)
    else:
        client.set_model_version_tag("plain", "1", tag, value)
    try:
        path = next((workspace.root / "plain" / "raw").rglob("*.png"))
        with pytest.raises(PromotionError, match="plain version 1: expected"):
            predict(workspace, "plain", [path])
        assert words in " ".join(history.verify_ledger(workspace, "plain", None).problems)
        assert not (workspace.adapters / "../../x").resolve().exists()
    finally:
        client.set_model_version_tag("plain", "1", tag, before)
    assert history.verify_ledger(workspace, "plain", None).problems == ()


def test_what_is_from_before_works_and_is_called_not_bound(
    store: Store, pictures: Result, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliases, "read_binding", lambda uri: "")
    domain = create_domain("older", "folders")
    version = register(store, domain, pictures)
    promote(workspace, "older", version.version, expected=None, reason="first")
    path = next((workspace.root / "plain" / "raw").rglob("*.png"))
    outcome = predict(workspace, "older", [path])
    assert code_of(outcome) == 0
    assert "Version 1 is not bound" in outcome["warnings"][0]
    verified = history.verify_ledger(workspace, "older", None)
    assert (verified.problems, len(verified.notes)) == ((), 1)


# Registered once, moved by hand


class Killed(BaseException):
    """In place of a kill: nothing catches it."""


def test_an_adapter_is_registered_once_through_a_kill(
    store: Store, pictures: Result, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = create_domain("once", "folders")

    def kill(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(aliases, "_set_alias", kill)
        with pytest.raises(Killed):
            register(store, domain, pictures)
    assert versions.load_version("once", versions.CHALLENGER) is None
    found = retrain.find_registered(workspace, "once", pictures.folder / "adapter")
    assert found is not None
    assert found.version == 1
    facts = {"adapter_sha256": pictures.adapter_sha256, "tuner": "linear", "data_version": tiny.DATA_VERSION}
    assert aliases.register_challenger("once", found.run_id, found.source, **facts) == 1
    challenger = versions.load_version("once", versions.CHALLENGER)
    assert challenger is not None
    assert (challenger.version, versions.load_version("once", 2)) == (1, None)


def test_other_answers_are_another_adapter(pictures: Result, workspace: Workspace, tmp_path: Path) -> None:
    """Of the same weights; where only data or code differ it is the same."""
    predictor = Predictor(pictures.folder / "adapter")
    for change_of, same in (({"temperature": 9.0}, False), ({"git_commit": "feed"}, True)):
        save_adapter(
            tmp_path / "adapter",
            load_adapter(predictor.resident.folder)[0],
            predictor.meta.model_copy(update=change_of),
        )
        assert (retrain.find_registered(workspace, "plain", tmp_path / "adapter") is not None) is same


@pytest.mark.slow
def test_a_champion_moved_by_hand_is_reported_and_restored(
    store: Store, pictures: Result, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setattr(aliases, "PATIENCE", 0.0)
    client, domain = mlflow.MlflowClient(), create_domain("moved", "folders")
    path = next((workspace.root / "plain" / "raw").rglob("*.png"))
    for expected in (None, 1):
        version = register(store, domain, pictures).version
        promote(workspace, "moved", version, expected=expected, reason="better")
    (workspace.root / "data" / "moved").mkdir(parents=True)
    (workspace.root / "data" / "moved" / "domain.yaml").write_text("")
    for move, words in (
        (lambda: client.set_registered_model_alias("moved", "champion", "1"), "at version 1: it was moved by hand"),
        (lambda: client.delete_registered_model_alias("moved", "champion"), "no such alias: it was deleted by hand"),
    ):
        move()
        with pytest.raises(PromotionError, match=words) as caught:
            predict(workspace, "moved", [path])
        assert "`tessera ledger restore moved`" in caught.value.hint
        assert words in check_champions(workspace).found
        restored = history.restore(workspace, "moved")
        assert (restored.champion_version, restored.found) == (2, words)
        assert predict(workspace, "moved", [path])["version"] == 2
        assert verify.verify_records("moved") == ()
        assert check_champions(workspace).state == "ok"
    client.delete_model_version("moved", "2")
    with pytest.raises(PromotionError, match="version 2 was deleted, which MLflow cannot undo") as caught:
        predict(workspace, "moved", [path])
    assert "`tessera promote moved VERSION`" in caught.value.hint


def test_an_alias_without_any_record_serves_nothing(
    store: Store, pictures: Result, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setattr(aliases, "PATIENCE", 0.0)
    register(store, create_domain("byhand", "folders"), pictures)
    mlflow.MlflowClient().set_registered_model_alias("byhand", "champion", "1")
    with pytest.raises(PromotionError, match="no record of the ledger made one"):
        aliases.require_champion("byhand")
    assert history.restore(workspace, "byhand").champion_version is None
    with pytest.raises(PromotionError, match="expected a champion; found none"):
        aliases.require_champion("byhand")


def test_what_was_deleted_in_mlflow_is_said(store: Store, pictures: Result, workspace: Workspace) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    version = register(store, create_domain("deleted", "folders"), pictures)
    promote(workspace, "deleted", version.version, expected=None, reason="first")
    client.delete_run(version.run_id)  # the version has its own copy of the adapter
    path = next((workspace.root / "plain" / "raw").rglob("*.png"))
    assert predict(workspace, "deleted", [path])["answered"] == 1
    run_id = ledger.load_ledger("deleted").run_id
    client.delete_run(run_id)
    assert f"mlflow runs restore --run-id {run_id}" in " ".join(history.find_faults(workspace, "deleted"))
    client.delete_registered_model("deleted")
    with pytest.raises(PromotionError, match=f"deleted in MLflow, which cannot be undone.*{run_id}"):
        predict(workspace, "deleted", [path])


def test_an_image_in_memory_is_limited_as_well(pictures: Result) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((400, 200), 50).save(buffer, "PNG")
    for source in (Image.open(io.BytesIO(buffer.getvalue())), io.BytesIO(buffer.getvalue())):
        with pytest.raises(DataError, match=r"at most 0\.05 megapixels"):
            Predictor(pictures.folder / "adapter").predict([source])
