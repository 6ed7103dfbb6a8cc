"""Why something is unfit, as three parts, which are joined into a sentence only where a person reads them."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Reason:
    """What was expected, what was found, how to fix it; `str()` is the sentence, for people.

    A part is one line: names of files may hold line ends, and each reason is shown on a line of its own.
    """

    expected: str
    found: str
    hint: str

    def __post_init__(self) -> None:
        for part in fields(self):
            object.__setattr__(self, part.name, " ".join(getattr(self, part.name).splitlines()))

    def __str__(self) -> str:
        return f"expected {self.expected}; found {self.found}. {self.hint}"
