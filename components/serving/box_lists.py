"""Files of boxes in many pictures: a csv table, a COCO .json, a Pascal VOC .xml or a folder of them. No torch here.

A table has a column `image` and the box in a column `box` or in four. COCO and VOC are read by the readers of the data
layouts, so a box means in serving what it means in training.
"""

import io
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import polars as pl

from components.data.annotations.cells import decode, find_delimiter, find_encoding
from components.data.annotations.coco import read_coco_file
from components.data.annotations.tables import resolve_picture
from components.data.annotations.tree import Index
from components.data.annotations.voc import read_voc_file
from components.data.manifest import Reading, Row
from components.data.sources.names import is_junk
from components.errors import DataError
from components.records.reasons import Reason
from components.serving.questions import Asked, Found, Question, explain_ignored, find_pictures, parse_box, walk_files

IMAGE_COLUMNS = ("image", "path", "file", "file_name", "filename")
BOX_COLUMNS = ("box", "boxes", "crop", "bbox")
FORMS = "boxes in a csv table, a COCO .json, or a Pascal VOC .xml or a folder of them"
YOLO = (
    "Write the boxes in pixels as a csv with the columns image, x0, y0, x1 and y1: YOLO label files, which hold shares "
    "of the picture's sides, are read by `tessera import` only."
)
CORNERS = (("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"))


class _Pictures(Index):
    """The pictures asked about, by absolute path: found by bare name, or by any end of the path."""

    def __init__(self, pictures: Sequence[Path]) -> None:
        self.paths = {path.absolute().as_posix().lstrip("/"): path for path in pictures}
        super().__init__(self.paths, "")

    def find(self, text: str) -> list[str]:
        end = posixpath.normpath(text.replace("\\", "/"))
        return super().find(text) or [path for path in sorted(self.files) if f"/{path}".endswith(f"/{end}")]


def ask_with_file(paths: Sequence[Path], file: Path) -> Asked:
    """The questions about the boxes in a file; without `paths` the pictures are those it names, found in its folder.

    Raises DataError where there is nothing to ask about.
    """
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
        if found := [path for path in walk_files(place) if not explain_ignored(path)]:
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
