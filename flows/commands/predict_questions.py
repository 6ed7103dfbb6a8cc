"""What a command line asks about: paths, boxes, and what comes in on stdin."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from components.errors import DataError
from components.serving.questions import Asked, Question, ask, parse_box

STDIN = Path("-")
#: How files of the formats that are read begin; of BMP and RIFF more is known than the first bytes, which may begin a
#: file's name.
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")


def read_questions(
    paths: Sequence[Path], boxes: Sequence[str], boxes_file: Path | None, folder: Path, stdin: BinaryIO | None = None
) -> Asked:
    """All questions of a command. paths: `-` alone stands for stdin. folder: an empty one for an image from there.

    Raises DataError where there is nothing to ask about, or boxes are given twice.
    """
    asked = [parse_box(text, f"--box {text}") for text in boxes]
    if asked and boxes_file is not None:
        raise DataError("the boxes", expected="--box or --boxes", found="both", hint="Leave one of them out.")
    if STDIN in paths:
        if len(paths) > 1:
            found, hint = f"{len(paths)} of them", "Leave the others out, or write their names to stdin as well."
            raise DataError("-", expected="no other files where names come from stdin", found=found, hint=hint)
        data = (stdin or sys.stdin.buffer).read()
        if is_image(data):
            (image := folder / "stdin").write_bytes(data)
            return Asked([Question(image, box, str(STDIN)) for box in asked or (None,)])
        paths = _read_names(data)
    if boxes_file is None:
        return ask(paths, asked)
    from components.serving.box_lists import ask_with_file

    return ask_with_file(paths, boxes_file)


def is_image(data: bytes) -> bool:
    """Whether these bytes are an image by how they begin, and no list of names."""
    bitmap = data[:2] == b"BM" and data[6:10] == b"\0\0\0\0"
    return data.startswith(SIGNATURES) or bitmap or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _read_names(data: bytes) -> list[Path]:
    """The names in a text: one per line, or each ended by a NUL, as `find -print0` writes them."""
    parts = data.split(b"\0") if b"\0" in data else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    if names := [Path(os.fsdecode(part)) for part in parts if part]:
        return names
    hint = "Pipe names into it, one per line, as `find FOLDER -name '*.png'` lists them, or the bytes of one image."
    raise DataError("-", expected="names of files, or an image, on stdin", found="nothing", hint=hint)
