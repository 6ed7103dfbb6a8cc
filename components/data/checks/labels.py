"""Labels that may be wrong, by confident learning over frozen features (https://arxiv.org/abs/1911.00068).

A linear discriminant that never saw an image's group says what it takes the image for; cleanlab compares that with the
label given. A disagreement alone means little where features are weak, so the chance that a label is wrong is
calibrated on the same predictions: each label is the class itself or, with a chance learned from all of them, any
other (`judge_labels`). Only what is more likely wrong than DOUBT is listed, nothing at all where features recognise
too little to be a witness. What near duplicates say of each other comes first. Nothing is changed: a suspicion is
shown with the picture, and a person decides. benchmarks/labels.py holds what that is worth.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.data.checks.duplicates import Pair
from components.data.checks.features import content_of, decode_features, sample_key
from components.data.sources.images import Box

FOLDS = 5
SHRINKAGE = 0.3  # of the covariance towards a sphere; several hundred features, often fewer images
TEMPERATURES = np.exp(np.linspace(-1.5, 3.5, 41))
ROUNDS = 30  # of expectation and maximisation; the share of wrong labels settles in ten
CLEAN = 20.0  # images: as much is a set's word that it has no wrong label worth beforehand
DOUBT = 0.7  # chance of being wrong from which a label is listed
WITNESS = 0.75  # balanced accuracy on groups not seen, from which features may speak against a label

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Suspect:
    """A label that does not fit, and what speaks for the given one (0..1), the less the worse."""

    path: str
    crop: Box | None
    given: str
    suggested: str
    score: float
    why: str

    def to_record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Judgement:
    """Suspicious labels, the worst first, and what the features are worth as a witness.

    accuracy: balanced, on groups not seen; None where there are too few groups to learn from. expected: the share of
    the suspicions by features that should be right.
    """

    suspects: tuple[Suspect, ...] = ()
    accuracy: float | None = None
    expected: float | None = None

    @property
    def note(self) -> str:
        """What to think of the list, for a person."""
        if self.accuracy is None:
            return "Features did not judge the labels: a class has too few groups to learn from."
        seen = f"Frozen features recognise {self.accuracy:.0%} of groups they have not seen (balanced accuracy)"
        if self.accuracy < WITNESS:
            return f"{seen}: too few to speak against a label ({WITNESS:.0%} are asked for)."
        if self.expected is None:
            return f"{seen} and speak against no label."
        return f"{seen}. Of the labels they speak against, about {self.expected:.0%} should be wrong."

    def to_record(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy, "expected_wrong": self.expected, "note": self.note}


def find_suspects(frame: pl.DataFrame, features: pl.DataFrame, near: Sequence[Pair]) -> Judgement:
    """Suspicious labels among the rows of valid.parquet. near: pairs that certainly show one thing."""
    known = {} if frame.is_empty() else _suspect_near_duplicates(frame, near)
    predicted = None if frame.is_empty() else predict_labels(frame, features)
    accuracy, expected = None, None
    if predicted is not None:
        found, accuracy = find_label_issues(frame["label"].to_list(), *predicted)
        expected = round(1 - float(np.mean([score for *_, score in found])), 2) if found else None
        for index, suggested, score in found:
            known.setdefault(index, (suggested, score, "its features look like that class"))
    rows = frame.select("path", "crop", "label").rows()
    suspects = [
        Suspect(rows[index][0], _box(rows[index][1]), rows[index][2], suggested, round(score, 4), why)
        for index, (suggested, score, why) in known.items()
    ]
    worst_first = sorted(suspects, key=lambda each: (each.score, each.path, each.crop or ()))
    return Judgement(tuple(worst_first), accuracy, expected)


def predict_labels(frame: pl.DataFrame, features: pl.DataFrame) -> tuple[Values, list[str]] | None:
    """Log chances (N, classes) of every row by a model that did not see its group, and the classes; None where too
    few groups leave nothing to learn from."""
    groups = frame.group_by("label").agg(pl.col("group").n_unique())
    folds = min(FOLDS, *groups["group"].to_list())
    classes = sorted(groups["label"])
    if folds < 2 or len(classes) < 2:
        return None
    keys = [sample_key(content_of(identity), _box(crop)) for identity, crop in frame.select("id", "crop").rows()]
    place = {key: index for index, key in enumerate(features["key"])}
    inputs = decode_features(features[[place[key] for key in keys]])
    labels = np.searchsorted(classes, frame["label"].to_numpy())
    fold = _deal_groups(frame["label"].to_list(), frame["group"].to_list(), folds)
    if any(len(set(labels[fold != number])) < len(classes) for number in range(folds)):
        return None  # a class whose groups are all in one fold
    return predict_by_folds(inputs, labels, fold, len(classes)), classes


def predict_by_folds(
    inputs: NDArray[np.float32], labels: NDArray[np.int64], fold: NDArray[np.int64], classes: int
) -> Values:
    """Log chances (N, classes) by linear discriminants, each learned from all folds but the row's own.

    Their sums are taken once a fold, so five models cost little more than one.
    """
    spread = inputs - inputs.mean(axis=0)
    spread /= np.maximum(spread.std(axis=0), 1e-6)
    hot = np.eye(classes, dtype=np.float32)[labels]
    members = [np.flatnonzero(fold == number) for number in range(fold.max() + 1)]
    counts = np.stack([hot[rows].sum(axis=0) for rows in members]).astype(np.float64)
    sums = np.stack([hot[rows].T @ spread[rows] for rows in members]).astype(np.float64)
    squares = np.stack([spread[rows].T @ spread[rows] for rows in members]).astype(np.float64)
    chances = np.empty((len(labels), classes))
    for number, rows in enumerate(members):
        count, total = counts.sum(axis=0) - counts[number], sums.sum(axis=0) - sums[number]
        means = total / count[:, None]
        within = (squares.sum(axis=0) - squares[number] - total.T @ means) / count.sum()
        sphere = np.trace(within) / len(within) * np.eye(len(within))
        weights = np.linalg.solve((1 - SHRINKAGE) * within + SHRINKAGE * sphere, means.T)  # (D, classes)
        offsets = np.log(count / count.sum()) - 0.5 * np.einsum("cd,dc->c", means, weights)
        chances[rows] = spread[rows] @ weights + offsets
    return _log_softmax(chances)


def find_label_issues(
    labels: Sequence[str], chances: Values, classes: Sequence[str]
) -> tuple[list[tuple[int, str, float]], float]:
    """Row, class suggested, and chance that the label given is right, of those that may be wrong; and the balanced
    accuracy of the model, without which nobody is suspected."""
    given = np.searchsorted(classes, labels)
    suggested = chances.argmax(axis=1)
    wrong = judge_labels(chances, given)
    weight = 1 - wrong  # a model is not to blame for a label that is wrong
    hits = weight * (suggested == given)
    shares = [hits[given == number].sum() / weight[given == number].sum() for number in range(len(classes))]
    accuracy = round(float(np.mean(shares)), 3)
    doubtful = (wrong >= DOUBT) & (suggested != given)
    if accuracy < WITNESS or not doubtful.any():
        return [], accuracy

    from cleanlab.filter import find_label_issues as find  # takes a second to load

    doubtful &= find(given, np.exp(chances), filter_by="prune_by_noise_rate", n_jobs=1)
    found = [(int(index), classes[suggested[index]], float(weight[index])) for index in np.flatnonzero(doubtful)]
    return found, accuracy


def judge_labels(chances: Values, given: NDArray[np.int64]) -> Values:
    """Chance (N,) that each label given is wrong, from log chances (N, classes) by a model that did not see it.

    A label is the class itself with the model's chance for it, once its confidence is tempered; or, in a share of the
    rows, any of the others. Temperature and share are those under which the labels given are likeliest: what a weak
    model gets wrong speaks for a higher temperature, what a good one gets wrong for wrong labels.
    """
    others = chances.shape[1] - 1
    best, answer = -np.inf, np.zeros(len(given))
    for temperature in TEMPERATURES:
        right = np.exp(_log_softmax(chances / temperature)[np.arange(len(given)), given])
        share = 0.02
        for _ in range(ROUNDS):
            mistaken = share * (1 - right) / others
            whole = np.maximum(mistaken + (1 - share) * right, 1e-300)
            share = float((mistaken / whole).sum() / (len(given) + CLEAN))
        likelihood = np.log(whole).sum() + CLEAN * np.log1p(-share)
        if likelihood > best:
            best, answer = likelihood, mistaken / whole
    return answer


def _deal_groups(labels: Sequence[str], groups: Sequence[str], folds: int) -> NDArray[np.int64]:
    """A fold for every row: groups are dealt in turn, class by class, by a hash of their names."""
    inside = defaultdict[str, Counter[str]](Counter)
    for label, group in zip(labels, groups, strict=True):
        inside[group][label] += 1
    most = {group: min(counts, key=lambda label: (-counts[label], label)) for group, counts in inside.items()}
    order = sorted(most, key=lambda group: (most[group], hashlib.sha256(group.encode()).hexdigest()))
    fold = {group: number % folds for number, group in enumerate(order)}
    return np.array([fold[group] for group in groups])


def _log_softmax(values: Values) -> Values:
    shifted = values - values.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _suspect_near_duplicates(frame: pl.DataFrame, near: Sequence[Pair]) -> dict[int, tuple[str, float, str]]:
    """Pictures that show one thing under several labels: each that is not labelled as most are, or all on a tie.

    Only whole pictures: two crops of one thing may well be of two classes.
    """
    rows = {content_of(row[0]): index for index, row in enumerate(frame.select("id", "crop").rows()) if row[1] is None}
    labels, paths = frame["label"].to_list(), frame["path"].to_list()
    beside = defaultdict[int, list[int]](list)
    for first, second in near:
        if first in rows and second in rows:
            beside[rows[first]].append(rows[second])
            beside[rows[second]].append(rows[first])
    found = {}
    for index, others in beside.items():
        votes = Counter(labels[other] for other in others)
        suggested, count = min(votes.items(), key=lambda vote: (-vote[1], vote[0]))
        own = votes[labels[index]] + 1
        if suggested != labels[index] and count >= own:
            witness = next(paths[other] for other in sorted(others) if labels[other] == suggested)
            found[index] = suggested, own / (own + count) / 2, f"it shows the same as {witness}"
    return found


def _box(crop: Sequence[int] | None) -> Box | None:
    return (crop[0], crop[1], crop[2], crop[3]) if crop else None
