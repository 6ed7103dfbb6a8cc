"""Run one training job in a process of its own: torch never loads here, and a dead parent leaves no orphan."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from components.errors import TesseraError, TrainingError
from components.training.job import JOB_FILE, STOP_SECONDS, Job, Result, Rung, load_result, load_rung, write_job
from flows.gpus import gpu_slot
from flows.progress import report

Left = TypeVar("Left")


def run_job(job: Job, name: str) -> Result:
    """The job's result: what an earlier, finished process left, or else that of a new one.

    Raises the TesseraError the process met, or TrainingError with the end of its log when it died.
    """
    return _run_job(job, name, lambda: load_result(job.folder))


def run_trial(job: Job, name: str) -> Rung:
    """How far a trial of a search came; the same for a job with `until_epoch`."""
    return _run_job(job, name, lambda: load_rung(job.folder, job.until_epoch or 0))


def run_recorded(record: dict[str, Any], name: str, code: Path) -> Result | None:
    """Do a job as it was written down once, by the code in a folder, which may be of another commit than this."""
    folder = Path(record["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JOB_FILE).write_text(json.dumps(record))
    devices = int(record["domain"]["training"].get("devices", 1))
    with gpu_slot(devices) as env, (folder / "log.txt").open("ab") as stderr:
        _run_process(_command(devices, folder / JOB_FILE), stderr, name, env, code)
    return load_result(folder)


def _run_job(job: Job, name: str, load: Callable[[], Left | None]) -> Left:
    known = load()
    if known is not None:
        return known
    path = write_job(job, job.folder / JOB_FILE)
    log = job.folder / "log.txt"
    devices = job.domain.training.devices if job.action == "train" else 1
    with gpu_slot(devices) as env, log.open("ab") as stderr:
        code = _run_process(_command(devices, path), stderr, name, env)
    result = load()
    if result is None:
        raise TrainingError(
            f"training process of {name}",
            expected="a result",
            found=f"exit code {code}; the log ends with: {_tail(log)}",
            mend=f"The whole log is {log}; run the command again to go on from the last checkpoint.",
        )
    return result


def _command(devices: int, path: Path) -> list[str]:
    """One process, or as many as there are devices to share the training."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(devices), "-m"] if devices > 1 else []
    return [sys.executable, "-m", *launcher, "components.training", str(path)]


def _run_process(
    command: list[str], stderr: IO[bytes], name: str, env: dict[str, str], code: Path | None = None
) -> int:
    """Start the process and pass its events on until it ends. code: the folder whose packages it imports."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # the child ends itself when this closes, however we end
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
        cwd=code,
        # Threads that spin while they wait made a step eight times slower whenever another process wanted a core too.
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **env} | ({"PYTHONPATH": str(code)} if code else {}),
    )
    try:
        for line in process.stdout or ():
            event = json.loads(line)
            if event["event"] == "error":
                raise TesseraError.from_dict(event["error"])
            report(f"training-{event.pop('event')}", name=name, **event)
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


def _end(process: "subprocess.Popen[str]") -> None:
    """Nothing of it outlives this. Processes of a launcher are in sessions of their own and go by their stdin."""
    if process.stdin is not None:
        process.stdin.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-3:]) or "nothing"
