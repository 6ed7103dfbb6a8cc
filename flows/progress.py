"""Progress of a run: events for listeners in this process, and the remaining time."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from components.errors import make_visible

Shown = TypeVar("Shown")
Event = dict[str, Any]
Listener = Callable[[Event], None]

_listeners: list[Listener] = []


def report(event: str, **facts: Any) -> None:
    """Tell every listener; the command line draws them, a worker without listeners stays quiet."""
    for listener in list(_listeners):
        listener(make_harmless({"event": event, **facts}))


def make_harmless(value: Shown) -> Shown:
    """The same record, mapping, list or text with every control character in it written out, for a terminal to show."""
    harmless: Any = value
    if isinstance(value, str):
        harmless = make_visible(value)
    elif isinstance(value, Path):
        harmless = Path(make_visible(str(value)))
    elif isinstance(value, BaseModel):
        harmless = value.model_copy(update={name: make_harmless(item) for name, item in value})
    elif isinstance(value, Mapping):
        harmless = {make_harmless(key): make_harmless(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        parts = map(make_harmless, value)
        harmless = type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)  # named ones take each part
    return harmless  # type: ignore[no-any-return]


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Hear every event of this process inside the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Pace:
    """When work will be done, from how long what was seen of it took: `Pace(20).left(5)`."""

    def __init__(self, total: float) -> None:
        self.total = total
        self.began, self.before = time.monotonic(), 0.0

    def left(self, done: float, resumed: bool = False) -> float | None:
        """Seconds until all is done; None while nothing was seen to be done. resumed: so much was done before."""
        if resumed:
            self.began, self.before = time.monotonic(), done
        seen = done - self.before
        return (time.monotonic() - self.began) / seen * max(0.0, self.total - done) if seen > 0 else None


def format_left(seconds: float | None) -> str:
    """`40 s left`, `12 min left`, `3 h 20 min left`: as exact as a guess deserves."""
    return "time left not known yet" if seconds is None else f"{format_span(seconds)} left"


def format_span(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
