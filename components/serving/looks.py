"""What an adapter gets to see of a question: its pixels at the training's size, or why there are none. No torch here.

`adapter.json` says what an input is. An adapter that was trained on crops refuses whole pictures without boxes, one
that was trained on pictures refuses boxes, and each box is cut by the functions that training cuts with. A picture
that `tessera check` would put into quarantine is refused for the same reason, its header before any pixel is decoded.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from PIL import Image

from components.data.annotations.boxes import clip
from components.data.annotations.crops import square_around
from components.data.batches.geometry import Pixels, fit_image
from components.data.checks.pictures import read_fit_picture, require_fit_crop, unfit_boxes
from components.data.sources.images import UNDECODABLE, Box, UnfitPicture, Upright, damaged
from components.domain.settings import Validation
from components.errors import DataError
from components.models.adapter import AdapterMeta
from components.serving.questions import Question, Source, describe_unreadable, name_question


@dataclass(frozen=True)
class Look:
    """What the network gets to see of a question, or `trouble` in the place of pixels.

    crop: what was cut for the box of the question. pixels: (H, W, 3) at the adapter's size. size: width and height of
    the picture or crop.
    """

    question: Question
    crop: Box | None = None
    pixels: Pixels | None = None
    size: tuple[int, int] = (0, 0)
    trouble: DataError | None = None


class Eye:
    """Looks at pictures as one adapter was trained to: `Eye(meta).look(questions)`. Safe for several threads."""

    def __init__(self, meta: AdapterMeta) -> None:
        limits = meta.input.model_dump(include={"max_megapixels", "min_side"}) if meta.input else {}
        self.meta, self.limits = meta, Validation(**limits)

    def look(self, questions: Sequence[Question]) -> Iterator[Look]:
        """One look per question, in order. Questions about one picture that follow one another decode it once."""
        for _, same in groupby(questions, key=lambda question: id(question.image)):
            group = list(same)
            try:
                upright = self._read(group[0].image)
            except UNDECODABLE as error:
                trouble = _explain(name_question(group[0]), error)
                yield from (Look(question, trouble=trouble) for question in group)
            else:
                yield from (self._look_at(question, upright) for question in group)

    def _look_at(self, question: Question, upright: Image.Image) -> Look:
        try:
            crop = None if question.box is None else self._cut(question.box, upright)
        except ValueError as error:
            return Look(question, trouble=_explain(name_question(question), error))
        pixels = fit_image(Upright(upright), self.meta.backbone.img_size, self.meta.fit, crop)
        size = upright.size if crop is None else (crop[2] - crop[0], crop[3] - crop[1])
        return Look(question, crop, pixels, size)

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


def _explain(name: str, error: Exception) -> DataError:
    """A reason that `tessera check` would give, or what the system says of a file, as an error."""
    if isinstance(error, OSError) and error.strerror:
        return describe_unreadable(name, error)
    why = error.reason if isinstance(error, UnfitPicture) else damaged(str(error))
    return DataError(name, expected=why.expected, found=why.found, hint=why.hint)
