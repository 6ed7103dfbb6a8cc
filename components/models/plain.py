"""Which of timm's networks the tuners know, `VisionTransformer` and `Eva` of plain blocks, and why not the others."""

from typing import Any

from torch import nn

from components.errors import BackboneError

POST_NORM = (
    "its blocks normalise what attention and MLP put out instead of what they read, so prompts would become keys and "
    "values at whatever size they have"
)
SWIN = "its attention looks at windows of a grid that shrinks, and a prompt would have to be in every window"
#: Why a class of networks is none that the tuners know, by the name of the class.
NETWORKS = {
    "Beit": "its attention adds a learned bias for every pair of places, and a prompt has no place",
    "VisionTransformerRelPos": "its attention adds a bias for every pair of places, and a prompt has no place",
    "VisionTransformerSAM": "its attention looks at windows, with a bias for every pair of places; it has no feature "
    "of the whole image",
    "VisionTransformerDistilled": "it has a second class token and a second head, and answers with the mean of both",
    "NaFlexVit": "it reads images of any shape as padded sequences of patches, with an attention mask",
    "SwinTransformer": SWIN,
    "SwinTransformerV2": SWIN,
    "SwinTransformerV2Cr": SWIN,
}
#: Why a kind of block, or of attention in it, is none that the tuners know.
BLOCKS = {
    "DiffAttention": "its attention is the difference of two, each of which would see the prompts",
    "ResPostBlock": POST_NORM,
    "EvaBlockPostNorm": POST_NORM,
    "ParallelScalingBlock": "its blocks run attention and MLP side by side from one matrix",
    "DiffParallelScalingBlock": "its blocks run attention and MLP side by side from one matrix",
    "ParallelThingsBlock": "its blocks hold several attentions and several MLPs side by side",
}


def require_plain_vit(model: nn.Module, name: str) -> None:
    """Raise BackboneError unless prompts mean in this network what the papers mean by them."""
    if reason := why_not_plain(model):
        raise BackboneError(
            f"backbone {name}",
            expected="a vision transformer of one patch projection, then pre-norm blocks of global attention: timm's "
            "classes VisionTransformer and Eva",
            found=reason,
            hint="Choose a ViT, DeiT, DINOv2, DINOv3, SigLIP, CLIP, EVA02, LingBot-Vision or Perception Encoder, for "
            "example vit_small_patch16_224 or vit_base_patch16_lingbot.",
        )


def why_not_plain(model: Any) -> str:
    """Why the tuners do not know this network, "" if they do. Exact types: a subclass changes the forward."""
    from timm.layers import PatchEmbed
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    kind = type(model).__name__
    if type(model) not in (VisionTransformer, Eva):
        return f"a {kind}: {NETWORKS[kind]}" if kind in NETWORKS else f"a {kind}"
    if type(model.patch_embed) is not PatchEmbed:
        return f"a hybrid, whose patches come from a {type(model.patch_embed).__name__}"
    return next(filter(None, map(_why_block_not_plain, model.blocks)), "")


def _why_block_not_plain(block: Any) -> str:
    from timm.layers import Attention, AttentionRope
    from timm.models.eva import EvaAttention, EvaBlock
    from timm.models.vision_transformer import Block

    plain = type(block) in (Block, EvaBlock)
    # A block of another kind need not even have an `attn`.
    if plain and type(block.attn) in (Attention, AttentionRope, EvaAttention):
        return ""
    kind = type(block.attn if plain else block).__name__
    return f"blocks of {kind}" + (f": {BLOCKS[kind]}" if kind in BLOCKS else "")
