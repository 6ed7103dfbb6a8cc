"""How sure are we? Balanced accuracy with an interval, and the paired difference of two models.

Images of one group (a patient, a slide, a production lot) resemble one another, so the images of a test
set are not independent draws: the bootstrap draws whole groups (Field & Welsh 2007,
https://doi.org/10.1111/j.1467-9868.2007.00593.x). Intervals are percentile intervals, expanded as in
Hesterberg 2015 (https://doi.org/10.1080/00031305.2015.1089789) because the plain ones are
too narrow below some thirty groups, which is where promotions are decided.

Balanced accuracy needs of each group's confusion matrix (C, C) only the diagonal and the row sums. A
resample is then one row of group counts, and all resamples are one product (R, G) @ (G, C). Groups with
equal counts are exchangeable and are drawn as one, which is exact: ten thousand single images collapse
into a handful of rows.

A test set that is looked at again and again promotes by luck at last. The k-th look is therefore taken at the level
6 / (pi k)^2 of the first's, which over any number of looks adds up to no more than the level that was asked for.

Of one or two groups nothing is known of how groups differ, so there is a score and no interval.

Shapes: N images, G groups, C classes, R resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: With fewer groups than these an interval is not known.
FEWEST_GROUPS = 3
#: Below this a difference is not worth one more labelled image: a fifth of a percentage point.
PRACTICALLY_ZERO = 0.002
#: Nobody collects a hundred times the test set; beyond it the honest answer is "never".
MOST_GROUPS_FACTOR = 100
#: An interval's ends are quantiles of so many resamples.
RESAMPLES = 10_000
#: A test set is worn out once its looks make intervals wider by this factor: it decides what a quarter would.
WORN_OUT = 2.0
#: Weights drawn at once; bounds the memory to some 30 MB whatever R and G.
CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A point estimate with its confidence interval, both ends of which are None where it is not known.

    groups: over how many it is. An interval that is not known is surely nothing: neither above a number nor below it.
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

    def to_dict(self) -> dict[str, Any]:
        """As outcomes and `--json` have it: value, low, high, groups."""
        return {"value": self.value, "low": self.low, "high": self.high, "groups": self.groups}


def count_groups(number: int) -> str:
    return f"{number} group{'' if number == 1 else 's'}"


def balanced_accuracy(labels: Ints, predicted: Ints, num_classes: int) -> float:
    """Mean recall of the classes that occur in `labels` (N,)."""
    support = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels[labels == predicted], minlength=num_classes)
    return float(_mean_recall(hits[None].astype(float), support[None].astype(float))[0])


def bootstrap_score(
    labels: Ints,
    predicted: Ints,
    groups: NDArray[np.generic],
    num_classes: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Balanced accuracy with its interval; a class a resample lacks is left out of that resample's mean."""
    group_ids, num_groups = _enumerate_groups(groups)
    support = _count(labels, group_ids, num_groups, num_classes)
    hits = _count(labels, group_ids, num_groups, num_classes, where=labels == predicted)
    hits_r, support_r = _resample([hits, support], resamples, seed)
    value = balanced_accuracy(labels, predicted, num_classes)
    return _interval(value, _mean_recall(hits_r, support_r), confidence, num_groups, reach=(0.0, 1.0))


def bootstrap_difference(
    labels: Ints,
    challenger: Ints,
    champion: Ints,
    groups: NDArray[np.generic],
    num_classes: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Challenger minus champion in balanced accuracy, both scored on the same resampled groups."""
    group_ids, num_groups = _enumerate_groups(groups)
    support = _count(labels, group_ids, num_groups, num_classes)
    ours = _count(labels, group_ids, num_groups, num_classes, where=labels == challenger)
    theirs = _count(labels, group_ids, num_groups, num_classes, where=labels == champion)
    ours_r, theirs_r, support_r = _resample([ours, theirs, support], resamples, seed)
    differences = _mean_recall(ours_r, support_r) - _mean_recall(theirs_r, support_r)
    value = balanced_accuracy(labels, challenger, num_classes) - balanced_accuracy(labels, champion, num_classes)
    return _interval(value, differences, confidence, num_groups, reach=(-1.0, 1.0))


def bootstrap_mean(
    values: Floats,
    groups: NDArray[np.generic],
    reach: tuple[float, float],
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of a number an image, over resampled groups; reach: between which ends it can lie at all."""
    group_ids, num_groups = _enumerate_groups(groups)
    sums = np.bincount(group_ids, weights=values, minlength=num_groups)[:, None]
    counts = np.bincount(group_ids, minlength=num_groups)[:, None].astype(float)
    sums_r, counts_r = _resample([sums, counts], resamples, seed)
    return _interval(float(values.mean()), (sums_r / counts_r)[:, 0], confidence, num_groups, reach)


def count_discordant(labels: Ints, challenger: Ints, champion: Ints) -> tuple[int, int]:
    """Images that only the challenger has right, and images that only the champion has right."""
    ours, theirs = challenger == labels, champion == labels
    return int((ours & ~theirs).sum()), int((theirs & ~ours).sum())


def mcnemar(only_ours: int, only_theirs: int) -> float:
    """Exact two-sided p value of McNemar's test (1947, https://doi.org/10.1007/BF02295996).

    It takes images for independent, which those of a group are not: it stands beside the clustered interval for
    auditors who know it, and decides nothing.
    """
    from scipy.special import bdtr

    trials = only_ours + only_theirs
    return min(1.0, 2 * float(bdtr(min(only_ours, only_theirs), trials, 0.5))) if trials else 1.0


def correct_confidence(confidence: float, looks: float) -> float:
    """The confidence that look number `looks` (1 is the first) must have for all looks together to keep theirs."""
    return 1 - (1 - confidence) * 6 / (math.pi * looks) ** 2


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


def _enumerate_groups(groups: NDArray[np.generic]) -> tuple[Ints, int]:
    names, group_ids = np.unique(groups, return_inverse=True)
    return group_ids.reshape(-1), len(names)


def _count(
    labels: Ints, group_ids: Ints, num_groups: int, num_classes: int, where: NDArray[np.bool_] | None = None
) -> Ints:
    """Images by group and true class, of those `where` says so."""
    cells = group_ids * num_classes + labels
    chosen = cells if where is None else cells[where]
    return np.bincount(chosen, minlength=num_groups * num_classes).reshape(num_groups, num_classes)  # (G, C)


def _resample(counts: Sequence[Ints | Floats], resamples: int, seed: int) -> list[Floats]:
    """Each (G, C) count summed over R draws of G groups with replacement, as (R, C)."""
    rows, times = np.unique(np.concatenate(counts, axis=1), axis=0, return_counts=True)  # (U, kC), (U,)
    num_groups, rng = int(times.sum()), np.random.default_rng(seed)
    sums = np.empty((resamples, rows.shape[1]))
    step = max(1, CHUNK // len(rows))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weights = rng.multinomial(num_groups, times / num_groups, size=size)  # (R, U)
        sums[start : start + size] = weights.astype(float) @ rows
    return list(np.split(sums, len(counts), axis=1))


def _mean_recall(hits: Floats, support: Floats) -> Floats:
    """(R, C) and (R, C) -> (R,): the mean over the classes present in each row."""
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    mean: Floats = recall.sum(axis=1) / (support > 0).sum(axis=1)
    return mean


def _interval(
    value: float, resampled: Floats, confidence: float, num_groups: int, reach: tuple[float, float]
) -> Interval:
    """Expanded percentile interval, never narrower than what groups that all agree can prove."""
    if num_groups < FEWEST_GROUPS:
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
    unseen = 1 - ((1 - confidence) / 2) ** (1 / num_groups)
    low, high = value - unseen * (value - reach[0]), value + unseen * (reach[1] - value)
    return Interval(value, low, high, num_groups)


def _expanded_tail(tail: float, num_groups: int) -> float:
    """The tail to cut at so that G groups cover as a t interval would: Φ(sqrt(G/(G-1)) t(tail, G-1))."""
    from scipy.special import ndtr, stdtrit  # here, so that reading a verdict does not wait for scipy

    return float(ndtr(math.sqrt(num_groups / (num_groups - 1)) * stdtrit(num_groups - 1, tail)))
