"""Labels that may be wrong, by confident learning over frozen features (https://arxiv.org/abs/1911.00068).

A linear discriminant that was fitted without an image's group predicts its class, and cleanlab compares the prediction
with the given label. A disagreement alone means little if the features are weak, so the probability that a label is
wrong is calibrated on the same predictions: a label is the class itself or, with a probability estimated from all
images, any other class (`judge_labels`). Only labels that are wrong with a probability above DOUBT are listed, and none
if the features recognise the classes too badly. Near duplicates with different labels are listed first. Nothing is
changed: the report shows each suspicion with its picture, and a person decides. benchmarks/labels.py measures how many
suspicions are right.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.data.checks.duplicates import Pair
from components.data.checks.features import decode_features
from components.data.sample_keys import content_of, sample_key
from components.data.sources.images import Box
from components.records.images import LabelReview, Suspect

FOLDS = 5
SHRINKAGE = 0.3  # of the covariance towards a sphere: there are several hundred features and often fewer images
TEMPERATURES = np.exp(np.linspace(-1.5, 3.5, 41))
ROUNDS = 30  # rounds of expectation and maximisation; the share of wrong labels converges in ten
CLEAN = 20.0  # weight, in images, of the prior that a set has no wrong label
DOUBT = 0.7  # a label is listed if it is wrong with at least this probability
WITNESS = 0.75  # features may cast doubt on labels if their balanced accuracy on unseen groups is at least this

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Judgement:
    """Suspicious labels, the worst first, and how well the features recognise the classes.

    accuracy: balanced accuracy on unseen groups; None if there are too few groups to fit. expected: the expected share
    of right suspicions among those by features.
    """

    suspects: tuple[Suspect, ...] = ()
    accuracy: float | None = None
    expected: float | None = None

    @property
    def note(self) -> str:
        """A sentence for the report on how reliable the list is."""
        if self.accuracy is None:
            why = "a class has too few groups, or is missing in too few, to learn from"
            return f"Labels were not checked by features: {why}."
        seen = f"Frozen features reach a balanced accuracy of {self.accuracy:.0%} on unseen groups"
        if self.accuracy < WITNESS:
            return f"{seen}, too little to cast doubt on a label ({WITNESS:.0%} are required)."
        if self.expected is None:
            return f"{seen} and cast doubt on no label."
        return f"{seen}. Of the labels that they doubt, about {self.expected:.0%} should be wrong."

    def to_record(self) -> LabelReview:
        return LabelReview(accuracy=self.accuracy, expected_wrong=self.expected, note=self.note)


def find_suspects(frame: pl.DataFrame, features: pl.DataFrame, near: Sequence[Pair]) -> Judgement:
    """The suspicious labels among the rows of valid.parquet. near: pairs that certainly show one thing."""
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
        Suspect(path=path, crop=_box(crop), given=label, suggested=suggested, score=round(score, 4), why=why)
        for index, (suggested, score, why) in known.items()
        for path, crop, label in (rows[index],)
    ]
    worst_first = sorted(suspects, key=lambda each: (each.score, each.path, each.crop or ()))
    return Judgement(tuple(worst_first), accuracy, expected)


def review_labels(questions: Sequence[pl.DataFrame], features: pl.DataFrame, near: Sequence[Pair]) -> Judgement:
    """The suspicious labels over all questions of a task (`Task.questions`), with the means of their figures."""
    judged = [find_suspects(frame, features, near) for frame in questions]
    suspects = [each for one in judged for each in one.suspects]
    accuracies = [one.accuracy for one in judged if one.accuracy is not None]
    shares = [one.expected for one in judged if one.expected is not None]
    return Judgement(
        tuple(sorted(suspects, key=lambda each: each.score)),  # stable: of one question the order stays
        float(np.mean(accuracies)) if accuracies else None,
        round(float(np.mean(shares)), 2) if shares else None,
    )


def predict_labels(frame: pl.DataFrame, features: pl.DataFrame) -> tuple[Values, list[str]] | None:
    """Log probabilities (N, classes) of every row by a model fitted without its group, and the classes.

    None if there are too few groups to fit a model.
    """
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
        return None  # all groups of a class are in one fold
    return predict_by_folds(inputs, labels, fold, len(classes)), classes


def predict_by_folds(
    inputs: NDArray[np.float32], labels: NDArray[np.int64], fold: NDArray[np.int64], classes: int
) -> Values:
    """Log probabilities (N, classes) by linear discriminants, each fitted to all folds except the row's own.

    The sums are computed once per fold, so five models cost little more than one.
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
    """For labels that may be wrong: row, suggested class and probability that the given label is right. Also the
    model's balanced accuracy; if it is too low, no label is suspected."""
    given = np.searchsorted(classes, labels)
    suggested = chances.argmax(axis=1)
    wrong = judge_labels(chances, given)
    weight = 1 - wrong  # a wrong label is no error of the model
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
    """The probability (N,) that each given label is wrong.

    chances: log probabilities (N, classes) by a model that did not see the row. A label is the true class with the
    model's probability after temperature scaling or, in a share of the rows, any other class. Temperature and share
    maximise the likelihood of the given labels: errors of a weak model raise the temperature, errors of a good model
    raise the share of wrong labels.
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
    """The fold of every row. Groups are dealt to folds in turn, class by class, in the order of their hashed names."""
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
    """Pictures that show one thing under several labels: those that differ from the majority, or all if there is none.

    This holds for whole pictures only: two crops of one thing may be of two classes.
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
