"""The loop: AdamW, warm-up and cosine, the head's weighted loss; the best epoch on validation wins, or the start.

A candidate that learns a head alone has no loop: its optimum is computed (components/training/probe.py).

Everything random in a step is a function of (seed, epoch, step): `torch.manual_seed` before it for dropout, the order
and the augmentation by their own generators. A run that was killed between any two steps resumes to the same bits.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset

from components.data.batches.loading import Samples, StepOrder, create_loader
from components.domain.settings import Training
from components.errors import Diverged, TrainingError
from components.models.engine import Engine
from components.models.network import Network
from components.models.process_group import ProcessGroup
from components.models.side import Lower
from components.models.tuners import Tuner
from components.models.tuners.linear import LinearTuner
from components.tasks.base import Problem
from components.training.checkpoint import Checkpoint, Progress, Tensors
from components.training.evaluate import extract_features, keep_answers
from components.training.probe import Choice, Head, choose_strength, solve, standardise, weigh_images
from components.training.recipe import Recipe, Stopped
from components.training.starts import start

Report = Callable[[dict[str, float]], None]
CLIP_NORM = 1.0
BETAS = (0.9, 0.95)

#: Settings of a training that change how it is computed but not a bit of what comes out.
UNRELATED = {"seeds", "workers", "checkpoint_seconds", "dtype", "devices"}


def fit(
    network: Network,
    train: Samples,
    val: Samples,
    recipe: Recipe,
    engine: Engine,
    checkpoint: Path,
    report: Report,
    stop: Callable[[], bool] = lambda: False,
    until_epoch: int | None = None,
) -> Progress:
    """Train the network in place and leave it with its best epoch's weights. Resumes from `checkpoint`.

    Every epoch is reported, those of an earlier process at once and marked. until_epoch: stop there with a checkpoint.
    Raises Stopped, with a checkpoint written, soon after `stop` says so, and Diverged where the loss is no number.
    """
    if isinstance(recipe.tuner, LinearTuner) and network.head.solvable:
        return solve_head(network, train, val, recipe.tuner.strength, recipe, engine, report, stop)
    return Loop(network, train, val, recipe, engine, checkpoint, stop).run(report, until_epoch)


class Learner(nn.Module):
    """What learns, as one module: from images, or from what untouched blocks made of them, to the head's outputs in
    float32."""

    def __init__(self, network: Network, engine: Engine) -> None:
        super().__init__()
        self.network, self.engine = network, engine

    def forward(self, images: torch.Tensor | Lower) -> torch.Tensor:
        return self.engine.forward(self.network, images)


class Loop:
    """One training between its first step and its last: what all steps share."""

    def __init__(
        self,
        network: Network,
        train: Samples,
        val: Samples,
        recipe: Recipe,
        engine: Engine,
        checkpoint: Path,
        stop: Callable[[], bool],
    ) -> None:
        self.network, self.recipe, self.engine, self.stop = engine.prepare(network), recipe, engine, stop
        training, peers = recipe.training, engine.peers
        self.weights: Tensors = dict(network.trainable_parameters())
        self.optimizer = create_optimizer(network, recipe.tuner)
        identity = identify(recipe, engine, train, self.weights)
        self.checkpoint = Checkpoint(checkpoint, identity, self.weights, self.optimizer, training.checkpoint_seconds)
        self.progress = self.checkpoint.load()
        self.progress.losses = [loss.to(engine.device) for loss in self.progress.losses]
        network.encoder.vit.set_grad_checkpointing(training.gradient_checkpointing)
        _require_share(train, training, peers)
        self.train, self.val = train, val
        self.start()
        self.order = self.create_order(train)
        self.loader: DataLoader[Any] = create_loader(
            train, training.batch_size, workers=training.workers, order=self.order
        )
        self.learner = peers.share(Learner(network, engine), engine.device)
        self.balance = network.head.class_weights(train.targets)
        self.clock = time.monotonic()

    def start(self) -> None:
        """Put what learns where the training starts; a training that goes on has that behind it.

        A solved head answers already: its score counts like that of an epoch, and training that does not improve upon
        it is not kept.
        """
        progress = self.progress
        if progress.epoch or progress.step:
            return
        self.clock = time.monotonic()
        start(self.network, self.train, self.recipe, self.engine)
        if self.network.head.solvable:
            progress.start = {"epoch": 0.0, **self.validate()}
            progress.keep_if_best(self.weights, self.recipe.task.metric)
        self._add_seconds()

    def create_order(self, train: Samples) -> StepOrder:
        peers = self.engine.peers
        return StepOrder(train, self.recipe.training.batch_size, self.recipe.seed, peers.rank, peers.size)

    def run(self, report: Report, until_epoch: int | None = None) -> Progress:
        """All epochs that remain; the network is left with the best one's weights."""
        for row in self.progress.history:
            report(row | {"resumed": 1.0})
        while self.progress.epoch < min(self.recipe.training.epochs, until_epoch or self.recipe.training.epochs):
            report(self.run_epoch())
            self.keep_up(epoch_ends=True)
        if until_epoch is not None and self.engine.peers.leads:
            self.checkpoint.save(self.progress)
        with torch.no_grad():
            for name, tensor in self.weights.items():
                tensor.copy_(self.progress.best[name])
        return self.progress

    def run_epoch(self) -> dict[str, float]:
        """What remains of the epoch, and its validation."""
        progress = self.progress
        self.network.train()
        self.train.epoch = progress.epoch
        self.order.start = progress.step
        self.clock = time.monotonic()
        for images, targets in self.loader:
            self.take_step(images, targets)
            progress.step += 1
            if progress.step < len(self.order):
                self.keep_up(epoch_ends=False)
        loss = float(torch.stack(progress.losses).mean())
        _require_finite(loss, self.recipe, progress.epoch)
        self._add_seconds()
        progress.epoch, progress.step, progress.losses = progress.epoch + 1, 0, []
        row = {"epoch": float(progress.epoch), "train/loss": loss, **self.validate()}
        progress.history.append(row)
        progress.keep_if_best(self.weights, self.recipe.task.metric)
        return row

    def validate(self) -> dict[str, float]:
        kept = self._answer_together(self.recipe.training.batch_size * 2)
        _require_finite(float(kept.sum()), self.recipe, max(0, self.progress.epoch - 1))  # one step may be too many
        return score_validation(self.val, kept, self.recipe)

    def _answer_together(self, batch_size: int) -> NDArray[np.float64]:
        """What is kept of the answers (N, K), of which every process of the process group computes its share."""
        peers, task = self.engine.peers, self.recipe.task
        if peers.size == 1 or len(self.val) < peers.size:
            return keep_answers(self.network, self.val, self.engine, batch_size, task)
        mine = range(peers.rank, len(self.val), peers.size)
        shares = keep_answers(self.network, Subset(self.val, mine), self.engine, batch_size, task)
        whole = torch.zeros(len(self.val), shares.shape[1], dtype=torch.float64)
        whole[peers.rank :: peers.size] = torch.from_numpy(shares)
        together: NDArray[np.float64] = peers.total(whole).numpy()
        return together

    def keep_up(self, *, epoch_ends: bool) -> None:
        """Between two steps: write a checkpoint when it is time, or because somebody asks to stop."""
        peers, progress = self.engine.peers, self.progress
        stops = peers.any(self.stop())
        if peers.leads and (stops or self.checkpoint.is_due(epoch_ends=epoch_ends)):
            if not epoch_ends:
                self._add_seconds()
            self.checkpoint.save(progress)
        if stops:
            raise Stopped(f"training stopped after {progress.epoch} epochs and {progress.step} steps")

    def _add_seconds(self) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self.clock
        self.clock = now

    def take_step(self, images: torch.Tensor | Lower, targets: torch.Tensor) -> None:
        """One update from this process's share of a batch, computed in parts."""
        training, progress, peers = self.recipe.training, self.progress, self.engine.peers
        torch.manual_seed(self.draw_seed(peers.rank))
        self._set_rate()
        # Over the whole batch, so that parts and shares add up to its mean.
        whole = peers.total(self.network.head.count(targets, self.balance))
        chunks: Sequence[torch.Tensor | Lower] = images.chunk(training.accumulate)
        parts = list(zip(chunks, targets.chunk(training.accumulate), strict=True))
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for number, (some, of) in enumerate(parts, 1):
            with self._sync_if(number == len(parts)):
                loss = self.measure(some, of) / float(whole)
                (loss * peers.size).backward()  # type: ignore[no-untyped-call]  # DDP averages over the process group
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), CLIP_NORM)
        self.optimizer.step()
        progress.losses.append(peers.total(torch.stack(losses).sum()))

    def _sync_if(self, last: bool) -> Any:
        """Gradients travel once a step, with its last part."""
        if isinstance(self.learner, DistributedDataParallel) and not last:
            return self.learner.no_sync()
        return nullcontext()

    def _set_rate(self) -> None:
        steps, training = len(self.order), self.recipe.training
        done = self.progress.epoch * steps + self.progress.step
        rate = scale_rate(done, training.epochs * steps, training.warmup_epochs * steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.tuner.lr * rate * group["lr_scale"]

    def measure(self, images: torch.Tensor | Lower, targets: torch.Tensor) -> torch.Tensor:
        """The sum of the images' weighted losses."""
        device = self.engine.device
        return self.network.head.loss(self.learner(images), targets.to(device), self.balance.to(device))

    def draw_seed(self, *purpose: int) -> int:
        """A number for one purpose of this step."""
        place = [self.recipe.seed, self.progress.epoch, self.progress.step, *purpose]
        return int(np.random.SeedSequence(place).generate_state(1)[0])


def solve_head(
    network: Network,
    train: Samples,
    val: Samples,
    strength: float | None,
    recipe: Recipe,
    engine: Engine,
    report: Report,
    stop: Callable[[], bool],
) -> Progress:
    """Leave the network with the optimal head for the frozen features, and report that as the one epoch there is.

    strength: None for the one that cross-validation chooses. The leader of a process group works alone, the others have
    nothing to do. Nothing is kept for a process that was killed: the next one computes the same bits in seconds. Raises
    TrainingError where the optimum is not reached, and Stopped.
    """
    if not engine.peers.leads:
        return Progress()

    def pause() -> None:
        if stop():
            raise Stopped("training stopped while the linear probe was solved")

    started, task, classes = time.monotonic(), recipe.task, len(recipe.classes)
    engine.prepare(network)
    size, source = 2 * recipe.training.batch_size, recipe.features
    sides = [extract_features(network, side, engine, size, source, pause) for side in (train, val)]
    features = [side.features.astype(np.float64) for side in sides]
    if strength is None:
        targets, groups = (np.concatenate(parts) for parts in zip(*map(_name_groups, (train, val)), strict=True))
        both = task.problems(targets, classes)
        choice = choose_strength(np.concatenate(features), both, task.strata(targets), groups, pause)
    else:
        choice = Choice(strength, {})
    pause()
    known, problems = standardise(features[0]), task.problems(train.targets, classes)
    solutions = [solve(known, problem, choice.strength) for problem in problems]
    network.head.fill(solutions)
    loss = float(np.mean([_measure(*pair, features[0]) for pair in zip(problems, solutions, strict=True)]))
    row = {"epoch": 1.0, "strength": choice.strength, "train/loss": loss}
    row |= {"held_out/loss": choice.losses[choice.strength]} if choice.losses else {}
    kept = keep_answers(network, sides[1], engine, 2 * recipe.training.batch_size, task)
    row |= score_validation(val, kept, recipe)
    report(row)
    best = {name: tensor.detach().clone() for name, tensor in network.trainable_parameters().items()}
    return Progress(epoch=1, history=[row], best_epoch=1, seconds=time.monotonic() - started, best=best)


def _measure(problem: Problem, solution: Head, features: NDArray[np.float64]) -> float:
    """The weighted mean loss of the images, without what the strength adds to it."""
    losses = -solution.predict_logs(features)[np.arange(len(features)), problem.targets]
    return float((weigh_images(problem) * losses).mean())


def _name_groups(samples: Samples) -> tuple[NDArray[Any], NDArray[np.generic]]:
    """Targets and groups; an image whose group nobody told is one of its own."""
    groups = samples.rows.astype(str) if samples.groups is None else samples.groups
    return samples.targets, groups


def score_validation(val: Samples, kept: NDArray[np.float64], recipe: Recipe) -> dict[str, float]:
    """What an epoch's row says of the validation images; kept: what their answers were reduced to (`Task.keep`)."""
    task = recipe.task
    scores = task.metrics(val.targets, kept, recipe.classes)
    shown = {f"val/{name}": scores[name] for name in (task.metric, task.shown)}
    return {"val/loss": float(task.surprise(val.targets, kept).mean()), **shown}


def identify(recipe: Recipe, engine: Engine, train: Samples, weights: Tensors) -> dict[str, str]:
    """What a checkpoint must have in common with the training that goes on from it."""
    rows = hashlib.sha256(train.rows.tobytes() + train.targets.tobytes()).hexdigest()
    shapes = repr([(name, tuple(tensor.shape)) for name, tensor in weights.items()])
    return {
        "candidate": recipe.tuner.model_dump_json(),
        "seed": str(recipe.seed),
        "training": recipe.training.model_dump_json(exclude=UNRELATED),
        "task": recipe.task.model_dump_json(),
        "classes": ", ".join(recipe.classes),
        "backbone and data": recipe.origin,
        "training side": rows,
        "list of weights": hashlib.sha256(shapes.encode()).hexdigest(),
        "attention": "fused" if engine.fused_attention else "plain",
        "number format": str(engine.dtype).removeprefix("torch."),
        "number of devices": str(engine.peers.size),
    }


def create_optimizer(network: Network, tuner: Tuner) -> torch.optim.AdamW:
    """AdamW; biases, norms and other vectors are not decayed.

    The second moment forgets in about 20 steps instead of 1,000: VAPT starts with prompts of exactly zero, where its
    first gradients are 10^2 to 10^3 times larger than later ones; remembered for long, they would freeze it.
    """
    scales = tuner.lr_scales(network.encoder)
    if network.head.lr is not None:
        scales |= dict.fromkeys(network.head.parameters(), network.head.lr / tuner.lr)
    members: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}  # share of the learning rate, whether decayed
    for parameter in network.trainable_parameters().values():
        members.setdefault((scales.get(parameter, 1.0), parameter.ndim > 1), []).append(parameter)
    groups = [
        {"params": parameters, "lr_scale": scale, "weight_decay": tuner.weight_decay if decayed else 0.0}
        for (scale, decayed), parameters in sorted(members.items(), reverse=True)
    ]
    return torch.optim.AdamW(groups, lr=tuner.lr, betas=BETAS)


def scale_rate(step: int, steps: int, warmup: float) -> float:
    """Share of the full learning rate at a step: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))


def _require_share(train: Samples, training: Training, peers: ProcessGroup) -> None:
    fewest = min(training.batch_size, len(train))
    if fewest < peers.size:
        raise TrainingError(
            "training on several devices",
            expected=f"{peers.size} images a step at least, one for each device",
            found=f"{fewest}: batch_size {training.batch_size}, {len(train)} training images",
            hint="Lower training.devices or raise training.batch_size.",
        )


def _require_finite(loss: float, recipe: Recipe, epoch: int) -> None:
    if not math.isfinite(loss):
        raise Diverged(
            f"candidate {recipe.tuner.label}, seed {recipe.seed}",
            expected="a finite training loss",
            found=f"{loss} in epoch {epoch + 1}",
            hint=f"Lower its learning rate (now lr: {recipe.tuner.lr}) or lengthen training.warmup_epochs.",
        )
