"""What every task has: how an image is annotated, what a network learns from it, and what its answers are worth.

A score is a function of how often each group of images counts (`Evidence`), so that every resample of the bootstrap is
one row of weights.

Shapes: N images, C classes, G groups, R resamples, K counts per group.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.domain.canvas import Fit
from components.domain.domain import Domain
from components.domain.layouts import LAYOUTS
from components.domain.settings import Gates
from components.domain.strict import Strict
from components.errors import PromotionError
from components.records.boxes import LabelledBox
from components.records.jobs import PROBABILITY
from components.records.maps import Painting, Regions
from components.records.predictions import UNDECIDED
from components.tasks.calibration import Calibration, measure_gaps

if TYPE_CHECKING:
    from pandera.polars import Check, Column

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Chances = NDArray[np.floating[Any]]  # probabilities of pixels, of which there are many: float32 will do
Annotation = Literal["label", "labels", "mask", "boxes"]

UNLABELLED = "(none)"  # what a picture without any label is called where people read


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
        mine = renumber_groups(groups, len(self.own))[self.groups]
        return CountEvidence(mine[mine >= 0], self.own[groups], self.shared[groups], self.score)

    def scores(self, weights: Floats) -> Floats:
        sums = weights @ np.concatenate([self.own, self.shared], axis=1)
        return self.score(*np.split(sums, [self.own.shape[1]], axis=1))


class Uncounted:
    """Evidence whose score is no function of sums over groups, so that no two groups are exchangeable."""

    @property
    def own(self) -> Floats | None:
        return None

    @property
    def shared(self) -> Floats | None:
        return None


@dataclass(frozen=True)
class MeanEvidence(Uncounted):
    """Evidence of the mean of scores of the same images."""

    parts: tuple[Evidence, ...]

    @property
    def groups(self) -> Ints:
        return self.parts[0].groups

    def only(self, groups: Ints) -> "MeanEvidence":
        return MeanEvidence(tuple(part.only(groups) for part in self.parts))

    def scores(self, weights: Floats) -> Floats:
        mean: Floats = np.mean([part.scores(weights) for part in self.parts], axis=0)
        return mean


def number_groups(names: NDArray[np.generic]) -> tuple[Ints, int]:
    """The number of each image's group (N,), by the order of their names, and how many there are."""
    found, numbers = np.unique(names, return_inverse=True)
    return numbers.reshape(-1), len(found)


def renumber_groups(chosen: Ints, number: int) -> Ints:
    """(number,) the place of each group among the chosen ones, -1 for the others."""
    place = np.full(number, -1, np.int64)
    place[chosen] = np.arange(len(chosen))
    return place


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


class Annotated(Protocol):
    """A row of a layout as far as it says what its picture shows."""

    @property
    def label(self) -> str | None: ...

    @property
    def labels(self) -> Sequence[str] | None: ...

    @property
    def regions(self) -> Regions | None: ...

    @property
    def objects(self) -> Sequence[LabelledBox] | None: ...


@dataclass(frozen=True)
class Problem:
    """One logistic regression of those that a linear probe solves. targets: (N,) numbers below `classes`.

    balanced: every class counts the same; else every image does.
    """

    targets: Ints
    classes: int
    balanced: bool


class Task(Strict, ABC):
    """The options of a task, and everything that depends on it outside the network's head.

    A frame of predictions has the columns id, path, crop, group and split, those that describe the truth (`columns`),
    the domain's slices, the answer (`answers`), and one probability per class (`p_<class>`).

    metric: the score that selects, gates and is shown; in words for people, and those of one class alone likewise.
    annotation: what is said of a picture: one label, any number of them, the class of every pixel, or labelled boxes.
    reads: the layouts that can say it. shown: a second score, which is followed while training. control: the kind of
    the candidate that every retrain compares the others with; None where the linear probe is comparison enough.
    cost_unit: what the mean cost of mistakes is counted per. fit: how pictures are put on the canvas of the training
    where the domain does not say it. own_limits: what chooses thresholds where answers are more than one label, as a
    hint for who asks for a `decision`.
    """

    kind: str
    annotation: ClassVar[Annotation]
    reads: ClassVar[frozenset[str]] = frozenset(LAYOUTS)
    fewest_classes: ClassVar[int] = 1
    control: ClassVar[str | None] = None
    cost_unit: ClassVar[str] = "per image"
    fit: ClassVar[Fit] = "squash"
    own_limits: ClassVar[str] = ""

    if TYPE_CHECKING:  # class variables, except where an option chooses the metric

        @property
        def metric(self) -> str: ...
        @property
        def metric_words(self) -> str: ...
        @property
        def class_words(self) -> str: ...
        @property
        def shown(self) -> str: ...

    # The domain and its data

    def find_misfit(self, domain: Domain) -> tuple[str, str, str] | None:
        """What of the domain does not fit the task: expected, found, hint. None where all fits."""
        kind = domain.layout.kind
        if kind not in self.reads:
            expected = f"one of the layouts {', '.join(name for name in LAYOUTS if name in self.reads)}"
            return f"{expected} for the task {domain.task_kind}", f"layout: {kind}", "Change `layout` or `task`."
        if len(domain.classes) < self.fewest_classes:
            expected = f"at least {self.fewest_classes} classes for the task {domain.task_kind}"
            return expected, ", ".join(domain.classes), "Add to `classes` what these are told apart from."
        if domain.decision and self.annotation != "label":
            expected = f"a task that answers one label per image for `decision`, not {domain.task_kind}"
            return expected, f"decision: {', '.join(domain.decision)}", f"Remove it. {self.own_limits}"
        known = {*domain.classes, *self.cost_words}
        named = {name for row in domain.gates.costs.values() for name in row} | set(domain.gates.costs) - {"*"}
        if strangers := sorted(named - known):
            more = "".join(f" and {word}" for word in self.cost_words)
            expected = f"gates.costs of the classes {', '.join(domain.classes)}{more}"
            return expected, f"gates.costs speaks of {', '.join(strangers)}", "Correct the names."
        return None

    @property
    def painting(self) -> Painting | None:
        """How annotations become class maps; None where a picture's pixels have no classes."""
        return None

    @property
    def background_class(self) -> str | None:
        """The class of pixels that no annotation covers; None where there is no such class."""
        return self.painting.background if self.painting else None

    @property
    def cost_words(self) -> tuple[str, ...]:
        """What `gates.costs` may name beside the classes."""
        return ()

    def advise(
        self, pictures: int, sizes: Sequence[tuple[int, int]], objects: Sequence[Sequence[LabelledBox]] = ()
    ) -> dict[str, Any]:
        """Keys of domain.yaml that a new domain of so many pictures begins with, where the defaults do not suit it.

        sizes: width and height of some of them. objects: what each of these shows, where boxes are annotated.
        """
        return {}

    @abstractmethod
    def columns(self) -> dict[str, pl.DataType]:
        """Names and types of the manifest's columns that say what a sample shows; `label` is a text for people."""

    @abstractmethod
    def annotate(self, row: Annotated, classes: Sequence[str]) -> dict[str, Any]:
        """These columns of one row; those that are missing are null."""

    @abstractmethod
    def checks(self, classes: Sequence[str]) -> "tuple[dict[str, Column], list[Check]]":
        """What these columns must keep, as pandera checks it: by column, and of the whole frame."""

    def questions(self, frame: pl.DataFrame, classes: Sequence[str]) -> list[pl.DataFrame]:
        """Rows of valid.parquet with one `label` each, for the label review; several where each class is a question."""
        return [frame]

    # What a network learns

    @abstractmethod
    def targets(self, manifest: pl.DataFrame, classes: Sequence[str]) -> NDArray[Any]:
        """(N, ...) what is learned of each sample, as the head's loss takes it."""

    @abstractmethod
    def strata(self, targets: NDArray[Any]) -> Ints:
        """(N,) the number of a kind of image, of which every fold of a cross-validation gets its share of groups."""

    @abstractmethod
    def problems(self, targets: NDArray[Any], classes: int) -> list[Problem]:
        """What a linear probe solves; the head puts the solutions together (`Head.fill`)."""

    @abstractmethod
    def surprise(self, targets: NDArray[Any], probabilities: Floats) -> Floats:
        """(N,) negative log likelihood of each image's truth in nats, from probabilities (N, C)."""

    @abstractmethod
    def calibrate(
        self, targets: NDArray[Any], probabilities: Floats, groups: NDArray[np.generic], classes: Sequence[str]
    ) -> Calibration:
        """What makes validation's probabilities frequencies, and from which probability on a class is answered."""

    @abstractmethod
    def rescale(self, probabilities: Floats, temperature: float) -> Floats:
        """(N, C) probabilities as they are with the logits divided by the temperature."""

    def keep(self, probabilities: Floats, targets: NDArray[Any]) -> Floats:
        """(B, K) what `metrics` and `surprise` need of answers while training; of one answer per image, (B, C), all."""
        return probabilities

    # What answers are worth

    @abstractmethod
    def answer(self, probabilities: Floats, classes: Sequence[str], calibration: Calibration) -> list[dict[str, Any]]:
        """(N, C) calibrated probabilities -> what each sample is answered: `{"label": ...}` or `{"labels": [...]}`."""

    @abstractmethod
    def answers(self, probabilities: Floats, classes: Sequence[str], calibration: Calibration) -> list[pl.Series]:
        """The answers as columns of a frame of predictions, of the names that `evidence` reads."""

    @abstractmethod
    def metrics(
        self,
        targets: NDArray[Any],
        probabilities: Floats,
        classes: Sequence[str],
        calibration: Calibration | None = None,
    ) -> dict[str, float]:
        """All scores of calibrated probabilities (N, C), the metric first, macro_f1 and ece among them.

        calibration: None while training, before there is one.
        """

    @abstractmethod
    def evidence(self, frame: pl.DataFrame, classes: Sequence[str]) -> Evidence:
        """Evidence of the metric over a frame of predictions. Raises PromotionError for a class that is unknown."""

    @abstractmethod
    def class_evidence(self, frame: pl.DataFrame, classes: Sequence[str]) -> dict[str, Evidence]:
        """Evidence of each class's own score, in the order of the classes; those without an image are left out."""

    def mean_evidence(self, frames: Sequence[pl.DataFrame], classes: Sequence[str]) -> Evidence:
        """Evidence of the mean score of several models, over their predictions of the same images."""
        return MeanEvidence(tuple(self.evidence(frame, classes) for frame in frames))

    def size_evidence(self, frame: pl.DataFrame, classes: Sequence[str]) -> dict[str, Evidence]:
        """Evidence of the metric over objects of each size alone; none where no single objects are answered."""
        return {}

    @abstractmethod
    def chance(self, frame: pl.DataFrame, classes: Sequence[str], of: str | None = None) -> float:
        """The score that an answer without any knowledge reaches; `of`: the score of that class alone."""

    @abstractmethod
    def name_chance(self, classes: Sequence[str], of: str | None = None) -> str:
        """What such an answer is called in a sentence about the score, or about that of one class."""

    @abstractmethod
    def costs(self, frame: pl.DataFrame, gates: Gates, classes: Sequence[str]) -> tuple[Floats, float]:
        """What the answer for each image costs (N,), in the frame's order, and the most that one can cost."""

    @abstractmethod
    def reliability(self, targets: NDArray[Any], probabilities: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """(N, K) probabilities that the answer rests on, and whether what they are of came true."""

    def calibration_error(self, targets: NDArray[Any], probabilities: Floats) -> float:
        """How far probabilities (N, C) are from frequencies, 0 to 1: the mean of the K expected calibration errors."""
        columns = zip(*(table.T for table in self.reliability(targets, probabilities)), strict=True)
        return float(np.mean([measure_gaps(*column) for column in columns]))

    @abstractmethod
    def flags(self, frame: pl.DataFrame, classes: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(N, C) which classes an image has, and which it was answered."""

    @abstractmethod
    def confidence(self, frame: pl.DataFrame) -> pl.Series:
        """(N,) how sure an answer is, and a wrong one of its mistake."""

    @abstractmethod
    def ease(self, frame: pl.DataFrame) -> pl.Series:
        """(N,) the probability of the truth: the least is the hardest image."""

    @abstractmethod
    def outputs(self, classes: Sequence[str]) -> dict[str, str]:
        """Columns of a served answer and their MLflow types: `string`, `double`, or `strings` for a list."""

    def hits(self, frame: pl.DataFrame) -> NDArray[np.bool_]:
        """(N,) whether an answer is right altogether."""
        hits: NDArray[np.bool_] = (frame["label"] == frame[PREDICTED]).to_numpy()
        return hits

    def describe_answers(self, frame: pl.DataFrame) -> pl.Series:
        """(N,) what was answered, as a text like the column `label`."""
        return frame[PREDICTED]

    def frame_error(self, frame: pl.DataFrame, classes: Sequence[str]) -> float:
        """The calibration error of a frame of predictions."""
        return self.calibration_error(self.targets(frame, classes), read_probabilities(frame, classes))

    def reliability_curve(
        self, frame: pl.DataFrame, classes: Sequence[str], bins: int = 10
    ) -> tuple[Floats, Floats, Ints]:
        """(bins,) mean probability, share that came true, and number, by equal bins of probability.

        The first two are not a number where the third is 0.
        """
        tables = self.reliability(self.targets(frame, classes), read_probabilities(frame, classes))
        sure, hits = (table.reshape(-1) for table in tables)
        place = np.minimum((sure * bins).astype(int), bins - 1)
        count = np.bincount(place, minlength=bins)
        sums = (np.bincount(place, weights=values, minlength=bins) for values in (sure, hits))
        mean, right = (np.divide(each, count, out=np.full(bins, np.nan), where=count > 0) for each in sums)
        return mean, right, count

    def describe_gap(self, then: pl.DataFrame, now: pl.DataFrame) -> str:
        """How far two models' answers for the same images, in one order, are apart, as the end of a sentence."""
        names = list_probabilities(then)
        gap = float(np.abs(read_probabilities(then, names) - read_probabilities(now, names)).max())
        return f"probabilities differ by at most {gap:.2g}"


class DenseTask(Task, ABC):
    """A task that answers more of a picture than labels. Answers are judged one picture at a time, at its own size.

    While training, `keep` reduces each answer to K numbers, and `metrics` and `surprise` take these (N, K) in the place
    of probabilities. A frame of predictions has no probabilities, and the columns that `judged` names.
    """

    control: ClassVar[str | None] = "pixels"

    @abstractmethod
    def judged(self) -> dict[str, pl.DataType]:
        """Names and types of the columns that judging a picture's answer fills."""

    @abstractmethod
    def score_frame(self, frame: pl.DataFrame, classes: Sequence[str]) -> dict[str, float]:
        """All scores of a frame of predictions, the metric first; ece, ece_uncalibrated and loss among them."""

    def problems(self, targets: NDArray[Any], classes: int) -> list[Problem]:
        """None: no linear probe solves the head."""
        return []

    def answer(self, probabilities: Chances, classes: Sequence[str], calibration: Calibration) -> list[dict[str, Any]]:
        raise TypeError("an answer for a whole picture is described by components/serving")

    def answers(self, probabilities: Chances, classes: Sequence[str], calibration: Calibration) -> list[pl.Series]:
        raise TypeError("the columns of an answer are those that `judge` fills")


class MapTask(DenseTask, ABC):
    """A task that answers the class of every pixel. Class maps as in `components.records.maps`.

    What is learned are class maps at the size of the training, which the caller loads: `targets` says only which
    classes a picture shows, for strata. What the gates read is measured at the size of the picture, by `judge`.
    `calibrate`, `rescale` and `reliability` take pixels in the place of images.

    `judged` names `answer_map` among its columns, which is the answer as `encode_map` writes it; the truth is in the
    manifest's column `class_map`.

    `decide` and `judge` take probabilities before calibration and apply it themselves: interpolated probabilities that
    are calibrated are not calibrated ones that are interpolated, and both ways must give the same answer.
    """

    annotation: ClassVar[Annotation] = "mask"
    own_limits: ClassVar[str] = "Each pixel has the most probable class; `gates.costs` says what its mistakes cost."

    @abstractmethod
    def keep(self, probabilities: Chances, targets: NDArray[Any]) -> Floats:
        """(B, K) of probabilities (B, C, h', w') of any size and class maps (B, h, w)."""

    @abstractmethod
    def sample(self, probabilities: Chances, targets: NDArray[np.uint8]) -> tuple[Ints, Floats, Ints]:
        """Some labelled pixels of probabilities (B, C, h', w') and class maps (B, h, w), for `calibrate`: classes (M,),
        probabilities (M, C), and the number of each pixel's image (M,). The same pixels at every call."""

    @abstractmethod
    def decide(self, probabilities: Chances, classes: Sequence[str], calibration: Calibration) -> NDArray[np.uint8]:
        """(C, H, W) probabilities that are not calibrated yet -> (H, W) the class that each pixel is answered."""

    @abstractmethod
    def judge(
        self, probabilities: Chances, truth: NDArray[np.uint8], classes: Sequence[str], calibration: Calibration
    ) -> dict[str, Any]:
        """The row of one picture: (C, H, W) probabilities that are not calibrated yet, and its class map (H, W)."""


class BoxTask(DenseTask, ABC):
    """A task that answers labelled boxes. Arrays of boxes as in `components.records.boxes`.

    What is learned are boxes on the canvas of the training, (N, M, 6), which the caller loads: `targets` says only
    which classes a picture shows, for strata. `keep` takes what was found (B, K, 6) and targets (B, M, 6), both on the
    canvas. What the gates read is measured in pixels of the picture, by `judge`; the truth is in the manifest's column
    `objects`, and `judged` names `found` among its columns: all boxes that were answered, of calibrated confidence,
    whether they reach their threshold or not.

    `decide` and `judge` take confidences before calibration and apply it themselves.
    """

    annotation: ClassVar[Annotation] = "boxes"
    own_limits: ClassVar[str] = "The task's `misses` or `false_alarms` choose from which confidence boxes are shown."
    fit: ClassVar[Fit] = "letterbox"
    unannotated: str
    """Whether pictures without any annotation are left out (`leave_out`), or show no object (`background`)."""
    recall_at: float
    """The number of false boxes per picture at which recall is reported."""

    @abstractmethod
    def calibrate(
        self, targets: Any, probabilities: Any, groups: NDArray[np.generic], classes: Sequence[str]
    ) -> Calibration:
        """targets: an array (M, 6) per picture, probabilities: what was found in it (K, 6), in the picture's pixels."""

    @abstractmethod
    def decide(
        self, found: Floats, classes: Sequence[str], calibration: Calibration
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """(K, 6) what was found -> (K, 6) with calibrated confidence, without rows that fill up, the most confident
        first; and (K,) whether a box reaches the threshold of its class, from which on it is shown to people."""

    @abstractmethod
    def judge(self, found: Floats, targets: Floats, classes: Sequence[str], calibration: Calibration) -> dict[str, Any]:
        """The row of one picture: (K, 6) what was found, and its annotated boxes (M, 6), in the picture's pixels."""


PREDICTED = "predicted"  # column of the answer, as a text


def list_probabilities(frame: pl.DataFrame) -> list[str]:
    """The classes of which a frame of predictions has a probability."""
    return [name.removeprefix(PROBABILITY) for name in frame.columns if name.startswith(PROBABILITY)]


def read_probabilities(frame: pl.DataFrame, classes: Sequence[str]) -> Floats:
    """(N, C) of a frame of predictions."""
    return frame.select(f"{PROBABILITY}{name}" for name in classes).to_numpy()


def by_class(frame: pl.DataFrame) -> pl.DataFrame:
    """One row per (image, label) pair, for counts by class; the frame itself where an image has one label."""
    if "labels" not in frame.columns:
        return frame
    return frame.with_columns(label="labels").explode("label").drop_nulls("label")


def ask_each(frame: pl.DataFrame, names: Sequence[str]) -> list[pl.DataFrame]:
    """The frame once per class: does the image have it, by the column `labels`?"""
    return [
        frame.with_columns(
            label=pl.when(pl.col("labels").list.contains(name)).then(pl.lit(name)).otherwise(pl.lit(f"no {name}"))
        )
        for name in names
    ]


def has_labels(frame: pl.DataFrame) -> bool:
    """Whether any image has a label: without one there is no score."""
    return not by_class(frame).is_empty()


def flag_names(lists: pl.Series, classes: Sequence[str]) -> NDArray[np.bool_]:
    """(N, C) which classes each list names. Raises PromotionError for a name that is none."""
    rows = np.repeat(np.arange(len(lists)), lists.list.len().to_numpy())
    flags = np.zeros((len(lists), len(classes)), bool)
    flags[rows, number_names(lists.explode().drop_nulls(), classes)] = True
    return flags


def number_names(names: pl.Series, classes: Sequence[str]) -> Ints:
    """Class names to their places in `classes`. Raises PromotionError for a name that is none."""
    known = {name: number for number, name in enumerate(classes)}
    if strangers := sorted(set(names) - set(known)):
        raise PromotionError(
            "predictions",
            expected=f"the classes {', '.join(classes)}",
            found=f"{names.name} {', '.join(map(str, strangers))}",
            hint="Score the model again with the classes of the present domain.yaml.",
        )
    return np.array([known[name] for name in names], dtype=np.int64)


def describe_answer(answer: Mapping[str, Any]) -> str:
    """What `Task.answer` says of one sample, as a text like the column `label`."""
    if "label" in answer:
        return UNDECIDED if answer["label"] is None else str(answer["label"])
    return name_labels(answer["labels"])


def name_labels(labels: Sequence[str]) -> str:
    """Labels as one text for people: `crack + rust`, or `(none)`."""
    return " + ".join(labels) or UNLABELLED
