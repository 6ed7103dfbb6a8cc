"""Ask an adapter from a process that has no torch: a child loads it and answers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, Self, cast

from components.errors import AdapterError, TesseraError
from components.serving.questions import WINDOW, Question

#: Questions about one picture, and the reply to them as `components/serving/__main__.py` describes it.
Answered = tuple[list[Question], dict[str, Any]]


class Answering:
    """A child for one command: `with Answering() as child: replies = child.ask(adapter, groups)`.

    It begins to load torch at once, so enter it before whatever else takes time. It ends with the block, and with this
    process. early: False to load torch only where something is asked.
    """

    def __init__(self, *, early: bool = True) -> None:
        self.early = early
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        if self.early:
            self._start()
        return self

    def _start(self) -> subprocess.Popen[str]:
        self.process = self.process or subprocess.Popen(
            [sys.executable, "-m", "components.serving"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self.process

    def __exit__(self, *_: object) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            cast(IO[str], self.process.stdin).close()
        cast(IO[str], self.process.stdout).close()
        self.process.wait()

    def ask(
        self, adapter: Path, groups: Iterable[list[Question]], *, whole: bool = False, extras: Sequence[str] = ()
    ) -> Iterator[Answered]:
        """Each group of questions about one picture with the reply to it, in order, while further ones are asked.

        extras: what an answer has beside label and probabilities: `class_map`, `found`, `saliency`. Only one call per
        child. Raises the TesseraError that the child met, and AdapterError where it died without a reply.
        """
        left = iter(groups)
        if (first := next(left, None)) is None:
            return
        process = self._start()
        _send(process, {"adapter": str(adapter), "whole": whole, "extras": list(extras)})
        asked: deque[list[Question]] = deque()
        for group in chain([first], left):
            asked.append(group)
            boxes = [question.box for question in group]
            _send(process, {"path": str(group[0].image), "name": group[0].name, "boxes": boxes})
            if len(asked) >= WINDOW:
                yield asked.popleft(), _receive(process, adapter)
        _send(process, None)
        while asked:
            yield asked.popleft(), _receive(process, adapter)


def _send(process: subprocess.Popen[str], message: Mapping[str, Any] | None) -> None:
    stdin = cast(IO[str], process.stdin)
    with contextlib.suppress(BrokenPipeError):  # a child that died sends no reply, which is reported then
        stdin.write("\n" if message is None else json.dumps(message) + "\n")
        stdin.flush()


def _receive(process: subprocess.Popen[str], adapter: Path) -> dict[str, Any]:
    line = cast(IO[str], process.stdout).readline()
    if not line:
        raise AdapterError(
            f"adapter {adapter}",
            expected="answers from the process that loads it",
            found=f"its end with exit code {process.wait()}",
            hint="Its own messages are above; where it was killed, free some memory or ask for fewer images.",
        )
    reply: dict[str, Any] = json.loads(line)
    if "error" in reply:
        raise TesseraError.from_dict(reply["error"])
    return reply
