"""Logs a training's epochs to a store while it runs, from a thread of its own: training never waits for the store.

    reporter = EpochReporter(open_run=..., write=...)
    reporter.add({"epoch": 1, "val/loss": 0.4})
    reporter.close()                             what was not logged is in reporter.missing

While a store does not answer, epochs collect; they are logged when it answers again.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from components.errors import TrackingError
from components.tracking.store import Point

REQUEST_SECONDS = 1.0  # between two requests, whatever the length of an epoch
CLOSE_SECONDS = 300.0  # for the last request at the end of a training


class EpochReporter:
    """Logs the epochs of one training. `run_id` is None until the store has opened a run for it."""

    def __init__(
        self,
        open_run: Callable[[], tuple[str, Collection[int]]],
        write: Callable[[str, Sequence[Point]], None],
    ) -> None:
        """open_run: returns the run's id and the steps that it already has. write: logs points to a run."""
        self.run_id: str | None = None
        self.trouble = ""
        self.points: dict[int, Point] = {}
        self._open_run, self._write = open_run, write
        self._written: set[int] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="epochs", daemon=True)
        self._thread.start()

    def add(self, row: Mapping[str, Any]) -> None:
        """Take an epoch's metrics (`split/metric`) and return at once; a step that came before is not logged again."""
        step = int(row["epoch"])
        self.points.setdefault(step, Point.now(step, {key: value for key, value in row.items() if "/" in key}))

    @property
    def missing(self) -> list[Point]:
        """The points that the store does not have."""
        return [point for step, point in list(self.points.items()) if step not in self._written]

    def close(self, patience: float = CLOSE_SECONDS) -> None:
        """Log the remaining points and stop; give up after `patience` seconds."""
        self._closing.set()
        self._thread.join(patience)

    def _work(self) -> None:
        while not self._closing.is_set():
            self._log()
            self._closing.wait(REQUEST_SECONDS)
        self._log()

    def _log(self) -> None:
        try:
            if self.run_id is None:
                self.run_id, written = self._open_run()
                self._written.update(written)
            points = self.missing
            if points:
                self._write(self.run_id, points)
                self._written.update(point.step for point in points)
        except TrackingError as error:
            self.trouble = str(error)
