"""What is asked of an adapter: pictures out of files and folders, and the boxes that somebody drew in them.

A box is x0, y0, x1, y1 in pixels of the upright picture, ends exclusive. Files of boxes are read by `box_lists`.
Nothing heavy is imported here, so that a command that asks a running server answers at once.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

from components.data.sources.names import SUFFIXES, is_junk
from components.errors import DataError
from components.records.fields import Box

if TYPE_CHECKING:
    from PIL import Image

    from components.models.adapter import AdapterMeta

Source: TypeAlias = "Path | IO[bytes] | Image.Image"

BATCH = 32  # rows of one forward
AHEAD = 32  # pictures that are decoded before the network takes them
WINDOW = 96  # pictures that may be asked about before the first is answered: more than are decoded and in a batch
LONGEST_BOX = 200  # characters
BOXES = 16  # boxes in one picture that are asked about at a time


@dataclass(frozen=True)
class Question:
    """One picture, or the part of it inside a box.

    name: what error messages call it; the path where it is left out.
    """

    image: Source
    box: Box | None = None
    name: str = ""

    @property
    def path(self) -> str:
        return self.image.as_posix() if isinstance(self.image, Path) else ""


@dataclass(frozen=True)
class Asked:
    """All questions of a command, in order.

    An error stands in the place of a picture that cannot be asked about. ignored: files that are no pictures, and what
    a file of boxes names beside the pictures, each with the reason. notes: what was passed over in it, counted.
    """

    questions: list[Question | DataError]
    ignored: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)


def ask(paths: Sequence[Path], boxes: Sequence[Box] = ()) -> Asked:
    """The questions about these files and folders. boxes: of the one picture named.

    Raises DataError where there is nothing to ask about.
    """
    found = find_pictures(paths)
    if not boxes:
        return Asked([one if isinstance(one, DataError) else Question(one) for one in found.questions], found.ignored)
    if len(found.questions) != 1:
        raise DataError(
            "--box",
            expected="one picture that the boxes are in",
            found=f"{len(found.questions)} pictures",
            hint="Name one picture, or give the boxes of many with `--boxes FILE` (csv, COCO or VOC).",
        )
    return Asked([Question(found.pictures[0], box) for box in boxes], found.ignored)


@dataclass(frozen=True)
class Found:
    """Pictures in the order asked; in the place of a path where nothing is, the error."""

    questions: list[Path | DataError]
    ignored: dict[str, str]

    @property
    def pictures(self) -> list[Path]:
        return [one for one in self.questions if isinstance(one, Path)]


def group_questions(questions: Iterable[Question]) -> Iterator[list[Question]]:
    """Questions about one picture that follow one another, BOXES at most, so that it is decoded once for them."""
    for _, same in groupby(questions, key=lambda question: question.image):
        while group := list(islice(same, BOXES)):
            yield group


def find_pictures(paths: Sequence[Path]) -> Found:
    """Files as they are named, and all pictures below the folders named, sorted.

    Raises DataError where no path exists, or no folder holds a picture and no file was named.
    """
    found: list[Path | DataError] = []
    ignored: dict[str, str] = {}
    for path in paths:
        if path.is_dir():
            files = walk_files(path)
            ignored |= {file.as_posix(): why for file in files if (why := explain_ignored(file))}
            found += [file for file in files if file.as_posix() not in ignored]
        elif path.is_file():
            found.append(path)
        else:
            hint = "Name image files, or a folder of them; a shell pattern such as folder/*.jpg names many."
            found.append(DataError(str(path), expected="an image file or a folder", found="nothing there", hint=hint))
    if any(isinstance(one, Path) for one in found):
        return Found(found, ignored)
    if found:
        raise found[0] if isinstance(found[0], DataError) else ValueError(found[0])
    raise DataError(
        ", ".join(map(str, paths)) or "the images",
        expected=f"at least one picture ({', '.join(SUFFIXES)})",
        found=f"{len(ignored)} other files: {', '.join(list(ignored)[:3])}" if ignored else "none",
        hint="Name image files, or a folder that holds some.",
    )


def walk_files(folder: Path) -> list[Path]:
    """Every file below a folder, sorted; links to folders are not followed, for they may lead round in a circle."""
    files = []
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        files += [Path(place) / name for name in (*names, *links)]
    return sorted(files)


def explain_ignored(file: Path) -> str:
    """Why a file below a folder is not asked about; empty where it is."""
    if is_junk(file.name):
        return "a hidden or system file"
    if file.is_dir():
        return "a link to a folder"
    if not file.is_file():
        return "no plain file, or a link to nothing"
    return "" if file.name.lower().endswith(SUFFIXES) else "not an image by its name"


def parse_box(text: str, where: str) -> Box:
    """`x0,y0,x1,y1` or `x0 y0 x1 y1` in whole pixels. Raises DataError naming where it was written."""
    text = text if len(text) <= LONGEST_BOX else f"{text[:LONGEST_BOX]}…"  # a request's text, which is anybody's
    numbers = re.fullmatch(r"\s*\(?\[?\s*" + r"[\s,]+".join([r"(-?\d{1,9})(?:\.0*)?"] * 4) + r"\s*\]?\)?\s*", text)
    if numbers is None:
        hint = "Write four whole numbers: left, top, right and bottom, the last two exclusive."
        raise DataError(where, expected="a box x0,y0,x1,y1 in pixels", found=repr(text), hint=hint)
    x0, y0, x1, y1 = (int(number) for number in numbers.groups())
    return x0, y0, x1, y1


def require_boxes(meta: "AdapterMeta", questions: Sequence[Question], *, whole: bool) -> None:
    """Raise DataError unless the questions have boxes exactly where the adapter wants them.

    whole: every picture is a crop already, which has no meaning where the adapter answers boxes.
    """
    check_boxes(meta.task.kind, meta.task.annotation, meta.input.kind if meta.input else "either", questions, whole)


def check_boxes(task: str, annotation: str, kind: str, questions: Sequence[Question], whole: bool) -> None:
    """The same of an adapter whose task, annotation and kind of input are known."""
    if annotation == "boxes" and (whole or any(question.box is not None for question in questions)):
        raise DataError(
            "`whole`" if whole else name_question(next(one for one in questions if one.box is not None)),
            expected=f"whole pictures alone, in which an adapter of the task {task} finds the boxes itself",
            found="the option that says that pictures are crops" if whole else "a box",
            hint="Leave it out.",
        )
    without = next((question for question in questions if question.box is None), None)
    if kind == "crop" and without is not None and not whole:
        raise DataError(
            name_question(without),
            expected="a box, because this adapter was trained on crops and not on whole pictures",
            found="a picture without one",
            hint="Give boxes: `--box X0,Y0,X1,Y1`, or `--boxes FILE` (csv, COCO or VOC); a request has a column "
            '`box`, "x0 y0 x1 y1". If every picture is a crop already, say so: `--whole`, in a request the '
            "parameter `whole`.",
        )
    boxed = next((question for question in questions if question.box is not None), None)
    if boxed is not None and (kind == "picture" or whole):
        raise DataError(
            name_question(boxed),
            expected="a whole picture without a box, "
            + ("as `whole` says" if whole else "because this adapter was trained on whole pictures"),
            found=f"the box {' '.join(map(str, boxed.box or ()))}",
            hint="Leave the box out.",
        )


def describe_unreadable(name: str, error: OSError) -> DataError:
    """The error in the place of a file that the system does not let us read."""
    hint = "Correct the path or the permissions."
    return DataError(name, expected="a readable image", found=error.strerror or str(error), hint=hint)


def name_question(question: Question) -> str:
    return question.name or question.path or "an image in memory"


# Files of boxes
