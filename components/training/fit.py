"""The loop: AdamW, warm-up and cosine, class-balanced cross entropy, the best epoch on validation wins.

Everything random in an epoch is a function of (seed, epoch): `torch.manual_seed` at its start for dropout,
the order and the augmentation by their own generators. A run that was killed resumes to the same bits.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader

from components.data.loading import Samples, create_loader
from components.domain import Training
from components.errors import Diverged
from components.models.network import Network
from components.models.tuners import Tuner
from components.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from components.training.evaluate import Engine, cross_entropy, extract_features, predict_probabilities
from components.training.metrics import score_predictions

Report = Callable[[dict[str, float]], None]
CHECKPOINT_SECONDS = 10.0
CLIP_NORM = 1.0
BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Recipe:
    """One candidate's training: who learns, from what, for how long."""

    tuner: Tuner
    training: Training
    classes: tuple[str, ...]
    seed: int


def fit(
    network: Network,
    train: Samples,
    val: Samples,
    recipe: Recipe,
    engine: Engine,
    checkpoint: Path,
    report: Report,
    until_epoch: int | None = None,
) -> Progress:
    """Train the network in place and leave it with its best epoch's weights. Resumes from `checkpoint`.

    Every epoch is reported, those of an earlier process at once and marked. until_epoch: stop there with a checkpoint.
    """
    engine.prepare(network)
    weights: dict[str, torch.Tensor] = dict(network.trainable_parameters())
    optimizer = create_optimizer(network, recipe.tuner)
    progress = load_checkpoint(checkpoint, weights, optimizer)
    if progress.fused_attention is None:
        progress.fused_attention = engine.fused_attention
    network.encoder.prepare(engine.dtype, progress.fused_attention)
    if network.learns_head_only:
        # Without augmentation, for which every epoch would need the backbone again: epochs take milliseconds.
        train, val = (extract_features(network, side, engine, 2 * recipe.training.batch_size) for side in (train, val))
    loader = create_loader(train, recipe.training.batch_size, workers=recipe.training.workers, seed=recipe.seed)
    saved = time.monotonic()
    for row in progress.history:
        report(row | {"resumed": 1.0})
    last = min(recipe.training.epochs, until_epoch or recipe.training.epochs)
    while progress.epoch < last:
        started = time.monotonic()
        train.epoch = progress.epoch
        loss = _train_epoch(network, train, loader, optimizer, recipe, engine)
        progress.epoch += 1
        progress.seconds += time.monotonic() - started
        row = {
            "epoch": float(progress.epoch),
            "train/loss": loss,
            **_validate(network, val, recipe, engine, progress.epoch),
        }
        progress.history.append(row)
        progress.keep_if_best(weights)
        report(row)
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            save_checkpoint(checkpoint, progress, weights, optimizer)
            saved = time.monotonic()
    if until_epoch is not None:
        save_checkpoint(checkpoint, progress, weights, optimizer)
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(progress.best[name])
    return progress


def create_optimizer(network: Network, tuner: Tuner) -> torch.optim.AdamW:
    """AdamW; biases, norms and other vectors are not decayed.

    The second moment forgets in about 20 steps instead of 1,000: VAPT starts with prompts of exactly zero, where its
    first gradients are 10^2 to 10^3 times larger than later ones; remembered for long, they would freeze it.
    """
    scales = tuner.lr_scales(network.encoder)
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


def balance_classes(targets: NDArray[np.int64], num_classes: int) -> torch.Tensor:
    """Weights (C,) that make every class count the same in the loss; mean 1 over the images."""
    counts = np.bincount(targets, minlength=num_classes).clip(1)
    return torch.from_numpy(len(targets) / (num_classes * counts)).float()


def _train_epoch(
    network: Network,
    train: Samples,
    loader: DataLoader[Any],
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    engine: Engine,
) -> float:
    network.train()
    epoch = train.epoch
    torch.manual_seed(int(np.random.SeedSequence([recipe.seed, epoch, 1]).generate_state(1)[0]))
    balance = balance_classes(train.targets, len(recipe.classes)).to(engine.device)
    parameters = list(network.trainable_parameters().values())
    steps, losses = len(loader), []
    for index, (images, targets) in enumerate(loader):
        rate = scale_rate(epoch * steps + index, recipe.training.epochs * steps, recipe.training.warmup_epochs * steps)
        for group in optimizer.param_groups:
            group["lr"] = recipe.tuner.lr * rate * group["lr_scale"]
        logits = engine.forward(network, images)
        loss = F.cross_entropy(
            logits, targets.to(engine.device), weight=balance, label_smoothing=recipe.training.label_smoothing
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        losses.append(loss.detach())
    mean = float(torch.stack(losses).mean())
    _require_finite(mean, recipe, epoch)
    return mean


def _require_finite(loss: float, recipe: Recipe, epoch: int) -> None:
    if not math.isfinite(loss):
        raise Diverged(
            f"candidate {recipe.tuner.label}, seed {recipe.seed}",
            expected="a finite training loss",
            found=f"{loss} in epoch {epoch + 1}",
            mend=f"Lower its learning rate (now lr: {recipe.tuner.lr}) or lengthen training.warmup_epochs.",
        )


def _validate(network: Network, val: Samples, recipe: Recipe, engine: Engine, epoch: int) -> dict[str, float]:
    probabilities = predict_probabilities(network, val, engine, recipe.training.batch_size * 2)
    _require_finite(float(probabilities.sum()), recipe, epoch - 1)  # the last step may have been the one too many
    scores = score_predictions(val.targets, probabilities, recipe.classes)
    return {
        "val/loss": cross_entropy(val.targets, probabilities),
        "val/balanced_accuracy": scores["balanced_accuracy"],
        "val/macro_f1": scores["macro_f1"],
    }
