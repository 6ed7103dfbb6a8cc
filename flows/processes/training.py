"""Run one training job in a process of its own: this process never loads torch, and a training ends with its parent.

That process is forked by one that has loaded torch already and stays for the next job; `prepare` starts it ahead. A
job that is killed takes nothing with it but itself. Where there are GPUs a job is started afresh instead: a device must
not be known before a fork, and a training there is worth the seconds.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from components.domain.domain import Domain
from components.errors import TesseraError, TrainingError
from components.files import write_whole
from components.records.jobs import JOB_FILE, STOP_SECONDS, Job, Result, Rung, load_result, load_rung, write_job
from flows.progress import report
from flows.server.gpus import gpu_slot, list_gpus

Left = TypeVar("Left")
#: What is added for a process that was ended by SIGKILL, as the kernel does where memory runs out.
KILLED = " If the machine has run out of memory, choose a smaller backbone, img_size or batch_size."
LOOK_SECONDS = 0.02  # between two looks whether a fork has ended
#: Threads that spin while they wait made a step eight times slower whenever another process wanted a core too.
THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}


def spawn_job(job: Job, name: str) -> Result:
    """The job's result: what an earlier, finished process left, or else that of a new one.

    Raises the TesseraError the process met, or TrainingError with the end of its log when it died.
    """
    return _spawn_unless_known(job, name, lambda: load_result(job.folder))


def run_trial(job: Job, name: str) -> Rung:
    """How far a trial of a search came; the same for a job with `until_epoch`."""
    return _spawn_unless_known(job, name, lambda: load_rung(job.folder, job.until_epoch or 0))


def run_recorded(record: dict[str, Any], name: str, code: Path) -> Result | None:
    """Do a job as it was written down once, by the code in a folder, which may be of another commit than this."""
    folder = Path(record["folder"])
    write_whole(folder / JOB_FILE, json.dumps(record).encode())
    devices = int(record["domain"]["training"].get("devices", 1))
    with gpu_slot(devices) as env:
        _run_afresh(folder / JOB_FILE, devices, folder / "log.txt", name, env | {"PYTHONPATH": str(code)}, code)
    return load_result(folder)


def prepare(domain: Domain) -> None:
    """Load torch now, in a process that the next job will find, unless it is there or no use."""
    if not _IDLE and domain.training.devices == 1 and not list_gpus():
        _IDLE.append(Trainer())


def _spawn_unless_known(job: Job, name: str, load: Callable[[], Left | None]) -> Left:
    known = load()
    if known is not None:
        return known
    path, log = write_job(job, job.folder / JOB_FILE), job.folder / "log.txt"
    devices = job.domain.training.devices if job.action == "train" else 1
    with gpu_slot(devices) as env:
        if devices > 1 or env:
            code = _run_afresh(path, devices, log, name, env)
        else:
            with _borrow_trainer() as trainer:
                code = trainer.run(path, log, name)
    result = load()
    if result is None:
        raise TrainingError(
            f"training process of {name}",
            expected="a result",
            found=f"exit code {code}; the log ends with: {_tail(log)}",
            hint=f"The whole log is {log}; run the command again to go on from the last checkpoint."
            + (KILLED if code == -signal.SIGKILL else ""),
        )
    return result


class Trainer:
    """The process that forks, one job at a time."""

    def __init__(self) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  as long as the process
        self.process = _start(["components.training", "--wait"], self.errors)
        self.busy = False
        atexit.register(self.close)

    def run(self, job: Path, log: Path, name: str) -> int:
        """Its exit code. Raises the TesseraError it met; interrupted, it has time for a checkpoint first."""
        lines, pid = cast(IO[str], self.process.stdout), None
        met: list[TesseraError] = []
        log.touch()
        self.busy = True
        try:
            self._tell({"job": str(job), "log": str(log)})
            if (line := next(lines, "")) != "":
                pid = int(json.loads(line)["pid"])
            code = _pass_on(lines, name, met.append)
        except BaseException:  # Ctrl-C, a cancelled flow
            self._stop(pid)
            raise
        if code is None:
            return self._end(log)
        self.busy = False
        if met:
            raise met[0]
        return code

    def _tell(self, facts: dict[str, str]) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died, which reading from it will tell
            stdin = cast(IO[str], self.process.stdin)
            stdin.write(json.dumps(facts) + "\n")
            stdin.flush()

    def _stop(self, pid: int | None) -> None:
        """End the fork, with time for a checkpoint, and this process: how far it was read when the interrupt came, who
        knows."""
        with contextlib.suppress(ProcessLookupError):
            if pid is not None:
                os.kill(pid, signal.SIGTERM)  # it alone: its data workers have to live on until it has its checkpoint
                deadline = time.monotonic() + STOP_SECONDS
                while time.monotonic() < deadline:
                    os.kill(pid, 0)
                    time.sleep(LOOK_SECONDS)
        self.close()

    def _end(self, log: Path) -> int:
        """It died itself: what it said last belongs into the job's log, for there people look."""
        self.close()
        self.errors.seek(0)
        with log.open("ab") as file:
            file.write(self.errors.read())
        return self.process.returncode

    @property
    def is_free(self) -> bool:
        return not self.busy and self.process.poll() is None

    def close(self) -> None:
        _end(self.process)


#: Without a job at present.
_IDLE: list[Trainer] = []


@contextmanager
def _borrow_trainer() -> Iterator[Trainer]:
    while _IDLE and not _IDLE[-1].is_free:
        _IDLE.pop()
    trainer = _IDLE.pop() if _IDLE else Trainer()
    try:
        yield trainer
    finally:
        if trainer.is_free:
            _IDLE.append(trainer)


def _run_afresh(job: Path, devices: int, log: Path, name: str, env: dict[str, str], code: Path | None = None) -> int:
    """One process, or as many as there are devices to share the training. code: where it finds its packages."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(devices), "-m"] if devices > 1 else []
    with log.open("ab") as errors:
        process = _start([*launcher, "components.training", str(job)], errors, env, code)
    try:
        _pass_on(cast(IO[str], process.stdout), name, _raise)
        return process.wait()
    except TesseraError:
        raise
    except BaseException:  # Ctrl-C, a cancelled flow: time for a checkpoint first
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        raise
    finally:
        _end(process)


def _start(
    module: list[str], errors: IO[bytes], env: dict[str, str] | None = None, code: Path | None = None
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", *module],
        stdin=subprocess.PIPE,  # the child ends itself when this closes, however we end
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
        cwd=code,
        env=THREADS | os.environ | (env or {}),
    )


def _pass_on(lines: Iterable[str], name: str, failed: Callable[[TesseraError], None]) -> int | None:
    """Report a job's events as they come; its exit code where the events tell it."""
    for line in lines:
        event = json.loads(line)
        if event["event"] == "error":
            failed(TesseraError.from_dict(event["error"]))
        elif event["event"] == "ended":
            return int(event["code"])
        elif event["event"] == "note":
            report("note", text=f"{name}: {event['text']}")
        else:
            report(f"training-{event.pop('event')}", name=name, **event)
    return None


def _raise(error: TesseraError) -> None:
    raise error


def _end(process: "subprocess.Popen[str]") -> None:
    """Nothing of it outlives this. Processes of a launcher, and forks, are in sessions of their own and go by stdin."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    _kill(process.pid)
    process.wait()


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _tail(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-3:]) or "nothing"
