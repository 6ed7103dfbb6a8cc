"""Errors as each protocol writes them. No torch here.

Tessera's own       {"id": ..., "error": {"what": ..., "expected": ..., "found": ..., "hint": ..., ...}}
KServe's            {"error": "..."}
MLflow's            {"error_code": "BAD_REQUEST", "message": "..."}
"""

import json

from pydantic import BaseModel

from components.errors import TesseraError
from components.serving.server.answers import create_error, write_answer
from components.serving.server.metrics import name_request

#: MLflow's names of what a status says; of any other, BAD_REQUEST.
CODES = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    429: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class KserveFailure(BaseModel):
    """What KServe's protocol answers where it cannot answer."""

    error: str


class MlflowFailure(BaseModel):
    """What MLflow's server answers where it cannot answer."""

    error_code: str
    message: str


def write_failure(path: str, status: int, request_id: str, error: TesseraError) -> bytes:
    """The body of a response, as JSON, in the protocol of this path."""
    match name_request(path)[0]:
        case "kserve":
            return json.dumps({"error": str(error)}, ensure_ascii=False).encode(errors="replace")
        case "mlflow":
            failure = {"error_code": CODES.get(status, "BAD_REQUEST"), "message": str(error)}
            return json.dumps(failure, ensure_ascii=False).encode(errors="replace")
    return write_answer(create_error(request_id, error))
