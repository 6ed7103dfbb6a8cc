"""Epochs logged while a training runs: seen at once, nothing twice, nothing lost while the store was away."""

import threading
import time
from collections.abc import Sequence
from io import StringIO
from typing import Any

import pytest
import tiny
from rich.console import Console
from rich.progress import Progress

from components.errors import TrackingError
from components.records.jobs import Rung
from components.tracking import candidates, live, runs
from components.tracking.live import EpochReporter
from components.tracking.store import Point, Store
from components.workspace import Workspace
from flows.commands import screen
from flows.progress import Pace, format_left, report
from flows.steps.follow import follow_epochs, logging_epochs

COMMIT = "c0ffee00" * 5
KEY = "live"


@pytest.fixture(scope="module")
def workspace(mlflow_workspace: Workspace) -> Workspace:
    return mlflow_workspace


@pytest.fixture
def parent(store: Store) -> str:
    return runs.start_parent(store, tiny.create_domain(), tiny.DATA_VERSION, KEY, COMMIT)


def report_epoch(name: str, epoch: int, **facts: float) -> None:
    """An epoch's end as a training process reports it."""
    numbers = {"val/loss": 1 / epoch, "val/balanced_accuracy": 0.5, "system/cpu_utilization_percentage": 99.0}
    report("training-epoch", name=name, epoch=float(epoch), score=0.5, **numbers, **facts)


def get_run(run_id: str) -> Any:
    import mlflow

    return mlflow.MlflowClient().get_run(run_id)


def list_points(run_id: str, key: str = "val/loss") -> list[tuple[int, float]]:
    import mlflow

    history = mlflow.MlflowClient().get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in history)


def wait_for(what: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert what()


@pytest.mark.slow
def test_epochs_are_seen_while_the_run_is_running(store: Store, parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "REQUEST_SECONDS", 0.05)
    open_run = lambda: (runs.start_child(store, parent, "vpt · seed 0", role="candidate", tuner="vpt"), ())  # noqa: E731
    with logging_epochs(store, "vpt-s0", open_run) as reporter:
        for epoch in (1, 2):
            report_epoch("vpt-s0", epoch)
            report_epoch("another", epoch)
        wait_for(lambda: reporter.run_id is not None and len(list_points(reporter.run_id)) == 2)
        run_id = str(reporter.run_id)
        assert get_run(run_id).info.status == "RUNNING"
        report_epoch("vpt-s0", 3)
    assert list_points(run_id) == [(1, 1), (2, 1 / 2), (3, 1 / 3)]
    assert list_points(run_id, "system/cpu_utilization_percentage")[0] == (1, 99.0)
    assert not any(key.startswith(("name", "resumed")) for key in get_run(run_id).data.metrics)
    assert reporter.missing == []


def test_a_training_that_fails_says_so_and_keeps_its_points(store: Store, parent: str) -> None:
    open_run = lambda: (runs.start_child(store, parent, "x", role="candidate", tuner="x"), ())  # noqa: E731

    def train(error: BaseException) -> str:
        with logging_epochs(store, "x", open_run) as reporter:
            report_epoch("x", 1)
            wait_for(lambda: reporter.run_id is not None)
            reporters.append(reporter)
            raise error
        raise AssertionError

    reporters: list[EpochReporter] = []
    for error, status in ((ValueError("no more memory"), "FAILED"), (KeyboardInterrupt(), "KILLED")):
        with pytest.raises(type(error)):
            train(error)
        run_id = str(reporters[-1].run_id)
        assert get_run(run_id).info.status == status
        assert list_points(run_id) == [(1, 1.0)]
    assert "no more memory" in get_run(str(reporters[0].run_id)).data.tags["tessera.error"]


class Away:
    """A store that refuses its first requests and keeps the steps that are logged afterwards."""

    def __init__(self, refusals: int) -> None:
        self.refusals, self.steps, self.asked = refusals, list[int](), threading.Event()

    def answer(self) -> None:
        self.asked.set()
        if self.refusals:
            self.refusals -= 1
            raise TrackingError("store", expected="an answer", found="none", hint="Wait.")

    def open_run(self) -> tuple[str, tuple[int, ...]]:
        self.answer()
        return "run", (1,)

    def write(self, run_id: str, points: Sequence[Point]) -> None:
        self.answer()
        self.steps += [point.step for point in points]


@pytest.mark.parametrize("refusals", [0, 1, 2])
def test_what_a_store_missed_is_logged_when_it_answers(refusals: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "REQUEST_SECONDS", 0.01)
    away = Away(refusals)
    reporter = EpochReporter(away.open_run, away.write)
    for epoch in range(1, 6):
        reporter.add({"epoch": epoch, "val/loss": 1.0})
        reporter.add({"epoch": epoch, "val/loss": 9.0})  # a resumed process reports its past again
    wait_for(lambda: len(away.steps) == 4)
    reporter.close()
    assert away.steps == [2, 3, 4, 5]
    assert (reporter.trouble == "") == (refusals == 0)


def test_a_store_that_stays_away_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away(10**6)
    reporter = EpochReporter(away.open_run, away.write)
    reporter.add({"epoch": 1, "val/loss": 1.0})
    away.asked.wait(10)
    reporter.close()
    assert reporter.run_id is None
    assert [point.step for point in reporter.missing] == [1]
    assert "expected an answer" in reporter.trouble


def test_a_training_does_not_wait_for_the_store() -> None:
    slow = threading.Event()
    reporter = EpochReporter(lambda: (str(slow.wait(20)), ()), lambda run_id, points: None)
    started = time.monotonic()
    for epoch in range(1, 1000):
        reporter.add({"epoch": epoch, "val/loss": 1.0})
    assert time.monotonic() - started < 5
    slow.set()
    reporter.close()


@pytest.mark.slow
def test_a_candidate_logged_live_is_logged_whole(store: Store, workspace: Workspace, parent: str) -> None:
    """The run of the training becomes the candidate's; epochs MLflow missed are added, none is there twice."""
    domain = tiny.create_domain()
    result = tiny.train(workspace.root, domain, {"kind": "linear"})
    row = tiny.create_row(result)
    with logging_epochs(
        store, "l", lambda: (runs.start_child(store, parent, "l", role="candidate", tuner="linear"), ())
    ) as reporter:
        report("training-epoch", name="l", **result.history[0])
        wait_for(lambda: reporter.run_id is not None)
    for later in result.history[1:]:
        reporter.add(later)
    run_id = candidates.log_candidate(store, parent, domain, result, row, workspace.root / "raw", reporter)
    assert run_id == reporter.run_id
    run = get_run(run_id)
    assert (run.info.status, run.data.tags["tessera.adapter_sha256"]) == ("FINISHED", result.adapter_sha256)
    assert list_points(run_id, "train/loss") == [(k, row["train/loss"]) for k, row in enumerate(result.history, 1)]
    import mlflow

    curves = mlflow.artifacts.load_image(f"runs:/{run_id}/pictures/learning_curves.png")
    assert curves.width > 300


def test_trials_are_kept_where_the_runs_are(store: Store, parent: str) -> None:
    facts = {"tuner": {"kind": "vpt", "lr": 0.1}, "seed": 1, "loss": 0.3, "seconds": 2.0}
    rungs = [Rung(epochs=epochs, score=epochs / 10, **facts) for epochs in (3, 9)]
    run_id = runs.start_child(
        store, parent, "vpt · trial 4", role="trial", tuner="vpt-deep", trial="4", candidate_key=KEY
    )
    assert candidates.find_trial(store, "tiny", KEY) is None
    for known in (rungs[:1], rungs):
        candidates.log_trial(store, run_id, 4, known, {"lr": 0.1})
        assert get_run(run_id).info.status == "FINISHED"
        assert candidates.find_trial(store, "tiny", KEY) == (run_id, tuple(known))
        assert runs.continue_child(store, run_id) == ()
        assert get_run(run_id).info.status == "RUNNING"
    assert candidates.find_trial(store, "tiny", KEY, parent) == (run_id, tuple(rungs))
    assert candidates.find_trial(store, "tiny", "other") is None
    assert candidates.find_trial(store, "unknown", KEY) is None
    assert candidates.find_trial(store, "tiny", KEY, parent="other") is None
    assert get_run(run_id).data.metrics["search/score"] == 0.9


def test_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("flows.progress.time.monotonic", lambda: now)
    pace = Pace(20)
    assert pace.left(0) is None
    now = 110.0
    assert pace.left(5) == 30
    assert pace.left(20) == 0
    assert pace.left(8, resumed=True) is None
    now = 112.0
    assert pace.left(9) == 22
    assert [format_left(s) for s in (40, 720, 12_000)] == ["40 s left", "12 min left", "3 h 20 min left"]


def test_a_bar_says_how_far_and_how_long() -> None:
    shown: list[tuple[float, str]] = []
    with follow_epochs("vpt-s0", 4, lambda share, text: shown.append((share, text))):
        report_epoch("vpt-s0", 2, resumed=1.0)
        report_epoch("another", 3)
        report_epoch("vpt-s0", 3)
        report("training-memory", name="vpt-s0", bytes=3, text="vpt takes 3 GB")
    assert shown.pop() == (0.0, "vpt takes 3 GB")
    assert shown[0] == (0.5, "epoch 2 of 4, val 0.500, time left not known yet")
    assert shown[1][0] == 0.75
    assert shown[1][1].startswith("epoch 3 of 4, val 0.500, 0 s")


def test_the_terminal_shows_a_search_and_the_time_left() -> None:
    progress = Progress(console=Console(file=StringIO()))
    live_display = screen.Screen(progress)
    for event in (
        {"event": "search", "name": "vpt-deep"},
        {"event": "search-progress", "name": "vpt-deep", "share": 0.25, "text": "trial 1 to epoch 5, 40 s left"},
    ):
        live_display(event)
    (bar,) = [task for task in progress.tasks if task.visible]
    assert (bar.description, bar.percentage) == ("search vpt-deep", 25)
    assert bar.fields["note"] == "trial 1 to epoch 5, 40 s left"
    live_display({"event": "search-done", "name": "vpt-deep", "note": "9 trials"})
    live_display({"event": "candidates", "count": 2, "epochs": 4})
    live_display({"event": "training-start", "name": "vpt-s0", "epochs": 4, "images": 9, "device": "cpu"})
    for name, size in (("vpt", 3), ("linear", 2), ("full", 5)):
        live_display({"event": "training-memory", "name": name, "bytes": size, "text": f"{name} takes {size} GB"})
    said = progress.console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert [name for name in ("vpt", "linear", "full") if f"{name} takes" in said] == [
        "vpt",
        "full",
    ]  # never a smaller one
    row = {"event": "training-epoch", "name": "vpt-s0", "epoch": 1.0, "score": 0.5}
    live_display(row)
    (bar,) = [task for task in progress.tasks if task.visible]
    assert bar.fields["count"] == "1 of 8 epochs"
    assert bar.fields["note"] == "epoch 1  val 0.500  0 s left"
