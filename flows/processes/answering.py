"""Ask an adapter from a process that has no torch: a child loads it and answers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, cast

from components.errors import AdapterError, TesseraError

if TYPE_CHECKING:
    from components.serving.questions import Question


class Answering:
    """A child for one request: `with Answering() as child: reply = child.ask(adapter, questions)`.

    It begins to load torch at once, so enter it before whatever else takes time. It ends with the block, and with this
    process.
    """

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "components.serving"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            cast(IO[str], self.process.stdin).close()
        cast(IO[str], self.process.stdout).close()
        self.process.wait()

    def ask(self, adapter: Path, questions: Sequence["Question"], *, whole: bool = False) -> dict[str, Any]:
        """`doubt`, and one of `answers` per question, as `components/serving/__main__.py` describes them.

        Raises the TesseraError that the child met, and AdapterError where it died without a reply.
        """
        asked = [{"path": question.path, "box": question.box} for question in questions]
        with contextlib.suppress(BrokenPipeError):  # a child that died sends no reply, which is reported below
            stdin = cast(IO[str], self.process.stdin)
            stdin.write(json.dumps({"adapter": str(adapter), "questions": asked, "whole": whole}) + "\n")
            stdin.flush()
        line = cast(IO[str], self.process.stdout).readline()
        if not line:
            raise AdapterError(
                f"adapter {adapter}",
                expected="answers from the process that loads it",
                found=f"its end with exit code {self.process.wait()}",
                hint="Its own messages are above; where it was killed, free some memory or ask for fewer images.",
            )
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise TesseraError.from_dict(reply["error"])
        return reply
