"""How far the answering of many images is: one line on stderr that is drawn again, or a line now and then in a log."""

import sys
import time
from types import TracebackType
from typing import TextIO

from flows.progress import format_left

FIRST = 1.0  # seconds until anything is shown: a few images need no progress
EVERY = 0.2  # seconds between two drawings in a terminal
EVERY_LOG = 30.0  # the same where stderr is no terminal


class Counter:
    """`with Counter(1000) as counter: counter.count(1, 0)`; failed: those of them that have no answer."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.total, self.done, self.failed, self.asked = total, 0, 0, 0
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self.began: float | None = None  # when the first was answered, after all that is loaded before
        self.next = time.monotonic() + (FIRST if self.live else EVERY_LOG)
        self.drawn = False

    def __enter__(self) -> "Counter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.clear()

    def count(self, done: int, failed: int, *, known: bool = False) -> None:
        """known: they took no time, because their answers were there."""
        now = time.monotonic()
        self.done += done
        self.failed += failed
        if not known:
            self.asked += done if self.began else 0
            self.began = self.began or now
        if now >= self.next:
            self.next = now + (EVERY if self.live else EVERY_LOG)
            self._draw(now)

    def clear(self) -> None:
        """Remove the line, so that something else can be written."""
        if self.drawn:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
            self.drawn = False

    def describe(self, now: float) -> str:
        seconds = now - self.began if self.began else 0.0
        speed = self.asked / seconds if seconds > 0 else 0.0
        left = (self.total - self.done) / speed if speed else None
        text = f"{self.done:,} of {self.total:,} images, {speed:.1f} per second, {format_left(left)}"
        return text + (f", {self.failed:,} without an answer" if self.failed else "")

    def _draw(self, now: float) -> None:
        text = self.describe(now)
        self.stream.write(f"\r{text}\x1b[K" if self.live else f"tessera: {text}\n")
        self.stream.flush()
        self.drawn = self.live
