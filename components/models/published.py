"""What timm records of architectures and of the weights that it publishes."""

import difflib
from typing import Any

from components.errors import BackboneError
from components.models.repositories import PREFIX


def is_architecture(model: str) -> bool:
    """Whether timm knows it; a tag behind it is left out."""
    from timm.models import is_model

    return bool(is_model(model.partition(".")[0]))


def find_record(name: str, model: str) -> Any:
    """timm's record of the weights called `model`; a tag unknown to timm gets its architecture's first record.

    Raises BackboneError for an unknown architecture.
    """
    from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, get_pretrained_cfg, list_models

    architecture = model.partition(".")[0]
    if not is_architecture(model):
        close = difflib.get_close_matches(architecture, list_models(), 5)
        raise BackboneError(
            f"backbone {name}",
            expected="an `architecture` of timm",
            found=f"{model!r}" + (f"; close ones are {', '.join(close)}" if close else ""),
            hint="Correct it, or install the release of timm that knows it.",
        )
    exact = get_arch_pretrained_cfgs(architecture).get(model)
    return exact or get_pretrained_cfg(architecture) or PretrainedCfg()


def find_licence(model: str, architecture: str) -> str:
    """The licence of timm's record of `model`, `<architecture>.<tag>`; '' where timm has no such weights."""
    from timm.models import get_arch_pretrained_cfgs

    name = model.partition(".")[0]  # the records are by name and tag
    record = get_arch_pretrained_cfgs(name).get(model) if name == architecture.partition(".")[0] else None
    return (record.license or "") if record else ""


def require_published(name: str) -> None:
    """Raise BackboneError, with close names, unless timm publishes such weights or weights of this architecture."""
    from timm.models import is_model, list_pretrained

    published = list_pretrained()
    known = {*published, *(each.partition(".")[0] for each in published)}
    if name in known:
        return
    close = difflib.get_close_matches(name, sorted(known), 5)
    found = "no such weights" if is_model(name) else "no such name"
    raise BackboneError(
        f"backbone {name}",
        expected=f"`embedded`, the name of timm weights, {PREFIX}owner/name, or the path of a .safetensors file or a "
        "folder, with a slash in it",
        found=found + (f"; close ones are {', '.join(close)}" if close else ""),
        hint="Correct the name; `timm.list_pretrained('vit*')` lists all.",
    )
