"""What was answered for one question, as a record for people and as a row of a table. Nothing heavy is imported here.

`said` is an answer as `components/serving/__main__.py` describes it: `answer`, `label`, `crop` and `probabilities`, or
`error`.

A row has, for every task, `path`, `sha256` (of the file's bytes), `box`, `crop`, `label`, the columns of the task,
`version`, `adapter_sha256` and `error`:

    label     abstained, p_<class>
    labels    labels, p_<class>
    mask      area_<class> in pixels, components
    boxes     count_<class>, objects
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from components.errors import DataError
from components.records.fields import Box, ErrorRecord
from components.records.predictions import Answer, BoxesAnswer, LabelsAnswer, MapAnswer
from components.serving.questions import Question

#: The record of an answer, by a key that only such answers have.
KINDS: Mapping[str, type[Answer]] = {"areas": MapAnswer, "objects": BoxesAnswer, "labels": LabelsAnswer}

Kind = Literal["text", "share", "count", "flag", "box", "texts", "objects", "components"]
Row = dict[str, Any]  # by column; the values as JSON has them


@dataclass(frozen=True)
class Column:
    """One column of a table. kind: what its cells hold; each may be empty."""

    name: str
    kind: Kind


def list_columns(annotation: str, classes: Sequence[str]) -> list[Column]:
    """The columns of a table of answers. annotation: what is answered: label, labels, mask or boxes."""
    own = {
        "label": [Column("abstained", "flag"), *(Column(f"p_{name}", "share") for name in classes)],
        "labels": [Column("labels", "texts"), *(Column(f"p_{name}", "share") for name in classes)],
        "mask": [*(Column(f"area_{name}", "count") for name in classes), Column("components", "components")],
        "boxes": [*(Column(f"count_{name}", "count") for name in classes), Column("objects", "objects")],
    }
    asked = [Column("path", "text"), Column("sha256", "text"), Column("box", "box"), Column("crop", "box")]
    origin = [Column("version", "count"), Column("adapter_sha256", "text"), Column("error", "text")]
    return [*asked, Column("label", "text"), *own[annotation], *origin]


def create_row(said: Mapping[str, Any], columns: Sequence[Column]) -> Row:
    """The cells that one answer fills, by column; the others are None."""
    row: Row = dict.fromkeys((column.name for column in columns), None)
    if "error" in said:
        error = said["error"]  # without its name: the row has the path, and a copy of the file another one
        return row | {"error": f"expected {error['expected']}; found {error['found']}. {error['hint']}"}
    answer = said["answer"]
    row |= {"crop": said["crop"], "label": said["label"]}
    row |= {f"p_{name}": share for name, share in (said["probabilities"] or {}).items() if f"p_{name}" in row}
    row |= {f"area_{name}": area for name, area in answer.get("areas", {}).items()}
    row |= {f"count_{name}": count for name, count in answer.get("counts", {}).items()}
    row |= {name: answer[name] for name in ("labels", "components", "objects") if name in row and name in answer}
    return row | ({"abstained": bool(answer.get("abstained"))} if "abstained" in row else {})


def list_shown(row: Row) -> list[str]:
    """The classes that a row answers: one or several labels, or those that a mask or boxes show."""
    if row.get("labels") is not None:
        return list(row["labels"])
    for key in ("components", "objects"):
        if row.get(key) is not None:
            return list(Counter(one["label"] for one in row[key]))
    return [row["label"]] if row["label"] is not None else []


def describe(asked: Question | DataError, said: Mapping[str, Any], version: int) -> Answer:
    """The record of one answer; `label` is the answer as one text."""
    path, box = name_path(asked), asked.box if isinstance(asked, Question) else None
    if "error" in said:
        error = ErrorRecord.model_validate(said["error"])
        return Answer(path=path, box=box, crop=None, label=None, probabilities=None, model_version=version, error=error)
    facts = {"path": path, "box": box, "crop": said["crop"], **said["answer"], "label": said["label"]}
    facts |= {"probabilities": said["probabilities"], "model_version": version, "error": None}
    form = next((form for key, form in KINDS.items() if key in facts), Answer)
    return form.model_validate(facts)


def name_path(asked: Question | DataError) -> str:
    """A question's path in records and tables; bytes of a name that are no text are written as `\\xff`."""
    path = asked.what if isinstance(asked, DataError) else asked.name or asked.path
    return os.fsencode(path).decode(errors="backslashreplace")


def to_key(sha256: str | None, box: Box | None) -> bytes | None:
    """What a question is known by: the content of its file, and its box; None for a file that cannot be read, and for
    what is no such hash or box."""
    try:
        return None if sha256 is None else bytes.fromhex(sha256) + " ".join(map(str, box or ())).encode()
    except (ValueError, TypeError):
        return None
