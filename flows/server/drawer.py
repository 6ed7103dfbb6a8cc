"""Draws the home page of `tessera up` again and again, in a thread of its own: neither a server that is slow to answer
nor a defect of the page can hold up or end what keeps the services alive.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from components.files import PRIVATE, write_whole

PAGE_SECONDS = 30.0  # between two updates of the page
SHARE = 0.25  # of the time that drawing may take: a workspace of many domains is read less often
END_SECONDS = 5.0  # for a drawing that goes on when the services end; it writes nothing then


class Page(Protocol):
    """What is drawn: `update` reads what it is about, `render` gives it as HTML."""

    def update(self) -> None: ...

    def render(self) -> str: ...


class Drawer:
    """Keeps `path` up to date with `page` from `start` to `stop`, which removes the file.

    report: receives a sentence where the page cannot be drawn or written, once for each kind of trouble.
    """

    def __init__(self, page: Page, path: Path, report: Callable[[str], None]) -> None:
        self.page, self.path, self.report = page, path, report
        self._ended, self._writes = threading.Event(), threading.Lock()
        self._trouble = ""
        self._thread = threading.Thread(target=self._draw_on, name="home page", daemon=True)

    def start(self) -> None:
        """Write the page as it is before anything is read, and go on from there."""
        self._draw(lambda: None)
        self._thread.start()

    def stop(self) -> None:
        with self._writes:
            self._ended.set()
            self.path.unlink(missing_ok=True)
        if self._thread.ident is not None:
            self._thread.join(END_SECONDS)

    def _draw_on(self) -> None:
        while not self._ended.is_set():
            begun = time.monotonic()
            self._draw(self.page.update)
            spent = time.monotonic() - begun
            self._ended.wait(max(PAGE_SECONDS, spent * (1 / SHARE - 1)))

    def _draw(self, update: Callable[[], None]) -> None:
        try:
            update()
            self._write(self.page.render().encode())
            trouble = ""
        except Exception as error:  # noqa: BLE001 - whatever it is, the services go on; it is reported
            trouble = f"The page {self.path} was not drawn: {type(error).__name__}: {error}"
        if trouble and trouble != self._trouble:
            self.report(trouble)
        self._trouble = trouble

    def _write(self, text: bytes) -> None:
        """Only what has changed; else the file's time says that it was looked at."""
        with self._writes:
            if self._ended.is_set():
                return
            if self.path.exists() and self.path.read_bytes() == text:
                os.utime(self.path)
            else:
                write_whole(self.path, text, mode=PRIVATE)
