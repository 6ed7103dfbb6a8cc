"""Saliency as pictures: grey ones, which travel, and drawings over the picture that was answered. No torch here."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.data.batches.geometry import place, restore
from components.data.sources.images import read_picture
from components.errors import DataError
from components.files import whole_file
from components.models.adapter import AdapterMeta
from components.serving.looks import Look
from components.serving.questions import Question
from components.serving.writing import name_files

LONGEST = 512  # pixels of the longer side of a grey picture
LONGEST_DRAWING = 1024  # the same of a drawing
ANY_SIZE = 1e6  # megapixels: what was answered was within its limits
COLOUR = (255, 40, 0)
OPAQUE = 0.6  # share of the colour where the saliency is 1


def draw_saliency(grid: NDArray[np.float32], meta: AdapterMeta, look: Look) -> str:
    """Base64 of a grey PNG over the picture or crop, at most LONGEST pixels long.

    grid: (rows, columns) of the canvas's patches, from 0 to 1.
    """
    shrunk = min(1.0, LONGEST / max(look.size))
    width, height = (max(1, round(side * shrunk)) for side in look.size)
    lying = place(look.size, meta.backbone.img_size, meta.fit)
    (drawn,) = restore(grid[None], lying, (height, width))
    return encode_png(Image.fromarray((255 * drawn.clip(0, 1)).round().astype(np.uint8)))


def encode_png(picture: Image.Image) -> str:
    """Base64 of a PNG."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


class Overlays:
    """PNGs in a folder, one per question: `<image>.png`, and of a box `<image>-x0-y0-x1-y1.png`."""

    def __init__(self, folder: Path, questions: Sequence[Question]) -> None:
        paths = dict.fromkeys(Path(question.path) for question in questions)
        self.files = {path: folder / name for path, name in zip(paths, name_files(list(paths)), strict=True)}

    def name(self, question: Question) -> Path:
        """The file of a question's drawing."""
        base = self.files[Path(question.path)]
        box = "".join(f"-{edge}" for edge in question.box or ())
        return base.with_name(f"{base.name}{box}.png")

    def draw(self, question: Question, said: dict[str, Any]) -> None:
        """Draw the saliency of an answer, where it has one, over what was looked at."""
        if said.get("saliency") is None:
            return
        picture = read_picture(Path(question.path), ANY_SIZE)
        seen = picture if said["crop"] is None else picture.crop(tuple(said["crop"]))
        seen.thumbnail((LONGEST_DRAWING, LONGEST_DRAWING))
        grey = Image.open(io.BytesIO(base64.b64decode(said["saliency"]))).resize(seen.size, Image.Resampling.BILINEAR)
        colour = Image.new("RGB", seen.size, COLOUR)
        with whole_file(self.name(question)) as partial:
            Image.composite(colour, seen, grey.point(lambda value: value * OPAQUE)).save(partial, "PNG")


def require_saliency(folder: Path | None, annotation: str, task: str) -> None:
    """Raise DataError where saliency cannot be drawn into this folder."""
    if folder is None:
        return
    if annotation not in ("label", "labels"):
        expected, found = "a champion that answers a picture as a whole", f"one of the task {task}"
        hint = "Leave it out: `--out FOLDER` draws the answers of this one, which show the places themselves."
        raise DataError("--saliency", expected=expected, found=found, hint=hint)
    if folder.exists() and not folder.is_dir():
        hint = "Name another one."
        raise DataError(f"--saliency {folder}", expected="a folder", found="a file", hint=hint)
