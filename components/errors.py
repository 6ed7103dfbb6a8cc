"""What can go wrong, as one family.

Every error a user can cause or meet says three things in one paragraph: what was expected, what was
found, and how to fix it. Anything else that escapes is a defect of ours and keeps its traceback.

    TesseraError
    ├── WorkspaceError       the workspace cannot be read or written, or is no repository
    ├── DomainError          domain.yaml says something it may not say
    ├── DataError            the raw images or their labels do not fit the declared layout
    │   └── CheckFailed      the data were read, and a check said no        (exit code 1)
    ├── VersioningError      DVC could not record, fetch or store a data version
    │   └── RemoteError      the DVC remote does not answer, refuses, or lacks what was asked for
    ├── BackboneError        the backbone is unknown, unreachable, damaged or cannot be prompted
    ├── AdapterError         an adapter on disk does not fit its backbone or is damaged
    ├── TrainingError        a candidate's training process failed
    │   └── Diverged         its loss left the finite numbers
    ├── TrackingError        the MLflow store cannot be reached or refused
    └── PromotionError       there is nothing to promote, roll back or serve
        └── ChampionMoved    another champion than the one that was judged against

Exit codes: 0 done, 1 a check or gate said no, 2 bad usage or input.
"""

import re
from typing import ClassVar

#: Characters that command a terminal, or turn the order of what follows: C0 and C1 controls, bidirectional overrides.
_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def make_visible(text: str) -> str:
    """The text with control characters written out, as `\\x1b`: names of files and classes are anybody's.

    Line ends and tabs stay.
    """
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class TesseraError(Exception):
    """An error a user can fix: `DomainError("data/x/domain.yaml", expected=..., found=..., hint=...)`."""

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, expected: str, found: str, hint: str) -> None:
        self.what, self.expected, self.found, self.hint = what, expected, found, hint
        super().__init__(f"{what}: expected {expected}; found {found}. {hint}")

    def to_dict(self) -> dict[str, str]:
        """The error as JSON for a parent process or for `--json`; `from_dict` is its inverse."""
        parts = {"what": self.what, "expected": self.expected, "found": self.found, "hint": self.hint}
        return {"type": type(self).__name__, **parts, "message": str(self)}

    @staticmethod
    def from_dict(record: dict[str, str]) -> "TesseraError":
        """Raise-able copy of an error that happened in another process."""
        kinds = {kind.__name__: kind for kind in _family(TesseraError)}
        kind = kinds.get(record["type"], TesseraError)
        return kind(record["what"], expected=record["expected"], found=record["found"], hint=record["hint"])


class WorkspaceError(TesseraError):
    """The workspace cannot be read or written, or is no repository."""


class DomainError(TesseraError):
    """A domain file, or an override of it, says something it may not say."""


class DataError(TesseraError):
    """The raw images or their labels do not fit the declared layout."""


class CheckFailed(DataError):  # noqa: N818  a verdict rather than a fault
    """The data were read, and a check said no."""

    exit_code = 1


class VersioningError(TesseraError):
    """DVC could not record, fetch or store a data version."""


class RemoteError(VersioningError):
    """The DVC remote does not answer, refuses, or lacks what was asked for."""


class BackboneError(TesseraError):
    """The backbone is unknown, unreachable, damaged or cannot be prompted."""


class AdapterError(TesseraError):
    """An adapter on disk does not fit its backbone or is damaged."""


class TrainingError(TesseraError):
    """A candidate's training process failed."""


class Diverged(TrainingError):  # noqa: N818  an outcome rather than a fault
    """The training loss left the finite numbers."""


class TrackingError(TesseraError):
    """The MLflow store cannot be reached or refused."""


class PromotionError(TesseraError):
    """There is nothing to promote, roll back or serve."""


class ChampionMoved(PromotionError):  # noqa: N818  an outcome rather than a fault
    """Somebody else moved the champion since it was judged against."""


def _family(kind: type[TesseraError]) -> list[type[TesseraError]]:
    return [kind, *(member for child in kind.__subclasses__() for member in _family(child))]
