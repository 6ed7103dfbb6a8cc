"""Caches that carry a checksum of all their bytes: one that is not what was written is logged and made again."""

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

from components.files import write_whole

log = logging.getLogger("tessera")

#: In every warning of a damaged cache, for those who pass on what a child process logged.
DAMAGED = "is damaged and is made again"
#: Stands in a file for the checksum of all its bytes, this text among them.
SEAL = "tessera-sha256-" + 64 * "0"


def seal(data: bytes) -> bytes:
    """`data`, which holds SEAL once, with its checksum in that place."""
    digest = hashlib.sha256(data).hexdigest()
    before, _, after = data.rpartition(SEAL.encode())
    return before + SEAL.replace(64 * "0", digest).encode() + after


def is_sealed(data: bytes) -> bool | None:
    """Whether these are the bytes that were sealed; None where there is no seal at all."""
    found = [*re.finditer(rb"tessera-sha256-([0-9a-f]{64})", data)]
    if not found:
        return None
    start, end = found[-1].span()
    return hashlib.sha256(data[:start] + SEAL.encode() + data[end:]).hexdigest() == found[-1][1].decode()


def read_sealed(path: Path) -> bytes | None:
    """The bytes of a cache file; None where it is missing, or is damaged or of another version, which is logged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        warn_of_damage(path, error.strerror or str(error))
        return None
    if sealed := is_sealed(data):
        return data
    warn_of_damage(path, "it has no checksum: another version wrote it, or it is cut off" if sealed is None else "")
    return None


def save_known(path: Path, fact: Any) -> None:
    """Write what is known, as JSON with its checksum."""
    write_whole(path, seal(json.dumps({"known": fact, "seal": SEAL}).encode()))


def load_known(path: Path) -> Any:
    """What `save_known` wrote; None where nothing is known, or the file is damaged or of another version."""
    data = read_sealed(path)
    return None if data is None else json.loads(data)["known"]


def warn_of_damage(path: Path, why: str = "") -> None:
    """Log that a cache file is not used, and that what it held is made again."""
    log.warning("%s %s (%s)", path, DAMAGED, why or "its bytes contradict its checksum")
