"""A frozen network from what is said of it and from its tensors: every tensor must find its place."""

import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from components.domain.canvas import ImgSize
from components.errors import BackboneError
from components.models.arguments import read_arguments
from components.models.descriptions import Description
from components.models.diagnosis import (
    explain_misfit,
    find_patch_size,
    name_architecture,
    refuse_findings,
    refuse_missing,
)
from components.models.plain import require_plain_vit
from components.models.tokens import join_mean

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

#: What timm and torch raise for arguments that make no network.
ILLEGAL = (RuntimeError, TypeError, ValueError, AssertionError, ArithmeticError)


def create_skeleton(what: str, described: Description) -> Any:
    """The network without memory for its weights: enough to look at, in a tenth of a second.

    Raises BackboneError for a class that the tuners do not know, and for illegal `model_args`.
    """
    import timm

    architecture = described.architecture.partition(".")[0]
    own = _create_own(architecture)
    require_plain_vit(own, what)
    args = read_arguments(what, type(own), described.model_args)
    if not args:
        return own
    try:
        with torch.device("meta"):
            network = timm.create_model(architecture, pretrained=False, num_classes=0, **args)
    except ILLEGAL as error:
        raise _refuse_arguments(what, architecture, args, error) from None
    require_plain_vit(network, what)
    return network


@cache
def _create_own(architecture: str) -> Any:
    """timm's architecture without arguments: what its class is, and so which arguments there are."""
    import timm

    with torch.device("meta"):
        return timm.create_model(architecture, pretrained=False, num_classes=0)


def create_vit(
    what: str, described: Description, tensors: Mapping[str, Tensor], record: Any, img_size: ImgSize | None, where: str
) -> tuple["VisionTransformer", ImgSize]:
    """The network with its weights, in eval mode, and the size of its images.

    record: timm's, for what is not said otherwise. img_size: None for the one that its positions are made for. where:
    the place of `model_args`, for messages. Raises BackboneError.
    """
    import timm

    skeleton = create_skeleton(what, described)
    args = read_arguments(what, type(skeleton), described.model_args)
    stored = args.pop("img_size", None)
    source = {"pretrained_model_args": {"img_size": stored}} if stored else {}
    size = img_size or _own_size(tensors, skeleton, stored) or ImgSize.of(stored or record.input_size[-2:])
    require_size(what, skeleton, size)
    if misfits := list(find_patch_size(tensors, skeleton)):
        raise refuse_findings(what, name_architecture(skeleton), misfits, where)
    # timm renames, checks and resamples a state dict handed over in this way as it does its own downloads.
    # num_classes=0 on both sides keeps its check strict.
    weights = {"state_dict": dict(tensors), "num_classes": 0, "custom_load": False}
    overlay: dict[str, Any] = {"num_classes": 0, "pretrained_cfg_overlay": weights}
    architecture = described.architecture.partition(".")[0]
    try:
        with torch.random.fork_rng(devices=[]):  # timm draws random weights first: the caller's dice stay as they were
            vit = timm.create_model(architecture, pretrained=True, img_size=tuple(size), **args, **source, **overlay)
    except (RuntimeError, KeyError) as error:
        raise explain_misfit(what, tensors, skeleton, error, where) from None
    vit.pretrained_cfg.pop("state_dict", None)
    if "siglip" in architecture and (missing := sorted(vit.state_dict().keys() - tensors.keys())):
        raise refuse_missing(what, skeleton, missing, where)  # which timm leaves random in these alone
    _choose_pooling(vit, described)
    return vit.requires_grad_(False).eval(), size


def _choose_pooling(vit: "VisionTransformer", described: Description) -> None:
    """Configs of feature extractors leave the pooling open: then it is the class token, or the mean without one."""
    if vit.global_pool == "":
        vit.global_pool = "avg" if vit.cls_token is None else "token"
    if described.feature == "token+mean":
        join_mean(vit)


def _own_size(tensors: Mapping[str, Tensor], vit: Any, stored: Any) -> ImgSize | None:
    """The size that the stored positions are made for, where they say it: one that is known to make as many, or else
    the square that does. A file does not say its sides."""
    if vit.pos_embed is None or "pos_embed" not in tensors or tensors["pos_embed"].ndim != 3:
        return None
    patches = max(tensors["pos_embed"].shape[1] - (0 if vit.no_embed_class else vit.num_prefix_tokens), 0)
    height, width = vit.patch_embed.patch_size
    if stored and (size := ImgSize.of(stored)) and (size.height // height) * (size.width // width) == patches:
        return size
    side = math.isqrt(patches)
    return ImgSize(int(side * height), int(side * width)) if side * side == patches and side else None


def require_size(what: str, vit: Any, img_size: ImgSize) -> None:
    """Raise BackboneError unless whole patches fill the image."""
    patch = ImgSize.of(vit.patch_embed.patch_size)
    if any(side < unit or side % unit for side, unit in zip(img_size, patch, strict=True)):
        lower = ImgSize(*(max(side // unit, 1) * unit for side, unit in zip(img_size, patch, strict=True)))
        upper = ImgSize(lower.height + patch.height, lower.width + patch.width)
        raise BackboneError(
            f"backbone {what}",
            expected=f"an img_size that is a multiple of its patch size, {patch}",
            found=f"img_size: {img_size.plain}",
            hint=f"Choose {lower.plain} or {upper.plain}.",
        )


def _refuse_arguments(what: str, architecture: str, args: Mapping[str, Any], error: Exception) -> BackboneError:
    given = ", ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in args.items())
    return BackboneError(
        f"backbone {what}, model_args",
        expected=f"arguments that make timm's {architecture}",
        found=f"{given}: {' '.join(str(error).split())[:200] or type(error).__name__}",
        hint="Correct model_args.",
    )
