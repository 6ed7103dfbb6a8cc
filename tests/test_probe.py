"""The linear probe is an optimum: the one scikit-learn finds, whatever the seed, the epochs and the order of images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression

from components.errors import TrainingError
from components.models.adapter import load_meta
from components.models.process_group import ProcessGroup
from components.models.tuners import create_tuners
from components.records.jobs import load_result
from components.tasks import CLASSIFICATION
from components.tasks.base import Problem
from components.tasks.calibration import split_groups
from components.tasks.segmentation import SegmentationTask
from components.training import probe, run
from components.training.probe import STRENGTHS, Choice, Head, choose_strength, solve, standardise
from flows.plan import _note_without_effect
from flows.progress import Event, listening

Floats = NDArray[np.float64]


def draw(
    counts: list[int], size: int = 12, shift: float = 1.0, seed: int = 0
) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Features of very different scales, one constant; classes of these sizes; groups of three images."""
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(len(counts)), counts)
    features = rng.normal(size=(len(targets), size)) + shift * rng.normal(size=(len(counts), size))[targets]
    features = features * np.geomspace(1e-3, 1e3, size) + np.linspace(-50, 50, size)
    features[:, 3] = 7.0
    return features, targets, np.arange(len(targets)) // 3


def solve_plain(features: Floats, targets: NDArray[np.int64], classes: int, strength: float) -> Head:
    return solve(standardise(features), Problem(targets, classes, balanced=True), strength)


def choose(features: Floats, targets: NDArray[np.int64], groups: NDArray[np.int64]) -> Choice:
    return choose_strength(features, [Problem(targets, 2, balanced=True)], targets, groups, lambda: None)


@pytest.mark.parametrize("strength", [1.0, 0.01, 1e-4])
@pytest.mark.parametrize("counts", [[40, 40], [60, 30, 9], [20] * 6])
def test_it_is_what_scikit_learn_finds(counts: list[int], strength: float) -> None:
    features, targets, _ = draw(counts)
    head = solve_plain(features, targets, len(counts), strength)
    spread = np.where(np.arange(12) == 3, 1.0, features.std(axis=0))
    scaled = (features - features.mean(axis=0)) / spread
    other = LogisticRegression(C=1 / (strength * len(targets)), class_weight="balanced", tol=1e-8, max_iter=100_000)
    if len(counts) == 2:  # scikit-learn's binary form has one row of weights, which counts twice in ours
        other.set_params(C=2 / (strength * len(targets)))
    theirs = other.fit(scaled, targets).predict_proba(scaled)
    np.testing.assert_allclose(np.exp(head.predict_logs(features)), theirs, atol=2e-4)


def test_a_class_without_training_images_is_never_the_answer() -> None:
    features, targets, _ = draw([30, 30])
    logs = solve_plain(features, 2 * targets, 4, 0.01).predict_logs(features)
    assert set(logs.argmax(axis=1)) == {0, 2}
    assert np.exp(logs[:, [1, 3]]).max() < 1e-3


def test_an_optimum_that_is_not_reached_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets, _ = draw([30, 30])
    broken = features.copy()
    broken[0, 0] = np.nan
    with pytest.raises(TrainingError, match="found nan"):
        solve_plain(broken, targets, 2, 0.01)
    monkeypatch.setattr(probe, "MOST_STEPS", 3)
    with pytest.raises(TrainingError, match=r"expected a gradient of .* within 3 steps.*greater `strength`"):
        solve_plain(features, targets, 2, 1e-6)


def test_a_harder_problem_wants_more_strength() -> None:
    """Noise wants much, what a line separates wants little."""
    noise, targets, groups = draw([60, 60], size=40, shift=0.0)
    clear, _, _ = draw([60, 60], size=40, shift=3.0)
    chosen = [choose(features, targets, groups) for features in (noise, clear)]
    assert chosen[0].strength > 10 * chosen[1].strength
    assert min(chosen[1].losses.values()) == chosen[1].losses[chosen[1].strength]


def test_the_choice_is_by_group() -> None:
    """Copies of an image, all of one group, would make any weight look right were they on both sides."""
    features, targets, _ = draw([20, 20], size=60, shift=0.2)
    many, labels = np.repeat(features, 8, axis=0), np.repeat(targets, 8)
    together = choose(many, labels, np.arange(320) // 8)
    apart = choose(many, labels, np.arange(320))
    assert together.strength > 10 * apart.strength


def test_no_strength_is_better_on_a_tie() -> None:
    """Features that say nothing at all leave every loss the same: the strongest wins."""
    constant = np.ones((12, 4))
    found = choose(constant, np.arange(12) % 2, np.arange(12))
    assert found.strength == STRENGTHS[0]
    assert len(found.losses) == probe.RISES + 1


@pytest.mark.parametrize("groups", [1, 2, 3, 7, 40])
def test_each_group_is_held_out_once_and_each_class_in_every_fold(groups: int) -> None:
    rng = np.random.default_rng(groups)
    names = np.array([f"g{k}" for k in rng.integers(0, groups, 200)])
    names[:groups] = [f"g{k}" for k in range(groups)]
    targets = np.array([int(name[1:]) % 2 for name in names])
    folds = list(split_groups(targets, names))
    assert len(folds) == min(5, groups)
    assert (np.sum(folds, axis=0) == 1).all()
    for held_out in folds:
        assert not set(names[held_out]) & set(names[~held_out])
        assert groups < 10 or set(targets[held_out]) == {0, 1}
    mixed = rng.permutation(200)
    for held_out, again in zip(folds, split_groups(targets[mixed], names[mixed]), strict=True):
        np.testing.assert_array_equal(held_out[mixed], again)


def test_a_large_set_is_decided_by_fewer_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "ENOUGH_IMAGES", 60)
    monkeypatch.setattr(probe, "ENOUGH_GROUPS", 20)
    _, targets, groups = draw([90, 90])
    assert len(probe._choose_folds(targets, groups)) == 2
    assert len(probe._choose_folds(targets, groups // 10)) == 5, "of a few groups all are needed"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe")


def train(place: Path, name: str, seed: int = 0, tuner: dict[str, Any] | None = None, **training: Any) -> Path:
    settings = {"epochs": 3, "batch_size": 8, "warmup_epochs": 1, "dtype": "float32", **training}
    domain = tiny.create_domain(img_size=32, training=settings)
    job = tiny.create_job(place, domain, tuner or {"kind": "linear"}, seed, place / name)
    run.do_job(job, lambda event, **facts: None)
    return job.folder


@pytest.mark.slow
def test_neither_seed_nor_epochs_nor_old_options_have_a_say(place: Path) -> None:
    first = load_file(train(place, "first") / "adapter/adapter.safetensors")
    old = {"kind": "linear", "lr": 0.02, "weight_decay": 0.1}
    for name, options in {"seed": {"seed": 4}, "epochs": {"epochs": 40}, "old": {"tuner": old}}.items():
        again = load_file(train(place, name, **options) / "adapter/adapter.safetensors")
        for key, weight in first.items():
            np.testing.assert_array_equal(weight, again[key], err_msg=f"{name}: {key}")
    other = load_file(train(place, "fixed", tuner={"kind": "linear", "strength": 5.0}) / "adapter/adapter.safetensors")
    assert not np.array_equal(first["head.weight"], other["head.weight"])


def test_what_was_solved_is_reported(place: Path) -> None:
    result = load_result(train(place, "told"))
    assert result is not None
    (row,) = result.history
    assert row["strength"] in STRENGTHS
    assert {"train/loss", "val/loss", "val/balanced_accuracy", "held_out/loss"} <= row.keys()
    assert result.metrics["strength"] == load_meta(result.folder / "adapter").metrics["strength"] == row["strength"]
    assert result.metrics["val/balanced_accuracy"] == row["val/balanced_accuracy"]
    assert result.metrics["val/loss"] == pytest.approx(row["val/loss"], abs=1e-5)


def test_records_of_adapters_from_before_still_load() -> None:
    (tuner,) = create_tuners([json.loads('{"kind": "linear", "name": null, "lr": 0.003, "weight_decay": 0.0001}')])
    assert tuner.model_dump() == {"kind": "linear", "name": None, "strength": None}
    assert tuner.space() == {}


def test_the_leader_of_a_team_solves_alone(place: Path) -> None:
    """The others leave without a word, so the leader may need nothing of them."""
    training = {"epochs": 3, "batch_size": 8, "warmup_epochs": 1, "dtype": "float32"}
    domain = tiny.create_domain(img_size=32, training=training)
    for rank in (1, 0):
        job = tiny.create_job(place, domain, {"kind": "linear"}, 0, place / "peers")
        run.do_job(job, lambda event, **facts: None, peers=ProcessGroup(rank, 2))
        assert (job.folder / "result.json").exists() == (rank == 0)
    together, alone = (
        load_file(folder / "adapter/adapter.safetensors") for folder in (place / "peers", train(place, "alone"))
    )
    np.testing.assert_array_equal(together["head.weight"], alone["head.weight"])


def test_an_option_without_effect_is_reported() -> None:
    heard: list[Event] = []
    with listening(heard.append):
        tuners = create_tuners([{"kind": "linear", "lr": 0.1}, {"kind": "vpt", "lr": 0.1}])
        _note_without_effect(tuners, CLASSIFICATION)
        _note_without_effect(create_tuners([{"kind": "linear", "strength": 0.1}]), CLASSIFICATION)
        strong = create_tuners([{"kind": "linear", "strength": 0.1, "weight_decay": 0.1}])
        _note_without_effect(strong, SegmentationTask())
    assert [event["text"] for event in heard] == [
        "Candidate linear: lr without effect, for it is solved to its optimum.",
        "Candidate linear: strength and weight_decay without effect, for its head is trained at the task's head_lr.",
    ]
