"""Which licences a version stands under: what its adapter recorded, and what domain.yaml says of the images now."""

from pathlib import Path

from components.data.store.versioning import read_version
from components.domain.domain import Domain
from components.domain.licences import UNKNOWN, normalise
from components.errors import PromotionError
from components.models.adapter import Origin, load_meta
from components.models.embedded import load_card
from components.promotion.gates.licences import judge_chain
from components.promotion.versions import Version, fetch_adapter, name_copy
from components.records.licences import CODE, Chain, Link, advise, describe_chain, find_outside
from components.records.outcomes import Finding
from components.workspace import Workspace

UNRECORDED = Origin(
    backbone="", backbone_sha256="", backbone_licence=UNKNOWN, data_licence=UNKNOWN, data_version=UNKNOWN
)


def trace_licences(origin: Origin, domain: Domain | None, images: str | None, name: str = "") -> Chain:
    """The licences of an adapter's backbone, of its data and of the code.

    domain, images: domain.yaml as it is now, and the data version of the images now; None where they are not here.
    name: of a domain that is not here.

    The backbone's licence is the one that was recorded, for those are the weights in use. The line in domain.yaml
    speaks of the images as they are now: it is the licence of an adapter that was trained on these same images, so that
    a corrected line needs no training. An adapter that was trained on other images stands under the licence recorded
    then, and under the present line as well, which may say what was not known then.
    """
    recorded, name = origin.data_licence, name if domain is None else domain.name
    stated = recorded if domain is None else normalise(domain.licence)
    if origin.data_version == images or stated == recorded:
        data: Chain = (Link.of("data", name, stated),)
    else:
        data = (Link.of("data", f"{name} (when trained)", recorded), Link.of("data", f"{name} (domain.yaml)", stated))
    return (*_trace_backbone(origin), *data, Link.of("code", "", CODE))


def _trace_backbone(origin: Origin) -> Chain:
    """The backbone, and the teacher of the one that ships with Tessera."""
    file, card = Path(origin.backbone), load_card()
    link = Link.of("backbone", file.name if file.is_absolute() else origin.backbone, origin.backbone_licence)
    if origin.backbone_sha256 != card.tensors_sha256:
        return (link,)
    return link, Link.of("teacher", card.teacher.name.partition(" ")[0], card.teacher.licence)


def trace_version(workspace: Workspace, version: Version, domain: Domain | None) -> Chain:
    """The licences of a registered version by its adapter, which is fetched and proven.

    Raises PromotionError where that is not the registered one.
    """
    origin = load_meta(fetch_adapter(version, workspace.adapters)).origin
    return trace_licences(origin, domain, _find_images(workspace, domain), version.domain)


def recall_licences(workspace: Workspace, version: Version, domain: Domain) -> Chain:
    """The same by the version's tags, or by a copy of its adapter that is here: nothing is downloaded or proven.

    Where there is neither, as for a version of an earlier release that was not fetched yet, nothing is known.
    """
    origin, copy = version.origin, name_copy(version, workspace.adapters, version.adapter_json_sha256)
    if origin is None:
        origin = load_meta(copy).origin if copy.is_dir() else UNRECORDED
    return trace_licences(origin, domain, _find_images(workspace, domain))


def _find_images(workspace: Workspace, domain: Domain | None) -> str | None:
    """The data version of the images as they are now; None where they are not here."""
    here = domain is not None and workspace.raw(domain.name).with_suffix(".dvc").exists()
    return read_version(workspace, domain.name).md5 if domain is not None and here else None


def find_outside_now(workspace: Workspace, version: Version, domain: Domain) -> Chain:
    """Those of `recall_licences` that the domain's gate would reject; none where it sets no licences."""
    allowed = domain.gates.licences
    return () if allowed is None else find_outside(recall_licences(workspace, version, domain), allowed)


def judge_licences(workspace: Workspace, domain: Domain, version: Version) -> Finding | None:
    """What the gate finds of a registered version, by its adapter; None where the domain sets no licences."""
    if domain.gates.licences is None:
        return None
    return judge_chain(trace_version(workspace, version, domain), domain.gates.licences)


def require_licences(workspace: Workspace, domain: Domain, version: Version) -> None:
    """Raise PromotionError where the domain's gate would reject the version that a rollback leads to."""
    allowed = domain.gates.licences
    outside = () if allowed is None else find_outside(trace_version(workspace, version, domain), allowed)
    if outside:
        raise PromotionError(
            f"rollback of {domain.name} to version {version.version}",
            expected=f"licences among `gates.licences`: {', '.join(allowed or ())}",
            found=describe_chain(outside),
            hint=advise(outside),
        )
