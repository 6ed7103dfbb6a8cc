"""A licence as a text."""

from typing import Final

UNKNOWN: Final = "unknown"


def normalise(text: str | None) -> str:
    """A licence as all records and comparisons have it: lower case, single blanks; `unknown` where nothing is stated.

    `Apache-2.0` -> `apache-2.0`.
    """
    return " ".join((text or "").lower().split()) or UNKNOWN
