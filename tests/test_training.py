"""The loop: resumes to the same bits, repeats for any number of workers, and refuses what cannot be trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, recall_score
from vits import create_backbone

from components.data.loading import Samples
from components.data.transforms import Augmentation
from components.domain import Training
from components.errors import TrainingError
from components.models.encoders import PromptedEncoder
from components.models.network import Network, create_network
from components.models.tuners import TUNERS, create_tuners
from components.training.checkpoint import Progress, save_checkpoint
from components.training.evaluate import Engine, extract_features, predict_probabilities
from components.training.fit import Recipe, balance_classes, create_optimizer, fit, scale_rate
from components.training.metrics import expected_calibration_error, score_predictions

CLASSES = ("a", "b", "c")


class Killed(BaseException):
    """Stands for a SIGKILL between two epochs."""


def _samples(augmentation: Augmentation | None, count: int = 24) -> Samples:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)
    targets = np.arange(count) % len(CLASSES)
    pixels[targets == 1] //= 2  # something to learn
    return Samples(pixels, np.arange(count), targets, augmentation)


def _train(kind: str, folder: Path, dtype: torch.dtype, *, die_after: int = 0, workers: int = 0) -> Network:
    (tuner,) = create_tuners([{"kind": kind}])
    network = create_network(create_backbone(), tuner, len(CLASSES), 0)
    training = Training(epochs=4, batch_size=8, warmup_epochs=1, workers=workers)
    seen = []

    def report(row: dict[str, float]) -> None:
        seen.append(row)
        if len(seen) == die_after:
            raise Killed

    engine = Engine(torch.device("cpu"), dtype, (0.5,) * 3, (0.5,) * 3, fused_attention=False)
    train, val = _samples(Augmentation("industrial", 0)), _samples(None)
    fit(network, train, val, Recipe(tuner, training, CLASSES, 0), engine, folder / "c.safetensors", report)
    return network


def _weights(network: Network) -> dict[str, NDArray[np.float32]]:
    return {name: p.detach().float().numpy().copy() for name, p in network.trainable_parameters().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", sorted(TUNERS))
def test_a_killed_run_resumes_to_the_same_bits(
    kind: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.training.fit.CHECKPOINT_SECONDS", 0.0)
    (tmp_path / "whole").mkdir()
    whole = _weights(_train(kind, tmp_path / "whole", dtype))
    (tmp_path / "broken").mkdir()
    with pytest.raises(Killed):
        _train(kind, tmp_path / "broken", dtype, die_after=3)
    assert (tmp_path / "broken" / "c.safetensors").exists()
    resumed = _weights(_train(kind, tmp_path / "broken", dtype))
    assert whole.keys() == resumed.keys()
    for name, weight in whole.items():
        np.testing.assert_array_equal(weight, resumed[name], err_msg=name)


def test_a_resumed_run_keeps_the_attention_it_began_with(tmp_path: Path) -> None:
    network = create_network(create_backbone(), create_tuners([{"kind": "vpt"}])[0], len(CLASSES), 0)
    optimizer = create_optimizer(network, create_tuners([{"kind": "vpt"}])[0])
    weights: dict[str, torch.Tensor] = dict(network.trainable_parameters())
    best = {name: tensor.detach().clone() for name, tensor in weights.items()}
    save_checkpoint(tmp_path / "c.safetensors", Progress(4, best=best, fused_attention=True), weights, optimizer)
    engine = Engine(torch.device("cpu"), torch.float32, (0.5,) * 3, (0.5,) * 3, fused_attention=False)
    recipe = Recipe(create_tuners([{"kind": "vpt"}])[0], Training(epochs=4, batch_size=8), CLASSES, 0)
    fit(network, _samples(None), _samples(None), recipe, engine, tmp_path / "c.safetensors", lambda _: None)
    assert all(block.attn.fused_attn for block in network.encoder.vit.blocks)


def test_a_head_alone_learns_from_features_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    forward = PromptedEncoder.forward

    def count(self: PromptedEncoder, images: torch.Tensor) -> torch.Tensor:
        passes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(PromptedEncoder, "forward", count)
    network = _train("linear", tmp_path, torch.float32)
    assert sum(passes) == 2 * 24  # training and validation images, whatever the epochs
    samples = _samples(None)
    engine = Engine(torch.device("cpu"), torch.float32, (0.5,) * 3, (0.5,) * 3, fused_attention=False)
    by_features = predict_probabilities(network, extract_features(network, samples, engine, 8), engine, 8)
    np.testing.assert_allclose(by_features, predict_probabilities(network, samples, engine, 8), atol=1e-6)


def test_a_loss_that_is_not_a_number_stops_with_advice(tmp_path: Path) -> None:
    (tuner,) = create_tuners([{"kind": "full", "lr": 100}])
    network = create_network(create_backbone(), tuner, len(CLASSES), 0)
    with torch.no_grad():
        network.head.weight.fill_(float("nan"))
    engine = Engine(torch.device("cpu"), torch.float32, (0.5,) * 3, (0.5,) * 3, fused_attention=False)
    recipe = Recipe(tuner, Training(epochs=1, batch_size=8), CLASSES, 0)
    with pytest.raises(TrainingError, match="learning rate"):
        fit(network, _samples(None), _samples(None), recipe, engine, tmp_path / "c.safetensors", lambda _: None)


def test_a_damaged_checkpoint_starts_afresh(tmp_path: Path) -> None:
    (tmp_path / "c.safetensors").write_bytes(b"half a file")
    torn = _weights(_train("linear", tmp_path, torch.float32))
    (tmp_path / "other").mkdir()
    for name, weight in _weights(_train("linear", tmp_path / "other", torch.float32)).items():
        np.testing.assert_array_equal(weight, torn[name])


def test_schedule_and_balance() -> None:
    rates = [scale_rate(step, 100, 10) for step in range(100)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[0] < 0.1 < rates[9] < 1
    assert rates[-1] < 0.01
    weights = balance_classes(np.array([0, 0, 0, 1]), 2)
    assert (weights * torch.tensor([3.0, 1.0])).tolist() == pytest.approx([2.0, 2.0])


def test_metrics_by_hand() -> None:
    targets = np.array([0, 0, 0, 1])
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    scores = score_predictions(targets, probabilities, ("sound", "cracked"))
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["recall/cracked"] == 1
    assert scores["accuracy"] == 0.75
    assert expected_calibration_error(targets, probabilities) == pytest.approx(0.15)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_metrics_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    targets, predicted = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    scores = score_predictions(targets, np.eye(3)[predicted], CLASSES)
    present = np.unique(targets)
    recalls = recall_score(targets, predicted, labels=present, average=None, zero_division=0.0)
    assert scores["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert scores["accuracy"] == pytest.approx(accuracy_score(targets, predicted))
    f1 = f1_score(targets, predicted, labels=present, average="macro", zero_division=0.0)
    assert scores["macro_f1"] == pytest.approx(f1)
    assert [scores[f"recall/{CLASSES[k]}"] for k in present] == pytest.approx(recalls.tolist())
