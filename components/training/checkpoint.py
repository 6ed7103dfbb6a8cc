"""Where a training process was: adapter, best adapter so far, optimizer and history in one safetensors file.

No random state is stored because none is needed: order, augmentation, dropout and mixing of a step follow from
(seed, epoch, step), so a process that starts again between two steps computes the same bits.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from components.errors import TrainingError
from components.files import flush, remove_partial, whole_file

Tensors = dict[str, torch.Tensor]

FORMAT = 2
MOST_OF_TIME = 0.05  # that writing checkpoints may take: those of a whole network are gigabytes

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Everything the steps so far decide about the next one, beside weights and optimizer."""

    epoch: int = 0  # epochs finished
    step: int = 0  # steps taken in the epoch after them
    history: list[dict[str, float]] = field(default_factory=list)
    start: dict[str, float] = field(default_factory=dict)  # how it began on validation, where that was an answer
    best_epoch: int = 0  # 0: the start
    seconds: float = 0.0  # of training, over all processes that worked on it
    losses: list[torch.Tensor] = field(default_factory=list)  # of the epoch's steps
    best: Tensors = field(default_factory=dict)

    def keep_if_best(self, tensors: Tensors, metric: str) -> None:
        """Keep a copy of the weights when the last epoch is the best on validation, or of the start before there is
        one; a tie goes to the lower loss."""
        ranks = [rank_row(row, metric) for row in ([self.start] if self.start else []) + self.history]
        if ranks[-1] == min(ranks):
            self.best_epoch = self.epoch
            self.best = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @property
    def best_row(self) -> dict[str, float]:
        """What validation said of the weights that are kept."""
        return self.history[self.best_epoch - 1] if self.best_epoch else self.start


def rank_row(row: Mapping[str, float], metric: str) -> tuple[float, float]:
    """What epochs are sorted by: the metric on validation, best first, a tie to the lower loss."""
    return -row[f"val/{metric}"], row["val/loss"]


FACTS = ("epoch", "step", "history", "start", "best_epoch", "seconds")


class Checkpoint:
    """The file of one training. `tensors` are saved and put back in place; `identity` says whose they are."""

    def __init__(
        self,
        path: Path,
        identity: dict[str, str],
        tensors: Tensors,
        optimizer: torch.optim.Optimizer,
        seconds: float = 10.0,
    ) -> None:
        self.path, self.tensors, self.optimizer, self.seconds = path, tensors, optimizer, seconds
        self.identity = {"format": str(FORMAT), **identity}
        self.saved, self.cost = time.monotonic(), 0.0

    def is_due(self, *, epoch_ends: bool) -> bool:
        """Whether it is time; sooner where an epoch ends, for then less is to be done again."""
        pause = self.seconds / 10 if epoch_ends else self.seconds
        return time.monotonic() - self.saved >= max(pause, self.cost / MOST_OF_TIME)

    def save(self, progress: Progress) -> None:
        """Write beside and rename: a kill or a full disk leaves the last good file. Raises TrainingError."""
        started = time.monotonic()
        try:
            self._write(progress)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"checkpoint {self.path}",
                expected="room to write it",
                found=str(error),
                hint="Free some space; the last good checkpoint is kept, and the same command goes on from there.",
            ) from None
        self.saved = time.monotonic()
        self.cost = self.saved - started

    def load(self) -> Progress:
        """Put weights and optimizer back in place; a fresh Progress where there is no checkpoint.

        A damaged file is no use to anybody: training begins again, and the log says so. Raises TrainingError for a
        whole one that is of another training.
        """
        if not self.path.exists():
            return Progress()
        try:
            with safe_open(self.path, framework="pt") as file:
                record = file.metadata() or {}
                stored: Tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no iterator
        except SafetensorError as error:
            log.warning("checkpoint %s is damaged (%s): training begins again", self.path, error)
            return Progress()
        self._require_ours(json.loads(record.get("identity", "{}")))
        for name, tensor in self.tensors.items():
            tensor.data.copy_(stored[f"weights.{name}"])
        self.optimizer.load_state_dict(
            {"state": _nest(_select(stored, "optimizer")), "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        losses = list(stored["losses"]) if "losses" in stored else []
        return Progress(**json.loads(record["facts"]), losses=losses, best=_select(stored, "best"))

    def _write(self, progress: Progress) -> None:
        slots = self.optimizer.state_dict()["state"]
        tensors = (
            {f"weights.{name}": tensor.detach() for name, tensor in self.tensors.items()}
            | {f"best.{name}": tensor for name, tensor in progress.best.items()}
            | {f"optimizer.{i}.{key}": value for i, slot in slots.items() for key, value in slot.items()}
            | ({"losses": torch.stack(progress.losses)} if progress.losses else {})
        )
        record = {
            "identity": json.dumps(self.identity),
            "facts": json.dumps({key: vars(progress)[key] for key in FACTS}),
        }
        with whole_file(self.path) as partial:
            save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, partial, record)
            flush(partial)
        flush(self.path.parent)

    def _require_ours(self, theirs: dict[str, str]) -> None:
        for key, ours in self.identity.items():
            if theirs.get(key) != ours:
                raise TrainingError(
                    f"checkpoint {self.path}",
                    expected=f"one of this training, whose {key} is {ours}",
                    found=f"one whose {key} is {theirs.get(key, 'not told')}",
                    hint="Go on with the settings, data and machine it began with, or remove it to begin again.",
                )


def remove_checkpoint(path: Path) -> None:
    """And what a writer that was killed left beside it."""
    path.unlink(missing_ok=True)
    remove_partial(path)


def _select(stored: Tensors, kind: str) -> Tensors:
    return {name.removeprefix(f"{kind}."): tensor for name, tensor in stored.items() if name.startswith(f"{kind}.")}


def _nest(slots: Tensors) -> dict[int, Tensors]:
    """`3.exp_avg` as [3]["exp_avg"], which is how an optimizer keeps them."""
    state: dict[int, Tensors] = {}
    for name, tensor in slots.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    return state
