"""The application: routes of `POST /predict/{domain}`, the list of champions, health, metrics and pages.

    app = create_app(open_service(champions), token)

Every error is a `ServedError` as JSON. The OpenAPI document is at /openapi.json and, to try it out, at /docs; neither
loads anything from elsewhere.
"""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version as find_version
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi_swagger import patch_fastapi
from starlette.exceptions import HTTPException

from components.data.sources.images import Box
from components.errors import DataError, TesseraError
from components.records.serving import Served, ServedDomains, ServedError
from components.serving.questions import parse_box
from components.serving.server import invocations, kserve, page
from components.serving.server.access import is_open
from components.serving.server.answers import JSON, create_error, describe_champions, write_answer, write_answers
from components.serving.server.door import Door, read_id
from components.serving.server.failures import write_failure
from components.serving.server.metrics import MEDIA_TYPE
from components.serving.server.service import Asked, Refusal, Service

#: Every status that any route may answer with, beside 200.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ServedError, "description": text}
    for status, text in {
        400: "The request is not HTTP",
        401: "The token is missing or wrong",
        403: "The request comes from another machine or page",
        404: "No such domain, version or page",
        405: "Another method is expected here",
        408: "The body did not come in time",
        413: "The body is too large",
        415: "The body is compressed, or of a type that is not read here",
        422: "The image, a box or a parameter is unfit",
        429: "The queue is full; Retry-After says when to ask again",
        500: "A defect of the server",
        503: "The server starts or ends",
        504: "The answer was not there in time",
    }.items()
}
BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of one image, whatever Content-Type says.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
Domain = Annotated[str, PathParameter(description="Name of the domain.")]


def create_app(service: Service, token: str = "") -> FastAPI:
    """The ASGI application. token: what requests must bring; "" admits those of this machine alone."""
    app = FastAPI(
        title="Tessera",
        description="Every domain's champion on one resident backbone.",
        version=find_version("tessera"),
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        separate_input_output_schemas=False,
        responses=ERRORS,
    )
    app.add_middleware(Door, service=service, token=token)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(TesseraError, _answer_error)
    _add_answers(app, service)
    app.include_router(kserve.router(service))
    app.include_router(invocations.router(service))
    _add_pages(app, service)
    if token:
        app.openapi = partial(_describe_token, app.openapi)  # type: ignore[method-assign]
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/predict/{domain}", openapi_extra=BODY, response_model=Served | list[Served | ServedError])
    async def predict(
        request: Request,
        domain: Domain,
        box: Annotated[list[str], Query(description="x0,y0,x1,y1 in pixels; several give a list of answers.")] = [],  # noqa: B006
        whole: Annotated[bool, Query(description="The image is such a crop already as the champion learned.")] = False,
        saliency: Annotated[bool, Query(description="Draw what speaks for the answer, too.")] = False,
        version: Annotated[int | None, Query(description="Refuse to answer with another version.", ge=1)] = None,
    ) -> Response:
        """The champion's answer for the image in the body; with several boxes, a list with one item per box."""
        image, name = await request.body(), read_id(request)
        boxes: list[Box | None] = [parse_box(text, "the parameter box") for text in box]
        asked = [Asked(image, one) for one in boxes or [None]]
        answers = await service.ask(domain, asked, version=version, whole=whole, saliency=saliency, id=name)
        errors = [answer for answer in answers if isinstance(answer, TesseraError)]
        if len(errors) == len(answers):
            raise Refusal(422, errors[0])
        records = [create_error(name, one) if isinstance(one, TesseraError) else one for one in answers]
        return Response(write_answers(records) if len(boxes) > 1 else write_answer(records[0]), media_type=JSON)

    @app.get("/champions", response_model=ServedDomains)
    async def champions() -> Response:
        """Every domain that is served, and why one is not."""
        return Response(describe_champions(service.champions).model_dump_json(), media_type=JSON)

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        """Whether the server runs."""
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        """Whether the registry was read and the server accepts requests; 503 where not."""
        service.require_ready()
        return {"ready": True}


def _add_pages(app: FastAPI, service: Service) -> None:
    metrics: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text"}
    }

    @app.get("/metrics", response_class=Response, responses=metrics)
    async def measure() -> Response:
        """What the server measures, for Prometheus."""
        return Response(service.metrics.write(), media_type=MEDIA_TYPE)

    app.include_router(page.router)
    # The badge of a validator elsewhere would be loaded from there.
    parameters = {"validatorUrl": None, "persistAuthorization": False, "displayRequestDuration": True}
    patch_fastapi(app, redirect_from_root_to_docs=False, swagger_ui_parameters=parameters)


def _describe_token(describe: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The OpenAPI document, with what the token protects."""
    document = describe()
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if not is_open({"path": path, "method": method.upper()}):
                operation["security"] = [{"token": []}]
    return document


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    expected = "one of the paths and methods that /docs lists"
    found = "another method" if error.status_code == 405 else str(error.detail)
    described = TesseraError(where, expected=expected, found=found, hint="Correct the address.")
    return _answer(request, error.status_code, described, error.headers)


async def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = " ".join(str(part) for part in first["loc"])
    hint = "/docs describes every parameter."
    return _answer(request, 422, DataError(where, expected="a fit value", found=str(first["msg"]), hint=hint))


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TesseraError)
    return _answer(request, 422, error)


def _answer(request: Request, status: int, error: TesseraError, headers: Any = None) -> Response:
    body = write_failure(request.url.path, status, read_id(request), error)
    return Response(body, status, headers, JSON)
