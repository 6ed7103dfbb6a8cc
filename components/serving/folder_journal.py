"""The journal of a table of answers: a file beside it with one JSON line per answer, written as they come.

A process that is killed loses only what was not written yet: the next one with the same output goes on from there. A
torn last line is dropped. The rows stay on the disk; in memory is only where each of them begins.

    {"version": 3, "adapter_sha256": "...", "columns": [...]}
    {"sha256": ..., "box": [...] or null, "label": ..., ...}
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from components.errors import DataError, WorkspaceError
from components.serving.rows import Column, Row, to_key


def name_journal(file: Path) -> Path:
    return file.with_name(f"{file.name}.journal")


class Journal:
    """`with Journal.open(file, head) as journal: journal.add(row)`.

    outdated: how many answers of another version, or of other columns, were found and dropped.
    """

    def __init__(self, file: Path, handle: int) -> None:
        self._file, self._handle = file, handle
        self._reader = open(name_journal(file), "rb")  # noqa: SIM115  `open` closes it
        self._places: dict[bytes, int] = {}
        self._end = 0
        self.outdated = 0

    @classmethod
    @contextmanager
    def open(cls, file: Path, version: int, adapter_sha256: str, columns: Sequence[Column]) -> Iterator[Self]:
        """The journal of a table, held for this process alone. Raises DataError where another process has it."""
        handle = _open_alone(file)
        try:
            journal = cls(file, handle)
            names = [column.name for column in columns]
            with journal._reader:
                journal._load({"version": version, "adapter_sha256": adapter_sha256, "columns": names})
                yield journal
        finally:
            os.close(handle)

    def _load(self, head: dict[str, Any]) -> None:
        """Find where each answer begins; drop all of another head, and a torn end."""
        with name_journal(self._file).open("rb") as stream:
            found = _parse(stream.readline())
            if found == head:
                self._end = stream.tell()
                for line in stream:
                    row = _parse(line)
                    known = row is not None and list(row) == head["columns"]
                    key = to_key(row["sha256"], row["box"]) if row and known else None
                    if key is None:
                        break
                    self._places[key] = self._end
                    self._end += len(line)
            elif found is not None:
                self.outdated = sum(1 for _ in stream)
        os.ftruncate(self._handle, self._end)
        if not self._end:
            self._write(head)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def add(self, row: Row) -> None:
        """Keep an answer. row: with the sha256 of its file. Raises WorkspaceError where the disk is full."""
        key = to_key(row["sha256"], row["box"])
        if key is None:
            raise ValueError("an answer is known by the content of its file")
        self._places[key] = self._write(row)

    def read(self, key: bytes) -> Row:
        """KeyError where there is no such answer."""
        self._reader.seek(self._places[key])
        row: Row = json.loads(self._reader.readline())
        return row

    def _write(self, content: dict[str, Any]) -> int:
        """The place of the line that was written at the end, whole or not at all."""
        line, place = json.dumps(content, ensure_ascii=False).encode() + b"\n", self._end
        try:
            while self._end < place + len(line):
                self._end += os.pwrite(self._handle, line[self._end - place :], self._end)
        except OSError as error:
            self._end = place
            os.ftruncate(self._handle, place)
            raise describe_full(self._file, error, len(self)) from None
        return place

    def remove(self) -> None:
        """The table is written whole: nothing has to be remembered."""
        name_journal(self._file).unlink(missing_ok=True)


def _open_alone(file: Path) -> int:
    """The journal of a table, created where there is none, and locked until it is closed."""
    path = name_journal(file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise describe_full(file, error, 0) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        hint = "Wait for its end, or name another file."
        found = f"one that holds {path}"
        raise DataError(f"--out {file}", expected="no other command that writes it", found=found, hint=hint) from None
    return handle


def describe_full(file: Path, error: OSError, kept: int) -> WorkspaceError:
    """The error for a disk on which no further answer can be written."""
    return WorkspaceError(
        f"--out {file}",
        expected="a folder that can be written, with free space",
        found=f"{error.strerror or error}",
        hint=f"Free some space or correct the permissions; then the same command goes on: {kept:,} answers are kept in "
        f"{name_journal(file)}.",
    )


def _parse(line: bytes) -> dict[str, Any] | None:
    """None for a line that is torn or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
