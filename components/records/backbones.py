"""What `tessera backbone add` and `tessera backbone list` print, and what passes between them and their child."""

from pathlib import Path
from typing import Literal

from components.domain.strict import Strict
from components.records.fields import Count, Sha256

Feature = Literal["own", "token+mean"]


class Addition(Strict):
    """What a conversion is asked for. target: the file to write. None and "": as the source says.

    architecture: timm's name. mean, std: of pixels in [0, 1].
    """

    source: str
    target: Path
    architecture: str = ""
    licence: str = ""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    feature: Feature | None = None


class Compared(Strict):
    """A converted network beside the original on test pictures.

    original: what ran it; "" where it was not run, for `reason`. difference: the largest of the final tokens.
    """

    original: str
    difference: float | None = None
    reason: str = ""


class Converted(Strict):
    """What a conversion wrote. left_out: group of tensors that are not the network's -> how many. notes: sentences."""

    sha256: Sha256
    compared: Compared
    left_out: dict[str, Count]
    notes: tuple[str, ...]


class KnownBackbone(Strict):
    """One backbone that can be used here.

    name: what `backbone:` of a domain.yaml takes. place: in the workspace, in the hub's cache, or inside Tessera.
    architecture: timm's name; "" where the weights must be added first. parameters: without the classifier. size: bytes
    on disk. img_size: height and width of its own positions. width: of its feature. sha256: of the tensors, as
    adapters record it. domains: whose domain.yaml names it. champions: whose champion
    stands on it, by sha256.
    """

    name: str
    place: Literal["workspace", "hub", "embedded"]
    architecture: str
    parameters: Count
    size: Count
    img_size: tuple[int, int] | None
    licence: str
    width: Count
    sha256: Sha256
    source: str
    domains: tuple[str, ...] = ()
    champions: tuple[str, ...] = ()


class Added(Strict):
    """What `tessera backbone add --json` prints. replaced: the tensors that had this name before."""

    status: Literal["added", "replaced", "unchanged"]
    file: Path
    backbone: KnownBackbone
    compared: Compared
    left_out: dict[str, Count]
    notes: tuple[str, ...]
    replaced: Sha256 | None = None


class Backbones(Strict):
    """What `tessera backbone list --json` prints."""

    backbones: tuple[KnownBackbone, ...]
