"""The linear probe: multinomial logistic regression on frozen features, solved to its optimum.

    min over W, b of  mean over images of w(class) * cross entropy + strength / 2 * |W|^2

The features are standardised, the weights w make every class count the same where the problem is balanced, and the
biases are free. A task may consist of several problems (`Task.problems`), such as one per label. Each is convex, so the
answer is one: neither a seed nor a budget of epochs has a say. L-BFGS (Liu & Nocedal 1989,
https://doi.org/10.1007/BF01589116) in float64 goes on until the gradient is as good as zero.

The strength is chosen by cross-validation over the groups of training and validation images together, by the same
loss of the held-out images. Validation alone would decide by chance where it has a few groups only, and balanced
accuracy is a staircase: on magnetic tiles, lung tissue and blood cells the loss found the better strength of the two,
and nearly the same one in every split. The answer itself is fitted on the training images, so that its score on
validation compares with that of every other candidate. They are not augmented: two more views of every image were no
clear gain on the same three sets (balanced accuracy +.014, -.004 and -.001).

Shapes: N images, D features, C classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.errors import TrainingError
from components.tasks.base import Problem
from components.tasks.calibration import split_groups
from components.tasks.classification import weigh_classes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: From a head that is little more than the class means to one with hardly a limit; the strongest first.
STRENGTHS = tuple(float(f"{strength:.3g}") for strength in np.geomspace(10.0, 1e-6, 15))
RISES = 2  # strengths in a row at which the held-out loss grew: weaker ones, which take longest, only overfit more
MOST_STEPS = 10_000
#: The largest entry of the gradient at an optimum; at the start it is of the order of 0.1.
FLAT, NEARLY_FLAT = 1e-6, 1e-5
#: So many held-out images, of so many groups, decide without the remaining folds.
ENOUGH_IMAGES, ENOUGH_GROUPS = 10_000, 100
TINY = 1e-9


@dataclass(frozen=True)
class Head:
    """weight: (C, D), bias: (C,), for features as they come: the standardisation is folded in."""

    weight: Floats
    bias: Floats

    def predict_logs(self, features: Floats) -> Floats:
        """Logarithms of the class probabilities (N, C)."""
        return _log_softmax(features @ self.weight.T + self.bias)


@dataclass(frozen=True)
class Choice:
    """The strength, and the loss of held-out groups at each that was tried: strength -> nats."""

    strength: float
    losses: dict[float, float]


def choose_strength(
    features: Floats,
    problems: Sequence[Problem],
    strata: Ints,
    groups: NDArray[np.generic],
    pause: Callable[[], None],
) -> Choice:
    """Cross-validate STRENGTHS over the groups, from the strongest on. pause: called between two solutions, may raise.

    One strength for all problems, whose losses are added. strata: (N,), see `split_groups`. On a tie the stronger one
    wins.
    """
    folds = _choose_folds(strata, groups)
    trials = [_Trial(features, problems, held_out) for held_out in folds]
    losses: dict[float, float] = {}
    for strength in STRENGTHS:
        losses[strength] = sum(trial.measure_next(pause) for trial in trials) / int(np.sum(folds))
        best = min(losses, key=losses.__getitem__)  # the first one
        if len(losses) - list(losses).index(best) > RISES:
            break
    return Choice(best, losses)


class _Trial:
    """All problems without the images of one fold, which measures their solutions from the strongest strength on."""

    def __init__(self, features: Floats, problems: Sequence[Problem], held_out: NDArray[np.bool_]) -> None:
        self.features = features[held_out]
        known = standardise(features[~held_out])
        self.paths = [solve_path(known, select(problem, ~held_out), STRENGTHS, NEARLY_FLAT) for problem in problems]
        self.targets = [problem.targets[held_out] for problem in problems]
        self.weights = [weigh_images(problem)[held_out] for problem in problems]

    def measure_next(self, pause: Callable[[], None]) -> float:
        """The weighted sum of the held-out images' losses at the next strength."""
        total = 0.0
        for path, truth, weights in zip(self.paths, self.targets, self.weights, strict=True):
            logs = next(path).predict_logs(self.features)
            total -= float(weights @ logs[np.arange(len(truth)), truth])
            pause()
        return total


def weigh_images(problem: Problem) -> Floats:
    """(N,) what each image counts, 1 on average."""
    if not problem.balanced:
        return np.ones(len(problem.targets))
    return weigh_classes(problem.targets, problem.classes)[problem.targets]


def select(problem: Problem, chosen: NDArray[np.bool_]) -> Problem:
    """The problem of these images alone."""
    return replace(problem, targets=problem.targets[chosen])


def _choose_folds(strata: Ints, groups: NDArray[np.generic]) -> list[NDArray[np.bool_]]:
    """All folds, or the first ones of a set so large that they decide."""
    chosen: list[NDArray[np.bool_]] = []
    seen = np.zeros(len(strata), np.bool_)
    for held_out in split_groups(strata, groups):
        chosen.append(held_out)
        seen |= held_out
        if seen.sum() >= ENOUGH_IMAGES and len(np.unique(groups[seen])) >= ENOUGH_GROUPS:
            break
    return chosen


class Standardised(NamedTuple):
    """Features (N, D) of mean 0 and spread 1, and the mean and spread (D,) they had."""

    features: Floats
    mean: Floats
    spread: Floats


def standardise(features: Floats) -> Standardised:
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread[spread <= TINY * max(1.0, float(spread.max()))] = np.inf  # a constant says nothing: its weight is zero
    return Standardised((features - mean) / spread, mean, spread)


def solve(known: Standardised, problem: Problem, strength: float) -> Head:
    """The optimum for one strength. Raises TrainingError where it is not reached."""
    (head,) = solve_path(known, problem, [strength])
    return head


def solve_path(known: Standardised, problem: Problem, strengths: Sequence[float], flat: float = FLAT) -> Iterator[Head]:
    """The optimum for each strength in turn, from where the one before was found: give the strongest first.

    flat: what counts as a gradient of zero.
    """
    loss = _Loss(known.features, problem)
    point = np.zeros(problem.classes * (known.features.shape[1] + 1))
    for strength in strengths:
        point = loss.minimise(point, strength, flat)
        weight, bias = loss.unpack(point)
        folded = weight / known.spread
        yield Head(folded, bias - folded @ known.mean)


class _Loss:
    """One set of standardised features (N, D); a point is the weights (C, D) and biases (C,) as one vector."""

    def __init__(self, features: Floats, problem: Problem) -> None:
        self.features, self.targets, self.num_classes = features, problem.targets, problem.classes
        self.shares = weigh_images(problem) / len(problem.targets)  # (N,), sum 1
        self.rows = np.arange(len(problem.targets))

    def unpack(self, point: Floats) -> tuple[Floats, Floats]:
        table = point.reshape(self.num_classes, -1)
        return table[:, :-1], table[:, -1]

    def measure(self, point: Floats, strength: float) -> tuple[float, Floats]:
        """The loss and its gradient."""
        weight, bias = self.unpack(point)
        logs = _log_softmax(self.features @ weight.T + bias)  # (N, C)
        loss = -self.shares @ logs[self.rows, self.targets] + strength / 2 * float((weight**2).sum())
        errors = np.exp(logs)
        errors[self.rows, self.targets] -= 1
        errors *= self.shares[:, None]
        slope = np.hstack([errors.T @ self.features + strength * weight, errors.sum(axis=0)[:, None]])
        return float(loss), slope.reshape(-1)

    def minimise(self, start: Floats, strength: float, flat: float) -> Floats:
        from scipy.optimize import minimize  # here: it takes every training process a quarter of a second

        limits = {"maxiter": MOST_STEPS, "maxfun": 2 * MOST_STEPS, "maxcor": 20, "gtol": flat, "ftol": 0.0}
        found = minimize(self.measure, start, (strength,), method="L-BFGS-B", jac=True, options=limits)
        point: Floats = found.x
        steepest = float(np.abs(self.measure(point, strength)[1]).max())
        if not steepest <= 10 * flat:  # also where it is not a number
            raise TrainingError(
                "linear probe",
                expected=f"a gradient of {flat:g} at most within {MOST_STEPS:,} steps of L-BFGS",
                found=f"{steepest:.3g} after {found.nit:,} steps at strength {strength:g}: {found.message}",
                hint="Give the candidate a greater `strength`; where the gradient is not a number, the backbone's "
                "features are not finite: use another backbone.",
            )
        return point


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs
