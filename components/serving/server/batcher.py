"""Micro-batches: rows of many requests share a forward, in one thread that computes. No torch here.

    batcher = Batcher()
    batcher.start()
    answered = batcher.submit(champion, pixels)       a concurrent.futures.Future of the decoded row
    answered.result()                                 raises Late, or what the rack raised
    batcher.close(30)                                 finishes what was accepted

A batch is made of the oldest waiting row and of rows of its kind on its rack. Another kind is a pass of its own through
the backbone: in the same batch it would save nothing, and these rows would wait for it.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from components.data.batches.geometry import Pixels
from components.serving.server.champions import Champion

MOST_ROWS = 32
MOST_WAITING = 512
LINGER_SECONDS = 0.002
DEADLINE_SECONDS = 30.0
#: How fast the average of seconds per row follows what is measured.
FOLLOWS = 0.1

LOG = logging.getLogger(__name__)


class Full(Exception):  # noqa: N818  a state rather than a fault
    """The queue has no room. retry_after: seconds after which it should have."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; retry after {retry_after} s")
        self.retry_after = retry_after


class Late(Exception):  # noqa: N818  a state rather than a fault
    """The deadline of a row passed before it was computed."""


@dataclass(eq=False)
class Row:
    """One picture that waits. explains: whether its saliency is asked for instead of its answer. until: by
    `time.monotonic`."""

    champion: Champion
    pixels: Pixels
    explains: bool
    until: float
    since: float = field(default_factory=time.monotonic)
    future: "Future[Any]" = field(default_factory=Future)

    @property
    def place(self) -> tuple[int, str]:
        """The rack and the kind: rows that agree in both are computed in one pass."""
        return id(self.champion.rack), self.champion.resident.kind


def choose_rows(waiting: Sequence[Row], most: int) -> list[Row]:
    """The rows of the next batch, oldest first. An explanation is computed by itself."""
    first = waiting[0]
    if first.explains:
        return [first]
    same = (row for row in waiting if not row.explains and row.place == first.place)
    return list(islice(same, most))


class Batcher:
    """The queue and its one computing thread; `submit` and `explain` may be called by any thread.

    most_waiting: rows that may wait. linger: seconds that a lone row waits for company. deadline: seconds from `submit`
    until a row that is not computed yet is given up. watch: called after each batch with its rows and seconds.
    """

    def __init__(
        self,
        most_rows: int = MOST_ROWS,
        most_waiting: int = MOST_WAITING,
        linger: float = LINGER_SECONDS,
        deadline: float = DEADLINE_SECONDS,
        watch: Callable[[int, float], None] | None = None,
    ) -> None:
        self.most_rows, self.most_waiting = most_rows, most_waiting
        self.linger, self.deadline, self.watch = linger, deadline, watch
        self._waiting: deque[Row] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._row_seconds = 0.005
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, seconds: float) -> bool:
        """Accept nothing more, and finish what was accepted. Returns whether that was done in these seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Rows that wait; those being computed left out."""
        return len(self._waiting)

    def require_room(self, rows: int) -> None:
        """Raise Full unless so many rows may wait in all."""
        if rows > self.most_waiting:
            raise Full(math.ceil(self.most_waiting * self._row_seconds))

    def submit(self, champion: Champion, pixels: Pixels, until: float | None = None) -> "Future[Any]":
        """What the rack decodes of one row: pixels uint8 (H, W, 3). Cancel the future to have it left out.

        until: another deadline, by `time.monotonic`. Raises Full; the future raises Late, or what the rack raised.
        """
        return self._enter(champion, pixels, False, until)

    def explain(self, champion: Champion, pixels: Pixels, until: float | None = None) -> "Future[Any]":
        """The saliency of one row, (rows, columns) of the patch grid, from 0 to 1; otherwise like `submit`."""
        return self._enter(champion, pixels, True, until)

    def _enter(self, champion: Champion, pixels: Pixels, explains: bool, until: float | None) -> "Future[Any]":
        row = Row(champion, pixels, explains, time.monotonic() + self.deadline if until is None else until)
        with self._changed:
            if self._closing:
                raise RuntimeError("the batcher is closed")
            self.require_room(len(self._waiting) + 1)
            self._waiting.append(row)
            self._changed.notify()
        return row.future

    def _run(self) -> None:
        while rows := self._take():
            begun = time.monotonic()
            _compute(rows)
            seconds = time.monotonic() - begun
            self._row_seconds += FOLLOWS * (seconds / len(rows) - self._row_seconds)
            if self.watch is not None:
                self.watch(len(rows), seconds)
            del rows  # or their pixels and adapters stay until the next request

    def _take(self) -> list[Row]:
        """The next batch; empty when the batcher is closed and nothing waits."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return []
                self._linger()
                rows = choose_rows(self._waiting, self.most_rows)
                taken = set(map(id, rows))
                self._waiting = deque(row for row in self._waiting if id(row) not in taken)
            if wanted := [row for row in rows if _begin(row)]:
                return wanted

    def _linger(self) -> None:
        """Wait for company of the oldest row, until enough came or it has waited long enough."""
        first = self._waiting[0]
        while not self._closing and len(self._waiting) < self.most_rows:
            left = first.since + self.linger - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)


def _begin(row: Row) -> bool:
    """Whether the row is still wanted and in time. A future that has begun can no longer be cancelled."""
    if not row.future.set_running_or_notify_cancel():
        return False
    if time.monotonic() > row.until:
        row.future.set_exception(Late())
        return False
    return True


def _compute(rows: Sequence[Row]) -> None:
    """Give each row its answer. Where a batch fails, its rows are computed again by adapter, so that only those of the
    adapter that fails do."""
    try:
        answers = _ask(rows)
    except Exception as error:  # noqa: BLE001  whatever a forward raises belongs to its rows, and the thread goes on
        residents = list(dict.fromkeys(row.champion.resident for row in rows))
        if len(residents) == 1:
            for row in rows:
                row.future.set_exception(error)
            return
        LOG.warning("a batch of %d adapters failed and is computed by adapter: %r", len(residents), error)
        for resident in residents:
            _compute([row for row in rows if row.champion.resident is resident])
        return
    for row, answer in zip(rows, answers, strict=True):
        row.future.set_result(answer)


def _ask(rows: Sequence[Row]) -> Sequence[Any]:
    rack = rows[0].champion.rack
    if rows[0].explains:
        return [rack.explain(row.champion.resident, row.pixels) for row in rows]
    return rack.answer(np.stack([row.pixels for row in rows]), [row.champion.resident for row in rows])
