"""What a training process takes of its machine, measured by itself at the end of an epoch.

The names are those under which MLflow shows system metrics; the numbers are of this process and not of the machine,
which others use, too. Data workers are processes of their own and are not in them.
"""

import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from components.models.engine import Engine
    from components.models.network import Network

SHORTEST = 0.2  # seconds; the processor's share over less is noise
MEGABYTE = 1e6
RUNS = 15


class Usage:
    """`sample()` gives the numbers since the sample before; nothing when that was a moment ago."""

    def __init__(self) -> None:
        self.when, self.busy = time.monotonic(), time.process_time()

    def sample(self) -> dict[str, float]:
        """Per cent of one processor, and megabytes; of each GPU in use, too."""
        when, busy = time.monotonic(), time.process_time()
        if when - self.when < SHORTEST:
            return {}
        share = 100 * (busy - self.busy) / (when - self.when)
        self.when, self.busy = when, busy
        numbers = {"cpu_utilization_percentage": share, "system_memory_usage_megabytes": resident_memory() / MEGABYTE}
        return {f"system/{key}": round(value, 1) for key, value in (numbers | _use_of_gpus()).items()}


def resident_memory() -> int:
    """Bytes of this process in memory; where the system does not tell, the most there ever were."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@torch.inference_mode()
def measure_serving(network: "Network", engine: "Engine", img_size: int) -> dict[str, float]:
    """latency_ms_p50 of one image at a time, the network alone, and memory_mb: of this process, or on the GPU.

    Zeros take as long as any picture. The first runs choose kernels and fill caches.
    """
    image = torch.zeros((1, 3, img_size, img_size), dtype=torch.uint8)
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
    """Memory that torch holds on each GPU it has used."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    held = {k: torch.cuda.memory_reserved(k) for k in range(torch.cuda.device_count())}
    return {f"gpu_{k}_memory_usage_megabytes": size / MEGABYTE for k, size in held.items() if size}
