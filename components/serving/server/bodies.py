"""Bodies of requests as JSON, bounded before they are read: a megabyte of brackets would become a hundred of lists."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from components.errors import DataError

MOST_ROWS = 256  # images of one request
MOST_PARTS = 100_000  # signs between values of a JSON text: base64 has none of them
SHOWN = 200  # characters of what was found

Model = TypeVar("Model", bound=BaseModel)


def read_json(body: bytes, model: type[Model]) -> Model:
    """The body as this model. Raises DataError where it is no such JSON."""
    parts = sum(body.count(sign) for sign in b"[{,")
    if parts > MOST_PARTS:
        hint = "Send fewer images in a request, pictures as base64 texts, and pixels by the binary extension."
        raise refuse(f"JSON of at most {MOST_PARTS:,} values", f"{parts:,}", hint)
    try:
        return model.model_validate(from_json(body, allow_inf_nan=False, cache_strings="none"))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        found = f"{error.error_count()} problems, the first in `{where}`: {first['msg']}"
        raise refuse("what the OpenAPI page says of it", found, "See /docs.") from None
    except ValueError as error:
        raise refuse("a JSON object in UTF-8", str(error), "Send JSON, as /docs shows it.") from None


def refuse(expected: str, found: str, hint: str, what: str = "the body of the request") -> DataError:
    """An error that shows no more of what was found than a line."""
    return DataError(what, expected=expected, found=found if len(found) <= SHOWN else f"{found[:SHOWN]}…", hint=hint)


def describe_body(model: type[BaseModel], example: Any, *others: str) -> dict[str, Any]:
    """What OpenAPI says of a body that is JSON of this model, or one of these other media types."""
    schema = model.model_json_schema()
    inner = schema.pop("$defs", {})
    content = {"application/json": {"schema": _inline(schema, inner), "example": example}}
    content |= {kind: {"schema": {"type": "string", "format": "binary"}} for kind in others}
    return {"requestBody": {"required": True, "content": content}}


def _inline(schema: Any, inner: Mapping[str, Any]) -> Any:
    """References to definitions replaced by what they refer to: OpenAPI looks for them elsewhere."""
    if isinstance(schema, list):
        return [_inline(each, inner) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if name := schema.get("$ref"):
        return _inline(inner[name.rsplit("/", 1)[1]], inner)
    return {key: _inline(value, inner) for key, value in schema.items()}
