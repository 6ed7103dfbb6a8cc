"""What a score is made of, whatever the task: evidence by groups, of which every resample is one row of weights.

Shapes: N images, G groups, R resamples, K counts per group.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Evidence(Protocol):
    """What one model's predictions of a set of images are worth, for any weighting of their groups.

    The bootstrap, paired differences, slices and gates are written once, over this.
    """

    @property
    def groups(self) -> Ints:
        """(N,) the number of each image's group, 0 to G - 1."""

    @property
    def own(self) -> Floats | None:
        """(G, K) what the score needs of each group and the model decides; None where it is no list of counts.

        Groups equal in `own` and `shared` are exchangeable, so that the bootstrap draws them as one kind.
        """

    @property
    def shared(self) -> Floats | None:
        """(G, K) what the score needs of each group and the truth alone decides: equal for every model."""

    def only(self, groups: Ints) -> Self:
        """The evidence of these groups alone, in this order: they become the groups 0 to len(groups) - 1."""

    def scores(self, weights: Floats) -> Floats:
        """(R, G) how often each group counts -> (R,) the scores; weights of 1 give *the* score."""


@dataclass(frozen=True)
class CountEvidence:
    """Evidence whose score is a function of counts summed over groups.

    score: (R, K) own and (R, K') shared counts, summed over weighted groups -> (R,).
    """

    groups: Ints
    own: Floats
    shared: Floats
    score: Callable[[Floats, Floats], Floats]

    def only(self, groups: Ints) -> "CountEvidence":
        place = np.full(len(self.own), -1, np.int64)
        place[groups] = np.arange(len(groups))
        mine = place[self.groups]
        return CountEvidence(mine[mine >= 0], self.own[groups], self.shared[groups], self.score)

    def scores(self, weights: Floats) -> Floats:
        return self.score(weights @ self.own, weights @ self.shared)


def number_groups(names: NDArray[np.generic]) -> tuple[Ints, int]:
    """The number of each image's group (N,), by the order of their names, and how many there are."""
    found, numbers = np.unique(names, return_inverse=True)
    return numbers.reshape(-1), len(found)


def sum_by_group(values: NDArray[np.generic], groups: Ints, number: int) -> Floats:
    """(N, K) values of images, or (N,), summed to (G, K)."""
    table = np.asarray(values, np.float64).reshape(len(groups), -1)
    sums = np.zeros((number, table.shape[1]))
    np.add.at(sums, groups, table)
    return sums


def measure_mean(values: NDArray[np.generic], names: NDArray[np.generic]) -> CountEvidence:
    """Evidence of the mean of a number per image, (N,), by group (N,)."""
    groups, number = number_groups(names)
    sums, images = sum_by_group(values, groups, number), sum_by_group(np.ones(len(groups)), groups, number)
    return CountEvidence(groups, sums, images, lambda sums, images: (sums / images)[:, 0])
