"""`python -m components.training JOB.json`: train or score one candidate in a process of its own.

Torch lives and dies here; the parent gets JSON lines on stdout (`start`, `epoch`, `done`, `error`) and finds
adapter/, predictions.parquet and result.json in the job's folder. Started K times by torch's launcher the processes
train together: `python -m torch.distributed.run --standalone --nproc-per-node K -m components.training JOB.json`.

SIGINT and SIGTERM ask it to stop: it writes a checkpoint between two steps and ends with STOPPED.

`python -m components.training --wait` loads torch, which takes seconds, and then forks for each job that it reads from
stdin, so that each still lives and dies alone: `{"job": JOB.json, "log": FILE}`, one per line and one at a time. Its
stdout has `forked` with the child's pid, the child's own events, and `ended` with its exit code.

Python's own forkserver starts as fast, but each of its children imports the parent's main module again: measured, a
second job began after 0.1 s under a bare script, 0.3 to 0.5 s under the command line and 4.5 to 5 s under Prefect's
worker, in whose place this process loads no Prefect at all. It also passes a pickle to the child, has one environment
for all jobs, and neither ends a child with its parent nor gives it a log.
"""

import contextlib
import json
import os
import select
import signal
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from components.errors import TesseraError, TrainingError
from components.records.jobs import STOP_SECONDS, STOPPED, Job
from components.workspace import DISK_TROUBLE, describe_disk_trouble

LOOK_SECONDS = 0.02  # between two looks whether a fork has ended


def wait_for_jobs() -> int:
    """Fork for the jobs told on stdin until it closes; returns the exit code of this process, or of a fork's job."""
    import timm  # noqa: F401

    import components.training.run  # noqa: F401

    # No thread and no device is used before a fork: neither would be there in the child.
    heard = b""
    while part := os.read(0, 4096):
        *lines, heard = (heard + part).split(b"\n")
        for line in lines:
            told = json.loads(line)
            if _is_alone():
                return 0
            alive, lives = os.pipe()  # closes when this process dies, which the child must not survive
            if (pid := os.fork()) == 0:
                os.setsid()
                os.dup2(alive, 0)
                os.close(lives)
                os.dup2(os.open(told["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), 2)
                _end_with(Path(told["job"]))
            os.close(alive)
            _tell_parent("forked", pid=pid)
            if (code := _wait_for(pid)) is None:
                return 0
            os.close(lives)
            _tell_parent("ended", code=code)
    return 0


def _end_with(job: Path) -> NoReturn:
    """Do the job and end this fork with its exit code at once.

    What the job leaves is on the disk by then, and the parent ends the data workers. Taking down the interpreter and
    torch in order took a tenth of a toy job's time.
    """
    code = 1
    try:
        code = main(job)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(code)


def _wait_for(pid: int) -> int | None:
    """The exit code of the fork, None where stdin closes before it ends: then both end."""
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # whatever a killed one left
            return os.waitstatus_to_exitcode(status)
        if select.select([0], [], [], LOOK_SECONDS)[0]:
            return None


def _is_alone() -> bool:
    """Whether the parent died after it had told a job, perhaps while torch was loaded."""
    pipe = select.poll()
    pipe.register(0)
    return any(what & select.POLLHUP for _, what in pipe.poll(0))


def _tell_parent(event: str, **facts: int) -> None:
    os.write(1, json.dumps({"event": event, **facts}).encode() + b"\n")


def main(path: Path) -> int:
    # stdout belongs to the events; whatever a library prints goes to the log on stderr.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def tell(event: str, **facts: Any) -> None:
        events.write(json.dumps({"event": event, **facts}) + "\n")

    _die_with_parent()
    stop = _hear_signals()
    job = Job.model_validate_json(path.read_text())
    started = time.monotonic()
    try:
        leads = _work(job, tell, stop, started)
    except TesseraError as error:
        tell("error", error=error.to_dict())
        return error.exit_code
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        tell("error", error=describe_disk_trouble(job.folder, error).to_dict())
        return TesseraError.exit_code
    if leads is None:
        return STOPPED
    if leads:
        tell("done", seconds=round(time.monotonic() - started, 3))
    return 0


def _work(job: Job, tell: Callable[..., None], stop: Callable[[], bool], started: float) -> bool | None:
    """Whether this process speaks for the process group; None where it was stopped."""
    from components.models.process_group import join_process_group, leave_process_group
    from components.training.recipe import Stopped  # torch starts here
    from components.training.run import do_job

    peers = join_process_group()
    try:
        do_job(job, tell, stop, peers, started)
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)  # noqa: T201  the log
        return None
    except RuntimeError as error:
        if peers.size == 1:
            raise
        # Whoever is left says so, for a process that was killed cannot.
        traceback.print_exc()
        raise TrainingError(
            f"training on {peers.size} devices",
            expected="every process to work to the end",
            found=f"process {peers.rank} could not go on: {str(error).splitlines()[0]}",
            hint="See the log for the process that failed first; the same command goes on from the last checkpoint.",
        ) from None
    leave_process_group()
    return peers.leads


def _hear_signals() -> Callable[[], bool]:
    """Whether SIGINT or SIGTERM came. A process that cannot stop in time, as one that waits for another, is ended.

    A thread hears them through a pipe, because Python's own handlers wait until the main thread is back from C.
    """
    asked = threading.Event()
    heard, wakes = os.pipe()
    os.set_blocking(wakes, False)
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: None)
    signal.set_wakeup_fd(wakes)

    def watch() -> None:
        os.read(heard, 1)
        asked.set()
        time.sleep(STOP_SECONDS)
        os._exit(STOPPED)

    threading.Thread(target=watch, daemon=True).start()
    return asked.is_set


def _die_with_parent() -> None:
    """End this process and its data workers when the pipe on stdin closes: a killed parent cannot say so itself."""
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return

    def watch() -> None:
        os.read(0, 1)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(wait_for_jobs() if sys.argv[1] == "--wait" else main(Path(sys.argv[1])))
