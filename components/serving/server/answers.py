"""Answers of the server as its records and as bytes: of a prediction, of an error, of the domains. No torch here."""

from collections.abc import Iterable

from components.errors import TesseraError
from components.models.adapter import AdapterMeta
from components.promotion.licences import trace_licences
from components.records.fields import ErrorRecord
from components.records.maps import ClassMap
from components.records.serving import Served, ServedDomain, ServedDomains, ServedError
from components.serving.describing import UNKNOWN, Prediction, list_doubts
from components.serving.map_files import encode_mask
from components.serving.saliency import encode_png
from components.serving.server.champions import Champion, Champions
from components.tasks.base import MapTask

JSON = "application/json"


def create_answer(champion: Champion, prediction: Prediction, request_id: str, saliency: str | None) -> Served:
    """The record of one answer. saliency: as `draw_saliency` returns it."""
    answer = prediction.answer
    abstained = bool(answer.get("abstained"))
    return Served(
        domain=champion.domain,
        version=champion.version,
        adapter_sha256=champion.adapter_sha256,
        id=request_id,
        label=None if abstained else prediction.label,
        probabilities=prediction.probabilities,
        labels=answer.get("labels"),
        abstained=abstained,
        objects=answer.get("objects"),
        counts=answer.get("counts"),
        areas=answer.get("areas"),
        components=answer.get("components"),
        mask=None if prediction.class_map is None else _draw_mask(champion.resident.meta, prediction.class_map),
        box=prediction.box,
        crop=prediction.crop,
        saliency=saliency,
        warnings=() if champion.resident.meta.input else (UNKNOWN,),
    )


def _draw_mask(meta: AdapterMeta, classes: ClassMap) -> str:
    """Base64 of a PNG of numbers, with the colours of their classes as its palette; the background is black."""
    background = meta.task.background_class if isinstance(meta.task, MapTask) else None
    return encode_png(encode_mask(classes, meta.classes, background))


def create_error(request_id: str, error: TesseraError) -> ServedError:
    return ServedError(id=request_id, error=ErrorRecord.of(error))


def write_answer(answer: Served | ServedError) -> bytes:
    """As JSON. Fields that this answer does not have are left out: their defaults say so."""
    return answer.model_dump_json(exclude_defaults=True).encode()


def write_answers(answers: Iterable[Served | ServedError]) -> bytes:
    return b"[" + b",".join(map(write_answer, answers)) + b"]"


def describe_champions(champions: Champions) -> ServedDomains:
    """All domains that are served or have a trouble, by name."""
    names = sorted({*champions, *champions.troubles})
    return ServedDomains(
        ready=champions.ready,
        stale=champions.stale,
        domains=tuple(_describe_domain(champions, name) for name in names),
    )


def _describe_domain(champions: Champions, name: str) -> ServedDomain:
    trouble, champion = champions.troubles.get(name, ""), champions.get(name)
    meta = champion.resident.meta if champion else None
    return ServedDomain(
        domain=name,
        version=champion.version if champion else None,
        adapter_sha256=champion.adapter_sha256 if champion else None,
        tuner=meta.label if meta else None,
        task=meta.task.kind if meta else None,
        annotation=meta.task.annotation if meta else None,
        classes=tuple(meta.classes) if meta else (),
        input=meta.input.kind if meta and meta.input else None,
        size=champion.resident.size if champion else 0,
        trouble=trouble,
        thresholds=(dict(meta.thresholds) or None) if meta else None,
        decision=meta.decision if meta else None,
        details=meta.input.model_dump(mode="json") if meta and meta.input else None,
        warnings=list_doubts(meta, champion.version, champion.adapter_sha256) if meta and champion else (),
        licences=trace_licences(meta.origin, None, None, name) if meta else (),
    )
