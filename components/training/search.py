"""A fair search: every candidate's options are searched with the same budget, by synchronous successive halving.

All trials are trained to the first rung; the best one in `halving` of them goes on to the next, and so up to the whole
of `training.epochs` (Jamieson & Talwalkar 2016, https://arxiv.org/abs/1502.07943). Each trial learns on the schedule
of the whole training, so that the survivors' trainings are those they would have been without a search. A trial is
compared on validation alone, with a seed that is none of the final ones: no lucky start is both chosen and reported.

What to try next is Optuna's business (TPE). Its study is rebuilt from the trials for every proposal, so that a
proposal is a function of (options, seed, trials) and a search goes on wherever its trials are kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from components.domain.settings import Search, Training
from components.errors import TrainingError
from components.models.tuners import Tuner, create_tuners
from components.models.tuners.base import Within
from components.records.jobs import Rung

STARTUP = 4  # trials at random before TPE begins to learn from them
ATTEMPTS = 50  # at something that was not tried before


@dataclass(frozen=True)
class Trial:
    """One configuration and how far it came."""

    number: int
    tuner: Tuner
    rungs: tuple[Rung, ...] = ()


@dataclass(frozen=True)
class Found:
    """The best of a search, and what it took."""

    tuner: Tuner
    trials: tuple[Trial, ...]

    @property
    def seconds(self) -> float:
        return sum_seconds(self.trials)

    @property
    def best(self) -> Rung:
        return min(self.trials, key=rank).rungs[-1]


Climb = Callable[[Trial, int], Rung]  # train a trial up to an epoch and say how it went
Forget = Callable[[Trial], None]  # it goes no further: what it was to go on from may go


def search_tuner(tuner: Tuner, search: Search, training: Training, climb: Climb, forget: Forget) -> Found:
    """The best configuration of a candidate within the budget. Raises TrainingError when not one can be trained."""
    rungs = plan_rungs(search, training)
    shares = share_seconds(search, rungs)
    seed, trials = choose_seed(training), list[Trial]()
    while _may_begin(search, trials, shares[0]) and (proposed := propose(tuner, trials, seed)) is not None:
        trial = Trial(len(trials), proposed)
        trials.append(replace(trial, rungs=(climb(trial, rungs[0]),)))
        promoted = _sift(trials, search.trials or len(trials), search.halving, forget)
    for level, epochs in enumerate(rungs[1:], start=1):
        climbing, climbed, promoted = promoted, [], []
        for trial in climbing:
            if search.seconds is not None and sum_seconds(trials) >= search.seconds * shares[level]:
                break
            trials[trial.number] = replace(trial, rungs=(*trial.rungs, climb(trial, epochs)))
            climbed.append(trials[trial.number])
            promoted = _sift(climbed, len(climbing), search.halving, forget)
    for trial in trials:
        forget(trial)
    best = min(trials, key=rank)
    if best.rungs[-1].error:
        raise TrainingError(
            f"search of {tuner.label}",
            expected="at least one configuration that can be trained",
            found=f"none among {len(trials)}; the last said: {best.rungs[-1].error}",
            hint="Lower the learning rate (give the candidate an `lr`), or lengthen training.warmup_epochs.",
        )
    return Found(best.tuner, tuple(trials))


def plan_rungs(search: Search, training: Training) -> tuple[int, ...]:
    """Epochs at which trials are compared, the last of them all there are.

    Each holds 1/halving of the next one's. None lies in the warm-up, where all configurations look alike, and there
    are no more than leave one trial for the last.
    """
    rungs = [training.epochs]
    while search.trials is None or search.trials >= search.halving ** len(rungs):
        lower = -(-rungs[0] // search.halving)
        if lower <= training.warmup_epochs or lower >= rungs[0]:
            break
        rungs.insert(0, lower)
    return tuple(rungs)


def count_epochs(search: Search, training: Training) -> int | None:
    """Epochs of all trials together, as far as they are known beforehand."""
    if search.trials is None or search.seconds is not None:
        return None
    rungs, climbing, total = plan_rungs(search, training), search.trials, 0
    for before, epochs in zip((0, *rungs), rungs, strict=False):
        total += climbing * (epochs - before)
        climbing = max(1, climbing // search.halving)
    return total


def share_seconds(search: Search, rungs: Sequence[int]) -> list[float]:
    """How much of the seconds may be used when a rung ends, each by what it costs where an epoch is an epoch.

    One in `halving` goes on to so many times the epochs, of which it has one part behind it.
    """
    costs = [1.0] + [1 - 1 / search.halving] * (len(rungs) - 1)
    return [sum(costs[: place + 1]) / sum(costs) for place in range(len(costs))]


def choose_seed(training: Training) -> int:
    """The search's own: the first number that is no final seed."""
    return next(seed for seed in range(len(training.seeds) + 1) if seed not in training.seeds)


def choose_promoted(trials: Sequence[Trial], count: int) -> list[Trial]:
    """Those that go on to the next rung, the best first."""
    return sorted((trial for trial in trials if not trial.rungs[-1].error), key=rank)[:count]


def rank(trial: Trial) -> tuple[bool, int, float, float, int]:
    """What trials are sorted by: those that cannot be trained last, then who came furthest, then score and loss."""
    last = trial.rungs[-1]
    return bool(last.error), -last.epochs, -last.score, last.loss, trial.number


def sum_seconds(trials: Sequence[Trial]) -> float:
    return sum(rung.seconds for trial in trials for rung in trial.rungs)


def propose(tuner: Tuner, trials: Sequence[Trial], seed: int) -> Tuner | None:
    """The next configuration, given those that stand on the first rung; None when there is nothing new to try.

    The candidate's own options come first, so that a search never ends below what they give on validation.
    """
    if not trials:
        return tuner
    if not tuner.space():
        return None
    tried = [trial.tuner for trial in trials]
    for attempt in range(ATTEMPTS):
        options = _ask(tuner, trials, seed=seed * 1_000_003 + len(trials) * 1009 + attempt)
        proposed = change_options(tuner, options)
        if proposed not in tried:
            return proposed
    return None


def change_options(tuner: Tuner, options: dict[str, Any]) -> Tuner:
    (changed,) = create_tuners([tuner.model_dump() | options])
    return changed


def read_options(tuner: Tuner, own: Tuner) -> dict[str, Any]:
    """The values a search chose for the fields it may choose."""
    return {key: getattr(tuner, key) for key in own.space()}


def _may_begin(search: Search, trials: Sequence[Trial], share: float) -> bool:
    """Whether the budget holds another trial; the first rung has its share of the seconds."""
    if search.trials is not None and len(trials) >= search.trials:
        return False
    return search.seconds is None or not trials or sum_seconds(trials) < search.seconds * share


def _sift(trials: Sequence[Trial], expected: int, halving: int, forget: Forget) -> list[Trial]:
    """Those of a rung so far that go on when `expected` will have come there; the others are forgotten at once."""
    promoted = choose_promoted(trials, max(1, expected // halving))
    for trial in trials:
        if trial not in promoted:
            forget(trial)
    return promoted


def _ask(tuner: Tuner, trials: Sequence[Trial], seed: int) -> dict[str, Any]:
    """Optuna's next point, from the scores on the first rung."""
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    space: dict[str, BaseDistribution] = {}
    for key, said in tuner.space().items():
        if isinstance(said, Within):
            low, high = (_round(getattr(tuner, key) * factor) for factor in (1 / said.factor, said.factor))
            space[key] = FloatDistribution(low, high, log=True)
        else:
            space[key] = CategoricalDistribution(said.values)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
    )
    for trial in trials:
        params = read_options(trial.tuner, tuner)
        study.add_trial(optuna.create_trial(params=params, distributions=space, value=trial.rungs[0].score))
    asked = study.ask(space).params
    return {key: _round(value) if isinstance(value, float) else value for key, value in asked.items()}


def _round(value: float) -> float:
    """Three digits: enough to train with, and to write down."""
    return float(f"{value:.3g}")
