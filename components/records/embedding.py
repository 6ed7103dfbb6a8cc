"""`tessera embed`: what its process is asked for, and what the command prints."""

from pathlib import Path

from pydantic import Field

from components.domain.canvas import Size
from components.domain.domain import Domain
from components.domain.strict import Strict
from components.records.fields import Count, Seconds, Sha256
from components.records.images import LeftOut


class EmbedJob(Strict):
    """Compute the features of every row of a manifest. domain: its backbone, img_size and fit are those asked for.

    out: the parquet file to write. facts: further texts for its metadata.
    """

    domain: Domain
    manifest: Path
    raw: Path
    cache: Path
    out: Path
    facts: dict[str, str] = Field(default_factory=dict)


class EmbeddedBy(Strict):
    """The network that computed the features. licence: `unknown` unless its weights say it."""

    name: str
    sha256: Sha256
    licence: str
    trained: bool


class Features(Strict):
    """What is in the file. width: numbers per feature. known: those that an earlier run had computed."""

    rows: Count
    width: Count
    known: Count
    backbone: EmbeddedBy
    img_size: Size
    dtype: str
    device: str


class Embedded(Strict):
    """What `tessera embed` wrote. left_out: files of the domain that have no row, and why."""

    domain: str
    out: Path
    data_version: str
    features: Features
    left_out: tuple[LeftOut, ...]
    seconds: Seconds
