"""Tensors of the Open Inference Protocol V2 on the wire: in the JSON of a body, or as bytes after it.

Bytes are little-endian and in the order of the tensors; each element of the datatype BYTES follows its length in four
bytes. A tensor says how many of these bytes are its own (`binary_data_size`), and a header how many of the body are
JSON (`Inference-Header-Content-Length`).
"""

import base64
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from components.serving.server.bodies import MOST_ROWS, read_json, refuse

HEADER = "Inference-Header-Content-Length"
BINARY = "application/octet-stream"
DTYPES = {"FP64": "<f8", "INT64": "<i8", "BOOL": "?"}
Parameters = Annotated[dict[str, Any], Field(default_factory=dict)]


class Tensor(BaseModel):
    """An input. data: absent where its bytes follow the JSON."""

    model_config = ConfigDict(frozen=True)

    name: str
    datatype: str
    shape: tuple[StrictInt, ...]
    parameters: Parameters
    data: list[Any] | None = None


class Wanted(BaseModel):
    """An output that is asked for."""

    model_config = ConfigDict(frozen=True)

    name: str
    parameters: Parameters


class InferRequest(BaseModel):
    """The JSON of a request. What the protocol knows beside it is passed over."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(default="", max_length=200)
    parameters: Parameters
    inputs: tuple[Tensor, ...]
    outputs: tuple[Wanted, ...] | None = None


@dataclass(frozen=True)
class Input:
    """An input as it came: `raw` bytes, or the values of `tensor.data`."""

    tensor: Tensor
    raw: memoryview | None

    def list_texts(self) -> list[str | bytes]:
        """The elements of a tensor BYTES [N] or [N, 1]: bytes if they came as bytes, else texts. Raises DataError."""
        rows = self._count_rows()
        found = list(_flatten(self.tensor.data or ())) if self.raw is None else list(_split(self.raw, self.tensor.name))
        if len(found) != rows:
            raise self._refuse(f"{rows} elements, as its shape says", str(len(found)), "Correct the shape.")
        if strange := [one for one in found if not isinstance(one, str | bytes)]:
            shown = f"{type(strange[0]).__name__} {str(strange[0])[:40]}"
            raise self._refuse("texts", shown, "Images are base64 texts.")
        return found

    def list_pixels(self) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
        """The pictures (H, W, 3) of a tensor UINT8 [N, H, W, 3]. Raises DataError."""
        shape = self.tensor.shape
        if len(shape) != 4 or shape[3] != 3 or min(shape) < 1 or shape[0] > MOST_ROWS:
            expected = f"the shape [N, height, width, 3], N at most {MOST_ROWS}"
            raise self._refuse(expected, str(list(shape)[:8]), "Send image files as BYTES to let the server decode.")
        if self.raw is None:
            hint = "Use the binary extension, or send image files as BYTES."
            raise self._refuse("the bytes of UINT8 pixels after the JSON", "values in JSON", hint)
        if len(self.raw) != math.prod(shape):
            raise self._refuse(f"{math.prod(shape):,} bytes, as its shape says", f"{len(self.raw):,}", "Correct it.")
        return list(np.frombuffer(self.raw, np.uint8).reshape(shape))

    def _count_rows(self) -> int:
        shape = self.tensor.shape
        if self.tensor.datatype != "BYTES":
            hint = "Pictures may also be UINT8 [N, height, width, 3]." if self.tensor.name == "image" else "Correct it."
            raise self._refuse("the datatype BYTES", self.tensor.datatype, hint)
        if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)) or not 1 <= shape[0] <= MOST_ROWS:
            hint = "Send more images in several requests."
            raise self._refuse(f"the shape [N] or [N, 1], N from 1 to {MOST_ROWS}", str(list(shape)[:8]), hint)
        return shape[0]

    def _refuse(self, expected: str, found: str, hint: str) -> Exception:
        return refuse(expected, found, hint, f"the input `{self.tensor.name[:80]}`")


def read_request(body: bytes, header: str | None) -> tuple[InferRequest, dict[str, Input]]:
    """A request and its inputs by name. header: what stands in HEADER, None where it is absent. Raises DataError."""
    size = len(body) if header is None else _read_size(header)
    if size is None or size > len(body):
        expected = f"a number up to the {len(body):,} bytes of the body"
        raise refuse(expected, str(header), "Send the length of the JSON.", f"the header {HEADER}")
    request, rest = read_json(body[:size], InferRequest), memoryview(body)[size:]
    inputs: dict[str, Input] = {}
    for tensor in request.inputs:
        own = tensor.parameters.get("binary_data_size")
        if own is not None and (type(own) is not int or not 0 <= own <= len(rest)):
            found = f"{str(own)[:40]} for `{tensor.name[:80]}`, and {len(rest):,} bytes left"
            raise refuse("a binary_data_size of bytes that follow the JSON", found, "Correct it.")
        if (own is None) == (tensor.data is None) or tensor.name in inputs:
            found = "the name twice" if tensor.name in inputs else "neither" if own is None else "both"
            hint = "Shared memory is not supported."
            raise refuse("data or binary_data_size", found, hint, f"the input `{tensor.name[:80]}`")
        inputs[tensor.name], rest = Input(tensor, None if own is None else rest[:own]), rest[own or 0 :]
    if len(rest):
        raise refuse("the bytes of the inputs alone after the JSON", f"{len(rest):,} more", "Correct binary_data_size.")
    return request, inputs


def _read_size(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 15 else None


def _flatten(data: Sequence[Any]) -> Iterator[Any]:
    """The elements of [N] or [N, 1]."""
    for one in data:
        yield from one if isinstance(one, list) and len(one) == 1 else (one,)


def _split(raw: memoryview, name: str) -> Iterator[bytes]:
    """The elements of a tensor BYTES. Raises DataError where a length leads out of the tensor."""
    start = 0
    while start < len(raw):
        end = start + 4
        length = struct.unpack("<I", raw[start:end])[0] if end <= len(raw) else 0
        if end + length > len(raw):
            found = f"a length of {length:,} with {max(len(raw) - end, 0):,} bytes left"
            raise refuse(
                "each element after its length in four bytes", found, "Correct it.", f"the input `{name[:80]}`"
            )
        yield bytes(raw[end : end + length])
        start = end + length


@dataclass(frozen=True)
class Output:
    """An output: a value per image, or a list of `width` values. encoded: bytes, as base64 texts."""

    name: str
    datatype: str
    values: Sequence[Any]
    width: int | None = None
    encoded: bool = False

    def describe(self) -> dict[str, Any]:
        shape = [len(self.values), *(() if self.width is None else (self.width,))]
        return {"name": self.name, "datatype": self.datatype, "shape": shape}

    def to_list(self) -> list[Any]:
        return list(self.values) if self.width is None else [one for row in self.values for one in row]

    def to_bytes(self) -> bytes:
        if self.datatype != "BYTES":
            return np.asarray(self.values, DTYPES[self.datatype]).tobytes()
        parts = [base64.b64decode(value) if self.encoded else value.encode() for value in self.values]
        return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def write_answer(head: Mapping[str, Any], outputs: Sequence[tuple[Output, bool]]) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON where bytes follow it. outputs: each with whether as bytes."""
    described, parts = [], []
    for output, binary in outputs:
        if binary:
            parts.append(output.to_bytes())
            described.append({**output.describe(), "parameters": {"binary_data_size": len(parts[-1])}})
        else:
            described.append({**output.describe(), "data": output.to_list()})
    text = json.dumps({**head, "outputs": described}, ensure_ascii=False, allow_nan=False).encode()
    return b"".join((text, *parts)), len(text) if parts else None
