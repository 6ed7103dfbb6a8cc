"""Compute features from a process that has no torch: a child loads the backbone and writes the file."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import IO, cast

from components.errors import BackboneError, TesseraError
from components.records.embedding import EmbedJob, Features
from components.records.jobs import STOP_SECONDS
from flows.processes.training import THREADS
from flows.server.gpus import gpu_slot

#: What the child reports of its progress, as `components/models/embedding.py` describes it.
Hear = Callable[[Mapping[str, int]], None]


def embed_manifest(job: EmbedJob, hear: Hear) -> Features:
    """Do the job, on a GPU where there is one. hear: receives how many features are known, and how many are done.

    Raises the TesseraError that the child met, and BackboneError where it died without a reply.
    """
    with gpu_slot() as env:
        process = subprocess.Popen(
            [sys.executable, "-m", "components.models.embedding"],
            stdin=subprocess.PIPE,  # when it closes, the child keeps what it has computed, and ends
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=THREADS | os.environ | env,
        )
        try:
            return _follow(process, job, hear)
        finally:
            _end(process)


def _follow(process: "subprocess.Popen[str]", job: EmbedJob, hear: Hear) -> Features:
    stdin = cast(IO[str], process.stdin)
    with contextlib.suppress(BrokenPipeError):  # a child that died sends no reply, which is reported then
        stdin.write(job.model_dump_json() + "\n")
        stdin.flush()
    for line in cast(IO[str], process.stdout):
        said = json.loads(line)
        if "error" in said:
            raise TesseraError.from_dict(said["error"])
        if "features" in said:
            return Features.model_validate(said["features"])
        hear(said)
    raise BackboneError(
        f"backbone {job.domain.backbone}",
        expected="features from the process that loads it",
        found=f"its end with exit code {process.wait()}",
        hint="Its own messages are above; where it was killed, free some memory. The same command continues.",
    )


def _end(process: "subprocess.Popen[str]") -> None:
    """Close the child's stdin, and give it the time to keep what it has computed."""
    with contextlib.suppress(BrokenPipeError):
        cast(IO[str], process.stdin).close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    cast(IO[str], process.stdout).close()
    process.wait()
