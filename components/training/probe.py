"""The linear probe: multinomial logistic regression on frozen features, solved to its optimum.

    min over W, b of  mean over images of w(class) * cross entropy + strength / 2 * |W|^2

The features are standardised, the weights w make every class count the same (`weigh_classes`), and the biases are
free. The problem is convex, so the answer is one: neither a seed nor a budget of epochs has a say. L-BFGS
(Liu & Nocedal 1989, https://doi.org/10.1007/BF01589116) in float64 goes on until the gradient is as good as zero.

The strength is chosen by cross-validation over the groups of training and validation images together, by the same
loss of the held-out images. Validation alone would decide by chance where it has a few groups only, and balanced
accuracy is a staircase: on magnetic tiles, lung tissue and blood cells the loss found the better strength of the two,
and nearly the same one in every split. The answer itself is fitted on the training images, so that its score on
validation compares with that of every other candidate. They are not augmented: two more views of every image were no
clear gain on the same three sets (balanced accuracy +.014, -.004 and -.001).

Shapes: N images, D features, C classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.errors import TrainingError
from components.training.metrics import split_groups, weigh_classes

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
    features: Floats, targets: Ints, groups: NDArray[np.generic], num_classes: int, pause: Callable[[], None]
) -> Choice:
    """Cross-validate STRENGTHS over the groups, from the strongest on. pause: called between two solutions, may raise.

    Each class counts the same. On a tie the stronger one wins.
    """
    folds = _choose_folds(targets, groups)
    paths = [solve_path(features[~out], targets[~out], num_classes, STRENGTHS, NEARLY_FLAT) for out in folds]
    weights = weigh_classes(targets, num_classes)[targets]
    losses: dict[float, float] = {}
    for strength in STRENGTHS:
        total = 0.0
        for held_out, path in zip(folds, paths, strict=True):
            logs = next(path).predict_logs(features[held_out])
            truth = targets[held_out]
            total -= float(weights[held_out] @ logs[np.arange(len(truth)), truth])
            pause()
        losses[strength] = total / int(np.sum(folds))
        best = min(losses, key=losses.__getitem__)  # the first one
        if len(losses) - list(losses).index(best) > RISES:
            break
    return Choice(best, losses)


def _choose_folds(targets: Ints, groups: NDArray[np.generic]) -> list[NDArray[np.bool_]]:
    """All folds, or the first ones of a set so large that they decide."""
    chosen: list[NDArray[np.bool_]] = []
    seen = np.zeros(len(targets), np.bool_)
    for held_out in split_groups(targets, groups):
        chosen.append(held_out)
        seen |= held_out
        if seen.sum() >= ENOUGH_IMAGES and len(np.unique(groups[seen])) >= ENOUGH_GROUPS:
            break
    return chosen


def solve(features: Floats, targets: Ints, num_classes: int, strength: float) -> Head:
    """The optimum for one strength. Raises TrainingError where it is not reached."""
    (head,) = solve_path(features, targets, num_classes, [strength])
    return head


def solve_path(
    features: Floats, targets: Ints, num_classes: int, strengths: Sequence[float], flat: float = FLAT
) -> Iterator[Head]:
    """The optimum for each strength in turn, from where the one before was found: give the strongest first.

    flat: what counts as a gradient of zero.
    """
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread[spread <= TINY * max(1.0, float(spread.max()))] = np.inf  # a constant says nothing: its weight is zero
    problem = _Problem((features - mean) / spread, targets, num_classes)
    point = np.zeros(num_classes * (features.shape[1] + 1))
    for strength in strengths:
        point = problem.minimise(point, strength, flat)
        weight, bias = problem.unpack(point)
        folded = weight / spread
        yield Head(folded, bias - folded @ mean)


class _Problem:
    """One set of standardised features (N, D); a point is the weights (C, D) and biases (C,) as one vector."""

    def __init__(self, features: Floats, targets: Ints, num_classes: int) -> None:
        self.features, self.targets, self.num_classes = features, targets, num_classes
        self.shares = weigh_classes(targets, num_classes)[targets] / len(targets)  # (N,), sum 1
        self.rows = np.arange(len(targets))

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
