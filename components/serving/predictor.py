"""One adapter, ready to answer: images in, answers and probabilities out, prepared as evaluation prepares them.

It is a rack of one, so that `tessera predict`, MLflow's model and the server share one path.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from components.data.sources.images import Box
from components.errors import DataError
from components.models.adapter import load_meta
from components.models.backbones import Backbone, load_backbone
from components.serving.describing import UNKNOWN, Prediction, describe
from components.serving.looks import Look
from components.serving.questions import BATCH, Question, Source, require_boxes
from components.serving.rack import Rack


class Predictor:
    """`Predictor(Path("adapter")).predict([Path("a.jpg")])`; give `backbone` to share one that is loaded already.

    whole, wherever it is asked for: every picture is a crop already, which somebody else cut.
    """

    def __init__(self, adapter_folder: Path, backbone: Backbone | None = None) -> None:
        wanted = load_meta(adapter_folder).backbone
        self.rack = Rack(backbone or load_backbone(wanted.name, wanted.img_size))
        self.resident = self.rack.add("", adapter_folder)
        self.meta, self.classes = self.resident.meta, tuple(self.resident.meta.classes)

    @property
    def doubt(self) -> str:
        """What a caller must be warned of; empty where all is known."""
        return UNKNOWN if self.meta.input is None else ""

    def predict(
        self,
        images: Sequence[Source],
        batch_size: int = BATCH,
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
        self, questions: Sequence[Question], batch_size: int = BATCH, *, whole: bool = False
    ) -> list[Prediction | DataError]:
        """One answer per question, in order: the prediction, or why that picture or box cannot be used.

        Questions about one picture that follow one another decode it once. Raises DataError where boxes are missing
        or not wanted.
        """
        require_boxes(self.meta, questions, whole=whole)
        return [answer for _, answer in self.answer_looks(self.resident.eye.look(questions), batch_size)]

    def answer_looks(
        self, looks: Iterator[Look], batch_size: int = BATCH
    ) -> Iterator[tuple[Look, Prediction | DataError]]:
        """Each look with its answer, in order; a batch is computed when its last look is there."""
        while batch := list(islice(looks, batch_size)):
            yield from zip(batch, self._answer_batch(batch), strict=True)

    def _answer_batch(self, looks: Sequence[Look]) -> list[Prediction | DataError]:
        fit = [look.pixels for look in looks if look.pixels is not None]
        rows = iter(self.rack.answer(np.stack(fit), [self.resident] * len(fit)) if fit else ())
        return [look.trouble or describe(self.meta, look, next(rows)) for look in looks]
