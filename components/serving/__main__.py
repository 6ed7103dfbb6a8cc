"""`python -m components.serving`: answer one request in a process of its own, so that whoever asks needs no torch.

It loads torch first, so a caller starts it early. Then it reads one line of JSON from stdin and writes one to stdout:

    {"adapter": FOLDER, "questions": [{"path": FILE, "box": [x0, y0, x1, y1] or null}, ...], "whole": false}
    {"doubt": "", "answers": [{"answer": {...}, "probabilities": {...} or null, "crop": [...], "class_map": null or the
                               base64 text of `encode_map`, "found": null or [[label, box, confidence, shown], ...]}
                              or {"error": {...}}, ...]}

Where the request as a whole cannot be answered the reply is `{"error": {...}}`, and the exit code is that error's.
When stdin closes the process ends at once, for nobody waits for the reply.
"""

import base64
import functools
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from components.errors import DataError, TesseraError


def main() -> int:
    # stdout belongs to the reply; whatever a library prints goes to stderr.
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import components.serving.predictor  # noqa: F401  torch loads here, before the request is there

    line = sys.stdin.readline()
    if not line:
        return 0
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code = 0
    try:
        answer = answer_request(json.loads(line))
    except TesseraError as error:
        answer, code = {"error": error.to_dict()}, error.exit_code
    reply.write(json.dumps(answer) + "\n")
    reply.flush()
    return code


def answer_request(request: dict[str, Any]) -> dict[str, Any]:
    """The reply as the module describes it. Raises AdapterError, BackboneError, or DataError about the boxes."""
    from components.records.maps import encode_map
    from components.serving.predictor import Predictor
    from components.serving.questions import Question

    predictor = Predictor(Path(request["adapter"]))
    path = functools.cache(Path)  # one object per picture, by which the predictor decodes it once for all its boxes
    questions = [
        Question(path(asked["path"]), None if asked["box"] is None else tuple(asked["box"]))
        for asked in request["questions"]
    ]
    answers = [
        {"error": found.to_dict()}
        if isinstance(found, DataError)
        else {
            "answer": found.answer,
            "probabilities": found.probabilities,
            "crop": found.crop,
            "class_map": None if found.class_map is None else base64.b64encode(encode_map(found.class_map)).decode(),
            "found": found.found,
        }
        for found in predictor.answer(questions, whole=request["whole"])
    ]
    return {"doubt": predictor.doubt, "answers": answers}


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the reply is out; taking down torch in order would only make the caller wait
