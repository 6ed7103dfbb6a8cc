"""One training per GPU: `with gpu_slot() as env` waits for a free GPU and names it to the training process.

A slot is one file lock per GPU, on the machine that has the GPU; it is released when its holder ends, independent of
network and clock. If a server is configured, a slot is also a global concurrency limit of Prefect: `prefect gcl ls` and
the Concurrency page show which slots are taken, and containers without a common temporary folder take turns by it. A
holder that died or lost contact loses that limit after a minute. The driver's own tool lists the GPUs, so that torch
need not be loaded.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from flows.server.prefect_boot import find_server
from flows.server.turns import server_slot

TRY_SECONDS = 2.0  # wait for one GPU before the next one is tried


def list_gpus() -> list[str]:
    """The UUIDs of the GPUs that this process may use, in the order of CUDA_VISIBLE_DEVICES if it is set."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=index,uuid", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        return []
    uuids = dict(line.replace(" ", "").split(",") for line in done.stdout.splitlines() if "," in line)
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return list(uuids.values())
    names = [name.strip() for name in allowed.split(",") if name.strip()]
    return [uuids.get(name, name) for name in names if name in uuids or name in uuids.values()]


def count_gpus() -> int:
    return len(list_gpus())


@contextlib.contextmanager
def gpu_slot(devices: int = 1) -> Iterator[dict[str, str]]:
    """Hold `devices` GPUs; yields the environment that names them, which is empty on a machine without GPUs.

    All processes take several GPUs in the same order, so that two such trainings never deadlock.
    """
    uuids = list_gpus()
    if not uuids:
        yield {}
        return
    with contextlib.ExitStack() as held:
        if devices >= len(uuids):
            taken = sorted(uuids)
            for uuid in taken:
                _take_any(held, [uuid])
        else:
            with _hold(f"gpus-of-{os.uname().nodename}", None):  # one training at a time chooses GPUs
                taken = []
                for _ in range(devices):
                    taken.append(_take_any(held, [uuid for uuid in uuids if uuid not in taken]))
        yield {"CUDA_VISIBLE_DEVICES": ",".join(taken)}


def _take_any(held: contextlib.ExitStack, uuids: list[str]) -> str:
    """Wait until one of the GPUs is free and hold it."""
    while True:
        for uuid in uuids:
            try:
                held.enter_context(_hold(f"gpu-{uuid}", TRY_SECONDS))
            except TimeoutError:
                continue
            return uuid
        time.sleep(TRY_SECONDS)


@contextlib.contextmanager
def _hold(name: str, seconds: float | None) -> Iterator[None]:
    """Hold a lock by name. Raises TimeoutError if it is not free within `seconds`; None waits without limit."""
    with contextlib.ExitStack() as held:
        lock = FileLock(Path(tempfile.gettempdir()) / f"tessera-{name}.lock", mode=0o666)
        held.enter_context(lock.acquire(timeout=-1 if seconds is None else seconds))
        if find_server() is not None:
            held.enter_context(server_slot(name, seconds, outlasts_silence=True))
        yield
