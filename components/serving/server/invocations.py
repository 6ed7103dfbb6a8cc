"""MLflow's protocol over the champions: what asks `mlflow models serve` today asks here, under the domain's name.

    POST /{domain}/invocations             rows in, `{"predictions": [...]}` out, as `components.serving.pyfunc` answers
    GET  /{domain}/ping, /ping, /health    200 where that is served
    GET  /version                          MLflow's

A table is JSON (`dataframe_records`, `dataframe_split`, `instances` or `inputs`, with `params`) or csv, with a column
`image` of base64 texts and, where an adapter was trained on crops, a column `box`; other columns are passed over. As
with the model itself, one row that cannot be answered refuses the whole request: a caller of MLflow's protocol expects
one row of answer per row of the request.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from mlflow.version import VERSION
from pydantic import BaseModel, ConfigDict, StrictBool
from starlette.concurrency import run_in_threadpool

from components.errors import DataError, TesseraError
from components.serving.columns import flatten, read_base64, read_box
from components.serving.server.bodies import MOST_ROWS, describe_body, read_json, refuse
from components.serving.server.door import read_id
from components.serving.server.failures import MlflowFailure
from components.serving.server.service import Asked, Refusal, Service

FORMS = ("dataframe_records", "dataframe_split", "instances", "inputs")
FAILURES = (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504)
JSON, CSV = "application/json", "text/csv"
EXAMPLE = {"dataframe_records": [{"image": "<base64 of an image file>"}]}
TEXT = {"description": "Plain text", "content": {"text/plain": {"schema": {"type": "string"}}}}
PLAIN: dict[str, Any] = {"response_class": Response, "responses": {200: TEXT}}
Table = Mapping[str, Sequence[Any]]


class Params(BaseModel):
    """whole: every image is a crop already."""

    model_config = ConfigDict(extra="forbid")

    whole: StrictBool = False


class Split(BaseModel):
    """A table as pandas writes it with `orient="split"`."""

    columns: list[str]
    data: list[list[Any]]


class Invocation(BaseModel):
    """The JSON of a request: one of four forms of a table. `inputs` are columns, or rows."""

    model_config = ConfigDict(extra="forbid")

    dataframe_records: list[dict[str, Any]] | None = None
    dataframe_split: Split | None = None
    instances: list[dict[str, Any]] | None = None
    inputs: dict[str, list[Any]] | list[dict[str, Any]] | None = None
    params: Params | None = None


def router(service: Service) -> APIRouter:
    """The routes above."""
    failures: dict[int | str, dict[str, Any]] = {status: {"model": MlflowFailure} for status in FAILURES}
    routes = APIRouter(tags=["MLflow's protocol"], responses=failures)

    @routes.get("/version", **PLAIN)
    async def version() -> Response:
        return PlainTextResponse(VERSION)

    @routes.get("/ping", **PLAIN)
    @routes.get("/health", **PLAIN)
    async def ping() -> Response:
        service.require_ready()
        return PlainTextResponse("\n")

    @routes.get("/{domain}/ping", **PLAIN)
    async def ping_domain(domain: str) -> Response:
        service.require_champion(domain)
        return PlainTextResponse("\n")

    @routes.post("/{domain}/invocations", openapi_extra=describe_body(Invocation, EXAMPLE, CSV))
    async def invocations(request: Request, domain: str) -> JSONResponse:
        champion, body = service.require_champion(domain), await request.body()
        try:
            asked, whole = await run_in_threadpool(_read, body, request.headers.get("content-type", JSON))
        except DataError as error:
            raise Refusal(400, error) from None
        options: dict[str, Any] = {"champion": champion, "whole": whole, "id": read_id(request)}
        answers = await service.ask(domain, asked, **options) if asked else []
        columns = list(champion.resident.meta.outputs)
        rows = []
        for answer in answers:
            if isinstance(answer, TesseraError):
                raise Refusal(400, answer)
            rows.append(flatten(answer.model_dump(mode="json"), columns))
        return JSONResponse({"predictions": rows})

    return routes


def _read(body: bytes, content_type: str) -> tuple[list[Asked], bool]:
    """The questions of a request, and whether every image is a crop already. Raises DataError, and Refusal for another
    media type."""
    kind, *_ = content_type.split(";")
    kind = kind.strip().lower()
    if kind == CSV:
        return _create_questions(_read_csv(body)), False
    if kind != JSON:
        what = "the content type"
        error = refuse(f"{JSON} or {CSV}", content_type, "Say what the body is.", what)
        raise Refusal(415, error)
    asking = read_json(body, Invocation)
    given = [name for name in FORMS if getattr(asking, name) is not None]
    if len(given) != 1:
        raise refuse(f"one of {', '.join(FORMS)}", ", ".join(given) or "none", "See /docs.")
    whole = asking.params is not None and asking.params.whole
    return _create_questions(_list_columns(getattr(asking, given[0]))), whole


def _list_columns(given: Any) -> Table:
    """The columns `image` and `box` of a table in any of its forms."""
    if isinstance(given, Split):
        if strange := [row for row, values in enumerate(given.data) if len(values) != len(given.columns)]:
            found = f"{len(given.data[strange[0]])} in row {strange[0]}"
            raise refuse(f"{len(given.columns)} values in each row", found, "Correct it.", "dataframe_split")
        given = [dict(zip(given.columns, values, strict=True)) for values in given.data]
    if isinstance(given, dict):
        return {name: given[name] for name in ("image", "box") if name in given}
    names = [name for name in ("image", "box") if any(name in row for row in given)]
    return {name: [row.get(name) for row in given] for name in names}


def _read_csv(body: bytes) -> Table:
    csv.field_size_limit(2**31 - 1)  # of the process; bodies are bounded, and an image is one field
    try:
        rows = list(csv.DictReader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise refuse(
            "a csv table in UTF-8 with a header line", str(error), "Write it with `DataFrame.to_csv`."
        ) from None
    return _list_columns(rows)


def _create_questions(table: Table) -> list[Asked]:
    images = table.get("image")
    if images is None:
        raise refuse("a column `image`", "none", f"Send {EXAMPLE}.", "the table")
    boxes = table.get("box", [None] * len(images))
    if len(boxes) != len(images) or len(images) > MOST_ROWS:
        found = f"{len(images)} images and {len(boxes)} boxes"
        raise refuse(f"columns of one length, at most {MOST_ROWS} rows", found, "Send several requests.", "the table")
    both = enumerate(zip(images, boxes, strict=True))
    return [Asked(read_base64(text, row), read_box(box, row), f"image in row {row}") for row, (text, box) in both]
