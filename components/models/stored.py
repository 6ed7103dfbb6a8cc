"""Backbones as files: what a safetensors file says of itself, read without torch and without its tensors.

stored = read_stored(path)          names, shapes, metadata
stored.hash_tensors()               `Backbone.sha256`, from the bytes of the file
"""

import hashlib
import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import BackboneError

LONGEST = 100_000_000  # bytes of a header, as the safetensors library has it
CLASSIFIER = "head."  # not part of a backbone
#: Data types of safetensors -> torch's names.
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file. begin, end: its bytes, counted from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Stored:
    """The header of a safetensors file, without its classifier."""

    path: Path
    metadata: dict[str, str]
    entries: dict[str, Entry]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def parameters(self) -> int:
        return sum(math.prod(entry.shape) for entry in self.entries.values())

    def hash_tensors(self) -> str:
        """sha256 over name, dtype, shape and bytes of every tensor, as `backbones.hash_tensors` computes it."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for name, entry in sorted(self.entries.items()):
                digest.update(f"{name} {DTYPES.get(entry.dtype, entry.dtype)} {list(entry.shape)}\n".encode())
                with memoryview(data)[entry.begin : entry.end] as part:
                    digest.update(part)
        return digest.hexdigest()


def read_stored(path: Path) -> Stored:
    """Raises BackboneError for what is no safetensors file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, LONGEST)))
        metadata = header.pop("__metadata__", {})
        entries = {name: _read_entry(said, 8 + length) for name, said in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found = " ".join(str(error).split())[:200]
        hint = "Copy or download it again."
        raise BackboneError(f"backbone {path}", expected="a safetensors file", found=found, hint=hint) from None
    kept = {name: entry for name, entry in entries.items() if not name.startswith(CLASSIFIER)}
    return Stored(path, metadata, kept)


def _read_entry(said: dict[str, Any], start: int) -> Entry:
    begin, end = said["data_offsets"]
    return Entry(said["dtype"], tuple(said["shape"]), start + begin, start + end)
