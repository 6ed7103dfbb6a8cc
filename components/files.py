"""Files that are written whole or not at all."""

import os
from pathlib import Path


def write_whole(path: Path, data: bytes, *, mode: int | None = None, flush: bool = False) -> None:
    """Write `data` beside `path` and rename it, so that a reader sees the old file or the new one, never a part.

    mode: permission bits of the new file, set before any byte is in it; left out, as the umask says.
    flush: wait until the bytes are on the disk, for files that must outlive a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666 if mode is None else mode)
        with open(descriptor, "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)  # whatever the umask, and where a killed process left the file
            file.write(data)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
