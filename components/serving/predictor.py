"""One adapter, ready to answer: images in, answers and probabilities out, prepared as evaluation prepares them.

`adapter.json` says what an input is. An adapter that was trained on crops refuses whole pictures without boxes, one
that was trained on pictures refuses boxes, and each box is cut by the functions that training cuts with. A picture
that `tessera check` would put into quarantine is refused for the same reason, its header before any pixel is decoded.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from components.data.annotations.boxes import clip
from components.data.annotations.crops import square_around
from components.data.batches.boxes import restore_boxes
from components.data.batches.geometry import Pixels, fit_image, place, restore
from components.data.checks.pictures import read_fit_picture, require_fit_crop, unfit_boxes
from components.data.sources.images import UNDECODABLE, Box, UnfitPicture, Upright, damaged
from components.domain.settings import Validation
from components.errors import DataError
from components.models.backbones import Backbone
from components.models.engine import create_engine
from components.models.weights import load_adapter
from components.records.boxes import FoundBox, list_found
from components.records.maps import ClassMap
from components.serving.boxes import describe_boxes
from components.serving.maps import describe_map
from components.serving.questions import Question, Source, name_question, require_boxes
from components.tasks.base import BoxTask, DenseTask, MapTask, describe_answer

UNKNOWN = (
    "This adapter was trained before adapter.json said what an input is: a whole picture, or the crop inside a box. "
    "If it was trained on crops, answers for whole pictures are wrong. Train it again with `tessera retrain`."
)


@dataclass(frozen=True)
class Prediction:
    """The answer for one question.

    path: empty where the image came from memory. answer: `{"label": "crack"}`, or what else the task answers. box: as
    it was asked; crop: what was cut for it. class_map: (H, W) the answer of each pixel of the upright picture, where
    that is what the task answers. found: where the task answers boxes, all of them, the most confident first, also
    those below their threshold, which `answer` leaves out. With either of both, probabilities are None.
    """

    path: str
    answer: dict[str, Any]
    probabilities: dict[str, float] | None
    box: Box | None = None
    crop: Box | None = None
    class_map: ClassMap | None = None
    found: tuple[FoundBox, ...] | None = None

    @property
    def label(self) -> str:
        """The answer as one text for people."""
        return describe_answer(self.answer)


class Predictor:
    """`Predictor(Path("adapter")).predict([Path("a.jpg")])`; give `backbone` to share one that is loaded already.

    whole, wherever it is asked for: every picture is a crop already, which somebody else cut.
    """

    def __init__(self, adapter_folder: Path, backbone: Backbone | None = None) -> None:
        self.network, self.meta = load_adapter(adapter_folder, backbone)
        self.engine = create_engine(tuple(self.meta.backbone.mean), tuple(self.meta.backbone.std))
        self.engine.prepare(self.network).eval()
        self.classes = tuple(self.meta.classes)
        limits = self.meta.input.model_dump(include={"max_megapixels", "min_side"}) if self.meta.input else {}
        self.limits = Validation(**limits)

    @property
    def doubt(self) -> str:
        """What a caller must be warned of; empty where all is known."""
        return UNKNOWN if self.meta.input is None else ""

    def predict(
        self,
        images: Sequence[Source],
        batch_size: int = 32,
        boxes: Sequence[Box | None] | None = None,
        *,
        whole: bool = False,
    ) -> list[Prediction]:
        """One prediction per image, in order; boxes: one per image, or None.

        Raises DataError naming the first image that cannot be read, and where boxes are missing or not wanted.
        """
        boxes = [None] * len(images) if boxes is None else boxes
        questions = [Question(image, box) for image, box in zip(images, boxes, strict=True)]
        answers = self.answer(questions, batch_size, whole=whole)
        for answer in answers:
            if isinstance(answer, DataError):
                raise answer
        return [answer for answer in answers if isinstance(answer, Prediction)]

    def answer(
        self, questions: Sequence[Question], batch_size: int = 32, *, whole: bool = False
    ) -> list[Prediction | DataError]:
        """One answer per question, in order: the prediction, or why that picture or box cannot be used.

        Questions about one picture that follow one another decode it once. Raises DataError where boxes are missing
        or not wanted.
        """
        require_boxes(self.meta, questions, whole=whole)
        looks, answers = self._look(questions), list[Prediction | DataError]()
        while batch := list(islice(looks, batch_size)):
            answers += self._answer_batch(batch)
        return answers

    def _look(self, questions: Sequence[Question]) -> "Iterator[_Look]":
        """Every question's pixels, or why there are none, in order."""
        for _, same in groupby(questions, key=lambda question: id(question.image)):
            group = list(same)
            try:
                upright = self._read(group[0].image)
            except UNDECODABLE as error:
                trouble = _explain(name_question(group[0]), error)
                yield from (_Look(question, trouble=trouble) for question in group)
            else:
                yield from (self._look_at(question, upright) for question in group)

    def _look_at(self, question: Question, upright: Image.Image) -> "_Look":
        try:
            crop = None if question.box is None else self._cut(question.box, upright)
        except ValueError as error:
            return _Look(question, trouble=_explain(name_question(question), error))
        pixels = fit_image(Upright(upright), self.meta.backbone.img_size, self.meta.fit, crop)
        size = upright.size if crop is None else (crop[2] - crop[0], crop[3] - crop[1])
        return _Look(question, crop, pixels, size)

    def _read(self, image: Source) -> Image.Image:
        return read_fit_picture(io.BytesIO(image.read_bytes()) if isinstance(image, Path) else image, self.limits)

    def _cut(self, box: Box, upright: Image.Image) -> Box:
        """The crop that training would cut for this box. Raises ValueError where it is unfit."""
        box = clip(box, *upright.size)
        if self.meta.input is not None and self.meta.input.cut == "square":
            if problem := unfit_boxes([box], *upright.size, "a box"):
                raise UnfitPicture(problem)
            box = square_around(box, *upright.size)
        require_fit_crop(upright, box, self.limits)
        return box

    @torch.inference_mode()
    def _answer_batch(self, looks: "Sequence[_Look]") -> list[Prediction | DataError]:
        fit = [look.pixels for look in looks if look.pixels is not None]
        rows = iter(self._forward(np.stack(fit)) if fit else ())
        return [look.trouble or self._describe(look, next(rows)) for look in looks]

    def _forward(self, pixels: Pixels) -> NDArray[np.float64]:
        """What the head decodes of images (B, H, W, 3): probabilities (B, C, ...) or boxes (B, K, 6). Only those of one
        answer per image are calibrated: the others are brought back to the picture first."""
        outputs = self.engine.forward(self.network, torch.from_numpy(pixels).permute(0, 3, 1, 2))
        temperature = 1.0 if isinstance(self.meta.task, DenseTask) else self.meta.temperature
        rows: NDArray[np.float64] = self.network.head.decode(outputs, temperature).double().cpu().numpy()
        return rows

    def _describe(self, look: "_Look", row: NDArray[np.float64]) -> Prediction:
        if isinstance(self.meta.task, MapTask):
            return self._describe_map(self.meta.task, look, row)
        if isinstance(self.meta.task, BoxTask):
            return self._describe_boxes(self.meta.task, look, row)
        (answer,) = self.meta.task.answer(row[None], self.classes, self.meta.calibrated)
        return Prediction(
            path=look.question.path,
            answer=answer,
            probabilities=dict(zip(self.classes, row.tolist(), strict=True)),
            box=look.question.box,
            crop=look.crop,
        )

    def _describe_map(self, task: MapTask, look: "_Look", row: NDArray[np.float64]) -> Prediction:
        """row: (C, h, w) probabilities of the canvas, not calibrated, which are put back to the size of the picture."""
        size = self.meta.backbone.img_size
        chances = restore(row, place(look.size, size, self.meta.fit), look.size[::-1])
        classes = task.decide(chances, self.classes, self.meta.calibrated)
        answer = describe_map(task, classes, chances, self.classes, self.meta.temperature)
        return Prediction(look.question.path, answer, None, look.question.box, look.crop, classes)

    def _describe_boxes(self, task: BoxTask, look: "_Look", row: NDArray[np.float64]) -> Prediction:
        """row: (K, 6) what was found on the canvas, not calibrated."""
        lying = place(look.size, self.meta.backbone.img_size, self.meta.fit)
        decided = task.decide(restore_boxes(row, lying, look.size), self.classes, self.meta.calibrated)
        found = list_found(*decided, self.classes)
        return Prediction(look.question.path, describe_boxes(found, self.classes), None, found=found)


@dataclass(frozen=True)
class _Look:
    """What the network gets to see of a question, or why nothing. size: width and height of the picture or crop."""

    question: Question
    crop: Box | None = None
    pixels: Pixels | None = None
    size: tuple[int, int] = (0, 0)
    trouble: DataError | None = None


def _explain(name: str, error: Exception) -> DataError:
    """A reason that `tessera check` would give, or what the system says of a file, as an error."""
    if isinstance(error, OSError) and error.strerror:
        hint = "Correct the path or the permissions."
        return DataError(name, expected="a readable image", found=error.strerror, hint=hint)
    why = error.reason if isinstance(error, UnfitPicture) else damaged(str(error))
    return DataError(name, expected=why.expected, found=why.found, hint=why.hint)
