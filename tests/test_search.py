"""The search: every tuner's own space, one budget, the same answer every time, and nothing trained twice."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import mlflow
import pytest
import tiny
from conftest import DOMAIN, clean_environment, create_workspace, run_tessera
from hypothesis import given, settings
from hypothesis import strategies as st

from components.domain.reading import parse_domain
from components.domain.settings import Search, Training
from components.errors import DomainError, TrainingError
from components.models.tuners import TUNERS, Tuner, create_tuners
from components.models.tuners.base import Among, Within
from components.records.jobs import Rung, load_rung
from components.training import search
from components.training.search import Found, Trial
from components.workspace import REPOSITORY

KINDS = sorted(set(TUNERS) - {"linear", "pixels"})  # of which only heads learn, so that nothing is searched
TRAINING = Training(epochs=9, warmup_epochs=0, seeds=(0, 1))


def create(kind: str, **options: object) -> Tuner:
    (tuner,) = create_tuners([{"kind": kind, **options}])
    return tuner


class Hill:
    """A training whose score is how near the learning rate is to 0.01; remembers what was asked of it."""

    def __init__(self, broken: Callable[[Trial], bool] = lambda _: False, seconds: float = 1.0) -> None:
        self.broken, self.seconds = broken, seconds
        self.climbed: list[tuple[int, int]] = []
        self.forgotten: list[int] = []

    def climb(self, trial: Trial, epochs: int) -> Rung:
        self.climbed.append((trial.number, epochs))
        fresh = epochs - (trial.rungs[-1].epochs if trial.rungs else 0)
        broken = self.broken(trial)
        score = 0.0 if broken else 1 - abs(trial.tuner.lr - 0.01)
        error = "not a number" if broken else ""
        facts = {"tuner": trial.tuner.model_dump(mode="json"), "seed": 2, "loss": 0.5, "seconds": fresh * self.seconds}
        return Rung(epochs=epochs, score=score, error=error, **facts)

    def forget(self, trial: Trial) -> None:
        self.forgotten.append(trial.number)

    def search(self, tuner: Tuner, budget: Search, training: Training = TRAINING) -> Found:
        return search.search_tuner(tuner, budget, training, self.climb, self.forget)


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_of_a_space_is_legal_and_the_default_among_them(kind: str) -> None:
    tuner = create(kind)
    assert {"lr", "weight_decay"} <= tuner.space().keys()
    for key, said in tuner.space().items():
        default = getattr(tuner, key)
        values = [default / said.factor, default * said.factor] if isinstance(said, Within) else list(said.values)
        assert isinstance(said, Within) or default in values
        for value in values:
            assert getattr(search.change_options(tuner, {key: value}), key) == value


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_stays(kind: str) -> None:
    """One key after the other is fixed at an unusual value; no proposal moves it, nor the name."""
    space = create(kind).space()
    for key, said in space.items():
        value = 0.00123 if isinstance(said, Within) else said.values[-1]
        fixed = create(kind, name="mine", **{key: value})
        assert fixed.space().keys() == space.keys() - {key}
        found = Hill().search(fixed, Search(trials=5))
        assert {getattr(trial.tuner, key) for trial in found.trials} == {value}
        assert {trial.tuner.label for trial in found.trials} == {"mine"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_is_the_same_every_time_and_begins_with_the_default(kind: str) -> None:
    first, second = (Hill().search(create(kind), Search(trials=9)) for _ in range(2))
    assert first == second
    assert first.trials[0].tuner == create(kind)
    assert first.best.score >= first.trials[0].rungs[0].score
    tried = [trial.tuner.model_dump_json() for trial in first.trials]
    assert len(set(tried)) == 9


def test_proposals_are_legal_and_learn() -> None:
    """On a hill the later half stands higher than the first: what is proposed follows from the scores."""
    found = Hill().search(create("vpt"), Search(trials=40))
    for trial in found.trials:
        assert 3e-4 <= trial.tuner.lr <= 3e-2
        assert trial.tuner.num_prompts in (5, 10, 20, 50)
    scores = [trial.rungs[0].score for trial in found.trials]
    assert sum(scores[20:]) > sum(scores[:20])


@pytest.mark.parametrize(
    ("budget", "training", "rungs"),
    [
        ({"trials": 8}, {"epochs": 20, "warmup_epochs": 2}, (7, 20)),
        ({"trials": 9}, {"epochs": 20, "warmup_epochs": 2}, (3, 7, 20)),
        ({"trials": 27}, {"epochs": 20, "warmup_epochs": 2}, (3, 7, 20)),
        ({"trials": 9}, {"epochs": 20, "warmup_epochs": 3}, (7, 20)),
        ({"trials": 2}, {"epochs": 20}, (20,)),
        ({"trials": 4, "halving": 2}, {"epochs": 8, "warmup_epochs": 1}, (2, 4, 8)),
        ({"seconds": 60}, {"epochs": 27, "warmup_epochs": 0}, (1, 3, 9, 27)),
        ({"trials": 99}, {"epochs": 1, "warmup_epochs": 0}, (1,)),
    ],
)
def test_rungs(budget: dict[str, int], training: dict[str, int], rungs: tuple[int, ...]) -> None:
    assert search.plan_rungs(Search(**budget), Training(**training)) == rungs


@settings(max_examples=15)
@given(trials=st.integers(2, 20), halving=st.integers(2, 4), epochs=st.integers(1, 40))
def test_a_budget_in_trials_is_kept(trials: int, halving: int, epochs: int) -> None:
    """Each rung has the best of the one below, one in `halving`; the epochs are those announced."""
    budget, training = Search(trials=trials, halving=halving), Training(epochs=epochs, warmup_epochs=0)
    hill = Hill()
    found = hill.search(create("ssf"), budget, training)
    assert len(found.trials) == trials
    assert found.best.epochs == epochs
    assert max(Counter(hill.climbed).values()) == 1
    rungs = search.plan_rungs(budget, training)
    for below, above in pairwise(rungs):
        there = [trial for trial in found.trials if below in [rung.epochs for rung in trial.rungs]]
        went = [trial for trial in there if trial.rungs[-1].epochs >= above]
        assert len(went) == max(1, len(there) // halving)
        assert min(t.rungs[0].score for t in went) >= max([t.rungs[0].score for t in there if t not in went], default=0)
    costs = [trial.rungs[-1].epochs for trial in found.trials]
    assert sum(costs) == search.count_epochs(budget, training)


@pytest.mark.parametrize("seconds", [1, 5, 30, 100])
def test_a_budget_in_seconds_is_used_and_overdrawn_by_one_training_at_most(seconds: float) -> None:
    """Rungs at 1, 3 and 9 epochs of half a second."""
    found = Hill(seconds=0.5).search(create("lora"), Search(seconds=seconds))
    assert seconds * 0.6 <= found.seconds <= seconds + 3
    assert seconds < 5 or found.best.epochs == 9


def test_the_first_budget_to_end_ends_the_search() -> None:
    assert len(Hill().search(create("vpt"), Search(trials=4, seconds=1000)).trials) == 4
    assert len(Hill(seconds=100).search(create("vpt"), Search(trials=4, seconds=10)).trials) == 1


def test_what_goes_no_further_is_forgotten_at_once() -> None:
    """Of a whole network's checkpoints no more lie about than can be gone on from."""
    hill, most = Hill(), 0
    climb = hill.climb

    def watched(trial: Trial, epochs: int) -> Rung:
        nonlocal most
        most = max(most, len({number for number, _ in hill.climbed} - set(hill.forgotten)))
        return climb(trial, epochs)

    search.search_tuner(create("full"), Search(trials=9), TRAINING, watched, hill.forget)
    assert most == 3
    assert set(hill.forgotten) == set(range(9))


def test_a_finite_space_ends() -> None:
    tuner = create("vpt", lr=0.1, weight_decay=0, dropout=0.1)
    assert len(Hill().search(tuner, Search(trials=20)).trials) == 4
    assert len(Hill().search(create("linear"), Search(trials=20)).trials) == 1


def test_what_cannot_be_trained_is_passed_over() -> None:
    hill = Hill(broken=lambda trial: trial.number != 1)
    assert hill.search(create("vpt"), Search(trials=9)).tuner.lr != create("vpt").lr
    late = Hill(broken=lambda trial: len(trial.rungs) == 1)  # on the second rung
    assert late.search(create("vpt"), Search(trials=3)).best.epochs == 3
    with pytest.raises(TrainingError, match=r"none among 3.*Lower the learning rate"):
        Hill(broken=lambda _: True).search(create("vpt"), Search(trials=3))


@pytest.mark.parametrize("seeds", [(0,), (1, 2), (0, 1, 2), (5,)])
def test_the_seed_is_none_of_the_final_ones(seeds: tuple[int, ...]) -> None:
    assert search.choose_seed(Training(seeds=seeds)) not in seeds


def test_a_search_needs_a_budget() -> None:
    record = {"name": "tiles", "task": "classification", "classes": ["a", "b"], "layout": "folders"}
    assert parse_domain(record, "here").search is None
    assert parse_domain(record | {"search": {"trials": 8}}, "here").search == Search(trials=8)
    with pytest.raises(DomainError, match="give a budget: trials, seconds or both"):
        parse_domain(record | {"search": {"halving": 2}}, "here")
    with pytest.raises(DomainError, match="Did you mean 'trials'"):
        parse_domain(record | {"search": {"trial": 2}}, "here")


@pytest.mark.slow
def test_a_trial_goes_on_from_its_rung(tmp_path: Path) -> None:
    """Stopped at a rung and gone on, it stands where one stands that was never stopped; no adapter is left."""
    domain = tiny.create_domain()
    options = {"kind": "vpt", "num_prompts": 2}
    straight = tiny.climb(tmp_path / "straight", domain, options, [3])
    (stopped, went) = tiny.climb(tmp_path / "stopped", domain, options, [1, 3])
    assert (went.score, went.loss) == (straight[0].score, straight[0].loss)
    assert (stopped.epochs, went.epochs) == (1, 3)
    folder = tmp_path / "stopped" / "trial"
    assert load_rung(folder, 1) == stopped
    assert {path.name for path in folder.iterdir()} == {"checkpoint.safetensors", "rung-1.json", "rung-3.json"}


def test_a_trial_that_diverges_scores_nothing(tmp_path: Path) -> None:
    (rung,) = tiny.climb(tmp_path, tiny.create_domain(), {"kind": "full", "lr": 100, "layer_decay": 1}, [3])
    assert rung.score == 0
    assert "finite training loss" in rung.error


def test_spaces_say_what_they_hold() -> None:
    assert Among(1, 2) == Among(1, 2) != Among(1, 3)


@pytest.mark.slow
def test_a_killed_search_trains_nothing_twice(tmp_path: Path, images: Path) -> None:
    """Killed at its second trial, and the folder of the first one lost: MLflow has it. Then the winner is trained."""
    budget = {"search": {"trials": 2, "halving": 2}, "candidates": [{"kind": "vpt", "dropout": 0}]}
    place = create_workspace(tmp_path / "workspace", images, **budget)
    command = [sys.executable, "-m", "flows.commands.cli", "retrain", DOMAIN, "--workspace", str(place)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    retrain = subprocess.Popen(command, env=clean_environment(), cwd=REPOSITORY, start_new_session=True, **quiet)
    deadline = time.monotonic() + 300
    while not list((place / ".tessera" / "runs").rglob("trial-001/job.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(retrain.pid, signal.SIGKILL)
    retrain.wait()
    runs = place / ".tessera" / "runs"
    (first,) = runs.rglob("trial-000")
    kept = load_rung(first, 1)
    shutil.rmtree(first)
    answer = run_tessera(place, "retrain", DOMAIN)
    assert answer.code in (0, 1), answer.stderr
    assert load_rung(first, 1) == kept
    promoted = [path.parent for path in runs.rglob("trial-*/rung-2.json")]
    assert (first / "log.txt").exists() == (first in promoted), "the trial that MLflow knew was trained again"
    assert not list(runs.rglob("trial-*/checkpoint*"))
    (line,) = answer.outcome["tuners"]
    assert (line["search"]["trials"], line["search"]["to_the_end"], line["search"]["rungs"]) == (2, 1, [1, 2])
    assert line["search"]["options"].items() <= line["options"].items()
    assert "dropout" not in line["search"]["options"]
    _require_runs(place)


def _require_runs(place: Path) -> None:
    """All trials are the last retrain's, an epoch is one point, and what was killed says so."""
    uri = f"sqlite:///{place / '.tessera' / 'mlflow' / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name(DOMAIN).experiment_id])
    (parent,) = [run for run in runs if run.data.tags["tessera.role"] == "retrain" and run.info.status == "FINISHED"]
    trials = [run for run in runs if run.data.tags["tessera.role"] == "trial" and run.info.status == "FINISHED"]
    assert sorted(run.data.tags["tessera.trial"] for run in trials) == ["0", "1"]
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {parent.info.run_id}
    lengths = []
    for run in trials:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
        assert steps == sorted(set(steps))
        lengths.append(len(steps))
    assert sorted(lengths) == [1, 2]
    assert {run.info.status for run in runs} == {"FINISHED", "KILLED"}
    assert "comparison.png" in [item.path for item in client.list_artifacts(parent.info.run_id)]
