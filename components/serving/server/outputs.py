"""Outputs of the Open Inference Protocol V2: what they are for each kind of answer, and how answers become them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.errors import TesseraError
from components.records.serving import Served
from components.serving.server.champions import Champion
from components.serving.server.tensors import Output

ERROR, SALIENCY = "error", "saliency"


@dataclass(frozen=True)
class Kind:
    """An output: how it is read from an answer, and what stands for an image that has none.

    per_class: one value per class, of which `read` returns a dict. encoded: bytes, read as base64.
    """

    datatype: str
    read: Callable[[Served], Any]
    blank: Any = ""
    per_class: bool = False
    encoded: bool = False


KINDS: Mapping[str, Kind] = {
    "label": Kind("BYTES", lambda answer: answer.label or ""),
    "abstained": Kind("BOOL", lambda answer: answer.abstained, blank=False),
    "labels": Kind("BYTES", lambda answer: dump(answer.labels), blank="[]"),
    "probabilities": Kind("FP64", lambda answer: answer.probabilities, blank=0.0, per_class=True),
    "mask": Kind("BYTES", lambda answer: answer.mask, encoded=True),
    "areas": Kind("INT64", lambda answer: answer.areas, blank=0, per_class=True),
    "components": Kind("BYTES", lambda answer: dump([one.model_dump() for one in answer.components or ()]), blank="[]"),
    "objects": Kind("BYTES", lambda answer: dump([one.model_dump() for one in answer.objects or ()]), blank="[]"),
    "counts": Kind("INT64", lambda answer: answer.counts, blank=0, per_class=True),
    SALIENCY: Kind("BYTES", lambda answer: answer.saliency, encoded=True),
}
#: By how a domain's images are annotated. Beside them there are `error` and, where it is asked for, `saliency`.
OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "label": ("label", "abstained", "probabilities"),
    "labels": ("label", "labels", "probabilities"),
    "mask": ("label", "mask", "areas", "components"),
    "boxes": ("label", "objects", "counts"),
}


def dump(value: Any) -> str:
    """A value that is no tensor, as JSON text."""
    return json.dumps(value, ensure_ascii=False)


def list_outputs(champion: Champion, *, saliency: bool) -> tuple[str, ...]:
    """What an answer has where no outputs are named."""
    return (*OUTPUTS[champion.resident.meta.task.annotation], *((SALIENCY,) if saliency else ()), ERROR)


def describe_outputs(champion: Champion) -> list[dict[str, Any]]:
    """The outputs as the metadata of a model has them, of any number of images (-1)."""
    classes, names = len(champion.resident.meta.classes), list_outputs(champion, saliency=False)
    kinds = {name: KINDS.get(name, Kind("BYTES", str)) for name in names}
    return [
        {"name": name, "datatype": kind.datatype, "shape": [-1, classes] if kind.per_class else [-1]}
        for name, kind in kinds.items()
    ]


def tabulate(name: str, answers: Sequence[Served | TesseraError], classes: Sequence[str]) -> Output:
    """One output for all images."""
    if name == ERROR:
        return Output(name, "BYTES", [str(one) if isinstance(one, TesseraError) else "" for one in answers])
    kind = KINDS[name]
    found = [kind.read(one) if isinstance(one, Served) else None for one in answers]
    if not kind.per_class:
        values = [kind.blank if one is None else one for one in found]
        return Output(name, kind.datatype, values, encoded=kind.encoded)
    rows = [[kind.blank if one is None else one[of] for of in classes] for one in found]
    return Output(name, kind.datatype, rows, width=len(classes))
