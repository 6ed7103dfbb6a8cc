"""Where a training process was: adapter, best adapter so far, optimizer and history in one safetensors file.

No random state is stored because none is needed: dropout, order and augmentation of an epoch follow from
(seed, epoch), so a process that starts again at an epoch's beginning computes the same bits.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


@dataclass
class Progress:
    """Everything an epoch's end decides about the next one."""

    epoch: int = 0  # epochs finished
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best: Tensors = field(default_factory=dict)
    seconds: float = 0.0  # of training, over all processes that worked on it
    fused_attention: bool | None = None  # chosen by a measurement at the start, which need not come out so again

    def keep_if_best(self, tensors: Tensors) -> None:
        """Keep a copy of the weights when the last epoch is the best on validation; a tie goes to the lower loss."""
        ranks = [(-row["val/balanced_accuracy"], row["val/loss"]) for row in self.history]
        if ranks[-1] == min(ranks):
            self.best_epoch = self.epoch
            self.best = {name: tensor.detach().clone() for name, tensor in tensors.items()}


def save_checkpoint(path: Path, progress: Progress, weights: Tensors, optimizer: torch.optim.Optimizer) -> None:
    """Write beside and rename: a kill or a full disk leaves the last good file."""
    slots = optimizer.state_dict()["state"]
    tensors = (
        {f"weights.{name}": tensor.detach() for name, tensor in weights.items()}
        | {f"best.{name}": tensor for name, tensor in progress.best.items()}
        | {f"optimizer.{i}.{key}": value for i, slot in slots.items() for key, value in slot.items()}
    )
    facts = {
        "epoch": progress.epoch,
        "history": progress.history,
        "best_epoch": progress.best_epoch,
        "seconds": progress.seconds,
        "fused_attention": progress.fused_attention,
    }
    partial = path.with_suffix(".partial")
    save_file(
        {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, partial, {"facts": json.dumps(facts)}
    )
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_checkpoint(path: Path, weights: Tensors, optimizer: torch.optim.Optimizer) -> Progress:
    """Put weights and optimizer back in place; a fresh Progress where there is no checkpoint or it does not fit."""
    if not path.exists():
        return Progress()
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors: Tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no iterator
    except SafetensorError:
        return Progress()
    for name, tensor in weights.items():
        tensor.data.copy_(tensors[f"weights.{name}"])
    state: dict[int, Tensors] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    best = {name.removeprefix("best."): tensor for name, tensor in tensors.items() if name.startswith("best.")}
    return Progress(best=best, **facts)
