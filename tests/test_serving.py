"""A trained adapter answers: in Python, through MLflow's alias, and behind `mlflow models serve`."""

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
from PIL import Image
from tiny import promote

from components.errors import AdapterError, DataError, PromotionError
from components.files import hash_file
from components.promotion import aliases, versions
from components.records.jobs import Result, load_predictions
from components.serving.predictor import Predictor
from components.serving.questions import Question
from components.tracking import artifacts, runs
from components.tracking.store import Store
from components.training.run import do_job
from components.workspace import Workspace
from flows.processes.answering import Answering


@pytest.fixture(scope="module")
def workspace(mlflow_workspace: Workspace) -> Workspace:
    return mlflow_workspace


@pytest.fixture(scope="module")
def result(workspace: Workspace) -> Result:
    return tiny.train(workspace.root, tiny.create_domain(), {"kind": "vpt"})


@pytest.fixture(scope="module")
def predictor(result: Result) -> Predictor:
    return Predictor(result.folder / "adapter")


@pytest.fixture(scope="module")
def champion(store: Store, workspace: Workspace, result: Result) -> versions.Version:
    """The adapter logged as a model, registered and promoted."""
    domain = tiny.create_domain()
    run_id = runs.start_parent(store, domain, tiny.DATA_VERSION, "f", "c0ffee")
    uri = artifacts.log_model(store, run_id, result.folder / "adapter")
    facts = {"adapter_sha256": result.adapter_sha256, "tuner": result.label, "data_version": tiny.DATA_VERSION}
    version = aliases.register_challenger(domain.name, run_id, uri, **facts)
    return promote(workspace, domain.name, version, expected=None, reason="first")


def encode(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_the_predictor_gives_what_evaluation_gave(predictor: Predictor, result: Result, workspace: Workspace) -> None:
    test = load_predictions(result.folder, "test")
    answers = predictor.predict([workspace.root / "raw" / path for path in test["path"]], batch_size=5)
    assert [answer.label for answer in answers] == test["predicted"].to_list()
    for name in tiny.CLASSES:
        found = np.array([answer.probabilities[name] for answer in answers])
        assert found == pytest.approx(test[f"p_{name}"].to_numpy(), abs=2e-2 if _is_reduced(predictor) else 1e-5)
    assert Path(answers[0].path).name == Path(test["path"][0]).name


@pytest.mark.parametrize(("fit", "img_size"), [("letterbox", 48), ("letterbox", [32, 80]), ("squash", [32, 80])])
def test_a_picture_is_brought_to_size_as_the_adapter_was_trained(tmp_path: Path, fit: str, img_size: Any) -> None:
    """By the predictor, and where a version is scored that was trained with settings other than today's."""
    domain = tiny.create_domain(fit=fit, img_size=img_size, backbone="embedded", augmentation="industrial")
    result = tiny.train(tmp_path, domain, {"kind": "vpt"})
    record = json.loads((result.folder / "adapter" / "adapter.json").read_text())
    assert (record["input"]["fit"], record["backbone"]["img_size"]) == (fit, img_size)
    predictor, test = Predictor(result.folder / "adapter"), load_predictions(result.folder, "test")
    answers = predictor.predict([tmp_path / "raw" / path for path in test["path"]])
    found = np.array([[answer.probabilities[name] for name in tiny.CLASSES] for answer in answers])
    expected = test.select(f"p_{name}" for name in tiny.CLASSES).to_numpy()
    np.testing.assert_allclose(found, expected, atol=2e-2 if _is_reduced(predictor) else 1e-5)
    today = tiny.create_domain(backbone="embedded", img_size=64)
    job = tiny.create_job(tmp_path, today, {"kind": "vpt"}, 0, tmp_path / "scored")
    do_job(
        job.model_copy(update={"action": "score", "adapter": result.folder / "adapter"}), lambda event, **facts: None
    )
    assert load_predictions(tmp_path / "scored", "test").equals(test)


def _is_reduced(predictor: Predictor) -> bool:
    return str(predictor.rack.engine.dtype) != "torch.float32"  # bfloat16 sums differ with the batch


def test_an_image_in_memory_is_the_same_image(predictor: Predictor, workspace: Workspace) -> None:
    path = next((workspace.root / "raw").rglob("*.png"))
    (from_disk,) = predictor.predict([path])
    (from_memory,) = predictor.predict([Image.open(path)])
    assert from_memory.probabilities == from_disk.probabilities
    assert from_memory.path == ""
    assert sum(from_disk.probabilities.values()) == pytest.approx(1)


def test_no_images_no_answers(predictor: Predictor) -> None:
    assert predictor.predict([]) == []


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_an_unreadable_image_is_named(predictor: Predictor, tmp_path: Path, content: bytes) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.png: expected an image"):
        predictor.predict([bad])
    with pytest.raises(DataError, match=r"gone\.png: expected a readable image"):
        predictor.predict([tmp_path / "gone.png"])


def test_a_damaged_adapter_is_refused(result: Result, tmp_path: Path) -> None:
    with pytest.raises(AdapterError):
        Predictor(tmp_path)


def test_the_champion_loads_by_alias(champion: versions.Version, predictor: Predictor, workspace: Workspace) -> None:
    import mlflow
    import pandas as pd

    paths = sorted((workspace.root / "raw").rglob("*.png"))[:3]
    model = mlflow.pyfunc.load_model("models:/tiny@champion")
    answer = model.predict(pd.DataFrame({"image": [encode(path) for path in paths]}))
    assert list(answer.columns) == ["label", "p_dark", "p_light", "p_red"]
    expected = predictor.predict(paths)
    assert list(answer["label"]) == [one.label for one in expected]
    assert answer["p_red"].to_numpy() == pytest.approx([one.probabilities["red"] for one in expected], abs=1e-6)


def test_nothing_in_the_model_is_pickled(champion: versions.Version, workspace: Workspace) -> None:
    (folder,) = (workspace.state / "mlflow" / "artifacts" / "tiny" / "models").iterdir()
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"adapter.safetensors", "adapter.json", "pyfunc.py", "MLmodel"} <= names
    assert not {name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin"))}
    required = (folder / "artifacts" / "requirements.txt").read_text()
    assert "torch==" in required
    assert "tessera" not in required  # the name is somebody else's on PyPI


@pytest.mark.parametrize("text", ["!!!", base64.b64encode(b"no image").decode(), ""])
def test_a_request_that_is_no_image_is_refused(champion: versions.Version, workspace: Workspace, text: str) -> None:
    import mlflow
    import pandas as pd

    good = encode(next((workspace.root / "raw").rglob("*.png")))
    model = mlflow.pyfunc.load_model("models:/tiny@champion")
    with pytest.raises(DataError, match="image in row 1: expected the base64 text"):
        model.predict(pd.DataFrame({"image": [good, text]}))


def test_fetched_adapters_are_those_registered(champion: versions.Version, result: Result, tmp_path: Path) -> None:
    folder = versions.fetch_adapter(champion, tmp_path)
    ours = result.folder / "adapter" / "adapter.safetensors"
    assert (folder / "adapter.safetensors").read_bytes() == ours.read_bytes()
    assert versions.fetch_adapter(champion, tmp_path) == folder
    assert list(tmp_path.iterdir()) == [folder]
    other = champion.model_copy(update={"adapter_sha256": "0" * 64})
    with pytest.raises(PromotionError, match=f"found {result.adapter_sha256}"):
        versions.fetch_adapter(other, tmp_path)


@contextlib.contextmanager
def serve(workspace: Workspace, log: Path) -> Iterator[str]:
    """`mlflow models serve` as a user runs it, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("mlflow"), "models", "serve", "--model-uri", "models:/tiny@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": workspace.tracking_uri, "PATH": path}
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            _wait_until_up(f"http://127.0.0.1:{port}/ping", process, log)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_up(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    raise AssertionError(log.read_text())


def ask(url: str, rows: list[str]) -> Any:
    body = json.dumps({"dataframe_records": [{"image": row} for row in rows]}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_mlflow_models_serve_answers(
    champion: versions.Version, predictor: Predictor, workspace: Workspace, tmp_path: Path
) -> None:
    path = next((workspace.root / "raw").rglob("*.png"))
    (expected,) = predictor.predict([path])
    with serve(workspace, tmp_path / "serve.log") as url:
        (answer,) = ask(url, [encode(path)])["predictions"]
        assert answer["label"] == expected.label
        assert answer["p_red"] == pytest.approx(expected.probabilities["red"], abs=1e-6)
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(url, ["!!!"])
        assert 400 <= refused.value.code < 600
        assert "image in row 0" in refused.value.read().decode()


def test_a_phone_picture_is_turned_upright(predictor: Predictor, workspace: Workspace) -> None:
    """EXIF orientation is honoured in a request as it is on disk."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
    turned, exif, buffer = picture.rotate(90, expand=True), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # to be turned by 270 degrees when shown
    turned.save(buffer, "PNG", exif=exif)
    upright, sideways = predictor.predict([picture, Image.open(buffer)])
    assert sideways.probabilities == pytest.approx(upright.probabilities, abs=2e-2)


def test_answers_follow_the_order_of_the_question(predictor: Predictor, workspace: Workspace) -> None:
    manifest = pl.read_parquet(workspace.root / "manifest.parquet")
    paths = [workspace.root / "raw" / path for path in manifest["path"]]
    forward, backward = predictor.predict(paths), predictor.predict(paths[::-1])
    assert [one.label for one in forward] == [one.label for one in reversed(backward)]
    assert [one.path for one in forward] == [path.as_posix() for path in paths]


def test_a_child_gives_the_predictors_answers_digit_by_digit(
    predictor: Predictor, result: Result, workspace: Workspace
) -> None:
    """While this process loads no torch for it; and a box that is not wanted, or a child's end, is an error as ever."""
    path, adapter = next((workspace.root / "raw").rglob("*.png")), result.folder / "adapter"
    (expected,) = predictor.predict([path])
    asked = [[Question(path)], [Question(path.parent / "gone.png")]]
    with Answering() as child:
        (_, here), (_, gone) = child.ask(adapter, asked)
    (found,), (missing,) = here["answers"], gone["answers"]
    assert (here["sha256"], gone["sha256"]) == (hash_file(path), None)
    assert (found["answer"], found["probabilities"]) == (expected.answer, expected.probabilities)
    assert missing["error"]["what"] == (path.parent / "gone.png").as_posix()
    with Answering() as child, pytest.raises(DataError, match="a whole picture without a box"):
        list(child.ask(adapter, [[Question(path, (0, 0, 9, 9))]]))
    with Answering() as child:
        assert child.process is not None
        child.process.kill()
        with pytest.raises(AdapterError, match="its end with exit code -9"):
            list(child.ask(adapter, [[Question(path)]]))
    assert child.process.poll() == -9
