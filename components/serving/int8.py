"""A graph with weights of 8 bits, and the gate that it must pass before anybody may use it.

Dynamic quantisation, one scale per channel, makes a graph four times as small and faster, and it changes answers: how
many depends on the adapter. So it is judged on the test images of the version, beside the graph in float32.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.data.batches.boxes import restore_boxes
from components.data.batches.geometry import fit_image, place, restore
from components.data.checks.pictures import read_fit_picture
from components.data.sources.images import Upright
from components.domain.settings import Validation
from components.models.adapter import AdapterMeta
from components.promotion.statistics import bootstrap_difference
from components.records.boxes import read_objects, to_targets
from components.records.exports import ClassChange, Int8
from components.records.jobs import PROBABILITY
from components.records.maps import decode_map
from components.serving.prepare import GRAPH, INT8, Model, suppress
from components.tasks.base import PREDICTED, BoxTask, MapTask

#: Fewer equal answers than one in two hundred is a change that nobody asked for: a score may stay the same while other
#: images are wrong than those that the gates have seen.
LEAST_EQUAL = 0.995
CONFIDENCE = 0.95  # of the interval of a class's change, over groups
BATCH = 16


def write_int8(folder: Path) -> None:
    """Write model.int8.onnx beside model.onnx."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # it comments on every tensor that it leaves alone
    try:
        quantize_dynamic(folder / GRAPH, folder / INT8, per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)


def judge_int8(folder: Path, meta: AdapterMeta, tests: pl.DataFrame, of: int) -> Int8:
    """Whether the quantised graph may be used. tests: the version's test predictions with the column `file`."""
    plain, small = (_answer_all(Model(folder, int8=int8), meta, tests) for int8 in (False, True))
    equal = _measure_equal(plain, small)
    before, after = (meta.task.class_evidence(frame, meta.classes) for frame in (plain, small))
    changes = {name: bootstrap_difference(after[name], before[name], CONFIDENCE) for name in after if name in before}
    worse = [name for name, change in changes.items() if change.is_below(0)]
    told = f"{equal:.2%} of the answers for {len(tests)} of {of} test images are those of the graph in float32"
    if equal < LEAST_EQUAL:
        reason = f"refused: {told}, and at least {LEAST_EQUAL:.1%} are needed"
    elif worse:
        shown = ", ".join(f"{name} by {-changes[name].value:.3f}" for name in worse)
        reason = f"refused: {told}, but {meta.task.class_words} is surely worse: {shown}"
    else:
        reason = f"kept: {told}, and no class is surely worse"
    return Int8(
        kept=equal >= LEAST_EQUAL and not worse,
        reason=reason,
        equal=equal,
        images=len(tests),
        of=of,
        score=meta.task.class_words,
        classes={name: ClassChange(value=one.value, low=one.low, high=one.high) for name, one in changes.items()},
        bytes=(folder / INT8).stat().st_size,
        bytes_before=(folder / GRAPH).stat().st_size,
    )


def _answer_all(model: Model, meta: AdapterMeta, tests: pl.DataFrame) -> pl.DataFrame:
    """The frame of predictions of a graph, as training writes it."""
    task, frame = meta.task, tests.select("id", "path", "crop", "group", "split", *meta.task.columns())
    answers = _run(model, meta, tests)
    if isinstance(task, MapTask | BoxTask):
        pairs = zip(answers, frame.iter_rows(named=True), strict=True)
        judged = [_judge(meta, task, row, size, truth) for (row, size), truth in pairs]
        return frame.hstack(pl.DataFrame(judged, schema=task.judged()))
    chances = np.stack([row for row, _ in answers])
    columns = [pl.Series(f"{PROBABILITY}{name}", chances[:, k]) for k, name in enumerate(meta.classes)]
    return frame.with_columns(*task.answers(chances, meta.classes, meta.calibrated), *columns)


def _run(model: Model, meta: AdapterMeta, tests: pl.DataFrame) -> Iterator[tuple[NDArray[np.float64], tuple[int, int]]]:
    """What the graph puts out for each row, and (width, height) of its picture or crop."""
    limits = Validation(**meta.input.model_dump(include={"max_megapixels", "min_side"}) if meta.input else {})
    rows = tests.select("file", "crop").rows()
    for start in range(0, len(rows), BATCH):
        looks = [_look(meta, limits, *row) for row in rows[start : start + BATCH]]
        outputs = model.run(np.stack([pixels for pixels, _ in looks])).astype(np.float64)
        yield from zip(outputs, [size for _, size in looks], strict=True)


def _look(
    meta: AdapterMeta, limits: Validation, file: str, crop: Sequence[int] | None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The pixels that training saw, of a manifest's picture or crop, and its size."""
    picture = Upright(read_fit_picture(Path(file), limits))
    box = None if crop is None else (crop[0], crop[1], crop[2], crop[3])
    size = picture.size if box is None else (box[2] - box[0], box[3] - box[1])
    return fit_image(picture, meta.backbone.img_size, meta.fit, box), size


def _judge(
    meta: AdapterMeta,
    task: MapTask | BoxTask,
    row: NDArray[np.float64],
    size: tuple[int, int],
    shown: dict[str, Any],
) -> dict[str, Any]:
    """What training judges of a picture's answer. shown: the row that says what the picture shows."""
    lying = place(size, meta.backbone.img_size, meta.fit)
    if isinstance(task, BoxTask):
        truth = to_targets(read_objects(shown["objects"]), meta.classes)
        return task.judge(restore_boxes(suppress(row), lying, size), truth, meta.classes, meta.calibrated)
    return task.judge(restore(row, lying, size[::-1]), decode_map(shown["class_map"]), meta.classes, meta.calibrated)


def _measure_equal(ours: pl.DataFrame, theirs: pl.DataFrame) -> float:
    """The share of equal answers: of pixels, of pictures with the same shown boxes by class, or of labels."""
    if "answer_map" in ours.columns:
        pairs = zip(ours["answer_map"], theirs["answer_map"], strict=True)
        return float(np.mean([(decode_map(one) == decode_map(other)).mean() for one, other in pairs]))
    if "shown" in ours.columns:
        pairs = zip(_count_shown(ours), _count_shown(theirs), strict=True)
    else:
        pairs = zip(ours[PREDICTED], theirs[PREDICTED], strict=True)
    return float(np.mean([one == other for one, other in pairs]))


def _count_shown(frame: pl.DataFrame) -> list[list[str]]:
    """The labels of each picture's shown boxes, sorted."""
    return [
        sorted(one["label"] for one, there in zip(found, shown, strict=True) if there)
        for found, shown in frame.select("found", "shown").iter_rows()
    ]
