"""KServe's Open Inference Protocol V2 over the champions: Triton's, MLServer's, OVMS's and KServe's clients ask here.

    GET  /v2                                              the server
    GET  /v2/models/{domain}[/versions/{n}][/ready]       inputs and outputs of a champion; whether it is served
    POST /v2/models/{domain}[/versions/{n}]/infer         answers

Inputs: `image`, BYTES [N] or [N, 1], files of images as bytes (the binary tensor data extension) or as base64 texts
(JSON), or their pixels, UINT8 [N, height, width, 3] as bytes; and `box`, BYTES, "x0 y0 x1 y1", "" for none. Parameters
of a request: `whole`, `saliency`. Outputs depend on what the domain answers (`outputs.OUTPUTS`). `error` holds, for
each image, why it could not be answered; where one could not, it is part of the answer whether it was asked for or not.
A request of which no image could be answered is refused.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from PIL import Image
from starlette.concurrency import run_in_threadpool

from components.errors import DataError, TesseraError
from components.records.serving import Served
from components.serving.columns import read_base64, read_box
from components.serving.server.bodies import describe_body, refuse
from components.serving.server.champions import Champion
from components.serving.server.door import read_id
from components.serving.server.failures import KserveFailure
from components.serving.server.outputs import ERROR, SALIENCY, describe_outputs, dump, list_outputs, tabulate
from components.serving.server.service import Asked, Refusal, Service
from components.serving.server.tensors import BINARY, HEADER, InferRequest, Input, read_request, write_answer

EXAMPLE = {
    "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["<base64 of an image file>"]}],
    "outputs": [{"name": "label"}],
}
FAILURES = (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504)
NO_VERSION = -1  # what is no number
NAMED = "GET /v2/models/{domain} names what there is."


def router(service: Service) -> APIRouter:
    """The routes above; health is answered beside them."""
    failures: dict[int | str, dict[str, Any]] = {status: {"model": KserveFailure} for status in FAILURES}
    routes = APIRouter(tags=["Open Inference Protocol V2"], responses=failures)

    async def find(domain: str) -> Champion:
        return service.require_champion(domain)

    async def find_version(domain: str, version: str) -> Champion:
        return service.require_champion(domain, int(version) if re.fullmatch("[0-9]{1,9}", version) else NO_VERSION)

    @routes.get("/v2")
    async def describe_server() -> dict[str, Any]:
        return {"name": "tessera", "version": installed_version("tessera"), "extensions": ["binary_tensor_data"]}

    _add_model(routes, "/v2/models/{domain}", Depends(find), service)
    _add_model(routes, "/v2/models/{domain}/versions/{version}", Depends(find_version), service)
    return routes


def _add_model(routes: APIRouter, path: str, found: Any, service: Service) -> None:
    @routes.get(path)
    async def describe_model(champion: Annotated[Any, found]) -> dict[str, Any]:
        return _describe_model(champion)

    @routes.get(f"{path}/ready")
    async def is_ready(champion: Annotated[Any, found]) -> dict[str, Any]:
        return {"name": champion.domain, "ready": True}

    @routes.post(f"{path}/infer", openapi_extra=describe_body(InferRequest, EXAMPLE, BINARY))
    async def infer(request: Request, champion: Annotated[Any, found]) -> Response:
        body = await request.body()
        try:
            asking = await run_in_threadpool(_read, body, request.headers.get(HEADER), champion)
        except DataError as error:
            raise Refusal(400, error) from None
        return await _answer(service, champion, asking, asking.id or read_id(request))


@dataclass(frozen=True)
class Asking:
    """A request. An error stands in the place of an image that cannot be read. outputs: names, each with whether it is
    answered as bytes."""

    id: str
    questions: Sequence[Asked | DataError]
    whole: bool
    saliency: bool
    outputs: Mapping[str, bool]
    binary: bool


def _describe_model(champion: Champion) -> dict[str, Any]:
    meta = champion.resident.meta
    kind = meta.input.kind if meta.input else "either"
    boxes = () if kind == "picture" or meta.task.annotation == "boxes" else ("box",)
    facts = {"adapter_sha256": champion.adapter_sha256, "task": meta.task.kind, "tuner": meta.label}
    return {
        "name": champion.domain,
        "versions": [str(champion.version)],
        "platform": "tessera",
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in ("image", *boxes)],
        "outputs": describe_outputs(champion),
        "properties": {**facts, "input": kind, "classes": dump(meta.classes)},
    }


def _read(body: bytes, header: str | None, champion: Champion) -> Asking:
    """A body as what it asks. Raises DataError."""
    request, inputs = read_request(body, header)
    if "image" not in inputs or (strange := [name for name in inputs if name not in ("image", "box")]):
        found = "no `image`" if "image" not in inputs else f"`{strange[0][:80]}` too"
        raise refuse("the input `image`, and at most `box` beside it", found, NAMED)
    flags = {name: request.parameters.get(name, False) for name in ("whole", "saliency", "binary_data_output")}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise refuse("true or false", str(flag)[:40], "Correct it.", f"the parameter `{name}`")
    names = list_outputs(champion, saliency=True)
    wanted = {one.name: _wants_bytes(one.parameters, flags["binary_data_output"]) for one in request.outputs or ()}
    if unknown := [name for name in wanted if name not in names]:
        raise refuse(f"outputs of {', '.join(names)}", unknown[0], NAMED)
    saliency = flags["saliency"] or SALIENCY in wanted
    if request.outputs is None:
        wanted = dict.fromkeys(list_outputs(champion, saliency=saliency), flags["binary_data_output"])
    return Asking(request.id, _read_questions(inputs), flags["whole"], saliency, wanted, flags["binary_data_output"])


def _wants_bytes(parameters: Mapping[str, Any], default: bool) -> bool:
    for name, value in parameters.items():
        if value and name != "binary_data":  # ranked classes and shared memory, for instance
            found = f"the parameter `{name[:40]}`"
            raise refuse("outputs as they are", found, "Leave it out: it is not supported.", "the outputs")
    chosen = parameters.get("binary_data", default)
    if not isinstance(chosen, bool):
        raise refuse("true or false", str(chosen)[:40], "Correct it.", "the parameter `binary_data`")
    return chosen


def _read_questions(inputs: Mapping[str, Input]) -> list[Asked | DataError]:
    image = inputs["image"]
    pixels = image.tensor.datatype == "UINT8"
    images: Sequence[Any] = image.list_pixels() if pixels else image.list_texts()
    boxes: Sequence[Any] = inputs["box"].list_texts() if "box" in inputs else [""] * len(images)
    if len(boxes) != len(images):
        raise refuse(
            f"a box per image, {len(images)}", str(len(boxes)), 'Write "" where there is none.', "the input `box`"
        )
    return [_read_question(*both, row) for row, both in enumerate(zip(images, boxes, strict=True))]


def _read_question(image: Any, box: str | bytes, row: int) -> Asked | DataError:
    """image: bytes of a file, their base64 text, or pixels (H, W, 3)."""
    try:
        text = box if isinstance(box, str) else box.decode(errors="replace")
        data = (
            image if isinstance(image, bytes) else read_base64(image, row) if isinstance(image, str) else _encode(image)
        )
        return Asked(data, read_box(text, row), f"image in row {row}")
    except DataError as error:
        return error


def _encode(pixels: Any) -> bytes:
    """Pixels as a file, so that they pass what every image passes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


async def _answer(service: Service, champion: Champion, asking: Asking, request_id: str) -> Response:
    fit = [one for one in asking.questions if isinstance(one, Asked)]
    options: dict[str, Any] = {"champion": champion, "whole": asking.whole, "saliency": asking.saliency}
    found = iter(await service.ask(champion.domain, fit, **options, id=request_id) if fit else ())
    answers = [next(found) if isinstance(one, Asked) else one for one in asking.questions]
    served = [one for one in answers if isinstance(one, Served)]
    if not served:
        raise Refusal(422, next(one for one in answers if isinstance(one, TesseraError)))
    wanted = dict(asking.outputs)
    if len(served) < len(answers):
        wanted.setdefault(ERROR, asking.binary)
    facts = {"adapter_sha256": champion.adapter_sha256, "classes": dump(champion.resident.meta.classes)}
    if served[0].warnings:
        facts["warnings"] = " ".join(served[0].warnings)
    head = {
        "model_name": champion.domain,
        "model_version": str(champion.version),
        "id": request_id,
        "parameters": facts,
    }
    outputs = [(tabulate(name, answers, champion.resident.meta.classes), binary) for name, binary in wanted.items()]
    body, size = await run_in_threadpool(write_answer, head, outputs)
    if size is None:
        return Response(body, media_type="application/json")
    return Response(body, media_type=BINARY, headers={HEADER: str(size)})
