"""Labelled boxes. The metric is mAP50: the mean over the classes of the average precision, where an answered box is
right if it overlaps a box of its class that no more confident one has taken, with an IoU of at least one half.

Boxes are matched as COCO does it, in pixels of the picture. Average precision counts the 100 most confident ones of a
class and picture, while counts, thresholds and what is shown take all that are answered. A region of many (crowd) and
an object too hard to count (difficult) are ignored: what is found there is neither right nor wrong.

Shapes: N pictures, C classes, M annotated and K answered boxes of a picture, n numbers kept per answer.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from components.domain.domain import Domain
from components.domain.layouts import Csv, Folders, Parquet
from components.domain.settings import Gates
from components.records.boxes import FOUND, KINDS, MOST_FOUND, NONE, OBJECTS, LabelledBox, write_found, write_objects
from components.tasks.advice import advise_canvas, advise_training, measure_classes
from components.tasks.base import (
    PREDICTED,
    UNLABELLED,
    Annotated,
    BoxTask,
    Evidence,
    Floats,
    Ints,
    ask_each,
    flag_names,
    name_labels,
    number_groups,
)
from components.tasks.box_answers import Answers, compare_answers, read_answers, read_masks
from components.tasks.box_errors import score_errors
from components.tasks.box_matches import (
    HALF,
    IOUS,
    OBJECT,
    SIZES,
    is_ignored,
    is_right,
    match_boxes,
    measure_overlaps,
    sort_found,
)
from components.tasks.box_outcomes import count_errors, match_shown, measure_f1, read_confusion, score_shown, tabulate
from components.tasks.box_scores import CurveEvidence, draw_froc, score_classes, score_precision, trace_curves
from components.tasks.calibration import Calibration
from components.tasks.detections import (
    EVEN,
    bin_boxes,
    calibrate_boxes,
    choose_limits,
    count_objects,
    rank,
    rescale_confidence,
    sum_surprise,
)
from components.tasks.pixels import BINS, measure_bins

if TYPE_CHECKING:
    from pandera.polars import Check, Column

Flags = NDArray[np.bool_]

SEEN = 20  # pixels, the root of an object's area: that of blood platelets at 320 pixels, where their AP50 reached .88
SIDES = (224, 512)  # pixels of a new domain's canvas, as a square of the same area
STEPS, BATCH = 1500, 4  # of a new domain's training: minutes on a CPU; what is small rises with the number of steps
METRICS: dict[str, tuple[str, str, Sequence[int]]] = {
    "map50": ("mAP50", "AP50", (HALF,)),
    "map": ("mAP", "AP", range(len(IOUS))),
}


class DetectionTask(BoxTask):
    """`task: detection`, or `{kind: detection, metric: map, false_alarms: 0.5}`"""

    reads: ClassVar[frozenset[str]] = frozenset(
        {"folders", "csv", "parquet", "voc", "coco", "yolo", "instances", "masks", "labelme", "cvat"}
    )
    fewest_classes: ClassVar[int] = 1

    kind: Literal["detection"] = "detection"
    """An image has any number of labelled boxes, or none."""
    metric: Literal["map50", "map"] = "map50"
    """The score that selects and gates: average precision at an IoU of .50, or the mean over .50 to .95, as COCO."""
    unannotated: Literal["leave_out", "background"] = "leave_out"
    """Whether pictures without any annotation are left out, or show no object."""
    stride: Literal[8, 4] = 8
    """Pixels between the finest points that answer a box. 4 finds smaller objects, and takes longer."""
    head_lr: float = Field(default=0.0015, gt=0, le=1)
    """AdamW's peak learning rate of the last layers."""
    false_alarms: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """A class is shown from the lowest confidence with at most so many false boxes per picture of validation; of the
    highest F1 when left out."""
    misses: float | None = Field(default=None, ge=0, le=1)
    """Instead: from the highest confidence at which at most this share of its objects in validation is missed."""
    recall_at: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    """The number of false boxes per picture at which recall is reported."""

    @model_validator(mode="after")
    def _one_goal(self) -> "DetectionTask":
        if self.false_alarms is not None and self.misses is not None:
            raise ValueError("give at most one of false_alarms and misses")
        return self

    @property
    def metric_words(self) -> str:
        return METRICS[self.metric][0]

    @property
    def class_words(self) -> str:
        return METRICS[self.metric][1]

    @property
    def shown(self) -> str:
        return next(name for name in METRICS if name != self.metric)

    @property
    def places(self) -> Sequence[int]:
        """Those of IOUS that the metric is the mean over."""
        return METRICS[self.metric][2]

    # The domain and its data

    def find_misfit(self, domain: Domain) -> tuple[str, str, str] | None:
        layout = domain.layout
        if isinstance(layout, Folders | Csv | Parquet) and not any(
            getattr(layout, name, None) for name in ("boxes", "crop", "mask", "masks", "runs")
        ):
            table = "`boxes: <column>`, `crop: [<columns>]` or `mask: <column>`"
            option = "`masks: <folder>`" if isinstance(layout, Folders) else table
            found = f"the layout {layout.kind} without boxes or masks"
            return "a layout that says where objects are", found, f"Add {option} to `layout`."
        return super().find_misfit(domain)

    @property
    def cost_words(self) -> tuple[str, ...]:
        """`{crack: {"(none)": 5}}` is the cost of a missed crack, `{"(none)": {crack: 1}}` of a false alarm."""
        return (UNLABELLED,)

    def advise(
        self, pictures: int, sizes: Sequence[tuple[int, int]], objects: Sequence[Sequence[LabelledBox]] = ()
    ) -> dict[str, Any]:
        """A canvas on which the middle object of the class with the smallest ones is SEEN pixels wide, within limits:
        what is smaller is hardly found. Small batches, and as many epochs as take about STEPS of them."""
        training = advise_training(pictures, STEPS, BATCH)
        if not sizes:
            return {"training": training}
        side = SEEN / min(measure_classes(sizes, objects).values(), default=1.0)
        return {"img_size": advise_canvas(sizes, float(np.clip(side, *SIDES)))[0], "training": training}

    def columns(self) -> dict[str, pl.DataType]:
        """labels: the classes of the objects, without regions of many. objects: as `components.records.boxes`."""
        return {"label": pl.String(), "labels": pl.List(pl.String), "objects": OBJECTS}

    def annotate(self, row: Annotated, classes: Sequence[str]) -> dict[str, Any]:
        if row.objects is None:
            return {"label": row.label}
        shown = {each.label for each in row.objects if each.kind != "crowd"}
        labels = [name for name in classes if name in shown]
        return {"label": name_labels(labels), "labels": labels, "objects": write_objects(row.objects)}

    def checks(self, classes: Sequence[str]) -> "tuple[dict[str, Column], list[Check]]":
        import pandera.polars as pa

        def agree(data: Any) -> bool:
            rows = data.lazyframe.collect().select("label", "labels", "objects").iter_rows()
            return all(_agrees(label, labels, objects, classes) for label, labels, objects in rows)

        columns = {
            "label": pa.Column(pl.String),
            "labels": pa.Column(pl.List(pl.String)),
            "objects": pa.Column(OBJECTS),
        }
        return columns, [pa.Check(agree, name=f"boxes of {', '.join(classes)}, with their labels")]

    def questions(self, frame: pl.DataFrame, classes: Sequence[str]) -> list[pl.DataFrame]:
        """One per class: does the picture show it?"""
        return ask_each(frame, classes)

    # What a network learns

    def targets(self, manifest: pl.DataFrame, classes: Sequence[str]) -> NDArray[np.bool_]:
        """(N, C) which classes a picture shows; the boxes themselves are loaded at the size of the training."""
        return flag_names(manifest["labels"], classes)

    def strata(self, targets: NDArray[Any]) -> Ints:
        """The rarest class of each picture; one more for pictures without any."""
        rarity = np.where(targets, -targets.sum(axis=0), -np.inf)
        rarest: Ints = np.where(targets.any(axis=1), rarity.argmax(axis=1), targets.shape[1])
        return rarest

    def keep(self, probabilities: NDArray[Any], targets: NDArray[Any]) -> Floats:
        """(B, n) of what was found (B, K, 6) and targets (B, M, 6), both on the canvas. n = 3 * MOST_FOUND + M: the
        confidence, class and bit mask (`match_boxes`) of each answered box, and the class of each object that counts;
        -1 fills up. M must be the same for all pictures of a split."""
        rows = []
        for found, truth in zip(probabilities, targets, strict=True):
            answer = sort_found(found)[:MOST_FOUND]
            masks, _ = match_boxes(answer, truth, measure_overlaps(answer, truth))
            table = np.full((3, MOST_FOUND), float(NONE))
            table[:, : len(answer)] = answer[:, 5], answer[:, 4], masks
            counted = (truth[:, 5] == OBJECT) & (truth[:, 4] != NONE)
            rows.append(np.concatenate([table.reshape(-1), np.where(counted, truth[:, 4], NONE)]))
        return np.array(rows, np.float64)

    def metrics(
        self,
        targets: NDArray[Any],
        probabilities: Floats,
        classes: Sequence[str],
        calibration: Calibration | None = None,
    ) -> dict[str, float]:
        """map50, map, and both of each class, of what `keep` kept (N, n)."""
        answers, masks = _unpack(probabilities)
        return _order(score_classes(score_precision(answers, masks, len(classes)), classes), self.metric)

    def surprise(self, targets: NDArray[Any], probabilities: Floats) -> Floats:
        """Of boxes being right and objects being missed, as their mean per picture, of what `keep` kept (N, n)."""
        losses = np.empty(len(probabilities))
        for picture, row in enumerate(probabilities):
            confidence, classes, masks = row[: 3 * MOST_FOUND].reshape(3, MOST_FOUND)
            kept = classes != NONE
            masks = masks[kept].astype(np.int64)
            objects = int((row[3 * MOST_FOUND :] != NONE).sum())
            losses[picture] = _measure_loss(confidence[kept], masks, objects)
        return losses

    def calibrate(
        self, targets: Any, probabilities: Any, groups: NDArray[np.generic], classes: Sequence[str]
    ) -> Calibration:
        """targets: (M, 6) and probabilities: (K, 6) what was found, one array per picture in its pixels."""
        ranked = rank(targets, probabilities, groups, len(classes))
        found = calibrate_boxes(ranked)
        calibrated = replace(ranked, confidence=rescale_confidence(ranked.confidence, found.temperature, found.offset))
        limits, reached = choose_limits(calibrated, classes, self.false_alarms, self.misses)
        return replace(found, thresholds=limits, reason=f"{found.reason}. {self._name_goal()}: {reached}")

    def _name_goal(self) -> str:
        """What the thresholds are chosen for, as the start of a sentence."""
        if self.false_alarms is not None:
            return f"Thresholds for at most {self.false_alarms:g} false alarms per picture of validation and class"
        if self.misses is not None:
            return f"Thresholds with at most {self.misses:.1%} of each class's objects in validation missed"
        return "Thresholds of the highest F1 on validation"

    def rescale(self, probabilities: Floats, temperature: float) -> Floats:
        return rescale_confidence(probabilities, temperature)

    def reliability(self, targets: NDArray[Any], probabilities: Floats) -> tuple[Floats, Flags]:
        """Of boxes: targets (K,) whether they are right, probabilities (K,) their confidence."""
        return probabilities[:, None], targets.astype(bool)[:, None]

    # What answers are worth

    def decide(self, found: Floats, classes: Sequence[str], calibration: Calibration) -> tuple[Floats, Flags]:
        rows = sort_found(found)
        rows[:, 5] = rescale_confidence(rows[:, 5], calibration.temperature, calibration.offset)
        limits = np.array([calibration.thresholds.get(name, EVEN) for name in classes])
        return rows, rows[:, 5] >= limits[rows[:, 4].astype(np.int64)]

    def judged(self) -> dict[str, pl.DataType]:
        """found: all answered boxes, of calibrated confidence, the most confident first.

        matches: what each of them is, as a bit mask of `match_boxes`. shown: whether it reaches its threshold.
        answered: the classes shown; predicted: these as a text. confusion: objects and shown boxes by class, row by
        row, as `tabulate` has them. f1: of the shown boxes of the picture; 1 where it has no object and none is shown.
        sureness, sureness_raw: boxes by bins of confidence after and before calibration, as `bin_boxes` has them. nll:
        as `surprise`, before calibration.
        """
        reals = pl.List(pl.Float64)
        return {
            "found": FOUND,
            "matches": pl.List(pl.Int64),
            "shown": pl.List(pl.Boolean),
            PREDICTED: pl.String(),
            "answered": pl.List(pl.String),
            "confusion": pl.List(pl.Int64),
            "f1": pl.Float64(),
            "sureness": reals,
            "sureness_raw": reals,
            "nll": pl.Float64(),
        }

    def judge(self, found: Floats, targets: Floats, classes: Sequence[str], calibration: Calibration) -> dict[str, Any]:
        truth, plain = targets[targets[:, 4] != NONE].astype(np.float64), sort_found(found)
        rows, shown = self.decide(found, classes, calibration)
        masks, _ = match_boxes(rows, truth, measure_overlaps(rows, truth))
        table = tabulate(match_shown(rows[shown], truth), rows[shown], truth, len(classes))
        counted, right = ~is_ignored(masks), is_right(masks)
        answered = [name for number, name in enumerate(classes) if (rows[shown, 4] == number).any()]
        return {
            "found": write_found(rows, classes),
            "matches": masks.tolist(),
            "shown": shown.tolist(),
            PREDICTED: name_labels(answered),
            "answered": answered,
            "confusion": table.reshape(-1).tolist(),
            "f1": measure_f1(table),
            "sureness": bin_boxes(rows[counted, 5], right[counted]).tolist(),
            "sureness_raw": bin_boxes(plain[counted, 5], right[counted]).tolist(),
            "nll": _measure_loss(plain[:, 5], masks, int(count_objects(truth, len(classes)).sum())),
        }

    def outputs(self, classes: Sequence[str]) -> dict[str, str]:
        """objects: a JSON text, the list of shown boxes; count_<class>: how many of them."""
        return {"label": "string", "objects": "string"} | {f"count_{name}": "double" for name in classes}

    def score_frame(self, frame: pl.DataFrame, classes: Sequence[str]) -> dict[str, float]:
        """The metric; map50 and map, of all classes and (ap50, ap) of each with an object; map of small, medium and
        large objects; recall_at_<x>_fa, as `Froc` has it; and of the shown boxes recall, precision, f1 (of each class
        too), missed and false_alarms per picture, count_error (how far the numbers of a picture's objects are off);
        ece, ece_uncalibrated, loss; errors/<kind>, as `score_errors` has them."""
        answers, masks = read_answers(frame, classes), read_masks(frame)
        scores = score_classes(score_precision(answers, masks, len(classes)), classes)
        for size, area in SIZES.items():
            of_size = score_precision(answers, answers.match(area), len(classes), area)
            if not np.isnan(of_size).all():
                scores[f"map_{size}"] = float(np.nanmean(of_size))
        scores[f"recall_at_{self.recall_at:g}_fa"] = draw_froc(answers).recall_at(self.recall_at)
        off = np.abs(count_errors(frame, classes))
        plain, calibrated = (_read_bins(frame, name) for name in ("sureness_raw", "sureness"))
        return {
            **_order(scores, self.metric),
            **score_shown(read_confusion(frame, classes).sum(axis=0), classes, frame.height),
            "count_error": float(off.sum(axis=1).mean()),
            **{f"count_error/{name}": float(each.mean()) for name, each in zip(classes, off.T, strict=True)},
            "ece": measure_bins(calibrated),
            "ece_uncalibrated": measure_bins(plain),
            "loss": float(frame["nll"].to_numpy().mean()),
            **{f"errors/{kind}": gain for kind, gain in score_errors(answers, masks).items()},
        }

    def evidence(self, frame: pl.DataFrame, classes: Sequence[str]) -> Evidence:
        answers, (groups, number) = read_answers(frame, classes), number_groups(frame["group"].to_numpy())
        curves = trace_curves(answers, read_masks(frame), groups, range(len(classes)), self.places)
        return CurveEvidence(groups, number, tuple(curves))

    def class_evidence(self, frame: pl.DataFrame, classes: Sequence[str]) -> dict[str, Evidence]:
        """The average precision of each class over all pictures."""
        answers, (groups, number) = read_answers(frame, classes), number_groups(frame["group"].to_numpy())
        masks, found = read_masks(frame), dict[str, Evidence]()
        for place, name in enumerate(classes):
            if curves := trace_curves(answers, masks, groups, [place], self.places):
                found[name] = CurveEvidence(groups, number, tuple(curves))
        return found

    def size_evidence(self, frame: pl.DataFrame, classes: Sequence[str]) -> dict[str, Evidence]:
        """The metric of small, medium and large objects alone, as COCO has it."""
        answers, (groups, number) = read_answers(frame, classes), number_groups(frame["group"].to_numpy())
        found = dict[str, Evidence]()
        for size, area in SIZES.items():
            masks = answers.match(area)
            if curves := trace_curves(answers, masks, groups, range(len(classes)), self.places, area):
                found[size] = CurveEvidence(groups, number, tuple(curves))
        return found

    def chance(self, frame: pl.DataFrame, classes: Sequence[str], of: str | None = None) -> float:
        return 0.0

    def name_chance(self, classes: Sequence[str], of: str | None = None) -> str:
        return "answering nothing"

    def costs(self, frame: pl.DataFrame, gates: Gates, classes: Sequence[str]) -> tuple[Floats, float]:
        """A missed object is a class taken for none, a false alarm none taken for a class; each mistake counts.

        At most: every object of the picture with the most objects at its dearest mistake, and as many false alarms as a
        picture can be answered.
        """
        names = [*classes, UNLABELLED]
        prices = np.array([[gates.cost(truth, answer) for answer in names] for truth in names])
        confusion = read_confusion(frame, classes)
        objects = confusion[:, :-1].sum(axis=2) @ prices[:-1].max(axis=1)
        most = float(objects.max(initial=0.0) + MOST_FOUND * prices[-1].max())
        return (confusion * prices).sum(axis=(1, 2)).astype(np.float64), most

    def frame_error(self, frame: pl.DataFrame, classes: Sequence[str]) -> float:
        return measure_bins(_read_bins(frame, "sureness"))

    def reliability_curve(
        self, frame: pl.DataFrame, classes: Sequence[str], bins: int = BINS
    ) -> tuple[Floats, Floats, Ints]:
        """Of answered boxes that count, by the bins that `judge` counted, whatever `bins` asks for."""
        sure, hits, count = _read_bins(frame, "sureness").reshape(3, BINS)
        mean, right = (np.divide(each, count, out=np.full(BINS, np.nan), where=count > 0) for each in (sure, hits))
        return mean, right, count.astype(np.int64)

    def flags(self, frame: pl.DataFrame, classes: Sequence[str]) -> tuple[Flags, Flags]:
        """By objects and by shown boxes."""
        return flag_names(frame["labels"], classes), flag_names(frame["answered"], classes)

    def hits(self, frame: pl.DataFrame) -> Flags:
        """Every object is found by a shown box, and no shown box is wrong."""
        right: Flags = frame["f1"].to_numpy() == 1
        return right

    def confidence(self, frame: pl.DataFrame) -> pl.Series:
        """A right answer is as sure as its least certain shown box, a wrong one as its most certain false one. Where
        no shown box says it, 1 less the most certain box that is not shown."""
        sure = []
        for found, masks, shown, right in zip(
            frame["found"], frame["matches"], frame["shown"], self.hits(frame), strict=True
        ):
            confidence, seen = found.struct.field("confidence").to_numpy(), shown.to_numpy()
            wrong = ~is_right(masks.to_numpy()) & ~is_ignored(masks.to_numpy())
            said = confidence[seen] if right else confidence[seen & wrong]
            if len(said):
                sure.append(float(said.min() if right else said.max()))
            else:
                sure.append(1 - float(confidence[~seen].max(initial=0.0)))
        return pl.Series(sure, dtype=pl.Float64)

    def ease(self, frame: pl.DataFrame) -> pl.Series:
        """The F1 of the picture's shown boxes."""
        return frame["f1"]

    def describe_gap(self, then: pl.DataFrame, now: pl.DataFrame) -> str:
        columns = [frame[name].explode() for frame in (then, now) for name in ("found", "objects")]
        names = sorted({name for column in columns for name in column.struct.field("label").drop_nulls()})
        return compare_answers(read_answers(then, names), read_answers(now, names))


def _agrees(label: str, labels: Sequence[str], objects: Sequence[dict[str, Any]], classes: Sequence[str]) -> bool:
    """Whether labels are those of the objects, and boxes have an area."""
    shown = {each["label"] for each in objects if each["kind"] != "crowd"}
    boxes = np.array([each["box"] for each in objects], np.float64).reshape(-1, 4)
    return (
        labels == [name for name in classes if name in shown]
        and label == name_labels(labels)
        and {each["label"] for each in objects} <= set(classes)
        and all(each["kind"] in KINDS for each in objects)
        and bool(np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all())
    )


def _unpack(kept: Floats) -> tuple[Answers, Ints]:
    """Answers without corners, and their bit masks, of what `keep` kept (N, n)."""
    confidence, classes, masks = kept[:, : 3 * MOST_FOUND].reshape(len(kept), 3, MOST_FOUND).transpose(1, 0, 2)
    of_found, places = np.nonzero(classes != NONE)
    found = np.zeros((len(places), 6))
    found[:, 4], found[:, 5] = classes[of_found, places], confidence[of_found, places]
    truth = kept[:, 3 * MOST_FOUND :]
    of_targets, columns = np.nonzero(truth != NONE)
    targets = np.zeros((len(columns), 6))
    targets[:, 4] = truth[of_targets, columns]
    masks_of = masks[of_found, places].astype(np.int64)
    return Answers(found, of_found, targets, of_targets, len(kept)), masks_of


def _measure_loss(confidence: Floats, masks: Ints, objects: int) -> float:
    counted, right = ~is_ignored(masks), is_right(masks)
    return sum_surprise(confidence[counted], right[counted], objects - int(right.sum()))


def _order(scores: dict[str, float], first: str) -> dict[str, float]:
    return {first: scores[first]} | scores


def _read_bins(frame: pl.DataFrame, column: str) -> Floats:
    """(3 * BINS,) summed over pictures."""
    sums: Floats = frame[column].explode().to_numpy().reshape(frame.height, 3 * BINS).sum(axis=0)
    return sums
