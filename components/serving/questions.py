"""What is asked of an adapter: pictures out of files and folders, and the boxes that somebody drew in them.

A box is x0, y0, x1, y1 in pixels of the upright picture, ends exclusive. Files of boxes are a csv table with a column
`image` and the box in a column `box` or in four; a COCO .json; a Pascal VOC .xml or a folder of them. COCO and VOC are
read by the readers of the data layouts, so a box means in serving what it means in training. No torch here.
"""

import io
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn

import polars as pl
from PIL import Image

from components.data.annotations.cells import decode, find_delimiter, find_encoding
from components.data.annotations.coco import read_coco_file
from components.data.annotations.tables import resolve_picture
from components.data.annotations.tree import Index, is_junk
from components.data.annotations.voc import read_voc_file
from components.data.manifest import Reading, Row
from components.data.sources.images import SUFFIXES, Box
from components.errors import DataError
from components.models.adapter import AdapterMeta
from components.records.reasons import Reason

Source = Path | IO[bytes] | Image.Image
IMAGE_COLUMNS = ("image", "path", "file", "file_name", "filename")
BOX_COLUMNS = ("box", "boxes", "crop", "bbox")
FORMS = "boxes in a csv table, a COCO .json, or a Pascal VOC .xml or a folder of them"
YOLO = (
    "Write the boxes in pixels as a csv with the columns image, x0, y0, x1 and y1: YOLO label files, which hold shares "
    "of the picture's sides, are read by `tessera import` only."
)
LONGEST_BOX = 200  # characters
CORNERS = (("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"))


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


def ask(paths: Sequence[Path], boxes: Sequence[Box] = (), boxes_file: Path | None = None) -> Asked:
    """The questions about these files and folders.

    boxes: of the one picture named. boxes_file: boxes of many; without `paths` the pictures are those it names, found
    in its folder. Raises DataError where there is nothing to ask about.
    """
    if boxes_file is not None:
        if boxes:
            hint = "Leave one of them out."
            raise DataError("the boxes", expected="--box or --boxes", found="both", hint=hint)
        return _ask_with_file(paths, boxes_file)
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


def find_pictures(paths: Sequence[Path]) -> Found:
    """Files as they are named, and all pictures below the folders named, sorted.

    Raises DataError where no path exists, or no folder holds a picture and no file was named.
    """
    found: list[Path | DataError] = []
    ignored: dict[str, str] = {}
    for path in paths:
        if path.is_dir():
            files = _walk(path)
            ignored |= {file.as_posix(): why for file in files if (why := _why_ignored(file))}
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


def _walk(folder: Path) -> list[Path]:
    """Every file below a folder, sorted; links to folders are not followed, for they may lead round in a circle."""
    files = []
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        files += [Path(place) / name for name in (*names, *links)]
    return sorted(files)


def _why_ignored(file: Path) -> str:
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


def require_boxes(meta: AdapterMeta, questions: Sequence[Question], *, whole: bool) -> None:
    """Raise DataError unless the questions have boxes exactly where the adapter wants them.

    whole: every picture is a crop already, which has no meaning where the adapter answers boxes.
    """
    if meta.task.annotation == "boxes" and (whole or any(question.box is not None for question in questions)):
        raise DataError(
            "`whole`" if whole else name_question(next(one for one in questions if one.box is not None)),
            expected=f"whole pictures alone, in which an adapter of the task {meta.task.kind} finds the boxes itself",
            found="the option that says that pictures are crops" if whole else "a box",
            hint="Leave it out.",
        )
    kind = meta.input.kind if meta.input else "either"
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


def name_question(question: Question) -> str:
    return question.name or question.path or "an image in memory"


# Files of boxes


class _Pictures(Index):
    """The pictures asked about, by absolute path: found by bare name, or by any end of the path."""

    def __init__(self, pictures: Sequence[Path]) -> None:
        self.paths = {path.absolute().as_posix().lstrip("/"): path for path in pictures}
        super().__init__(self.paths, "")

    def find(self, text: str) -> list[str]:
        end = posixpath.normpath(text.replace("\\", "/"))
        return super().find(text) or [path for path in sorted(self.files) if f"/{path}".endswith(f"/{end}")]


def _ask_with_file(paths: Sequence[Path], file: Path) -> Asked:
    found = find_pictures(paths) if paths else Found(_find_beside(file), {})
    index, ignored = _Pictures(found.pictures), dict(found.ignored)
    rows: dict[str, list[Row]] = {}
    reading = read_boxes(file, index)
    for row in reading.rows:
        rows.setdefault(row.path, []).append(row)
    questions: list[Question | DataError] = [one for one in found.questions if isinstance(one, DataError)]
    for name, path in index.paths.items():
        asked = [_create_question(path, row) for row in rows.get(name, []) if row.crop or row.problem]
        if name in rows and not asked:
            ignored[str(path)] = f"{file.name} names it without a box"
        elif name not in rows and paths:
            hint = "Add its boxes, or leave the picture out."
            asked = [DataError(str(path), expected=f"boxes of it in {file}", found="none", hint=hint)]
        questions += asked
    for name in [name for name in rows if name not in index.paths]:
        if paths:
            ignored[name] = f"named in {file.name}, but not among the pictures given"
        else:
            unknown = Reason("a picture", "none of this name", "Correct the name.")
            questions += [_explain(name, row.problem or unknown) for row in rows[name]]
    if not any(isinstance(one, Question) for one in questions):
        _refuse_empty(questions, file)
    return Asked(questions, ignored, reading.notes)


def read_boxes(file: Path, index: Index) -> Reading:
    """The boxes in a file as rows with `crop`, of pictures in the index; a row without one names a picture that has
    none. Raises DataError for a file of another form.
    """
    kind = file.suffix.lower()
    if file.is_dir():
        files = sorted(path for path in file.rglob("*.xml") if not is_junk(path.name))
        readings = [read_voc_file(path, index) for path in files]
    elif file.exists() and kind in READERS:
        readings = [READERS[kind](file, index)]
    else:
        readings = []
    if not any(reading.rows for reading in readings):
        found = "a folder without .xml files" if file.is_dir() else f"a {kind or 'nameless'} file without any box"
        found = found if file.exists() else "nothing there"
        yolo = file.is_dir() and any(file.glob("*.txt"))
        raise DataError(f"--boxes {file}", expected=FORMS, found=found, hint=YOLO if yolo else "Name such a file.")
    notes = sum((Counter(reading.notes) for reading in readings), Counter[str]())
    return Reading([row for reading in readings for row in reading.rows], notes=dict(notes))


def _find_beside(file: Path) -> list[Path | DataError]:
    """The pictures below the folder of a file of boxes; for VOC they may be in a folder beside that one."""
    folder = file if file.is_dir() else file.absolute().parent
    places = [folder, folder.absolute().parent] if file.is_dir() or file.suffix.lower() == ".xml" else [folder]
    for place in places:
        if found := [path for path in _walk(place) if not _why_ignored(path)]:
            return list(found)
    hint = "Name the pictures or their folder, too: `tessera predict NAME FOLDER --boxes FILE`."
    raise DataError(f"--boxes {file}", expected="the pictures it names, in its folder", found="none", hint=hint)


def _read_table(file: Path, index: Index) -> Reading:
    """A row per line, or per box where a cell holds several, joined by `;`."""
    frame = _load_csv(file)
    image = next((frame.columns[k] for k, name in enumerate(_fold(frame)) if name in IMAGE_COLUMNS), None)
    box = next((frame.columns[k] for k, name in enumerate(_fold(frame)) if name in BOX_COLUMNS), None)
    corners = next((names for names in CORNERS if set(names) <= set(_fold(frame))), None)
    if image is None or (box is None and corners is None):
        raise DataError(
            f"--boxes {file}",
            expected=f"a column {image or ' or '.join(IMAGE_COLUMNS)}, and a column box (x0 y0 x1 y1) or the four "
            "columns x0, y0, x1 and y1",
            found=f"the columns {', '.join(map(repr, frame.columns))}",
            hint=YOLO if file.suffix.lower() == ".txt" else "Rename the columns.",
        )
    parts = [box] if box else [frame.columns[_fold(frame).index(name)] for name in corners or ()]
    rows = []
    for number, record in enumerate(frame.to_dicts(), 2):
        where = f"{file}, line {number}"
        path, problem = _resolve(record[image] or "", file, index, where)
        cells = ";".join([" ".join(record[name] or "" for name in parts)]).split(";")
        boxes = [parse_box(cell, where) for cell in cells if cell.strip()]
        rows += [Row(path=path, crop=crop, problem=problem) for crop in boxes] or [Row(path=path, problem=problem)]
    return Reading(rows)


READERS: dict[str, Callable[[Path, Index], Reading]] = {
    ".csv": _read_table,
    ".tsv": _read_table,
    ".txt": _read_table,
    ".json": read_coco_file,
    ".xml": read_voc_file,
}


def _load_csv(file: Path) -> pl.DataFrame:
    try:
        data = file.read_bytes()
        text = decode(data, find_encoding(data))
        return pl.read_csv(io.StringIO(text), infer_schema=False, separator=find_delimiter(text))
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        found = " ".join(str(error).split())[:200]
        hint = "Save it as comma-separated UTF-8 text with a header line."
        raise DataError(f"--boxes {file}", expected="a csv table", found=found, hint=hint) from None


def _fold(frame: pl.DataFrame) -> list[str]:
    return [name.strip().lower() for name in frame.columns]


def _resolve(text: str, file: Path, index: Index, where: str) -> tuple[str, Reason | None]:
    """A path in a table, which starts at the table's folder, or at any folder of the pictures asked about."""
    beside = os.path.abspath(file.absolute().parent / text.strip())
    here = beside.lstrip("/")
    if here in index.files or os.path.isfile(beside):  # one that is there and not asked about is no other picture
        return here, None
    return resolve_picture(text.strip(), index, where)


def _create_question(path: Path, row: Row) -> Question | DataError:
    return Question(path, row.crop) if row.problem is None else _explain(str(path), row.problem)


def _explain(name: str, problem: Reason) -> DataError:
    return DataError(name, expected=problem.expected, found=problem.found, hint=problem.hint)


def _refuse_empty(questions: Sequence[Question | DataError], file: Path) -> NoReturn:
    """The first reason why there is nothing to ask about."""
    hint = "Name pictures that it has boxes of."
    nothing = DataError(f"--boxes {file}", expected="at least one box in these pictures", found="none", hint=hint)
    raise next((one for one in questions if isinstance(one, DataError)), nothing)
