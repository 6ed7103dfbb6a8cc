"""The ways of teaching that `benchmarks/teaching.py` compares: each is what it claims to be, on the project's loop."""

from pathlib import Path

import numpy as np
import pytest
import teaching
import torch
from vits import create_backbone

from components.data.batches.loading import Samples
from components.domain.settings import Training
from components.models.engine import Engine
from components.models.network import create_network
from components.models.tuners import create_tuners
from components.training.fit import Loop
from components.training.recipe import Recipe

CLASSES = ("a", "b", "c")


def create_loop(way: str, folder: Path) -> Loop:
    (tuner,) = create_tuners([{"kind": "vpt"}])
    network = create_network(create_backbone(), tuner, len(CLASSES), 0)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
    targets = np.array([0] * 30 + [1] * 8 + [2] * 2)
    samples = Samples(pixels, np.arange(40), targets, None)
    training = Training(epochs=2, batch_size=8, warmup_epochs=0.5, checkpoint_seconds=3600)
    engine = Engine(torch.device("cpu"), torch.float32, (0.5,) * 3, (0.5,) * 3, fused_attention=False)
    recipe = Recipe(tuner, training, CLASSES, 0)
    return teaching.WAYS[way](network, samples, samples, recipe, engine, folder / "none", lambda: False)


@pytest.mark.slow
def test_every_way_trains_and_differs_from_the_plain_one(tmp_path: Path) -> None:
    losses = {}
    for way in teaching.WAYS:
        progress = create_loop(way, tmp_path).run(lambda row: None)
        assert len(progress.history) == 2
        losses[way] = progress.history[-1]["val/loss"]
    assert len(set(losses.values())) == len(losses), losses


def test_balanced_sampling_draws_all_classes_alike(tmp_path: Path) -> None:
    loop = create_loop("sampling balanced", tmp_path)
    drawn = []
    for epoch in range(40):
        loop.train.epoch = epoch
        drawn += [loop.train.targets[index] for step in loop.order for index in step]
    assert np.bincount(drawn) / len(drawn) == pytest.approx([1 / 3] * 3, abs=0.05)


def test_averages_are_judged_and_the_weights_go_on(tmp_path: Path) -> None:
    plain, averaged = create_loop("plain", tmp_path), create_loop("averaged weights", tmp_path)
    first, other = plain.run_epoch(), averaged.run_epoch()
    assert first["train/loss"] == other["train/loss"]
    assert first["val/loss"] != other["val/loss"]
    for name, tensor in plain.weights.items():
        assert torch.equal(tensor, averaged.weights[name])
        assert torch.equal(averaged.progress.best[name], averaged.averages[name])


def test_early_stopping_is_read_from_a_history() -> None:
    def record(*scores: float) -> teaching.Record:
        return {"history": [{"val/balanced_accuracy": score, "val/loss": 1.0} for score in scores]}

    told = teaching.stop_early(1, [record(0.5, 0.4, 0.9), record(0.5, 0.6, 0.7)])
    assert told["lost_on_validation"] == pytest.approx(0.2)
    assert told["time_spared"] == pytest.approx(1 / 6, abs=1e-4)
