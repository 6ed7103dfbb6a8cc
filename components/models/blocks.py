"""The parts of a vision transformer that a prompted forward calls, the same for timm's `VisionTransformer` and `Eva`:
the embedding, the rotary positions, a block.

Letters: B images, S prefix tokens (CLS, registers), HW patches, N prompts, D embed_dim, d width of a head.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


def embed_images(vit: "VisionTransformer", images: Tensor) -> Tensor:
    """Tokens entering block 0, (B, S+HW, D): timm's own embedding, whichever way it places positions."""
    placed: Any = vit._pos_embed(vit.patch_embed(images))  # timm has no public method that ends before the first block
    if isinstance(placed, tuple):  # Eva's, with the rotary positions, which `find_rope` gives
        tokens: Tensor = vit.norm_pre(placed[0])
        return tokens
    embedded: Tensor = vit.norm_pre(vit.patch_drop(placed))
    return embedded


def find_rope(vit: "VisionTransformer", index: int) -> Tensor | None:
    """The rotary positions of the patches in block `index`: sines beside cosines (HW, 2d), or (heads, HW, 2d) where the
    heads have their own; None where the network has none."""
    rope: Any = getattr(vit, "rope", None)
    if rope is None:
        return None
    # Networks of any image size keep no positions: those of the size that this one was loaded at are asked for.
    found: Tensor = rope.get_embed(shape=vit.patch_embed.grid_size) if vit.dynamic_img_size else rope.get_embed()
    return found[index] if getattr(vit, "rope_mixed", False) else found


def extend_rope(rope: Tensor, count: int) -> Tensor:
    """Rotary positions for `count` prompts, which are not rotated, before those of the patches."""
    if not count:
        return rope
    still = rope.new_zeros(*rope.shape[:-2], count, rope.shape[-1])
    still[..., rope.shape[-1] // 2 :] = 1  # the cosines
    return torch.cat([still, rope], dim=-2)


def call_block(vit: "VisionTransformer", index: int, x: Tensor, prompts: int = 0) -> Tensor:
    """timm's own block `index` over [prefix | prompts | patches], (B, S+N+HW, D)."""
    rope, block = find_rope(vit, index), vit.blocks[index]
    out: Tensor = block(x) if rope is None else block(x, rope=extend_rope(rope, prompts))
    return out
