"""Servers of champions for tests: in this process, without a registry, and as processes of their own."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from conftest import clean_environment, free_port
from fleets import CLASSES
from PIL import Image

from components.models.adapter import InputMeta, load_meta
from components.serving.rack import Racks
from components.serving.server.champions import Champion, Champions
from components.serving.server.service import Service, open_service
from components.tasks import TASKS
from components.workspace import QUIET, REPOSITORY

CROP = InputMeta(kind="crop", max_megapixels=1, min_side=8)
#: Facts of adapters by domain: one per task, and one of crops, whose input says how large a picture may be.
DOMAINS: dict[str, dict[str, Any]] = {
    "tiles": {"task": TASKS["classification"]()},
    "rust": {"task": TASKS["multilabel"](), "thresholds": dict.fromkeys(CLASSES, 0.4)},
    "maps": {"task": TASKS["segmentation"]()},
    "parts": {"task": TASKS["detection"](), "thresholds": dict.fromkeys(CLASSES, 0.0)},
    "cuts": {"task": TASKS["classification"](), "input": CROP},
}
START_SECONDS = 120


def create_champions(adapters: Mapping[str, Path]) -> Champions:
    """These adapters on racks, as version 1 of their domains."""
    champions, racks = Champions(), Racks()
    for domain, folder in adapters.items():
        rack, resident = racks.put(domain, folder)
        champions.put(Champion(domain, 1, load_meta(folder).adapter_sha256, rack, resident))
    champions.ready = True
    return champions


def create_service(adapters: Mapping[str, Path]) -> Service:
    """A service in this process that serves these adapters, without a registry; close it."""
    return open_service(create_champions(adapters))


def draw_picture(seed: int = 0, size: tuple[int, int] = (48, 40), form: str = "PNG") -> bytes:
    """The bytes of a picture of (width, height) random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@dataclass(frozen=True)
class Running:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    url: str
    output: Path

    @property
    def log(self) -> str:
        """What it has written, to stdout and stderr."""
        return self.output.read_text()


@contextmanager
def start_server(workspace: Path, *options: str, ready: bool = True, **env: str) -> Iterator[Running]:
    """`python -m components.serving.server` on the champions of a workspace, ready, or listening alone."""
    port = free_port()
    command = [sys.executable, "-m", "components.serving.server", f"--port={port}", *options]
    environment = clean_environment() | QUIET | {"TESSERA_WORKSPACE": str(workspace)} | env
    output = workspace / f"server-{port}.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    running = Running(process, f"http://127.0.0.1:{port}", output)
    try:
        wait_for(running, "ready" if ready else "live")
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()


def wait_for(running: Running, state: str) -> None:
    """Wait until the server is `live` or `ready`."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and running.process.poll() is None:
        try:
            if httpx.get(f"{running.url}/v2/health/{state}", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"the server is not {state}: {running.log[-3000:]}")
