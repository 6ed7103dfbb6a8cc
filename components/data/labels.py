"""Labels that may be wrong, by confident learning over frozen features (https://arxiv.org/abs/1911.00068).

A logistic regression that never saw an image's group says what it takes the image for; cleanlab compares that with the
label given, by the classes' own confidence. What near duplicates say of each other comes first. Nothing is changed:
a suspicion is shown with the picture, and a person decides.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.data.duplicates import Pair
from components.data.features import content_of, decode_features, sample_key
from components.data.images import Box

FOLDS = 5
STRENGTH = 0.01  # of the regression's regularisation; several hundred features, often fewer images


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


def find_suspects(frame: pl.DataFrame, features: pl.DataFrame, near: Sequence[Pair]) -> tuple[Suspect, ...]:
    """Suspicious labels among the rows of valid.parquet, the worst first."""
    if frame.is_empty():
        return ()
    known = _suspect_near_duplicates(frame, near)
    chances = predict_labels(frame, features)
    for index, suggested, score in [] if chances is None else find_label_issues(frame["label"].to_list(), *chances):
        known.setdefault(index, (suggested, score, "its features look like that class"))
    rows = frame.select("path", "crop", "label").rows()
    found = [
        Suspect(rows[index][0], _box(rows[index][1]), rows[index][2], suggested, round(score, 4), why)
        for index, (suggested, score, why) in known.items()
    ]
    return tuple(sorted(found, key=lambda each: (each.score, each.path, each.crop or ())))


def predict_labels(frame: pl.DataFrame, features: pl.DataFrame) -> tuple[NDArray[np.float64], list[str]] | None:
    """Chances (N, classes) of every row by a model that did not see its group, and the classes; None where too few
    groups leave nothing to learn from."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    groups = frame.group_by("label").agg(pl.col("group").n_unique())
    folds = min(FOLDS, *groups["group"].to_list())
    classes = sorted(groups["label"])
    if folds < 2 or len(classes) < 2:
        return None
    keys = [sample_key(content_of(identity), _box(crop)) for identity, crop in frame.select("id", "crop").rows()]
    place = {key: index for index, key in enumerate(features["key"])}
    inputs = decode_features(features[[place[key] for key in keys]])
    labels, names = frame["label"].to_numpy(), frame["group"].to_numpy()
    splits = list(StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(inputs, labels, names))
    if any(len(set(labels[train])) < len(classes) for train, _ in splits):
        return None  # a class whose groups are all in one fold
    model = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough for a suspicion
        return cross_val_predict(model, inputs, labels, cv=splits, method="predict_proba"), classes


def find_label_issues(
    labels: Sequence[str], chances: NDArray[np.float64], classes: Sequence[str]
) -> list[tuple[int, str, float]]:
    """Row, the class suggested, and the chance of the label given, where cleanlab finds an issue."""
    from cleanlab.filter import find_label_issues as find

    number = {label: index for index, label in enumerate(classes)}
    given = np.array([number[label] for label in labels])
    issues = find(given, chances, filter_by="prune_by_noise_rate", return_indices_ranked_by="self_confidence", n_jobs=1)
    suggested = chances.argmax(axis=1)
    return [
        (int(index), classes[suggested[index]], float(chances[index, given[index]]))
        for index in issues
        if suggested[index] != given[index]
    ]


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
