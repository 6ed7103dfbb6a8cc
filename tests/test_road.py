"""The whole road through real processes: import, check, retrain, gate, promote, roll back, predict, and again."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from conftest import DOMAIN, TINY, Answer, clean_environment, create_workspace, run_tessera
from PIL import Image

from components.domain.strict import Strict
from components.records.fields import Refused
from components.records.history import History, LedgerExport, LedgerReport, Promotion
from components.records.images import Checked, Imported
from components.records.outcomes import Comparison, Outcome
from components.records.predictions import Predictions
from components.workspace import REPOSITORY

pytestmark = pytest.mark.slow

HTML = "Photographs. <script>alert(1)</script> <img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    return create_workspace(tmp_path_factory.mktemp("road") / "workspace", images, description=HTML, licence="CC0-1.0")


@pytest.fixture(scope="module")
def retrained(road: Path) -> Answer:
    return run_tessera(road, "retrain", DOMAIN)


def _fits(answer: Answer, record: type[Strict], code: int = 0) -> None:
    assert answer.code == code, answer.stderr
    answer.read(record)


def test_first_retrain_promotes(road: Path, retrained: Answer) -> None:
    _fits(retrained, Outcome)
    outcome = retrained.outcome
    assert (outcome["status"], outcome["verdict"], outcome["champion_version"]) == ("done", "PROMOTE", 1)
    assert [row["tuner"] for row in outcome["candidates"]] == ["linear", "vpt-deep"]
    assert sum(row["selected"] for row in outcome["candidates"]) == 1
    report = Path(outcome["report"]).read_text()
    assert "PROMOTE" in report
    assert "http://" not in report.replace("http://www.w3.org", "")
    licences = {link["role"]: link["licence"] for link in outcome["licences"]}
    assert licences == {"backbone": "apache-2.0", "teacher": "apache-2.0", "data": "cc0-1.0", "code": "apache-2.0"}
    card = (Path(outcome["report"]).parent / "model_card.md").read_text()
    assert "script>alert(1)" in card
    assert "<" not in card
    for page in (report, (Path(outcome["report"]).parent / "model_card.html").read_text()):
        assert not re.search(r"<script|<img src=x", page)


def test_unchanged_is_known_and_nothing_is_done(road: Path, retrained: Answer) -> None:
    before = _written(road)
    again = run_tessera(road, "retrain", DOMAIN)
    _fits(again, Outcome)
    assert again.outcome["status"] == "unchanged"
    assert again.outcome["candidates"] == retrained.outcome["candidates"]
    assert _written(road) == before


def _written(road: Path) -> dict[str, int]:
    """When each result of training, data stage and promotion was last written."""
    state = road / ".tessera"
    folders = (state / "runs", state / "data", state / "mlflow" / "artifacts")
    return {str(path): path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_other_settings_are_judged_against_the_champion(road: Path, retrained: Answer) -> None:
    other = run_tessera(road, "retrain", DOMAIN, "--set", "candidates=[linear]", "--set", "training.seeds=[1]")
    assert other.code in (0, 1), other.stderr
    other.read(Outcome)
    gates = {finding["gate"] for finding in other.outcome["findings"]}
    assert {"floor", "improvement", "slices"} <= gates
    assert (other.code == 0) == (other.outcome["status"] == "done")
    compared = run_tessera(road, "compare", DOMAIN)
    _fits(compared, Comparison)
    assert compared.outcome["candidates"] == other.outcome["candidates"]
    (line,) = compared.outcome["tuners"]
    (row,) = compared.outcome["candidates"]
    assert (line["seeds"], line["test"]["value"], line["val"]) == ([1], row["test"]["value"], row["val"])
    assert sum(line["class_scores"].values()) / len(line["class_scores"]) == pytest.approx(row["test"]["value"])
    with Image.open(compared.outcome["picture"]) as picture:
        assert picture.format == "PNG"
    shown = run_tessera(road, "compare", DOMAIN, as_json=False)
    assert "score by class" in shown.stdout
    assert compared.outcome["picture"] in shown.stdout


def test_history_predict_and_rollback(road: Path, retrained: Answer) -> None:
    history = run_tessera(road, "history", DOMAIN)
    _fits(history, History)
    assert history.outcome["records"][0]["action"] == "promote"
    assert history.outcome["ledger_problems"] == []
    pictures = sorted((road / "data" / DOMAIN / "raw" / "images").glob("*.jpg"))[:3]
    predicted = run_tessera(road, "predict", DOMAIN, *map(str, pictures))
    _fits(predicted, Predictions)
    for row in predicted.outcome["predictions"]:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert row["model_version"] == history.outcome["champion_version"]
    moves = [row for row in history.outcome["records"] if row["action"] == "promote"]
    if len(moves) == 1:
        refused = run_tessera(road, "rollback", DOMAIN)
        assert refused.code == 2
        refused.read(Refused)
        assert "previous" in refused.outcome["error"]["message"]
    promoted = run_tessera(road, "promote", DOMAIN, "1")
    _fits(promoted, Promotion)
    before = run_tessera(road, "history", DOMAIN, "--at", "2020-01-01")
    assert (before.outcome["champion_at"], before.outcome["at"][:10]) == (None, "2020-01-01")
    for nonsense in ("", "yesterday", "2999-01-01"):
        assert run_tessera(road, "history", DOMAIN, "--at", nonsense).code == 2
    verified = run_tessera(road, "ledger", "verify", DOMAIN)
    _fits(verified, LedgerReport)
    exported = run_tessera(road, "ledger", "export", DOMAIN, str(road / "ledger.jsonl"))
    _fits(exported, LedgerExport)
    lines = (road / "ledger.jsonl").read_text().splitlines()
    assert len(lines) == verified.outcome["records"]
    (road / "other.jsonl").write_text("\n".join([lines[0].replace("promote", "bribed"), *lines[1:]]))
    for name, problems in (("ledger", []), ("other", ["record 1 is not the one that was exported"])):
        compared = run_tessera(road, "ledger", "verify", DOMAIN, "--against", str(road / f"{name}.jsonl"))
        assert compared.outcome["problems"] == problems


def test_the_run_is_logged_in_mlflow(road: Path, retrained: Answer) -> None:
    """Parent and children, parameters, epochs, pictures, the data's digest and the lineage."""
    import mlflow

    uri = f"sqlite:///{road / '.tessera' / 'mlflow' / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    outcome = retrained.outcome
    for row in outcome["candidates"]:
        run = client.get_run(row["run_id"])
        assert run.info.status == "FINISHED"
        assert run.data.tags["tessera.data_version"] == outcome["data_version"]
        assert run.data.tags["tessera.adapter_sha256"] == row["adapter_sha256"]
        assert run.inputs.dataset_inputs[0].dataset.digest in outcome["data_version"]
        assert len(client.get_metric_history(row["run_id"], "val/balanced_accuracy")) >= 2
        assert client.get_run(run.data.tags["mlflow.parentRunId"]).info.status == "FINISHED"
        pictures = {item.path for item in client.list_artifacts(row["run_id"], "pictures")}
        assert "pictures/mistakes.png" in pictures
    (selected,) = [row["run_id"] for row in outcome["candidates"] if row["selected"]]
    assert client.get_model_version(DOMAIN, "1").run_id == selected


def test_no_pickle_is_ever_written(road: Path, retrained: Answer) -> None:
    suffixes = {path.suffix for path in (road / ".tessera").rglob("*") if path.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".pth", ".bin"}


def test_plain_dvc_repro_agrees(road: Path, retrained: Answer) -> None:
    """What the flow left is what `dvc repro` would make: nothing runs again."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=road,
        env=clean_environment() | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Running stage" not in done.stdout
    assert "split@parts' didn't change" in done.stdout


def test_check_and_import(tmp_path: Path, images: Path) -> None:
    """A csv folder comes in as a new domain, one damaged file goes to quarantine, the rest is fit."""
    source = tmp_path / "source"
    shutil.copytree(images, source)
    damaged = sorted((source / "images").glob("*.jpg"))[0]
    damaged.write_bytes(damaged.read_bytes()[:400])
    place = tmp_path / "workspace"
    imported = run_tessera(place, "import", str(source), "--domain", "parts", "--layout", "csv", "--group", "lot")
    _fits(imported, Imported)
    assert imported.outcome["classes"] == sorted(imported.outcome["classes"])
    checked = run_tessera(place, "check", "parts")
    _fits(checked, Checked)
    assert [row["path"] for row in checked.outcome["quarantined"]] == [f"images/{damaged.name}"]
    manifest = pl.read_parquet(checked.outcome["manifest"])
    assert set(manifest["split"]) == {"train", "val", "test"}
    assert manifest.height == checked.outcome["images"] - 1
    assert (
        manifest.group_by("group").agg(pl.col("split").n_unique())["split"].to_list() == [1] * checked.outcome["groups"]
    )


def test_killed_or_stopped_retrain_goes_on_to_the_same_bits(tmp_path: Path, images: Path, retrained: Answer) -> None:
    """Ctrl-C, a service manager's SIGTERM, and SIGKILL for the whole process group, at random moments of the training;
    the same command again ends where the undisturbed one did."""
    place = create_workspace(tmp_path / "workspace", images, training={**TINY["training"], "checkpoint_seconds": 0})
    rng = random.Random(0)
    _disturb(place, "linear-s0", rng.uniform(0, 4), signal.SIGINT)
    stopped = _disturb(place, "vpt-deep-s0", 0, signal.SIGTERM)
    if not (stopped / "result.json").exists():
        assert (stopped / "checkpoint.safetensors").exists()
        assert "the same command goes on from there" in (stopped / "log.txt").read_text()
    _disturb(place, "vpt-deep-s0", rng.uniform(0, 4), signal.SIGKILL)
    again = run_tessera(place, "retrain", DOMAIN)
    _fits(again, Outcome)
    ours = {row["tuner"]: row["adapter_sha256"] for row in again.outcome["candidates"]}
    theirs = {row["tuner"]: row["adapter_sha256"] for row in retrained.outcome["candidates"]}
    assert ours == theirs


def _disturb(place: Path, candidate: str, delay: float, sign: signal.Signals) -> Path:
    """Retrain, and send the signal some time after the candidate begins to train; returns the candidate's folder.

    Nothing of it lives on: neither a training nor DVC nor the embedded Prefect server.
    """
    told = place / "told.txt"
    with told.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.commands.cli", "retrain", DOMAIN, "--workspace", str(place), "--json"],
            env=clean_environment(),
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
    began = time.time()
    _wait_for(lambda: process.poll() is not None or _find_log(place, candidate, began) is not None, 300)
    assert process.poll() is None, told.read_text()
    if delay == 0:
        _wait_for(lambda: any(_find_log(place, candidate, began).parent.glob("checkpoint.*")), 60)
    time.sleep(delay)
    if sign == signal.SIGKILL:
        os.killpg(process.pid, sign)
        process.wait()
    else:
        process.send_signal(sign)  # to the command alone, as what it starts has sessions of its own
        assert process.wait(120) == 130, told.read_text()
        assert "interrupted; the same command goes on where this one stopped" in told.read_text()
    _wait_for(lambda: not _list_processes(place), 30)
    return next(place.glob(f".tessera/runs/*/*/{candidate}"))


def _find_log(place: Path, candidate: str, began: float) -> Path | None:
    """The log of the candidate's training, which each process of it touches when it begins."""
    found = place.glob(f".tessera/runs/*/*/{candidate}/log.txt")
    return next((path for path in found if path.stat().st_mtime >= began), None)


def _wait_for(what: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _list_processes(place: Path) -> list[str]:
    """What of us works in this workspace."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = path.read_bytes().split(b"\0")
            command = path.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"TESSERA_WORKSPACE={place}".encode() in words and command:  # a dead one has no command any more
            found.append(command)
    return found
