"""Which of timm's networks the tuners know: plain vision transformers, and why the others are refused."""

from typing import Any

from torch import nn

from components.errors import BackboneError


def require_plain_vit(model: nn.Module, name: str) -> None:
    """Raise BackboneError unless prompts mean in this network what the papers mean by them."""
    if reason := _why_not_plain(model):
        raise BackboneError(
            f"backbone {name}",
            expected="a plain vision transformer: one patch projection, then pre-norm blocks of global attention",
            found=reason,
            hint="Choose a timm vit_*, deit_*, deit3_* or *_dinov2 model, for example vit_small_patch16_224.",
        )


def _why_not_plain(model: Any) -> str:
    """What is not plain about it, '' if nothing. Exact types: a subclass changes the forward."""
    from timm.layers import Attention, PatchEmbed
    from timm.models.vision_transformer import Block, VisionTransformer

    if type(model) is not VisionTransformer:
        return f"a {type(model).__name__}"
    if type(model.patch_embed) is not PatchEmbed:
        return f"a hybrid, whose patches come from a {type(model.patch_embed).__name__}"
    strange = {type(block).__name__ for block in model.blocks if type(block) is not Block}
    # A block of another kind need not even have an `attn`; look there only once all are plain.
    strange = strange or {type(block.attn).__name__ for block in model.blocks if type(block.attn) is not Attention}
    return f"blocks of {', '.join(sorted(strange))}" if strange else ""
