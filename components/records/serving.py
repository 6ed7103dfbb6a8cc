"""What the server of champions answers, as JSON."""

from pydantic import Field

from components.domain.strict import Strict
from components.records.decisions import PassRule
from components.records.fields import Box, Count, ErrorRecord, Number, Share
from components.records.licences import Chain
from components.records.predictions import Component, FoundObject


class Served(Strict):
    """The answer of `POST /predict/{domain}` for one image, or for one box in it.

    version, adapter_sha256: of the champion that answered. id: of the request. label: the answer as one text; None
    where nothing is answered because the model abstains. labels: where an image may have several. probabilities: None
    for masks and boxes. mask: base64 of a PNG with the number of each pixel's class, its place in the domain's classes,
    with their colours as its palette; the background is black. saliency: base64 of a grey PNG that covers the picture
    or crop, 512 pixels at most on its longer side, brighter where a part speaks for the answer. warnings: what the
    caller should know of the model.
    """

    domain: str
    version: Number
    adapter_sha256: str
    id: str
    label: str | None
    probabilities: dict[str, Share] | None = None
    labels: tuple[str, ...] | None = None
    abstained: bool = False
    objects: tuple[FoundObject, ...] | None = None
    counts: dict[str, Count] | None = None
    areas: dict[str, Count] | None = None
    components: tuple[Component, ...] | None = None
    mask: str | None = None
    box: Box | None = None
    crop: Box | None = None
    saliency: str | None = None
    warnings: tuple[str, ...] = ()


class ServedError(Strict):
    """What the server answers where it cannot answer. id: of the request."""

    id: str
    error: ErrorRecord


class ServedDomain(Strict):
    """One domain of `GET /champions`.

    version, adapter_sha256: of what is served; None where nothing is. trouble: why the registry's champion is not
    served; empty where it is. input: `picture`, `crop` or `either`. annotation: what is answered: label, labels, mask
    or boxes. size: bytes of memory that the adapter takes beside the backbone. thresholds, decision: as `tessera
    predict --json` has them. details: the limits and the preparation of one input, as adapter.json says. warnings: what
    the caller should know of the model. licences: of all that it was made from, as its adapter records them.
    """

    domain: str
    version: Number | None
    adapter_sha256: str | None
    tuner: str | None
    task: str | None
    annotation: str | None
    classes: tuple[str, ...]
    input: str | None
    size: Count
    trouble: str
    thresholds: dict[str, Share] | None = None
    decision: PassRule | None = None
    details: dict[str, str | int | float] | None = None
    warnings: tuple[str, ...] = ()
    licences: Chain = ()


class ServedDomains(Strict):
    """What `GET /champions` answers. stale: why the registry could not be read the last time; empty where it could."""

    ready: bool
    stale: str = Field(default="")
    domains: tuple[ServedDomain, ...]
