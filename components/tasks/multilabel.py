"""Any number of labels per image, none among them. The metric is macro average precision: the mean over the classes of
the area under the curve of precision against recall. It ranks the images of a class without a threshold, so that a
rare class counts as much as a frequent one and no choice of thresholds hides a poor ranking.

An image is answered every class whose probability reaches that class's threshold; thresholds are chosen on validation,
for the highest F1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.domain.domain import Domain
from components.domain.layouts import Table
from components.domain.settings import Gates
from components.records.jobs import PROBABILITY
from components.tasks.base import (
    PREDICTED,
    UNLABELLED,
    Annotated,
    Annotation,
    Evidence,
    Floats,
    Ints,
    Problem,
    Task,
    Uncounted,
    ask_each,
    flag_names,
    list_probabilities,
    name_labels,
    number_groups,
    read_probabilities,
    renumber_groups,
)
from components.tasks.calibration import TINY, Calibration, calibrate

if TYPE_CHECKING:
    from pandera.polars import Check, Column

Flags = NDArray[np.float32]  # (N, C) 1 where the image has the label
ANSWERED = "predicted_labels"  # column of the answer, as a list
CHUNK = 4_000_000  # weights of images handled at once: some 30 MB per array


class MultilabelTask(Task):
    """`task: multilabel`"""

    metric: ClassVar[str] = "macro_ap"
    metric_words: ClassVar[str] = "macro average precision"
    class_words: ClassVar[str] = "average precision"
    shown: ClassVar[str] = "macro_f1"
    annotation: ClassVar[Annotation] = "labels"
    own_limits: ClassVar[str] = "Each label has a threshold of its own, with the highest F1 on validation."
    reads: ClassVar[frozenset[str]] = frozenset({"csv", "parquet", "coco", "masks"})

    kind: Literal["multilabel"] = "multilabel"
    """An image has any number of labels, or none."""

    def find_misfit(self, domain: Domain) -> tuple[str, str, str] | None:
        if isinstance(domain.layout, Table) and domain.layout.one_hot:
            hint = "Remove `one_hot`: the task multilabel reads columns of 0 and 1 without it."
            return "a layout of any number of labels", "one_hot, which says that a row has one label", hint
        return super().find_misfit(domain)

    @property
    def cost_words(self) -> tuple[str, ...]:
        """`{crack: {"(none)": 20}}` is the cost of a missed crack, `{"(none)": {crack: 2}}` of one that is none."""
        return (UNLABELLED,)

    def columns(self) -> dict[str, pl.DataType]:
        return {"label": pl.String(), "labels": pl.List(pl.String)}

    def annotate(self, row: Annotated, classes: Sequence[str]) -> dict[str, Any]:
        if row.labels is None:
            return {"label": row.label}
        labels = sorted(set(row.labels), key=list(classes).index)
        return {"labels": labels, "label": name_labels(labels)}

    def checks(self, classes: Sequence[str]) -> "tuple[dict[str, Column], list[Check]]":
        import pandera.polars as pa

        def know(data: Any) -> bool:
            return set(data.lazyframe.collect()["labels"].explode().drop_nulls()) <= set(classes)

        columns = {"label": pa.Column(pl.String), "labels": pa.Column(pl.List(pl.String))}
        return columns, [pa.Check(know, name=f"labels in {', '.join(classes)}")]

    def questions(self, frame: pl.DataFrame, classes: Sequence[str]) -> list[pl.DataFrame]:
        """One per class: does the image have it?"""
        return ask_each(frame, classes)

    def targets(self, manifest: pl.DataFrame, classes: Sequence[str]) -> Flags:
        return flag_names(manifest["labels"], classes).astype(np.float32)

    def strata(self, targets: Flags) -> Ints:
        """The rarest label of each image, counted from 1, and 0 for none."""
        rarity = np.where(targets > 0, -targets.sum(axis=0), -np.inf)
        rarest: Ints = np.where(targets.any(axis=1), rarity.argmax(axis=1) + 1, 0).astype(np.int64)
        return rarest

    def problems(self, targets: Flags, classes: int) -> list[Problem]:
        """One per class: does the image have it?"""
        return [Problem(column.astype(np.int64), 2, balanced=False) for column in targets.T]

    def surprise(self, targets: Flags, probabilities: Floats) -> Floats:
        """Of all labels of an image together."""
        likely = np.where(targets > 0, probabilities, 1 - probabilities)
        losses: Floats = -np.log(np.maximum(likely, TINY)).sum(axis=1)
        return losses

    def calibrate(
        self, targets: Flags, probabilities: Floats, groups: NDArray[np.generic], classes: Sequence[str]
    ) -> Calibration:
        found = calibrate(self, targets, probabilities, groups, self.strata(targets))
        calibrated = self.rescale(probabilities, found.temperature)
        chosen = dict(zip(classes, choose_thresholds(targets, calibrated), strict=True))
        return replace(found, thresholds=chosen)

    def rescale(self, probabilities: Floats, temperature: float) -> Floats:
        if temperature == 1:
            return probabilities
        logits = np.log(np.maximum(probabilities, TINY)) - np.log(np.maximum(1 - probabilities, TINY))
        scaled: Floats = 1 / (1 + np.exp(-logits / temperature))
        return scaled

    def answer(self, probabilities: Floats, classes: Sequence[str], calibration: Calibration) -> list[dict[str, Any]]:
        limits = np.array([calibration.thresholds[name] for name in classes])
        return [
            {"labels": [name for name, there in zip(classes, row, strict=True) if there]}
            for row in probabilities >= limits
        ]

    def answers(self, probabilities: Floats, classes: Sequence[str], calibration: Calibration) -> list[pl.Series]:
        lists = [row["labels"] for row in self.answer(probabilities, classes, calibration)]
        return [
            pl.Series(PREDICTED, [name_labels(labels) for labels in lists], dtype=pl.String),
            pl.Series(ANSWERED, lists, dtype=pl.List(pl.String)),
        ]

    def metrics(
        self, targets: Flags, probabilities: Floats, classes: Sequence[str], calibration: Calibration | None = None
    ) -> dict[str, float]:
        """macro_ap, macro_f1, exact_match, ece, and ap, f1 and recall of each class.

        Without a calibration the thresholds are the best ones for these very images. A class without an image here is
        left out of the means.
        """
        present = [k for k in range(len(classes)) if targets[:, k].any()]
        if calibration is None:
            limits = np.array(choose_thresholds(targets, probabilities))
        else:
            limits = np.array([calibration.thresholds[name] for name in classes])
        truth, answered = targets > 0, probabilities >= limits
        hits = (truth & answered).sum(axis=0)
        f1 = 2 * hits / np.maximum(truth.sum(axis=0) + answered.sum(axis=0), 1)
        ones = np.ones((1, 1))
        groups = np.zeros(len(targets), np.int64)
        precisions = {k: float(RankEvidence.of(truth[:, [k]], probabilities[:, [k]], groups, 1).scores(ones)[0])
                      for k in present}  # fmt: skip
        return {
            self.metric: float(np.mean([precisions[k] for k in present])) if present else 0.0,
            "macro_f1": float(np.mean([f1[k] for k in present])) if present else 0.0,
            "exact_match": float((truth == answered).all(axis=1).mean()),
            "ece": self.calibration_error(targets, probabilities),
            **{f"ap/{classes[k]}": precisions[k] for k in present},
            **{f"f1/{classes[k]}": float(f1[k]) for k in present},
            **{f"recall/{classes[k]}": float(hits[k] / truth[:, k].sum()) for k in present},
        }

    def evidence(self, frame: pl.DataFrame, classes: Sequence[str]) -> Evidence:
        groups, number = number_groups(frame["group"].to_numpy())
        truth = flag_names(frame["labels"], classes)
        return RankEvidence.of(truth, read_probabilities(frame, classes), groups, number)

    def class_evidence(self, frame: pl.DataFrame, classes: Sequence[str]) -> dict[str, Evidence]:
        """The average precision of each class over all images."""
        groups, number = number_groups(frame["group"].to_numpy())
        truth, chances = flag_names(frame["labels"], classes), read_probabilities(frame, classes)
        return {
            name: RankEvidence.of(truth[:, [k]], chances[:, [k]], groups, number)
            for k, name in enumerate(classes)
            if truth[:, k].any()
        }

    def chance(self, frame: pl.DataFrame, classes: Sequence[str], of: str | None = None) -> float:
        """A random order has a class's share of the images as its average precision."""
        shares = flag_names(frame["labels"], classes).mean(axis=0, dtype=np.float64)
        if of is not None:
            return float(shares[list(classes).index(of)])
        return float(shares[shares > 0].mean()) if shares.any() else 0.0

    def name_chance(self, classes: Sequence[str], of: str | None = None) -> str:
        return "a random order of the images"

    def costs(self, frame: pl.DataFrame, gates: Gates, classes: Sequence[str]) -> tuple[Floats, float]:
        """A missed label is a class taken for none, a false one none taken for a class; each mistake counts."""
        truth, answered = self.flags(frame, classes)
        missed = np.array([gates.cost(name, UNLABELLED) for name in classes])
        false = np.array([gates.cost(UNLABELLED, name) for name in classes])
        return (truth & ~answered) @ missed + (answered & ~truth) @ false, float(np.maximum(missed, false).sum())

    def reliability(self, targets: Flags, probabilities: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """The probability of each label, and whether it is there."""
        return probabilities, targets > 0

    def flags(self, frame: pl.DataFrame, classes: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return flag_names(frame["labels"], classes), flag_names(frame[ANSWERED], classes)

    def confidence(self, frame: pl.DataFrame) -> pl.Series:
        """A right answer is as sure as its least certain label, a wrong one as its most certain mistake."""
        names = list_probabilities(frame)
        truth, answered = self.flags(frame, names)
        sure = np.where(answered, read_probabilities(frame, names), 1 - read_probabilities(frame, names))
        wrong = truth != answered
        mistakes = np.where(wrong, sure, 0).max(axis=1)
        return pl.Series(np.where(wrong.any(axis=1), mistakes, sure.min(axis=1)))

    def ease(self, frame: pl.DataFrame) -> pl.Series:
        """The probability of the least likely part of the truth: that a label is there, or that it is not."""
        names = list_probabilities(frame)
        truth, chances = flag_names(frame["labels"], names), read_probabilities(frame, names)
        return pl.Series(np.where(truth, chances, 1 - chances).min(axis=1))

    def outputs(self, classes: Sequence[str]) -> dict[str, str]:
        return {"labels": "strings"} | {f"{PROBABILITY}{name}": "double" for name in classes}


def choose_thresholds(targets: Flags, probabilities: Floats) -> list[float]:
    """The threshold of each class with the highest F1, halfway between two probabilities; the nearest to one half on a
    tie, and one half where no image has the class.
    """
    return [_choose_threshold(truth > 0, chances) for truth, chances in zip(targets.T, probabilities.T, strict=True)]


def _choose_threshold(truth: NDArray[np.bool_], chances: Floats) -> float:
    if not truth.any():
        return 0.5
    values, places = np.unique(chances, return_inverse=True)  # rising
    positives = np.bincount(places.reshape(-1), weights=truth)[::-1].cumsum()  # answered from the k-th highest on
    answered = np.bincount(places.reshape(-1))[::-1].cumsum()
    f1 = 2 * positives / (answered + truth.sum())
    limits = ((values + np.concatenate([[0.0], values[:-1]])) / 2)[::-1]
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(limits[best[np.abs(limits[best] - 0.5).argmin()]])


@dataclass(frozen=True)
class Ranking:
    """The images of one class from the most probable down; `ends`: (B,) the last place of each run of equal ones."""

    groups: Ints  # (N,)
    truth: Floats  # (N,) 1 where the image has the class
    ends: Ints


@dataclass(frozen=True)
class RankEvidence(Uncounted):
    """Evidence of the mean of average precisions: each class's images are sorted once, whatever the weights.

    Equal probabilities are one step of the curve, so that the order among them says nothing. A class without a
    positive in a resample is left out of that resample's mean; the score of one without any at all is not a number.
    """

    groups: Ints
    number: int
    rankings: tuple[Ranking, ...]

    @staticmethod
    def of(truth: NDArray[np.bool_], chances: Floats, groups: Ints, number: int) -> "RankEvidence":
        """truth, chances: (N, C); groups: (N,) below `number`."""
        columns = zip(truth.T, chances.T, strict=True)
        return RankEvidence(groups, number, tuple(_rank(*column, groups) for column in columns))

    def only(self, groups: Ints) -> "RankEvidence":
        place = renumber_groups(groups, self.number)
        mine = place[self.groups]
        rankings = tuple(_keep(ranking, place) for ranking in self.rankings)
        return RankEvidence(mine[mine >= 0], len(groups), rankings)

    def scores(self, weights: Floats) -> Floats:
        sums, classes = np.zeros(len(weights)), np.zeros(len(weights))
        step = max(1, CHUNK // max(len(self.groups), 1))
        for start in range(0, len(weights), step):
            rows = slice(start, start + step)
            for ranking in self.rankings:
                scores = average_precision(ranking, weights[rows])
                known = ~np.isnan(scores)
                sums[rows] += np.where(known, scores, 0.0)
                classes[rows] += known
        means: Floats = np.divide(sums, classes, out=np.full(len(weights), np.nan), where=classes > 0)
        return means


def average_precision(ranking: Ranking, weights: Floats) -> Floats:
    """(R, G) -> (R,): precision times the gain in recall, summed over the curve's steps; NaN without a positive.

    As sklearn.metrics.average_precision_score with a weight per image.
    """
    by_image = weights[:, ranking.groups]  # (R, N)
    found = np.cumsum(by_image * ranking.truth, axis=1)[:, ranking.ends]  # (R, B) positives down to each step's end
    seen = np.cumsum(by_image, axis=1)[:, ranking.ends]
    gains = np.diff(found, axis=1, prepend=0.0)
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    total = found[:, -1] if found.shape[1] else np.zeros(len(weights))
    scores: Floats = np.divide(
        (precision * gains).sum(axis=1), total, out=np.full(len(weights), np.nan), where=total > 0
    )
    return scores


def _rank(truth: NDArray[np.bool_], chances: Floats, groups: Ints) -> Ranking:
    order = np.argsort(-chances, kind="stable")
    steps = np.flatnonzero(np.diff(chances[order]))
    ends = np.concatenate([steps, [len(order) - 1]]) if len(order) else np.zeros(0, np.int64)
    return Ranking(groups[order], truth[order].astype(np.float64), ends)


def _keep(ranking: Ranking, place: Ints) -> Ranking:
    """The ranking of the images whose group has a place; their steps stay what they were."""
    mine = place[ranking.groups]
    kept = mine >= 0
    step = np.searchsorted(ranking.ends, np.arange(len(mine)))[kept]  # the step of each image that stays
    ends = np.flatnonzero(np.diff(step, append=-1))
    return Ranking(mine[kept], ranking.truth[kept], ends)
