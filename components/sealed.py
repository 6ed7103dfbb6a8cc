"""Caches with a checksum of all their bytes: a damaged cache is logged and rebuilt."""

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

from components.files import write_whole

log = logging.getLogger("tessera")

#: Part of every warning of a damaged cache, by which parents find it in the log of a child process.
DAMAGED = "is damaged and is rebuilt"
#: Placeholder in a file for the checksum of all its bytes, which includes this text.
SEAL = "tessera-sha256-" + 64 * "0"


def seal(data: bytes) -> bytes:
    """Replace SEAL, which `data` contains once, by the checksum of `data`."""
    digest = hashlib.sha256(data).hexdigest()
    before, _, after = data.rpartition(SEAL.encode())
    return before + SEAL.replace(64 * "0", digest).encode() + after


def is_sealed(data: bytes) -> bool | None:
    """Whether the checksum fits the bytes; None if they contain no checksum."""
    found = [*re.finditer(rb"tessera-sha256-([0-9a-f]{64})", data)]
    if not found:
        return None
    start, end = found[-1].span()
    return hashlib.sha256(data[:start] + SEAL.encode() + data[end:]).hexdigest() == found[-1][1].decode()


def read_sealed(path: Path) -> bytes | None:
    """The bytes of a cache file; None if it is missing, or, with a log line, if it is damaged or of another version."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        warn_of_damage(path, error.strerror or str(error))
        return None
    if sealed := is_sealed(data):
        return data
    warn_of_damage(path, "it has no checksum: another version wrote it, or it is truncated" if sealed is None else "")
    return None


def save_known(path: Path, fact: Any) -> None:
    """Write a fact as JSON with a checksum."""
    write_whole(path, seal(json.dumps({"known": fact, "seal": SEAL}).encode()))


def load_known(path: Path) -> Any:
    """Read what `save_known` wrote; None if the file is missing, damaged or of another version."""
    data = read_sealed(path)
    return None if data is None else json.loads(data)["known"]


def warn_of_damage(path: Path, why: str = "") -> None:
    """Log that a cache file is not used and that its content is rebuilt."""
    log.warning("%s %s (%s)", path, DAMAGED, why or "its bytes do not fit its checksum")
