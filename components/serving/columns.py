"""Columns of requests and answers where both are tables, as MLflow's protocol has them: in its model and in the server.

A row of a request is an image, the base64 text of its file, and, where an adapter was trained on crops, a box. A row of
an answer has the columns that `AdapterMeta.outputs` names. No torch here.
"""

import base64
import binascii
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from components.data.sources.images import Box
from components.errors import DataError
from components.records.jobs import PROBABILITY
from components.serving.questions import parse_box
from components.tasks.decisions import find_alternative


def read_base64(text: object, row: int = 0) -> bytes:
    """The bytes of the image file in a row of a request. Raises DataError that names the row."""
    try:
        return base64.b64decode(text, validate=True)  # type: ignore[arg-type]  # what is no text raises TypeError
    except (binascii.Error, ValueError, TypeError) as error:
        raise refuse_image(row, str(error)) from None


def refuse_image(row: int, found: str) -> DataError:
    hint = 'Send {"dataframe_records": [{"image": "<base64>"}]}.'
    return DataError(f"image in row {row}", expected="the base64 text of a JPEG or PNG file", found=found, hint=hint)


def read_box(value: object, row: int = 0) -> Box | None:
    """The box in a row of a request, None where the cell is empty. Raises DataError that names the row."""
    missing = value is None or value != value or value == ""  # a missing cell is NaN in pandas
    return None if missing else parse_box(str(value), f"box in row {row}")


def flatten(answer: Mapping[str, Any], columns: Iterable[str]) -> dict[str, Any]:
    """One row: these columns of an answer.

    answer: the fields of `records.serving.Served`, as far as the task has them; of its classes, the columns take those
    that are answered: the background has no area. Where the model abstains, `label` is what the image counts as.
    """
    row = {name: answer[name] for name in ("label", "labels", "mask") if name in answer}
    row["abstained"] = bool(answer.get("abstained"))
    if row["abstained"]:
        row["label"] = find_alternative(answer["probabilities"])
    if answer.get("objects") is not None:
        row["objects"] = json.dumps(answer["objects"], ensure_ascii=False)
    row |= {f"{PROBABILITY}{name}": share for name, share in (answer.get("probabilities") or {}).items()}
    row |= {f"count_{name}": float(number) for name, number in (answer.get("counts") or {}).items()}
    components = Counter(one["label"] for one in answer.get("components") or ())
    for name, area in (answer.get("areas") or {}).items():
        row |= {f"area_{name}": float(area), f"components_{name}": float(components[name])}
    return {name: row[name] for name in columns}
