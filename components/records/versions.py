"""Named data versions, and what the commands on them print."""

from pathlib import Path
from typing import Literal

from components.domain.strict import Strict
from components.records.fields import Count


class Difference(Strict):
    """Images by content, against the version before: new, gone, and the same with other labels, boxes or masks."""

    added: Count
    removed: Count
    relabelled: Count


class NamedVersion(Strict):
    """One name and what it stands for. Counts are None where somebody made the tag by hand.

    size: bytes. labels: DVC's md5 of the rows.parquet that goes with it. classes: samples per label.
    """

    name: str
    md5: str
    files: int
    size: int
    labels: str | None = None
    images: int | None = None
    classes: dict[str, int] | None = None
    difference: Difference | None = None
    created: str = ""
    message: str = ""

    @property
    def number(self) -> int:
        return int(self.name.rpartition("@v")[2])


class Named(Strict):
    """What `tessera version --json` prints. git: whether the workspace keeps its names as tags of git."""

    domain: str
    status: Literal["named", "unchanged"]
    git: bool
    version: NamedVersion


class Versions(Strict):
    """What `tessera versions --json` prints, the oldest first."""

    domain: str
    versions: tuple[NamedVersion, ...]


class CheckedOut(Strict):
    """What `tessera checkout --json` prints."""

    domain: str
    raw: Path
    version: NamedVersion
