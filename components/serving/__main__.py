"""`python -m components.serving`: answer the questions of a command in a process of its own, so that it needs no torch.

The process loads torch first, so a caller starts it early. Then it reads lines of JSON from stdin: first what to load,
then one line per picture, and at the end an empty line. It writes one line per picture to stdout, in order, while
further lines come in:

    {"adapter": FOLDER, "whole": false, "extras": ["class_map", "found", "saliency"]}
    {"path": FILE, "name": "", "boxes": [[x0, y0, x1, y1] or null, ...]}

    {"sha256": of the file's bytes, or null, "answers": [{"answer": {...}, "label": text or null, "crop": [...],
     "probabilities": {...} or null} or {"error": {...}}, one for each of the boxes]}

An answer has the extras that were asked for: `class_map`, the base64 text of `encode_map`; `found`, all boxes as
[label, box, confidence, shown]; `saliency`, the base64 text of a grey PNG. Each is null where the task has none.

A caller may have WINDOW pictures without an answer, and must let as many be, or end: the process decodes AHEAD of them
while it waits for a whole batch. Where nothing can be answered at all, the reply is `{"error": {...}}`, and the exit
code is that error's. When stdin closes before the empty line the process ends at once, for nobody waits.
"""

import base64
import hashlib
import io
import json
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from components.errors import DataError, TesseraError
from components.serving.ahead import map_ahead
from components.serving.questions import AHEAD, Question

if TYPE_CHECKING:
    from components.serving.describing import Prediction
    from components.serving.looks import Look
    from components.serving.predictor import Predictor

Lines = SimpleQueue[dict[str, Any] | None]


def main() -> int:
    # stdout belongs to the replies; whatever a library prints goes to stderr.
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import components.serving.predictor  # torch loads here, before the request is there

    first = sys.stdin.readline()
    if not first:
        return 0
    request, lines = json.loads(first), Lines()
    threading.Thread(target=_read_lines, args=(lines,), daemon=True).start()
    code = 0
    try:
        predictor = components.serving.predictor.Predictor(Path(request["adapter"]))
        for answer in answer_pictures(predictor, iter(lines.get, None), request["whole"], request["extras"]):
            reply.write(json.dumps(answer) + "\n")
            reply.flush()
    except TesseraError as error:
        code = error.exit_code
        reply.write(json.dumps({"error": error.to_dict()}) + "\n")
        reply.flush()
    return code


def answer_pictures(
    predictor: "Predictor", pictures: Iterator[Mapping[str, Any]], whole: bool, extras: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The replies to lines about pictures, as the module describes both; files are decoded in threads.

    Raises BackboneError, and DataError about boxes that are missing or not wanted.
    """
    from components.serving.questions import require_boxes

    def look(picture: Mapping[str, Any]) -> "tuple[str | None, list[Look]]":
        digest, questions = _open(picture)
        require_boxes(predictor.meta, questions, whole=whole)
        return digest, list(predictor.resident.eye.look(questions))

    opened: deque[tuple[str | None, int]] = deque()  # of pictures whose answers are not complete yet

    def looks() -> "Iterator[Look]":
        threads = min(8, os.cpu_count() or 1)
        for digest, seen in map_ahead(look, pictures, threads=threads, ahead=AHEAD):
            opened.append((digest, len(seen)))
            yield from seen

    answers: list[dict[str, Any]] = []
    for seen, found in predictor.answer_looks(looks()):
        answers.append(_describe(predictor, seen, found, extras))
        if len(answers) == opened[0][1]:
            yield {"sha256": opened.popleft()[0], "answers": answers}
            answers = []


def _open(picture: Mapping[str, Any]) -> tuple[str | None, list[Question]]:
    """The sha256 of the picture's bytes, and the questions about just these bytes."""
    path = Path(picture["path"])
    boxes = [None if box is None else tuple(box) for box in picture["boxes"]]
    try:
        data = path.read_bytes()
    except OSError:
        return None, [Question(path, box, picture["name"]) for box in boxes]  # the eye says why it cannot be read
    image = io.BytesIO(data)
    return hashlib.sha256(data).hexdigest(), [Question(image, box, picture["name"] or path.as_posix()) for box in boxes]


def _describe(
    predictor: "Predictor", look: "Look", found: "Prediction | DataError", extras: Sequence[str]
) -> dict[str, Any]:
    from components.records.maps import encode_map
    from components.serving.saliency import draw_saliency

    if isinstance(found, DataError):
        return {"error": found.to_dict()}
    said: dict[str, Any] = {"answer": found.answer, "label": None if found.answer.get("abstained") else found.label}
    said |= {"crop": found.crop, "probabilities": found.probabilities}
    if "class_map" in extras:
        encoded = None if found.class_map is None else encode_map(found.class_map)
        said["class_map"] = None if encoded is None else base64.b64encode(encoded).decode()
    if "found" in extras:
        said["found"] = found.found
    if "saliency" in extras and look.pixels is not None:
        grid = predictor.rack.explain(predictor.resident, look.pixels)
        said["saliency"] = draw_saliency(grid, predictor.meta, look)
    return said


def _read_lines(lines: Lines) -> None:
    """Pass on what the caller asks, and end this process with it."""
    for line in sys.stdin:
        lines.put(json.loads(line) if line.strip() else None)
    os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the replies are out; taking down torch in order would only make the caller wait
