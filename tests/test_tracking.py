"""Real candidates, trained in seconds, in a real MLflow store."""

import json
import os
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
from PIL import Image
from pydantic import ValidationError

from components.domain.domain import Domain
from components.errors import DataError, TrackingError
from components.processes import identify
from components.records.jobs import Result, load_predictions
from components.records.outcomes import CandidateRow, Outcome, Score, read_outcome
from components.reports import pictures
from components.tasks import CLASSIFICATION
from components.tracking import artifacts, candidates, outcomes, runs
from components.tracking import store as stores
from components.tracking.store import Point, Store
from components.workspace import Workspace

COMMIT = "c0ffee00" * 5
METRIC = "balanced_accuracy"


@pytest.fixture(scope="module")
def workspace(mlflow_workspace: Workspace) -> Workspace:
    return mlflow_workspace


@pytest.fixture(scope="module")
def result(workspace: Workspace) -> Result:
    return tiny.train(workspace.root, tiny.create_domain(), {"kind": "vpt"})


@pytest.fixture(scope="module")
def row(result: Result) -> CandidateRow:
    return tiny.create_row(result)


@pytest.fixture(scope="module")
def finished(store: Store, workspace: Workspace, result: Result, row: CandidateRow) -> dict[str, Any]:
    """One whole retrain; returns its ids and outcome."""
    domain = tiny.create_domain()
    keys = {"manifest_key": "manifest-1", "manifest_sha256": "0123"}
    parent = start(store, domain, "verdict-1", **keys)
    tags = {"candidate_key": "candidate-1", "train_images": "30"}
    child = candidates.log_candidate(store, parent, domain, result, row, workspace.root / "raw", **tags)
    failed = runs.start_child(store, parent, "vapt · seed 3", role="candidate", tuner="vapt", seed="3")
    runs.end_child(store, failed, "FAILED", "killed by signal 9")
    outcome = tiny.create_outcome(row.model_copy(update={"run_id": child}))
    report = workspace.root / "report.html"
    report.write_text("<html>")
    artifacts.log_data(store, parent, report)
    outcomes.log_result(store, parent, outcome, [report])
    runs.end_parent(store, parent)
    return {"parent": parent, "child": child, "failed": failed, "outcome": outcome}


def start(store: Store, domain: Domain, key: str, **keys: str) -> str:
    return runs.start_parent(store, domain, tiny.DATA_VERSION, key, COMMIT, **keys)


def get_run(run_id: str) -> Any:
    import mlflow

    return mlflow.MlflowClient().get_run(run_id)


def list_artifacts(run_id: str, folder: str | None = None) -> set[str]:
    import mlflow

    return {entry.path for entry in mlflow.MlflowClient().list_artifacts(run_id, folder)}


@pytest.mark.slow
def test_the_tree_of_runs(finished: dict[str, Any]) -> None:
    parent, child, failed = (get_run(finished[key]) for key in ("parent", "child", "failed"))
    assert [run.info.status for run in (parent, child, failed)] == ["FINISHED", "FINISHED", "FAILED"]
    assert child.data.tags["mlflow.parentRunId"] == failed.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.info.run_name == "PROMOTE vpt-deep · seed 0"
    assert child.info.run_name == "vpt-deep · seed 0"
    assert "killed by signal 9" in failed.data.tags["mlflow.note.content"]


def test_an_interval_that_is_not_known_is_no_metric(row: CandidateRow) -> None:
    unknown = row.model_copy(update={"test": Score(value=0.9, groups=2)})
    scores = {name for name in candidates.summarise_row(unknown, METRIC) if name.startswith("test/")}
    assert scores == {"test/balanced_accuracy"}


def test_a_candidate_carries_its_lineage(finished: dict[str, Any], result: Result) -> None:
    tags = get_run(finished["child"]).data.tags
    lineage = {key.removeprefix("tessera."): value for key, value in tags.items() if key.startswith("tessera.")}
    assert lineage == {
        "role": "candidate",
        "domain": "tiny",
        "data_version": tiny.DATA_VERSION,
        "split_sha256": result.split_sha256,
        "git_commit": COMMIT,
        "candidate_key": "candidate-1",
        "train_images": "30",
        "backbone": "embedded",
        "backbone_sha256": result.backbone["sha256"],
        "backbone_trained": "true",
        "backbone_licence": "apache-2.0",
        "data_licence": "unknown",
        "adapter_sha256": result.adapter_sha256,
        "seed": "0",
        "tuner": "vpt-deep",
        "selected": "true",
    }
    assert tags["mlflow.source.git.commit"] == COMMIT


def test_a_candidates_numbers(finished: dict[str, Any], result: Result) -> None:
    import mlflow

    run = get_run(finished["child"])
    assert run.data.params["tuner.kind"] == "vpt"
    assert run.data.params["training.epochs"] == "3"
    metrics = run.data.metrics
    ends = [metrics[f"test/balanced_accuracy{end}"] for end in ("", "_low", "_high")]
    assert ends == [0.9, 0.7, 0.95]
    assert {"test/macro_f1", "test/recall/red", "test/ece", "cost/training_seconds", "cost/share_of_backbone"} <= set(
        metrics
    )
    assert metrics["cost/adapter_bytes"] == result.adapter_bytes
    assert (run.data.params["candidate"], run.data.params["seed"]) == ("vpt-deep", "0")
    assert f"torch {result.environment['torch']}" in run.data.params["environment"]
    points = mlflow.MlflowClient().get_metric_history(finished["child"], "train/loss")
    assert [point.step for point in points] == [1, 2, 3]
    assert [point.value for point in points] == [epoch["train/loss"] for epoch in result.history]


def test_what_is_measured_once_is_drawn_as_a_bar_and_what_every_epoch_has_as_a_curve(finished: dict[str, Any]) -> None:
    """MLflow draws a bar where every value is of step 0."""
    import mlflow

    history = mlflow.MlflowClient().get_metric_history
    steps = {
        key: [point.step for point in history(finished["child"], key)]
        for key in ("test/balanced_accuracy", "cost/adapter_bytes", "val/loss")
    }
    assert steps == {"test/balanced_accuracy": [0], "cost/adapter_bytes": [0], "val/loss": [1, 2, 3, 3]}


def test_the_view_of_candidates_shows_what_they_have(finished: dict[str, Any]) -> None:
    import mlflow

    experiment = mlflow.MlflowClient().get_experiment_by_name("tiny")
    view = json.loads(json.loads(experiment.tags["mlflow.sharedViewState.candidates"])["state"])
    shown = {column.split("`")[1] for column in view["selectedColumns"] if column.startswith("metrics.")}
    assert shown <= set(get_run(finished["child"]).data.metrics)
    found = mlflow.MlflowClient().search_runs(
        [experiment.experiment_id], view["searchFilter"], order_by=[f"{view['orderByKey']} DESC"]
    )
    assert finished["child"] in {run.info.run_id for run in found}
    assert finished["parent"] not in {run.info.run_id for run in found}


def test_a_retrains_page_leads_to_its_candidates_and_files(finished: dict[str, Any]) -> None:
    parent, child = finished["parent"], finished["child"]
    experiment, note = get_run(child).info.experiment_id, get_run(parent).data.tags["mlflow.note.content"]
    page = f"#/experiments/{experiment}/runs/{parent}/artifacts"
    assert note.startswith("**PROMOTE**: Good enough – surely.")
    for link in (
        f"[report.html]({page}/report.html?",
        f"[data/report.html]({page}/data/report.html?",
        f"[candidates compared](#/compare-runs?runs=%5B%22{child}%22%5D&experiments=%5B%22{experiment}%22%5D&",
        "[version 7](#/models/tiny/versions/7?",
        f"[its model card](#/experiments/{experiment}/runs/{child}/artifacts/card/model_card.html?",
        f"**[vpt-deep](#/experiments/{experiment}/runs/{child}?",
    ):
        assert link in note


def test_the_chosen_epoch_counts_not_the_last(
    store: Store, workspace: Workspace, result: Result, row: CandidateRow
) -> None:
    """The weights kept are those of the best epoch; its smaller loss must not be hidden by the last epoch's."""
    worse = [*result.history[:-1], {**result.history[-1], "val/loss": result.metrics["val/loss"] + 1}]
    domain = tiny.create_domain(name="chosen")
    parent = start(store, domain, "chosen")
    ended_badly = result.model_copy(update={"history": tuple(worse)})
    child = candidates.log_candidate(store, parent, domain, ended_badly, row, workspace.root / "raw")
    assert get_run(child).data.metrics["val/loss"] == result.metrics["val/loss"]
    runs.end_parent(store, parent)


def test_the_duration_is_that_of_the_training(finished: dict[str, Any], result: Result) -> None:
    info = get_run(finished["child"]).info
    assert (info.end_time - info.start_time) / 1000 == pytest.approx(result.seconds, abs=0.01)


def test_logging_a_model_leaves_the_runs_as_they_were(store: Store, finished: dict[str, Any], result: Result) -> None:
    before = get_run(finished["child"]).info
    uri = artifacts.log_model(store, finished["child"], result.folder / "adapter")
    after = get_run(finished["child"])
    assert uri.startswith("models:/m-")
    assert (after.info.status, after.info.end_time) == ("FINISHED", before.end_time)
    assert [f"models:/{model.model_id}" for model in after.outputs.model_outputs] == [uri]
    parent = start(store, tiny.create_domain(name="parent"), "parent")
    artifacts.log_model(store, parent, result.folder / "adapter")
    assert get_run(parent).info.status == "RUNNING"
    runs.end_parent(store, parent)


def test_a_candidates_files(finished: dict[str, Any], result: Result) -> None:
    import mlflow

    assert {"adapter", "pictures", "predictions.parquet"} <= list_artifacts(finished["child"])
    assert list_artifacts(finished["child"], "adapter") == {"adapter/adapter.json", "adapter/adapter.safetensors"}
    for name in ("mistakes", "samples"):
        image = mlflow.artifacts.load_image(f"runs:/{finished['child']}/pictures/{name}.png")
        assert np.asarray(image).std() > 5


def test_runs_are_found_by_data_version(finished: dict[str, Any]) -> None:
    import mlflow

    experiment = mlflow.MlflowClient().get_experiment_by_name("tiny")
    assert experiment.tags["mlflow.note.content"].startswith("Tiny tiles: Plain tiles of three colours")
    found = mlflow.MlflowClient().search_runs(
        [experiment.experiment_id], f"dataset.digest = '{tiny.DATA_VERSION}' AND dataset.name = 'tiny'"
    )
    assert {finished["parent"], finished["child"]} <= {run.info.run_id for run in found}


def test_artifacts_are_in_the_workspace(workspace: Workspace, finished: dict[str, Any]) -> None:
    folder = workspace.state / "mlflow" / "artifacts" / "tiny" / finished["child"]
    assert (folder / "artifacts" / "adapter" / "adapter.json").is_file()


def test_each_result_is_found_by_its_key(store: Store, finished: dict[str, Any], result: Result) -> None:
    assert outcomes.find_retrain(store, "tiny", "verdict-1") == finished["outcome"]
    assert outcomes.find_retrain(store, "tiny", "verdict-2") is None
    assert outcomes.find_retrain(store, "unknown", "verdict-1") is None
    assert runs.find_manifest(store, "tiny", "manifest-1") == "0123"
    assert runs.find_manifest(store, "tiny", "manifest-2") is None
    assert runs.find_manifest(store, "unknown", "manifest-1") is None
    assert candidates.find_candidate(store, "tiny", "candidate-1") == finished["child"]
    assert candidates.find_candidate(store, "tiny", "candidate-1", finished["parent"], result.adapter_sha256)
    assert candidates.find_candidate(store, "tiny", "candidate-2") is None
    assert candidates.find_candidate(store, "tiny", "candidate-1", "another parent") is None
    assert candidates.find_candidate(store, "tiny", "candidate-1", adapter_sha256="other weights") is None
    assert candidates.find_candidate(store, "unknown", "candidate-1") is None


def test_the_cost_of_a_training_is_known_from_an_earlier_one(
    store: Store, finished: dict[str, Any], row: CandidateRow
) -> None:
    """Of the domain itself, or of another one on the same backbone."""
    cost = candidates.Cost(row.seconds, 3, 30)
    assert candidates.find_cost(store, "vpt-deep", "tiny", "any other") == cost
    assert candidates.find_cost(store, "vpt-deep", "unknown", "embedded") == cost
    assert candidates.find_cost(store, "vpt-deep", "unknown", "any 'other'") is None
    assert candidates.find_cost(store, "vpt-deep", "unknown", "any other") is None
    assert candidates.find_cost(store, "lora", "tiny", "embedded") is None


def test_a_child_leaves_a_retrain_without_an_outcome_only(
    store: Store, workspace: Workspace, finished: dict[str, Any]
) -> None:
    killed, later = (start(store, tiny.create_domain(), f"later-{k}") for k in (1, 2))
    child = runs.start_child(store, killed, "vpt · seed 9", role="candidate", tuner="vpt-deep", seed="9")
    for run_id, parent in ((child, later), (finished["child"], finished["parent"])):
        runs.adopt_child(store, later, run_id)
        assert get_run(run_id).data.tags["mlflow.parentRunId"] == parent


def test_the_last_result_is_found_without_a_key(store: Store, finished: dict[str, Any]) -> None:
    assert outcomes.load_last_result(store, "tiny") == finished["outcome"]
    assert outcomes.load_last_result(store, "unknown") is None


def test_an_outcome_of_an_older_version_is_read(row: CandidateRow) -> None:
    """One fingerprint stood for all keys, the scores of classes were recalls, and the metric was not named."""
    tuner = {"tuner": "vpt-deep", "kind": "vpt", "selected": True, "seeds": [0], "val": 0.8, "seconds": 3.0}
    tuner |= {"test": {"value": 0.9, "low": 0.7, "high": 0.95, "seeds": [0.9]}, "options": {}, "search": None}
    tuner |= {"trainable_params": 5, "head_params": 9, "share": 0.01, "adapter_bytes": 900}
    scores = {"red": 0.9, "dark": 0.8}
    new = tiny.create_outcome(row, tuners=(tuner | {"class_scores": scores},))
    stored = new.model_dump(mode="json", exclude={"manifest_key", "verdict_key", "metric", "warnings"})
    stored |= {"fingerprint": "f" * 64, "tuners": [tuner | {"recalls": scores}]}
    assert read_outcome(stored, METRIC) == new
    with pytest.raises(ValidationError, match="surprise"):
        read_outcome(stored | {"surprise": 1}, METRIC)


@pytest.mark.parametrize("ending", ["FAILED", "KILLED"])
def test_only_a_finished_retrain_is_an_answer(
    store: Store, row: CandidateRow, workspace: Workspace, ending: runs.Ending
) -> None:
    run_id = start(store, tiny.create_domain(name="other"), ending)
    outcomes.log_result(store, run_id, tiny.create_outcome(row, verdict="HOLD"))
    runs.end_parent(store, run_id, ending)
    assert outcomes.find_retrain(store, "other", ending) is None


def test_a_finished_retrain_without_a_result_is_no_answer(store: Store, workspace: Workspace) -> None:
    runs.end_parent(store, start(store, tiny.create_domain(name="other"), "bare"))
    assert outcomes.find_retrain(store, "other", "bare") is None


def test_the_latest_answer_wins(store: Store, row: CandidateRow, workspace: Workspace) -> None:
    for reason in ("first", "second"):
        run_id = start(store, tiny.create_domain(name="again"), "same")
        outcomes.log_result(store, run_id, tiny.create_outcome(row, verdict="HOLD", reason=reason))
        runs.end_parent(store, run_id)
        time.sleep(0.01)
    answer = outcomes.find_retrain(store, "again", "same")
    assert answer is not None
    assert answer.reason == "second"


def test_a_candidate_that_cannot_be_logged_is_failed(
    store: Store, workspace: Workspace, result: Result, row: CandidateRow
) -> None:
    import mlflow

    domain = tiny.create_domain(name="broken")
    parent = start(store, domain, "broken")
    with pytest.raises(DataError, match="expected a readable image"):
        candidates.log_candidate(store, parent, domain, result, row, workspace.root / "no-such-folder")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("broken").experiment_id
    (child,) = client.search_runs([experiment], "tags.`tessera.role` = 'candidate'")
    assert child.info.status == "FAILED"
    runs.end_parent(store, parent, "FAILED")


def test_a_killed_retrain_is_closed_by_the_next(store: Store) -> None:
    """Also where another process has its number by now, and where an earlier version wrote only host and number."""
    import mlflow

    domain, host = tiny.create_domain(name="killed"), socket.gethostname()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    writers = {
        identify(): "RUNNING",
        identify()[:-1]: "KILLED",  # another start: the number went to another process
        identify(gone.pid): "KILLED",
        identify().replace(f"@{host}:", "@another-host:"): "RUNNING",
        f"{host}:{os.getpid()}": "RUNNING",
        f"{host}:{gone.pid}": "KILLED",
        f"another-host:{gone.pid}": "RUNNING",
        "": "RUNNING",
    }
    written = [start(store, domain, f"{number}") for number, _ in enumerate(writers)]
    assert {get_run(run_id).data.tags["tessera.process"] for run_id in written} == {identify()}
    for run_id, writer in zip(written, writers, strict=True):
        mlflow.MlflowClient().set_tag(run_id, "tessera.process", writer)
    start(store, domain, "next")
    assert [get_run(run_id).info.status for run_id in written] == list(writers.values())


def test_what_is_not_there_is_none_and_trouble_is_an_error(store: Store) -> None:
    """One place knows MLflow's codes: for registry and ledger, too."""
    missing = {
        "run": lambda client: client.get_run("0" * 32),
        "model": lambda client: client.get_registered_model("nothing"),
        "version": lambda client: client.get_model_version("nothing", "1"),
        "alias of no model": lambda client: client.get_model_version_by_alias("nothing", "champion"),
        "alias": lambda client: client.get_model_version_by_alias("something", "champion"),
    }
    assert store.create_or_none(lambda client: client.create_registered_model("something")) is not None
    assert store.create_or_none(lambda client: client.create_registered_model("something")) is None
    assert {name: store.read_or_none(read) for name, read in missing.items()} == dict.fromkeys(missing)
    for ask in (store.read_or_none, store.create_or_none):
        with pytest.raises(TrackingError, match="expected a store that answers and accepts"):
            ask(lambda client: client.create_registered_model(""))
    assert store.ensure_experiment("twice") == store.ensure_experiment("twice")


def test_odd_class_names_are_logged(store: Store, workspace: Workspace) -> None:
    run_id = start(store, tiny.create_domain(name="odd"), "odd")
    names = ["recall/größe", "recall/a(b)", "recall/$x_1$", "recall/100 %"]
    store.log_metrics(run_id, [Point(0, 0, dict.fromkeys(names, 0.5))])
    assert {"recall/größe", "recall/a_b_", "recall/_x_1_", "recall/100 _"} <= set(get_run(run_id).data.metrics)


def test_settings_become_parameters() -> None:
    nested = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None, "f": False}
    assert stores.flatten(nested) == {"a.b": "1", "a.c.d": "[1, 2]", "f": "False"}


def test_a_result_must_be_json(store: Store, workspace: Workspace, finished: dict[str, Any]) -> None:
    outcome: Outcome = finished["outcome"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        outcomes.log_result(store, finished["parent"], outcome.model_copy(update={"seconds": float("nan")}))


def test_a_server_that_is_away_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:secret@127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(TrackingError, match="expected an answer within 5 s; found none") as caught:
        Store.open(Workspace(tmp_path))
    assert time.monotonic() - started < 2
    assert "secret" not in str(caught.value)
    assert "MLFLOW_TRACKING_URI" in caught.value.hint


def test_a_server_that_hangs_is_reported_within_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "SERVER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(TrackingError, match="timed out"):
            Store.open(Workspace(tmp_path))


def test_a_server_in_trouble_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trouble(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Trouble) as server:
        Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(TrackingError, match="the answer 503"):
            Store.open(Workspace(tmp_path))


@pytest.mark.parametrize("patient", [False, True])
def test_a_server_that_was_there_is_waited_for(
    patient: bool, tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answered this process before, or another process by whom this one knows (patient)."""

    class Empty(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # how long it waits is MLflow's business
    with HTTPServer(("127.0.0.1", 0), Empty) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        if not patient:
            Thread(target=server.serve_forever, daemon=True).start()
            Store.open(Workspace(tmp_path))
            server.shutdown()
    with pytest.raises(TrackingError, match="expected a store that answers and accepts"):
        Store.open(Workspace(tmp_path), patient)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    Store.open(workspace)


def test_a_damaged_store_is_reported(tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "mlflow.db"
    broken.write_bytes(b"no database at all " * 1000)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{broken}")
    with pytest.raises(TrackingError, match="file is not a database"):
        Store.open(Workspace(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    Store.open(workspace)


def test_nothing_logged_says_where_a_picture_was_taken(
    store: Store, workspace: Workspace, result: Result, row: CandidateRow, tmp_path: Path
) -> None:
    """EXIF, GPS, comments and text of the images end at the door: only pixels are published."""
    exif = Image.Exif()
    exif[0x010F] = "SecretMaker"
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 29: "SecretDate"})
    for path in load_predictions(result.folder, "test")["path"]:
        target = tmp_path / "raw" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        tile = Image.open(workspace.root / "raw" / path)
        tile.save(target, format="JPEG", exif=exif, comment=b"SecretComment")
    assert b"SecretMaker" in target.read_bytes()
    domain = tiny.create_domain()
    parent = start(store, domain, "verdict-gps")
    child = candidates.log_candidate(store, parent, domain, result, row, tmp_path / "raw")
    runs.end_parent(store, parent)
    artifacts = [path for path in (workspace.state / "mlflow").rglob("*") if path.is_file() and child in path.parts]
    assert any(path.name == "samples.png" for path in artifacts)
    for path in artifacts:
        assert b"Secret" not in path.read_bytes(), path
        if path.suffix == ".png":
            logged = Image.open(path)
            assert not logged.getexif()
            assert set(logged.info) <= {"Software", "dpi"}, logged.info


def test_tracking_imports_nothing_heavy() -> None:
    heavy = "('torch', 'mlflow', 'matplotlib', 'scipy')"
    rooms = "components.tracking.outcomes, components.tracking.runs"
    code = f"import sys, {rooms}; print([name for name in {heavy} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


def test_mistakes_come_first_and_the_most_confident_on_top() -> None:
    frame = tiny.predict(
        ["red", "red", "dark", "dark", "light"], ["red", "dark", "red", "dark", "light"], list("abcde")
    )
    frame = frame.with_columns(p_red=pl.Series([0.9, 0.1, 0.6, 0.2, 0.1]), p_dark=pl.Series([0.1, 0.8, 0.4, 0.7, 0.0]))
    frame = frame.with_columns(p_light=1 - pl.col("p_red") - pl.col("p_dark"))
    assert pictures.choose_samples(frame, CLASSIFICATION, 4)["id"].to_list() == ["0001", "0002", "0003", "0000"]


def test_confusion_counts() -> None:
    frame = tiny.predict(["red", "red", "dark"], ["red", "dark", "dark"], list("abc"))
    assert pictures.count_confusion(frame, CLASSIFICATION, tiny.CLASSES).tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 1]]


def test_class_names_are_not_read_as_formulas(result: Result, workspace: Workspace, tmp_path: Path) -> None:
    names = {"dark": "$\\frac{", "light": "$", "red": "50 % $x"}
    test = load_predictions(result.folder, "test").with_columns(pl.col("label", "predicted").replace(names))
    test = test.rename({f"p_{name}": f"p_{odd}" for name, odd in names.items()})
    classes = list(names.values())
    pictures.draw_mistakes(test, CLASSIFICATION, classes, "odd").savefig(tmp_path / "a.png")
    pictures.draw_samples(test, CLASSIFICATION, classes, workspace.root / "raw", "odd").savefig(tmp_path / "b.png")
