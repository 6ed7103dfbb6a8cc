"""The processes that train one candidate together, started by `python -m torch.distributed.run`; usually one alone."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from components.errors import TrainingError

#: A rank that waits for another: validation and the start differ by seconds; a dead rank is noticed at once.
PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True)
class ProcessGroup:
    """Rank r of `size` processes. What they decide they decide alike, because they look at the same numbers."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, the same bits in each."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, mine: bool) -> bool:
        """Whether one of them says so."""
        return mine if self.size == 1 else bool(self.total(torch.tensor(float(mine))) > 0)

    def share(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The module, with gradients averaged over all processes where there are several."""
        if self.size == 1:
            return module
        return DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)


ALONE = ProcessGroup()


def join_process_group() -> ProcessGroup:
    """This process's place among those torchrun started; alone without it. Each gets a GPU of its own."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    if torch.cuda.is_available():
        _require_gpus(int(os.environ["LOCAL_WORLD_SIZE"]))
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Decisions travel by gloo, for which nobody waits on the GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return ProcessGroup(dist.get_rank(), size)


def leave_process_group() -> None:
    """Close the connections, where there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _require_gpus(wanted: int) -> None:
    found = torch.cuda.device_count()
    if found < wanted:
        raise TrainingError(
            "training on several devices",
            expected=f"{wanted} GPUs, as training.devices asks",
            found=str(found),
            hint="Lower training.devices, or train on a machine that has them.",
        )
