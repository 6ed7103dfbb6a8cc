"""A training followed while it goes on: its curves in MLflow, and a bar with the time left in Prefect.

Neither may hold it up or end it: what MLflow missed is logged later, and a bar that cannot be drawn is left out.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import cast
from uuid import UUID

from components.errors import TrackingError
from components.tracking import runs
from components.tracking.live import EpochReporter
from components.tracking.store import Store
from flows.progress import Event, Pace, format_left, listening, report
from flows.server.links import write_key

BAR_SECONDS = 1.0  # between two requests
GIVE_UP_SECONDS = 5.0  # for the last words of a training that failed

Show = Callable[[float, str], None]


@contextmanager
def logging_epochs(
    store: Store, name: str, open_run: Callable[[], tuple[str, Collection[int]]]
) -> Iterator[EpochReporter]:
    """Log the epochs of the training called `name` to its MLflow run; the run is closed here only if the block fails.

    open_run: returns the run's id and the epochs that it already has.
    """
    reporter = EpochReporter(open_run, store.log_metrics)

    def hear(event: Event) -> None:
        if event["event"] == "training-epoch" and event["name"] == name:
            reporter.add(event)

    try:
        with listening(hear):
            yield reporter
    except BaseException as error:
        reporter.close(GIVE_UP_SECONDS)
        _end(store, reporter, error)
        raise
    reporter.close()
    if reporter.trouble:
        note = f"MLflow did not answer while {name} was trained; its epochs were logged afterwards."
        report("note", text=f"{note} {reporter.trouble}")


def _end(store: Store, reporter: EpochReporter, error: BaseException) -> None:
    """Log how the training ended, if MLflow answers; whoever catches the error reports it."""
    status: runs.Ending = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
    if reporter.run_id is not None:
        try:
            runs.end_child(store, reporter.run_id, status, str(error))
        except TrackingError as trouble:
            report("note", text=str(trouble))


@contextmanager
def follow_epochs(name: str, epochs: int, show: Show) -> Iterator[None]:
    """Show how far the training called `name` is."""
    pace = Pace(epochs)

    def hear(event: Event) -> None:
        if event["event"] == "training-epoch" and event["name"] == name:
            left = pace.left(event["epoch"], "resumed" in event)
            show(1.0 if "strength" in event else event["epoch"] / epochs, describe_epoch(event, epochs, left))
        elif event["event"] == "training-memory" and event["name"] == name and event["text"]:
            show(0.0, event["text"])

    with listening(hear):
        yield


def describe_epoch(event: Event, epochs: int, left: float | None) -> str:
    score = f"val {event['score']:.3f}"
    if "strength" in event:
        return f"solved, {score}"
    return f"epoch {event['epoch']:.0f} of {epochs}, {score}, {format_left(left)}"


@contextmanager
def progress_bar(key: str, title: str) -> Iterator[Show]:
    """A progress artifact of the Prefect task that runs, for a flow whose terminal nobody sees."""
    from prefect.context import TaskRunContext

    if TaskRunContext.get() is None:
        yield lambda share, text: None
        return
    bar = _Bar(write_key(key), title)
    yield bar.show
    bar.show(1.0, "done", now=True)


class _Bar:
    """Drawn at most every BAR_SECONDS: an epoch of a linear probe takes milliseconds, a request about ten."""

    def __init__(self, key: str, title: str) -> None:
        self.key, self.title, self.due = key, title, 0.0
        self.artifact: UUID | None = None
        self.show(0.0, "starting")

    def show(self, share: float, text: str, now: bool = False) -> None:
        import httpx
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if self.due == math.inf or (time.monotonic() < self.due and not now):
            return
        done, line = round(100 * share, 1), f"{self.title}: {text}"
        try:
            if self.artifact is None:
                self.artifact = cast(UUID, create_progress_artifact(done, key=self.key, description=line))
            else:
                update_progress_artifact(self.artifact, done, line)
            self.due = time.monotonic() + BAR_SECONDS
        except httpx.HTTPError as error:
            report("note", text=f"Prefect shows no progress of {self.title}: {error}")
            self.due = math.inf
