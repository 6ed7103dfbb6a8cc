"""What a run says while it runs: events to whoever listens in this process, and to Prefect's log otherwise."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Event = dict[str, Any]
Listener = Callable[[Event], None]

_listeners: list[Listener] = []


def report(event: str, **facts: Any) -> None:
    """Tell every listener; the command line draws them, a worker without listeners stays quiet."""
    for listener in _listeners:
        listener({"event": event, **facts})


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Hear every event of this process inside the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
