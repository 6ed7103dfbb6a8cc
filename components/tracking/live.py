"""Tells a training's epochs to a store while it goes on, from a thread of its own: training never waits for the store.

    live = Live(open_run=..., write=...)
    live.add({"epoch": 1, "val/loss": 0.4})
    live.close()                                 what was not told is in live.missing

A store that is away costs nothing but the telling: what it missed is told when it answers again.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.errors import TrackingError

EVERY = 1.0  # seconds between two requests, whatever the length of an epoch
PATIENCE = 300.0  # seconds for the last request at the end of a training


@dataclass(frozen=True)
class Point:
    """An epoch's numbers, and when they came about in milliseconds since 1970."""

    step: int
    when: int
    values: Mapping[str, float]


class Live:
    """The epochs of one training. `run_id` is None until the store has opened a run for it."""

    def __init__(
        self,
        open_run: Callable[[], tuple[str, Collection[int]]],
        write: Callable[[str, Sequence[Point]], None],
    ) -> None:
        """open_run: gives the run's id, and the steps it has already."""
        self.run_id: str | None = None
        self.trouble = ""
        self.points: dict[int, Point] = {}
        self._open_run, self._write = open_run, write
        self._written: set[int] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="live", daemon=True)
        self._thread.start()

    def add(self, row: Mapping[str, Any]) -> None:
        """Take an epoch's numbers (`split/metric`) and return at once; a step that came before is not told twice."""
        step = int(row["epoch"])
        values = {key: value for key, value in row.items() if "/" in key}
        self.points.setdefault(step, Point(step, int(time.time() * 1000), values))

    @property
    def missing(self) -> list[Point]:
        """What the store has not got."""
        return [point for step, point in list(self.points.items()) if step not in self._written]

    def close(self, patience: float = PATIENCE) -> None:
        """Tell the rest and stop."""
        self._closing.set()
        self._thread.join(patience)

    def _work(self) -> None:
        while not self._closing.is_set():
            self._tell()
            self._closing.wait(EVERY)
        self._tell()

    def _tell(self) -> None:
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
