"""Time and memory that a training process uses, measured by itself at the end of each epoch.

The names are those of MLflow's system metrics. The numbers are those of this process, not of the machine, and do not
include data workers, which are separate processes.
"""

import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from components.domain.canvas import ImgSize
    from components.models.engine import Engine
    from components.models.network import Network

SHORTEST = 0.2  # seconds; processor usage over a shorter time is noise
MEGABYTE = 1e6
RUNS = 15


class Usage:
    """`sample()` returns the usage since the previous sample; nothing if that was less than SHORTEST ago."""

    def __init__(self) -> None:
        self.when, self.busy = time.monotonic(), time.process_time()

    def sample(self) -> dict[str, float]:
        """Usage of the processor in per cent of one core and of memory in megabytes, also of each GPU in use."""
        when, busy = time.monotonic(), time.process_time()
        if when - self.when < SHORTEST:
            return {}
        share = 100 * (busy - self.busy) / (when - self.when)
        self.when, self.busy = when, busy
        numbers = {"cpu_utilization_percentage": share, "system_memory_usage_megabytes": resident_memory() / MEGABYTE}
        return {f"system/{key}": round(value, 1) for key, value in (numbers | _use_of_gpus()).items()}


def resident_memory() -> int:
    """Bytes of this process in memory; on systems without /proc, the maximum so far."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@torch.inference_mode()
def measure_serving(network: "Network", engine: "Engine", img_size: "ImgSize") -> dict[str, float]:
    """latency_ms_p50 of the network for one image at a time, and memory_mb of this process, or on the GPU.

    The image is zeros, which take as long as any picture. Warm-up runs choose kernels and fill caches.
    """
    image = torch.zeros((1, 3, *img_size), dtype=torch.uint8)
    network.eval()
    seconds = []
    for _ in range(3 + RUNS):
        begun = time.perf_counter()
        engine.forward(network, image).cpu()  # waits for a GPU
        seconds.append(time.perf_counter() - begun)
    on_gpu = engine.device.type == "cuda"
    memory = torch.cuda.max_memory_allocated() if on_gpu else resident_memory()
    return {"latency_ms_p50": 1000 * sorted(seconds[3:])[RUNS // 2], "memory_mb": memory / MEGABYTE}


def _use_of_gpus() -> dict[str, float]:
    """The memory that torch holds on each GPU that it has used."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    held = {k: torch.cuda.memory_reserved(k) for k in range(torch.cuda.device_count())}
    return {f"gpu_{k}_memory_usage_megabytes": size / MEGABYTE for k, size in held.items() if size}
