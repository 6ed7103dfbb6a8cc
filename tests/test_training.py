"""The loop: resumes to the same bits, repeats for any number of workers, and refuses what cannot be trained."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.metrics import accuracy_score, f1_score, recall_score
from vits import create_backbone, create_targets

from components.data.batches.loading import Samples
from components.data.batches.transforms import Augmentation
from components.domain.settings import Training
from components.errors import Diverged, TrainingError
from components.models.encoders import PromptedEncoder
from components.models.engine import Engine
from components.models.network import Network, create_network
from components.models.tokens import Needs, Tokens
from components.models.tuners import TUNERS, create_tuners
from components.tasks import CLASSIFICATION, TASKS, Task
from components.tasks.calibration import fit_temperature
from components.tasks.classification import weigh_classes
from components.tasks.detection import DetectionTask
from components.tasks.segmentation import SegmentationTask
from components.training import checkpoint
from components.training.checkpoint import Checkpoint, Progress
from components.training.evaluate import extract_features, predict_probabilities
from components.training.fit import Loop, create_optimizer, fit, identify, scale_rate
from components.training.recipe import Recipe, Stopped

CLASSES = ("a", "b", "c")
PAIRS = [pytest.param(kind, task(), id=f"{kind}-{name}") for kind in sorted(TUNERS) for name, task in TASKS.items()]


class Killed(BaseException):
    """Stands for a SIGKILL between two steps; tests/test_resume.py sends real ones."""


def _samples(augmentation: Augmentation | None, count: int = 24, task: Task = CLASSIFICATION) -> Samples:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)
    classes = np.arange(count) % len(CLASSES)
    pixels[classes == 1] //= 2  # something to learn
    return Samples(pixels, np.arange(count), create_targets(task, classes), augmentation)


def _train(
    kind: str,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    die_at: int = 0,
    task: Task = CLASSIFICATION,
    **options: Any,
) -> tuple[Network, Progress]:
    """Four epochs of three steps, a checkpoint after each; dead before the one after step `die_at`."""
    (tuner,) = create_tuners([{"kind": kind}])
    network = create_network(create_backbone(), tuner, len(CLASSES), 0, task)
    training = Training(epochs=4, batch_size=8, warmup_epochs=1, checkpoint_seconds=0, **options)
    steps = []

    def die() -> bool:
        steps.append(1)
        if len(steps) == die_at:
            raise Killed
        return False

    folder.mkdir(exist_ok=True)
    train, val = _samples(Augmentation("industrial", 0), task=task), _samples(None, task=task)
    recipe = Recipe(tuner, training, CLASSES, 0, task=task)
    engine = create_engine(dtype)
    progress = fit(network, train, val, recipe, engine, folder / "c.safetensors", lambda row: None, die)
    return network, progress


def create_engine(dtype: torch.dtype) -> Engine:
    return Engine(torch.device("cpu"), dtype, (0.5,) * 3, (0.5,) * 3, fused_attention=False)


def _weights(network: Network) -> dict[str, NDArray[np.float32]]:
    return {name: p.detach().float().numpy().copy() for name, p in network.trainable_parameters().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("task", [CLASSIFICATION, SegmentationTask(), DetectionTask()], ids=lambda task: task.kind)
@pytest.mark.parametrize("kind", sorted(TUNERS))
def test_a_killed_run_resumes_to_the_same_bits(kind: str, task: Task, dtype: torch.dtype, tmp_path: Path) -> None:
    whole, undisturbed = _train(kind, tmp_path / "whole", dtype, task=task)
    for die_at in (2, 5, 6):  # after step 1; after epoch 1, 1 + 4 steps; in the next epoch, at its end
        with pytest.raises(Killed):
            _train(kind, tmp_path / "broken", dtype, die_at=die_at, task=task)
    resumed, progress = _train(kind, tmp_path / "broken", dtype, task=task)
    assert progress.history == undisturbed.history
    _assert_same(whole, resumed)


def _assert_same(one: Network, other: Network) -> None:
    weights = _weights(other)
    assert weights.keys() == _weights(one).keys()
    for name, weight in _weights(one).items():
        np.testing.assert_array_equal(weight, weights[name], err_msg=name)


def _write_checkpoint(path: Path, progress: Progress, **changes: Any) -> None:
    """One of a network that learned nothing."""
    (tuner,) = create_tuners([{"kind": "vpt"}])
    network = create_network(create_backbone(), tuner, len(CLASSES), 0)
    weights: dict[str, torch.Tensor] = dict(network.trainable_parameters())
    progress.best = {name: tensor.detach().clone() for name, tensor in weights.items()}
    recipe = Recipe(tuner, Training(epochs=4, batch_size=8, **changes), CLASSES, 0)
    identity = identify(recipe, create_engine(torch.float32), _samples(None), weights)
    Checkpoint(path, identity, weights, create_optimizer(network, tuner)).save(progress)


def _go_on(path: Path, **changes: Any) -> Network:
    (tuner,) = create_tuners([{"kind": "vpt"}])
    network = create_network(create_backbone(), tuner, len(CLASSES), 0)
    recipe = Recipe(tuner, Training(epochs=4, batch_size=8, **changes), CLASSES, 0)
    engine = create_engine(torch.float32)
    fit(network, _samples(None), _samples(None), recipe, engine, path, lambda _: None)
    return network


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    """By what differs, and left where it is."""
    path = tmp_path / "c.safetensors"
    _write_checkpoint(path, Progress(4), warmup_epochs=0.5)
    before = path.read_bytes()
    with pytest.raises(TrainingError, match=r'training is .*"warmup_epochs":2.0.*remove it to begin again'):
        _go_on(path)
    assert path.read_bytes() == before
    _write_checkpoint(path, Progress(4), workers=2, checkpoint_seconds=3)  # what changes no bit is no difference
    _go_on(path)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"weights.head.bias": torch.zeros(3)}, path, {"facts": "{}"})
    with pytest.raises(TrainingError, match=r"format is 2; found one whose format is not told"):
        _go_on(path)


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.99])
def test_a_damaged_checkpoint_starts_afresh_and_says_so(
    share: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.safetensors"
    _write_checkpoint(path, Progress(2))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    torn = _go_on(path)
    assert "training begins again" in caplog.text
    _assert_same(_go_on(tmp_path / "none.safetensors"), torn)


def test_training_stops_between_two_steps_when_asked(tmp_path: Path) -> None:
    (tuner,) = create_tuners([{"kind": "vpt"}])
    network = create_network(create_backbone(), tuner, len(CLASSES), 0)
    recipe = Recipe(tuner, Training(epochs=4, batch_size=8), CLASSES, 0)
    engine = create_engine(torch.float32)
    steps = []

    def stop() -> bool:
        steps.append(1)
        return len(steps) == 5

    with pytest.raises(Stopped, match="1 epochs and 2 steps"):
        fit(network, _samples(None), _samples(None), recipe, engine, tmp_path / "c", lambda _: None, stop)
    _assert_same(_go_on(tmp_path / "c"), _go_on(tmp_path / "none"))


def test_any_number_of_workers_gives_the_same_weights(tmp_path: Path) -> None:
    """Also where some of the epochs were begun by another number of them."""
    alone, _ = _train("vapt", tmp_path / "0")
    with pytest.raises(Killed):
        _train("vapt", tmp_path / "2", die_at=6)
    for workers in (1, 2):
        _assert_same(alone, _train("vapt", tmp_path / str(workers), workers=workers)[0])


@pytest.mark.parametrize(("kind", "task"), PAIRS)
def test_a_batch_in_parts_is_the_same_update(kind: str, task: Task, tmp_path: Path) -> None:
    """Classes weigh what they weigh in the whole batch, whose parts are uneven. Dropout's numbers fall otherwise."""
    options = {"dropout": 0.0} if "dropout" in TUNERS[kind].model_fields else {}
    (tuner,) = create_tuners([{"kind": kind, **options}])
    samples = _samples(None, task=task)
    samples.targets[:7] = samples.targets[0]
    found = []
    for parts in (1, 3):
        network = create_network(create_backbone(), tuner, len(CLASSES), 0, task).train()
        recipe = Recipe(tuner, Training(epochs=1, batch_size=16, accumulate=parts), CLASSES, 0, task=task)
        engine = create_engine(torch.float32)
        loop = Loop(network, samples, samples, recipe, engine, tmp_path / "none", lambda: False)
        loop.take_step(*next(iter(loop.loader)))
        found.append((loop.progress.losses[0], {name: p.grad for name, p in network.trainable_parameters().items()}))
    (loss, whole), (again, divided) = found
    torch.testing.assert_close(loss, again)
    for name, gradient in whole.items():
        assert gradient is not None
        scale = float(gradient.abs().max()) or 1.0
        torch.testing.assert_close(gradient / scale, divided[name] / scale, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", sorted(set(TUNERS) - {"linear", "pixels"}))  # which keep nothing of the backbone
def test_gradient_checkpointing_keeps_less_and_changes_nothing(kind: str, dtype: torch.dtype) -> None:
    """With dropout on: the second forward draws what the first one drew."""
    (tuner,) = create_tuners([{"kind": kind}])
    engine = create_engine(dtype)
    found = {}
    for saves in (False, True):
        network = engine.prepare(create_network(create_backbone(), tuner, len(CLASSES), 0)).train()
        network.encoder.vit.set_grad_checkpointing(saves)
        torch.manual_seed(0)
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = engine.forward(network, torch.from_numpy(_samples(None).pixels).permute(0, 3, 1, 2))
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(_samples(None).targets))
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = {name: p.grad.clone() for name, p in network.trainable_parameters().items() if p.grad is not None}
        found[saves] = (loss.detach(), gradients, sum(kept.values()))
        network.encoder.vit.set_grad_checkpointing(False)
    (loss, gradients, whole), (again, others, less) = found[False], found[True]
    assert torch.equal(loss, again)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, others[name]), name
    assert less < 0.7 * whole


def test_a_head_alone_learns_from_features_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    forward = PromptedEncoder.forward

    def count(self: PromptedEncoder, images: torch.Tensor, *needs: Needs) -> Tokens:
        passes.append(len(images))
        return forward(self, images, *needs)

    monkeypatch.setattr(PromptedEncoder, "forward", count)
    network, _ = _train("linear", tmp_path)
    assert sum(passes) == 2 * 24  # training and validation images, whatever the epochs
    samples = _samples(None)
    engine = create_engine(torch.float32)
    by_features = predict_probabilities(network, extract_features(network, samples, engine, 8), engine, 8)
    np.testing.assert_allclose(by_features, predict_probabilities(network, samples, engine, 8), atol=1e-6)


def test_a_loss_that_is_not_a_number_stops_with_advice(tmp_path: Path) -> None:
    (tuner,), task = create_tuners([{"kind": "full", "lr": 100}]), SegmentationTask()
    network = create_network(create_backbone(), tuner, len(CLASSES), 0, task)
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.fill_(float("nan"))
    engine, samples = create_engine(torch.float32), _samples(None, task=task)
    recipe = Recipe(tuner, Training(epochs=1, batch_size=8), CLASSES, 0, task=task)
    with pytest.raises(Diverged, match="learning rate"):
        fit(network, samples, samples, recipe, engine, tmp_path / "c.safetensors", lambda _: None)


def test_schedule_and_balance() -> None:
    rates = [scale_rate(step, 100, 10) for step in range(100)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[0] < 0.1 < rates[9] < 1
    assert rates[-1] < 0.01
    weights = weigh_classes(np.array([0, 0, 0, 1]), 2)
    assert (weights * [3.0, 1.0]).tolist() == pytest.approx([2.0, 2.0])


def test_metrics_by_hand() -> None:
    targets = np.array([0, 0, 0, 1])
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    scores = CLASSIFICATION.metrics(targets, probabilities, ("sound", "cracked"))
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["recall/cracked"] == 1
    assert scores["accuracy"] == 0.75
    assert CLASSIFICATION.calibration_error(targets, probabilities) == pytest.approx(0.15)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_metrics_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    targets, predicted = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    scores = CLASSIFICATION.metrics(targets, np.eye(3)[predicted], CLASSES)
    present = np.unique(targets)
    recalls = recall_score(targets, predicted, labels=present, average=None, zero_division=0.0)
    assert scores["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert scores["accuracy"] == pytest.approx(accuracy_score(targets, predicted))
    f1 = f1_score(targets, predicted, labels=present, average="macro", zero_division=0.0)
    assert scores["macro_f1"] == pytest.approx(f1)
    assert [scores[f"recall/{CLASSES[k]}"] for k in present] == pytest.approx(recalls.tolist())


def test_a_temperature_makes_probabilities_frequencies() -> None:
    """Answers three times as sure as they should be: the fit finds it, and the ranking stays."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(4000, 3))
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (honest.cumsum(axis=1) < rng.random((4000, 1))).sum(axis=1)
    sure = CLASSIFICATION.rescale(honest, 1 / 3)
    found = fit_temperature(CLASSIFICATION, targets, sure)
    assert found == pytest.approx(3, rel=0.1)
    calibrated = CLASSIFICATION.rescale(sure, found)
    assert (calibrated.argmax(axis=1) == sure.argmax(axis=1)).all()
    before, after = (CLASSIFICATION.calibration_error(targets, each) for each in (sure, calibrated))
    assert before > 0.1 > 0.03 > after


def test_a_few_images_that_are_all_right_make_nothing_certain() -> None:
    targets = np.arange(12) % 2
    probabilities = np.where(np.eye(2)[targets] == 1, 0.9, 0.1)
    assert 0.3 < fit_temperature(CLASSIFICATION, targets, probabilities) < 1


def _overconfident(
    groups: int, size: int, sharp: float, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Answers `sharp` times as sure as they should be."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(groups * size, 3))
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (honest.cumsum(axis=1) < rng.random((groups * size, 1))).sum(axis=1)
    return targets, CLASSIFICATION.rescale(honest, 1 / sharp)


def test_calibration_is_kept_where_it_helps_other_groups() -> None:
    targets, sure = _overconfident(12, 30, 3)
    found = CLASSIFICATION.calibrate(targets, sure, np.arange(360) // 30, CLASSES)
    assert found.temperature == fit_temperature(CLASSIFICATION, targets, sure) > 2
    assert found.reason.startswith("temperature 2.") or found.reason.startswith("temperature 3.")
    assert "(12 groups)" in found.reason


def test_calibration_is_dropped_where_it_helps_only_the_groups_it_was_fitted_on() -> None:
    """Three groups of many images are too sure, thirty of one image each are not: by image it would be kept."""
    targets, sure = _overconfident(3, 200, 6)
    single = np.arange(30) % 3
    labels, chances = np.append(targets, single), np.concatenate([sure, 0.01 + 0.97 * np.eye(3)[single]])
    groups = np.append(np.arange(600) // 200, np.arange(3, 33))
    assert fit_temperature(CLASSIFICATION, labels, chances) > 3
    found = CLASSIFICATION.calibrate(labels, chances, groups, CLASSES)
    assert found.temperature == 1
    assert found.reason.startswith("not calibrated, for a temperature of")
    assert "(33 groups)" in found.reason


@pytest.mark.parametrize("groups", [1, 2])
def test_calibration_needs_three_groups(groups: int) -> None:
    targets, sure = _overconfident(groups, 100, 3)
    found = CLASSIFICATION.calibrate(targets, sure, np.arange(100 * groups) // 100, CLASSES)
    assert found.temperature == 1
    assert found.reason.startswith(f"not calibrated: validation has {groups} group")


def test_gradients_are_clipped(tmp_path: Path) -> None:
    """To a norm of 1 over all that learns, as a single huge weight of a class would make them explode."""
    (tuner,) = create_tuners([{"kind": "vpt"}])
    network = create_network(create_backbone(), tuner, len(CLASSES), 0).train()
    recipe = Recipe(tuner, Training(epochs=1, batch_size=24), CLASSES, 0)
    loop = Loop(network, _samples(None), _samples(None), recipe, create_engine(torch.float32), tmp_path / "c", bool)
    with torch.no_grad():
        network.head.weight.mul_(-1000)  # sure of what is wrong
    loop.take_step(*next(iter(loop.loader)))
    norm = torch.cat([p.grad.flatten() for p in network.trainable_parameters().values() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(1, abs=1e-4)


def test_a_tie_on_validation_goes_to_the_lower_loss() -> None:
    progress, weight = Progress(), torch.zeros(1)
    for epoch, (score, loss) in enumerate([(0.7, 0.1), (0.8, 0.5), (0.8, 0.4), (0.8, 0.45)], 1):
        weight.fill_(epoch)
        progress.epoch = epoch
        progress.history.append({"val/balanced_accuracy": score, "val/loss": loss})
        progress.keep_if_best({"w": weight}, "balanced_accuracy")
    assert (progress.best_epoch, progress.best["w"].item()) == (3, 3)


def test_a_checkpoint_is_due_by_time_and_by_what_it_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes a second to write is written every twenty at most; the end of an epoch makes it due sooner."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: clock.now))
    (tuner,) = create_tuners([{"kind": "linear"}])
    network = create_network(create_backbone(), tuner, len(CLASSES), 0)
    file = Checkpoint(tmp_path / "c", {}, dict(network.trainable_parameters()), create_optimizer(network, tuner), 10.0)

    def due_after(seconds: float) -> tuple[bool, bool]:
        clock.now = file.saved + seconds
        return file.is_due(epoch_ends=False), file.is_due(epoch_ends=True)

    by_time = [(False, False), (False, True), (False, True), (True, True)]
    assert [due_after(seconds) for seconds in (0.9, 1, 9.9, 10)] == by_time

    def write(progress: Progress) -> None:
        clock.now += 1

    monkeypatch.setattr(file, "_write", write)
    file.save(Progress())
    assert file.saved == clock.now
    assert [due_after(seconds) for seconds in (10, 19.9, 20)] == [(False, False), (False, False), (True, True)]
