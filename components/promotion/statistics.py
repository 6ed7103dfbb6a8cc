"""Intervals: for the score of one model, and for the paired difference of two.

Images of one group (a patient, a slide, a production lot) resemble one another, so the images of a test
set are not independent draws: the bootstrap draws whole groups (Field & Welsh 2007,
https://doi.org/10.1111/j.1467-9868.2007.00593.x). Intervals are percentile intervals, expanded as in
Hesterberg 2015 (https://doi.org/10.1080/00031305.2015.1089789) because the plain ones are
too narrow below some thirty groups, which is where promotions are decided.

The task's evidence defines the score (components/tasks/base.py) as a function of how often each group counts. A
resample is then one row of weights, and for a score made of counts all resamples are one product
(R, G) @ (G, K). Groups with equal counts are exchangeable and are drawn as one kind, which is exact: ten thousand
single images collapse into a handful of kinds.

A test set that is evaluated again and again promotes by luck in the end. The k-th evaluation is therefore taken at the
level 6 / (pi k)^2 of the first's, which over any number of evaluations adds up to no more than the level asked for.

With one or two groups it is not known how groups differ, so there is a score and no interval.

Shapes: N images, G groups, U kinds of groups, R resamples, K counts per group.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from components.records.outcomes import Score
from components.tasks.base import Evidence, Floats, Ints, measure_mean

#: With fewer groups than these an interval is not known.
FEWEST_GROUPS = 3
#: Below this a difference is not worth one more labelled image: a fifth of a percentage point.
PRACTICALLY_ZERO = 0.002
#: Nobody collects a hundred times the test set; beyond that more data will not decide.
MOST_GROUPS_FACTOR = 100
#: An interval's ends are quantiles of so many resamples.
RESAMPLES = 10_000
#: A test set is worn out once its evaluations make intervals this much wider: it then decides what a quarter would.
WORN_OUT = 2.0
#: Weights drawn at once; bounds the memory to some 30 MB whatever R and G.
CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A point estimate with its confidence interval; both ends are None where the interval is not known.

    groups: how many groups it rests on. An interval that is not known is neither surely above nor below a number.
    """

    value: float
    low: float | None
    high: float | None
    groups: int = field(default=0, compare=False)

    def is_above(self, number: float) -> bool:
        """Surely so: the whole interval lies above."""
        return self.low is not None and self.low > number

    def is_below(self, number: float) -> bool:
        """Surely so: the whole interval lies below."""
        return self.high is not None and self.high < number

    def to_score(self) -> Score:
        """As outcomes and `--json` have it."""
        return Score(value=self.value, low=self.low, high=self.high, groups=self.groups)


def count_groups(number: int) -> str:
    return f"{number} group{'' if number == 1 else 's'}"


def bootstrap(
    evidence: Evidence,
    confidence: float = 0.95,
    *,
    reach: tuple[float, float] = (0.0, 1.0),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The score with its interval; reach: the least and the greatest score there can be."""
    scores = _resample([evidence], resamples, seed)[0]
    return _interval(score(evidence), scores, confidence, count_drawn(evidence), reach)


def bootstrap_difference(
    ours: Evidence, theirs: Evidence, confidence: float = 0.95, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Our score minus theirs, both of the same resampled groups. Raises ValueError for evidence of other groups."""
    if not np.array_equal(ours.groups, theirs.groups):
        raise ValueError("a paired difference needs evidence of the same images in the same order and groups")
    mine, others = _resample([ours, theirs], resamples, seed)
    value = score(ours) - score(theirs)
    return _interval(value, mine - others, confidence, count_drawn(ours), reach=(-1.0, 1.0))


def bootstrap_mean(
    values: Floats,
    groups: NDArray[np.generic],
    reach: tuple[float, float],
    confidence: float = 0.95,
) -> Interval:
    """The mean of a number per image, (N,), with its interval over groups (N,)."""
    evidence = measure_mean(values, groups)
    (means,) = _resample([evidence], RESAMPLES, 0)
    return _interval(float(values.mean()), means, confidence, count_drawn(evidence), reach)


def score(evidence: Evidence) -> float:
    """The score itself, in which every group counts once."""
    return float(evidence.scores(np.ones((1, count_drawn(evidence))))[0])


def count_drawn(evidence: Evidence) -> int:
    """G, the number of groups that a resample draws."""
    return int(evidence.groups.max()) + 1


def count_discordant(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> tuple[int, int]:
    """Images that only we have right, and images that only they have right. ours, theirs: (N,) what is right."""
    return int((ours & ~theirs).sum()), int((theirs & ~ours).sum())


def mcnemar(only_ours: int, only_theirs: int) -> float:
    """Exact two-sided p value of McNemar's test (1947, https://doi.org/10.1007/BF02295996).

    It treats images as independent, which those of one group are not. It is reported beside the clustered interval for
    auditors who know the test, and decides nothing.
    """
    from scipy.special import bdtr

    trials = only_ours + only_theirs
    return min(1.0, 2 * float(bdtr(min(only_ours, only_theirs), trials, 0.5))) if trials else 1.0


def correct_confidence(confidence: float, evaluation: float) -> float:
    """The confidence of the evaluation of this number (1 is the first) with which all of them together keep theirs."""
    return 1 - (1 - confidence) * 6 / (math.pi * evaluation) ** 2


def widen(interval: Interval, confidence: float, corrected: float, groups: int, reach: tuple[float, float]) -> Interval:
    """The interval at a higher confidence, by the ratio of the t quantiles.

    Its own far quantiles would rest on a handful of resamples.
    """
    if interval.low is None or interval.high is None:
        return interval
    factor = widening(confidence, corrected, groups)
    low, high = (interval.value + factor * (end - interval.value) for end in (interval.low, interval.high))
    return replace(interval, low=max(low, reach[0]), high=min(high, reach[1]))


def widening(confidence: float, corrected: float, groups: int) -> float:
    """How many times wider an interval over G groups gets at the corrected confidence."""
    from scipy.special import stdtrit

    freedom = max(1, groups - 1)
    return float(stdtrit(freedom, (1 + corrected) / 2) / stdtrit(freedom, (1 + confidence) / 2))


def groups_to_decide(effect: Interval, groups: int) -> int | None:
    """Further test groups after which the interval would leave zero, should the effect stay what it is.

    The bootstrap's standard error shrinks with 1/sqrt(G). None when the effect is practically zero or
    would need a hundred times the groups: more data of this kind will not decide it. An interval that is not known
    needs FEWEST_GROUPS first.
    """
    if effect.low is None or effect.high is None:
        return max(1, FEWEST_GROUPS - groups)
    size = abs(effect.value)
    reach = effect.value - effect.low if effect.value > 0 else effect.high - effect.value
    if size < PRACTICALLY_ZERO:
        return None
    needed = groups * (max(reach, 0.0) / size) ** 2
    return None if needed > MOST_GROUPS_FACTOR * groups else max(1, math.ceil(needed) - groups)


def _resample(evidences: Sequence[Evidence], resamples: int, seed: int) -> list[Floats]:
    """(R,) scores of each evidence over the same R draws of G groups with replacement."""
    representatives, times = _find_kinds(evidences)
    kinds = [evidence.only(representatives) for evidence in evidences]
    scores = [np.empty(resamples) for _ in evidences]
    start = 0
    for weights in _draw(times, resamples, seed):
        for found, kind in zip(scores, kinds, strict=True):
            found[start : start + len(weights)] = kind.scores(weights)
        start += len(weights)
    return scores


def _find_kinds(evidences: Sequence[Evidence]) -> tuple[Ints, Ints]:
    """(U,) one group of each kind, and (U,) how many groups are of that kind.

    Groups are of one kind where their counts agree for every model; without counts each group is its own kind.
    """
    tables = [*(evidence.own for evidence in evidences), evidences[0].shared]
    known = [table for table in tables if table is not None]
    if len(known) < len(tables):
        number = count_drawn(evidences[0])
        return np.arange(number), np.ones(number, np.int64)
    _, representatives, times = np.unique(np.concatenate(known, axis=1), axis=0, return_index=True, return_counts=True)
    return representatives, times


def _draw(times: Ints, resamples: int, seed: int) -> Iterator[Floats]:
    """(R, U) how often each kind is drawn, in chunks of rows that bound the memory."""
    groups, rng = int(times.sum()), np.random.default_rng(seed)
    step = max(1, CHUNK // len(times))
    for start in range(0, resamples, step):
        yield rng.multinomial(groups, times / groups, size=min(step, resamples - start)).astype(float)


def _interval(
    value: float, resampled: Floats, confidence: float, num_groups: int, reach: tuple[float, float]
) -> Interval:
    """Expanded percentile interval, never narrower than what groups that all agree can prove.

    Resamples whose score is not defined (NaN, where they lack all that is scored) are left out.
    """
    resampled = resampled[~np.isnan(resampled)]
    if num_groups < FEWEST_GROUPS or not len(resampled):
        return Interval(value, None, None, num_groups)
    if np.ptp(resampled) < 1e-12:
        return _unanimous(value, confidence, num_groups, reach)
    tail = _expanded_tail((1 - confidence) / 2, num_groups)
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(value, min(float(low), value), max(float(high), value), num_groups)


def _unanimous(value: float, confidence: float, num_groups: int, reach: tuple[float, float]) -> Interval:
    """No group differs from the others, so resampling sees no spread: three perfect groups prove little.

    The exact binomial bound stands in: a share of 1 - tail^(1/G) of all groups may still behave in the
    worst possible way without one of them having been met.
    """
    unseen = bound_unseen(confidence, num_groups)
    low, high = value - unseen * (value - reach[0]), value + unseen * (reach[1] - value)
    return Interval(value, low, high, num_groups)


def bound_unseen(confidence: float, num_groups: int) -> float:
    """The share of all groups that may still be of a kind of which not one of these groups is; 1 without any group."""
    return 1 - ((1 - confidence) / 2) ** (1 / num_groups) if num_groups else 1.0


def _expanded_tail(tail: float, num_groups: int) -> float:
    """The tail to cut at so that G groups cover as a t interval would: Φ(sqrt(G/(G-1)) t(tail, G-1))."""
    from scipy.special import ndtr, stdtrit  # here, so that reading a verdict does not wait for scipy

    return float(ndtr(math.sqrt(num_groups / (num_groups - 1)) * stdtrit(num_groups - 1, tail)))
