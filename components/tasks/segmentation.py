"""The class of every pixel. The metric is the mean IoU: the mean over the classes present of the pixels that truth and
answer share, of all that either has, summed over the pictures. A small defect is then as heavy as the background.

Pixels to ignore count for nothing. All scores are measured at the size of the pictures.

Shapes: N pictures, C classes, K numbers kept per answer, G groups, M pixels.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from components.domain.domain import Domain
from components.domain.layouts import Csv, Folders, Instances, Masks, Parquet
from components.domain.settings import Gates
from components.errors import PromotionError
from components.records.boxes import LabelledBox
from components.records.maps import (
    MOST_CLASSES,
    Painting,
    count_pixels,
    decode_map,
    encode_map,
)
from components.tasks.advice import advise_canvas, advise_training
from components.tasks.base import (
    PREDICTED,
    Annotated,
    Chances,
    CountEvidence,
    Evidence,
    Floats,
    Ints,
    MapTask,
    ask_each,
    flag_names,
    name_labels,
    number_groups,
    number_names,
    sum_by_group,
)
from components.tasks.calibration import EXCLUSIVE, Calibration, calibrate
from components.tasks.map_scores import (
    average_iou,
    count_boundaries,
    count_components,
    count_confusion,
    measure_dice,
    score_boundaries,
    score_components,
    score_pixels,
)
from components.tasks.pixels import (
    BINS,
    answer_map,
    choose_limit,
    find_best,
    measure_bins,
    measure_sureness,
    resize_probabilities,
    restore_limit,
    sample_pixels,
)

if TYPE_CHECKING:
    from pandera.polars import Check, Column

SAMPLED = 512  # pixels per picture that the temperature is fitted on
WITNESSES = 32  # that a picture counts for against the temperature's prior: its pixels resemble one another
SIDE = 256  # pixels of a new domain's images, as a square of the same area
STEPS = 400  # of a new domain's training: minutes on a CPU
FURTHER = 8  # times as many for a threshold, which rests on the pixels of a rare class
Bytes = NDArray[np.uint8]


class SegmentationTask(MapTask):
    """`task: segmentation`, or `{kind: segmentation, background: sound, overlap: smaller}`"""

    metric: ClassVar[str] = "mean_iou"
    metric_words: ClassVar[str] = "mean IoU"
    class_words: ClassVar[str] = "IoU"
    reads: ClassVar[frozenset[str]] = frozenset(
        {"folders", "csv", "parquet", "coco", "yolo", "instances", "masks", "labelme", "cvat"}
    )
    fewest_classes: ClassVar[int] = 2
    shown: ClassVar[str] = "mean_dice"
    cost_unit: ClassVar[str] = "per pixel, averaged over the images"

    kind: Literal["segmentation"] = "segmentation"
    """Every pixel of an image has a class."""
    background: str | None = "background"
    """The class of pixels that no annotation covers (0 in a mask); `null` where nothing is known of them: they are then
    ignored."""
    unannotated: Literal["leave_out", "background"] = "leave_out"
    """Whether pictures without any annotation are left out, or show background alone."""
    overlap: Literal["later", "smaller"] = "later"
    """Which of two shapes that cover a pixel decides its class: the later one of the file, or the smaller one."""
    head: Literal["conv", "linear"] = "conv"
    """The last layers: `conv` joins tokens of several depths with the pixels themselves, `linear` projects tokens."""
    head_lr: float = Field(default=0.004, gt=0, le=1)
    """AdamW's peak learning rate of the last layers."""

    # The domain and its data

    def find_misfit(self, domain: Domain) -> tuple[str, str, str] | None:
        classes, layout = domain.classes, domain.layout
        if len(classes) > MOST_CLASSES:
            return f"at most {MOST_CLASSES} classes", f"{len(classes)}", "Join classes with `rename`."
        if self.background is not None and self.background not in classes:
            expected = f"a background among the classes {', '.join(classes)}, or null"
            hint = (
                "Add it to `classes`, or write `task: {kind: segmentation, background: <class>}`; with `null`, pixels "
            )
            return expected, f"background: {self.background}", f"{hint}that no annotation covers are ignored."
        if isinstance(layout, Masks | Instances):
            default = type(layout).model_fields["background"].default
            if layout.background not in (default, self.background):
                found = f"layout.background: {layout.background}"
                return f"the background that the task names, {self.background}", found, "Remove it from `layout`."
        if isinstance(layout, Csv | Parquet | Folders) and not any(
            getattr(layout, name, None) for name in ("mask", "masks", "runs")
        ):
            option = "masks: <folder>" if isinstance(layout, Folders) else "mask: <column>"
            found = f"the layout {layout.kind} without masks"
            return "a layout that says the class of every pixel", found, f"Add `{option}` to `layout`."
        return super().find_misfit(domain)

    @property
    def painting(self) -> Painting:
        return Painting(self.background, self.unannotated, self.overlap)

    def advise(
        self, pictures: int, sizes: Sequence[tuple[int, int]], objects: Sequence[Sequence[LabelledBox]] = ()
    ) -> dict[str, Any]:
        """A canvas of the usual shape, as large as the pictures and at most SIDE * SIDE pixels; square with letterbox
        where shapes differ. Small batches, and as many epochs as take about STEPS of them."""
        training = advise_training(pictures, STEPS)
        if not sizes:
            return {"training": training}
        canvas, varied = advise_canvas(sizes, SIDE)
        return {"img_size": canvas, **({"fit": "letterbox"} if varied else {}), "training": training}

    def columns(self) -> dict[str, pl.DataType]:
        """pixels: labelled pixels per class, in the order of the classes."""
        return {
            "label": pl.String(),
            "labels": pl.List(pl.String),
            "class_map": pl.Binary(),
            "pixels": pl.List(pl.Int64),
        }

    def annotate(self, row: Annotated, classes: Sequence[str]) -> dict[str, Any]:
        if row.regions is None:
            return {"label": row.label}
        data = row.regions.renumber(classes)
        pixels = count_pixels(data, len(classes))
        labels = _name_shown(pixels, classes)
        return {"label": self.describe_labels(labels), "labels": labels, "class_map": data, "pixels": pixels}

    def describe_labels(self, labels: Sequence[str]) -> str:
        """The foreground classes as one text; the background's name where there is nothing else."""
        return name_labels([name for name in labels if name != self.background] or labels)

    def checks(self, classes: Sequence[str]) -> "tuple[dict[str, Column], list[Check]]":
        import pandera.polars as pa

        def agree(data: Any) -> bool:
            frame = data.lazyframe.collect()
            rows = frame.select("labels", "class_map", "pixels").iter_rows()
            return all(
                count_pixels(data, len(classes)) == pixels and labels == _name_shown(pixels, classes)
                for labels, data, pixels in rows
            )

        columns = {
            "label": pa.Column(pl.String),
            "labels": pa.Column(pl.List(pl.String)),
            "class_map": pa.Column(pl.Binary),
            "pixels": pa.Column(pl.List(pl.Int64)),
        }
        return columns, [pa.Check(agree, name=f"class maps of {', '.join(classes)}, with their labels and pixels")]

    def questions(self, frame: pl.DataFrame, classes: Sequence[str]) -> list[pl.DataFrame]:
        """One per class that is not the background: does the picture show it?"""
        return ask_each(frame, [classes[number] for number in self.find_foreground(classes)])

    def find_foreground(self, classes: Sequence[str]) -> list[int]:
        """The numbers of the classes that are not the background."""
        return [number for number, name in enumerate(classes) if name != self.background]

    # What a network learns

    def targets(self, manifest: pl.DataFrame, classes: Sequence[str]) -> NDArray[np.bool_]:
        """(N, C) which classes a picture shows; the class maps themselves are loaded at the size of the training."""
        return flag_names(manifest["labels"], classes)

    def strata(self, targets: NDArray[Any]) -> Ints:
        """The rarest class of each picture."""
        rarity = np.where(targets, -targets.sum(axis=0), -np.inf)
        rarest: Ints = rarity.argmax(axis=1)
        return rarest

    def keep(self, probabilities: Chances, targets: Bytes) -> Floats:
        """(B, C * C + 2): labelled pixels by true and answered class, the sum of the truth's negative log likelihoods,
        and the number of labelled pixels, all at the size of the training, to which probabilities are interpolated."""
        rows = []
        for chances, truth in zip(probabilities, targets, strict=True):
            grown = resize_probabilities(chances, *truth.shape)
            confusion = count_confusion(truth, answer_map(grown), len(grown))
            pixels = int(confusion.sum())
            rows.append([*confusion.reshape(-1), measure_sureness(grown, truth, 1).surprise * pixels, pixels])
        return np.array(rows, np.float64)

    def metrics(
        self,
        targets: NDArray[Any],
        probabilities: Floats,
        classes: Sequence[str],
        calibration: Calibration | None = None,
    ) -> dict[str, float]:
        """mean_iou, mean_dice, accuracy, and iou and dice of each class, of what `keep` kept (N, K)."""
        confusion = probabilities[:, :-2].sum(axis=0).reshape(len(classes), len(classes))
        return score_pixels(confusion, classes)

    def surprise(self, targets: NDArray[Any], probabilities: Floats) -> Floats:
        """The mean over the labelled pixels of each picture, of what `keep` kept (N, K)."""
        losses: Floats = probabilities[:, -2] / np.maximum(probabilities[:, -1], 1)
        return losses

    def sample(self, probabilities: Chances, targets: Bytes) -> tuple[Ints, Floats, Ints]:
        number = SAMPLED * FURTHER if probabilities.shape[1] == 2 else SAMPLED
        parts = []
        for image, (chances, truth) in enumerate(zip(probabilities, targets, strict=True)):
            found, of = sample_pixels(resize_probabilities(chances, *truth.shape), truth, number)
            parts.append((found, of, np.full(len(found), image)))
        numbers, rows, images = zip(*parts, strict=True)
        return np.concatenate(numbers), np.concatenate(rows), np.concatenate(images)

    def calibrate(
        self, targets: Ints, probabilities: Floats, groups: NDArray[np.generic], classes: Sequence[str]
    ) -> Calibration:
        """Of pixels as `sample` returns them. Where there are two classes, background and another, that one has a
        threshold too: of the highest mean IoU of these pixels."""
        step = FURTHER if len(classes) == 2 else 1
        some = slice(None, None, step)
        strata = _find_rarest(targets[some], groups[some], len(classes))
        found = calibrate(
            EXCLUSIVE, targets[some], probabilities[some], groups[some], strata, rows=SAMPLED // WITNESSES
        )
        foreground = self.find_foreground(classes)
        if len(classes) != 2 or len(foreground) != 1:
            return found
        (number,) = foreground
        chances = self.rescale(probabilities, found.temperature)[:, number]
        return replace(found, thresholds={classes[number]: choose_limit(targets == number, chances)})

    def rescale(self, probabilities: Floats, temperature: float) -> Floats:
        return EXCLUSIVE.rescale(probabilities, temperature)

    def reliability(self, targets: Ints, probabilities: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Of pixels: the probability of the most probable class, and whether it is right."""
        best, answers = find_best(probabilities.T)
        return best.astype(np.float64)[:, None], (answers == targets)[:, None]

    # What answers are worth

    def decide(self, probabilities: Chances, classes: Sequence[str], calibration: Calibration) -> Bytes:
        """The most probable class, which a temperature does not change; of two classes, by the threshold if any."""
        if not calibration.thresholds:
            return answer_map(probabilities)
        ((name, limit),) = calibration.thresholds.items()
        return answer_map(probabilities, restore_limit(limit, calibration.temperature), list(classes).index(name))

    def judged(self) -> dict[str, pl.DataType]:
        """answer_map, and what scores are computed from.

        answered: classes answered for labelled pixels; predicted: these as a text. confusion: labelled pixels by true
        and answered class, row by row. components, boundary: of each class that is not background, four numbers, as
        `count_components` and `count_boundaries` have them. sureness, sureness_raw: as `Sureness` has them, after and
        before calibration. nll: before calibration. dice: the mean over the foreground classes that truth or answer
        shows; 1 where neither shows any.
        """
        numbers, reals = pl.List(pl.Int64), pl.List(pl.Float64)
        return {
            "answer_map": pl.Binary(),
            PREDICTED: pl.String(),
            "answered": pl.List(pl.String),
            "confusion": numbers,
            "components": numbers,
            "boundary": numbers,
            "sureness": reals,
            "sureness_raw": reals,
            "nll": pl.Float64(),
            "dice": pl.Float64(),
        }

    def judge(
        self, probabilities: Chances, truth: Bytes, classes: Sequence[str], calibration: Calibration
    ) -> dict[str, Any]:
        answer, foreground = self.decide(probabilities, classes, calibration), self.find_foreground(classes)
        confusion = count_confusion(truth, answer, len(classes))
        sureness = measure_sureness(probabilities, truth, calibration.temperature)
        answered = _name_shown(confusion.sum(axis=0), classes)
        return {
            "answer_map": encode_map(answer),
            PREDICTED: self.describe_labels(answered),
            "answered": answered,
            "confusion": confusion.reshape(-1).tolist(),
            "components": count_components(truth, answer, foreground).reshape(-1).tolist(),
            "boundary": count_boundaries(truth, answer, foreground).reshape(-1).tolist(),
            "sureness": sureness.calibrated.tolist(),
            "sureness_raw": sureness.plain.tolist(),
            "nll": sureness.surprise,
            "dice": measure_dice(confusion, foreground),
        }

    def outputs(self, classes: Sequence[str]) -> dict[str, str]:
        """mask: base64 of a PNG file with the number of the class in every pixel; areas in pixels."""
        names = [classes[number] for number in self.find_foreground(classes)]
        areas = {f"area_{name}": "double" for name in names} | {f"components_{name}": "double" for name in names}
        return {"label": "string", "mask": "string"} | areas

    def score_frame(self, frame: pl.DataFrame, classes: Sequence[str]) -> dict[str, float]:
        """mean_iou, mean_dice, accuracy, picture_dice, false_components (per picture), ece, ece_uncalibrated, loss, iou
        and dice of each class; boundary_f1 and defect_recall, of all classes and of each, where there is a boundary or
        a component to find."""
        names = [classes[number] for number in self.find_foreground(classes)]
        confusion = _read_confusion(frame, classes).sum(axis=0)
        components = _read(frame, "components", 4 * len(names)).sum(axis=0).reshape(-1, 4)
        boundary = _read(frame, "boundary", 4 * len(names)).sum(axis=0).reshape(-1, 4)
        sureness, plain = (_read(frame, name, 3 * BINS).sum(axis=0) for name in ("sureness", "sureness_raw"))
        return {
            **score_pixels(confusion, classes),
            "picture_dice": float(frame["dice"].to_numpy().mean()),
            "false_components": float(components[:, 3].sum() / frame.height),
            "ece": measure_bins(sureness),
            "ece_uncalibrated": measure_bins(plain),
            "loss": float(frame["nll"].to_numpy().mean()),
            **score_boundaries(boundary, names),
            **score_components(components, names),
        }

    def evidence(self, frame: pl.DataFrame, classes: Sequence[str]) -> Evidence:
        return self._count(frame, classes, range(len(classes)))

    def class_evidence(self, frame: pl.DataFrame, classes: Sequence[str]) -> dict[str, Evidence]:
        """The IoU of each class over all pictures."""
        pixels = _read_confusion(frame, classes).sum(axis=(0, 2))
        return {name: self._count(frame, classes, [k]) for k, name in enumerate(classes) if pixels[k]}

    def _count(self, frame: pl.DataFrame, classes: Sequence[str], numbers: Sequence[int]) -> CountEvidence:
        groups, number = number_groups(frame["group"].to_numpy())
        confusion = _read_confusion(frame, classes)
        hits, answered, truth = (
            sum_by_group(table[:, numbers], groups, number)
            for table in (np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=1), confusion.sum(axis=2))
        )
        return CountEvidence(groups, np.concatenate([hits, answered], axis=1), truth, average_iou)

    def chance(self, frame: pl.DataFrame, classes: Sequence[str], of: str | None = None) -> float:
        """Answering one class everywhere has that class's share p of the pixels as its IoU, and none for the others.

        Of one class: answered at random as often as it occurs, p * p of the pixels are shared of 2 p - p * p.
        """
        pixels = _read_confusion(frame, classes).sum(axis=(0, 2))
        shares = pixels / pixels.sum()
        if of is None:
            return float(shares.max() / (pixels > 0).sum())
        share = shares[list(classes).index(of)]
        return float(share / (2 - share))

    def name_chance(self, classes: Sequence[str], of: str | None = None) -> str:
        return "answering it at random" if of else "answering the commonest class everywhere"

    def costs(self, frame: pl.DataFrame, gates: Gates, classes: Sequence[str]) -> tuple[Floats, float]:
        """The mean cost of a labelled pixel, per picture."""
        prices = np.array([[gates.cost(truth, answer) for answer in classes] for truth in classes])
        confusion = _read_confusion(frame, classes)
        return (confusion * prices).sum(axis=(1, 2)) / confusion.sum(axis=(1, 2)), float(prices.max())

    def frame_error(self, frame: pl.DataFrame, classes: Sequence[str]) -> float:
        return measure_bins(_read(frame, "sureness", 3 * BINS).sum(axis=0))

    def reliability_curve(
        self, frame: pl.DataFrame, classes: Sequence[str], bins: int = BINS
    ) -> tuple[Floats, Floats, Ints]:
        """Of labelled pixels, by the bins that `judge` counted, whatever `bins` asks for."""
        sure, hits, count = _read(frame, "sureness", 3 * BINS).sum(axis=0).reshape(3, BINS)
        mean, right = (np.divide(each, count, out=np.full(BINS, np.nan), where=count > 0) for each in (sure, hits))
        return mean, right, count.astype(np.int64)

    def flags(self, frame: pl.DataFrame, classes: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """By labelled pixels."""
        return flag_names(frame["labels"], classes), flag_names(frame["answered"], classes)

    def hits(self, frame: pl.DataFrame) -> NDArray[np.bool_]:
        """Every true component was found, and none that is answered is false."""
        width = len(frame["components"][0]) if frame.height else 0
        counts = _read(frame, "components", width).reshape(frame.height, -1, 4)
        right: NDArray[np.bool_] = ((counts[..., 0] == counts[..., 1]) & (counts[..., 3] == 0)).all(axis=1)
        return right

    def confidence(self, frame: pl.DataFrame) -> pl.Series:
        """The mean over the labelled pixels of the probability of the most probable class."""
        sure, _, count = _read(frame, "sureness", 3 * BINS).reshape(frame.height, 3, BINS).sum(axis=2).T
        return pl.Series(sure / np.maximum(count, 1))

    def ease(self, frame: pl.DataFrame) -> pl.Series:
        """The Dice of the picture."""
        return frame["dice"]

    def describe_gap(self, then: pl.DataFrame, now: pl.DataFrame) -> str:
        pairs = zip(then["answer_map"], now["answer_map"], strict=True)
        shares = [(decode_map(one) != decode_map(other)).mean() for one, other in pairs]
        return f"answers differ at {np.mean(shares):.2%} of the pixels, and at {np.max(shares):.2%} of one picture's"


def _name_shown(pixels: Sequence[int] | Ints, classes: Sequence[str]) -> list[str]:
    return [name for name, count in zip(classes, pixels, strict=True) if count]


def _find_rarest(targets: Ints, groups: NDArray[np.generic], classes: int) -> Ints:
    """(M,) of each pixel, the rarest class of its group."""
    _, places = np.unique(groups, return_inverse=True)
    counts = np.zeros((int(places.max()) + 1, classes), np.int64)
    np.add.at(counts, (places.reshape(-1), targets), 1)
    rarity = np.where(counts > 0, -counts.sum(axis=0), -np.inf)
    rarest: Ints = rarity.argmax(axis=1)[places.reshape(-1)]
    return rarest


def _read_confusion(frame: pl.DataFrame, classes: Sequence[str]) -> Floats:
    """(N, C, C) labelled pixels by true and answered class. Raises PromotionError for other classes than these."""
    for column in ("labels", "answered"):
        number_names(frame[column].explode().drop_nulls().unique(), classes)
    return _read(frame, "confusion", len(classes) ** 2).reshape(-1, len(classes), len(classes))


def _read(frame: pl.DataFrame, column: str, width: int) -> Floats:
    """(N, width) a column of lists of one length. Raises PromotionError where they have another."""
    if found := sorted(set(frame[column].list.len().to_list()) - {width}):
        raise PromotionError(
            "predictions",
            expected=f"{width} numbers per image in the column {column}",
            found=", ".join(map(str, found)),
            hint="Score the model again with the classes of the present domain.yaml.",
        )
    table: Floats = frame[column].explode().to_numpy().reshape(frame.height, width).astype(np.float64)
    return table
