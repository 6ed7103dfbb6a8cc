"""Many questions to one table of answers: each content is asked once, and what is known from before not again.

    with open_table(file, columns, version, adapter_sha256) as table:
        summary = table.answer(asked, ask, watch)

`ask` takes groups of questions about one picture each and yields them with their replies, in order, as
`components/serving/__main__.py` describes a reply. Answers are known by the sha256 of the file, the box, the version
and the hash of its adapter: by the journal of a process that was killed, and by the finished table, of which only what
is new is asked. No torch here; rows are kept on the disk.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from components.errors import DataError
from components.files import hash_file
from components.serving.ahead import map_ahead
from components.serving.folder_journal import Journal, describe_full
from components.serving.questions import Question, group_questions
from components.serving.rows import Column, Row, create_row, list_shown, name_path, to_key
from components.serving.tables import read_table, write_table

HASHERS = 4  # threads
HASHED = 64  # pictures whose files are hashed before they are asked about
CHANGED = DataError(
    "a file",
    expected="the same content while it is read",
    found="other content than a moment before",
    hint="Run the command again once nobody writes it.",
)

Asked = Sequence[Question | DataError]
Group = list[Question]
Ask = Callable[[Iterator[Group]], Iterator[tuple[Group, dict[str, Any]]]]


class Watch(Protocol):
    """Watches how questions are answered. said: an answer."""

    def count(self, done: int, failed: int, *, known: bool = False) -> None:
        """So many more are done, and so many of them have no answer. known: nothing had to be asked for them."""

    def see(self, question: Question, said: dict[str, Any]) -> None:
        """A question was answered."""

    def wants(self, question: Question) -> bool:
        """Whether a question is to be asked even where its answer is known."""


@dataclass
class Summary:
    """What a table came to. shown: in how many rows each class is answered. known: rows whose answer was there before.
    error: of the first row without an answer."""

    answered: int = 0
    failed: int = 0
    known: int = 0
    abstained: int = 0
    shown: Counter[str] = field(default_factory=Counter)
    error: DataError | None = None


@contextmanager
def open_table(file: Path, columns: Sequence[Column], version: int, adapter_sha256: str) -> Iterator["FolderTable"]:
    """The table with what is known of earlier answers, held for this process alone.

    Raises DataError where the file has other columns or cannot be read, or another process writes it; WorkspaceError
    where the journal cannot be written.
    """
    origin = {"version": version, "adapter_sha256": adapter_sha256}
    with Journal.open(file, version, adapter_sha256, columns) as journal:
        table = FolderTable(file, columns, journal, origin)
        table.load()
        yield table


class FolderTable:
    """See `open_table`. outdated: rows of another version that were found, and are asked again."""

    def __init__(self, file: Path, columns: Sequence[Column], journal: Journal, origin: dict[str, Any]) -> None:
        self.file, self.columns, self.journal, self.origin = file, columns, journal, origin
        self.outdated = journal.outdated

    def load(self) -> None:
        """Bring the rows of the finished table into the journal."""
        if not self.file.exists():
            return
        for row in read_table(self.file, self.columns):
            if {key: row[key] for key in self.origin} != self.origin:
                self.outdated += 1
                continue
            key = to_key(row["sha256"], row["box"])
            if key is not None and key not in self.journal:
                self.journal.add(row)

    def answer(self, asked: Asked, ask: Ask, watch: Watch) -> Summary:
        """Ask what is not known, then write the table: one row per question, in the order asked."""
        run = _Run(self, asked, watch)
        for group, reply in ask(run.take()):
            run.put(group, reply)
        summary = Summary(known=run.known)
        try:
            write_table(self.file, self.columns, run.rows(summary))
        except OSError as error:
            raise describe_full(self.file, error, len(self.journal)) from None
        self.journal.remove()
        return summary


class _Run:
    """One pass over all questions.

    keys: by the place of a question. loose: rows of questions whose files cannot be read, by place. before: what was
    known when it began.
    """

    def __init__(self, table: FolderTable, asked: Asked, watch: Watch) -> None:
        self.table, self.asked, self.watch = table, asked, watch
        self.keys: list[bytes | None] = []
        self.loose: dict[int, Row] = {}
        self.places: deque[list[int]] = deque()  # of the questions that were passed on and are not answered yet
        self.under_way: set[bytes] = set()
        self.before, self.known = frozenset(table.journal), 0

    def take(self) -> Iterator[Group]:
        """What is not known, as groups; files are hashed in threads ahead of that."""
        for group, digest in map_ahead(_hash, _group(self.asked), threads=HASHERS, ahead=HASHED):
            fresh: Group = []
            places: list[int] = []
            for one in group:
                place, key = len(self.keys), None
                if isinstance(one, DataError):
                    self.loose[place] = create_row({"error": one.to_dict()}, self.table.columns)
                else:
                    key = to_key(digest, one.box)
                    if key is None or not self._is_known(one, key):
                        fresh.append(one)
                        places.append(place)
                self.keys.append(key)
            if len(fresh) < len(group):
                failed = sum(isinstance(one, DataError) for one in group)
                self.watch.count(len(group) - len(fresh), failed, known=True)
            if fresh:
                self.places.append(places)
                yield fresh

    def _is_known(self, question: Question, key: bytes) -> bool:
        if self.watch.wants(question):
            return False
        if key in self.before:
            self.known += 1
        elif key not in self.under_way and key not in self.table.journal:  # else a copy of a file that was asked about
            self.under_way.add(key)
            return False
        return True

    def put(self, group: Group, reply: dict[str, Any]) -> None:
        """Keep the answers to the oldest group that was taken."""
        for place, question, said in zip(self.places.popleft(), group, reply["answers"], strict=True):
            row = create_row(said, self.table.columns) | self.table.origin
            key, hashed = to_key(reply["sha256"], question.box), self.keys[place]
            if key is None:
                self.loose[place] = row
            else:
                self.table.journal.add(row | {"sha256": reply["sha256"], "box": question.box})
                self.keys[place] = key  # another than before where the file was changed since it was hashed
            if hashed is not None:
                self.under_way.discard(hashed)
            self.watch.see(question, said)
            self.watch.count(1, int("error" in said))

    def rows(self, summary: Summary) -> Iterator[Row]:
        """One row per question, in order, counted in `summary`."""
        for place, (one, key) in enumerate(zip(self.asked, self.keys, strict=True)):
            path = name_path(one)
            box = one.box if isinstance(one, Question) else None
            if place in self.loose:
                row = self.loose[place]
            elif key is not None and key in self.table.journal:
                row = self.table.journal.read(key)
            else:
                row = create_row({"error": CHANGED.to_dict()}, self.table.columns)
            row = row | self.table.origin | {"path": path, "box": box}
            if row["error"] is not None:
                summary.failed += 1
                summary.error = summary.error or _describe_failure(path, row["error"], self.table.file)
            else:
                summary.answered += 1
                summary.abstained += bool(row.get("abstained"))
                summary.shown.update(list_shown(row))
            yield row


def _group(asked: Asked) -> Iterator[list[Question] | list[DataError]]:
    """The questions about one picture that follow one another; an error alone."""
    for is_error, same in groupby(asked, key=lambda one: isinstance(one, DataError)):
        if is_error:
            yield from ([one] for one in same if isinstance(one, DataError))
        else:
            yield from group_questions(one for one in same if isinstance(one, Question))


def _hash(group: list[Question] | list[DataError]) -> tuple[list[Question] | list[DataError], str | None]:
    """The sha256 of the picture's file; None where there is none to read."""
    first = group[0]
    return group, hash_file(first.image) if isinstance(first, Question) and isinstance(first.image, Path) else None


def _describe_failure(path: str, reason: str, file: Path) -> DataError:
    hint = f"The column `error` of {file} gives the reason for each row."
    return DataError(path, expected="a picture that can be answered", found=f"this reason: {reason}", hint=hint)
