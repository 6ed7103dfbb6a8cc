"""The parts of a vision transformer that a prompted forward calls, the same for timm's `VisionTransformer` and `Eva`:
the embedding, the rotary positions, a block and its layer scales.

Letters: B images, S prefix tokens (CLS, registers), HW patches, N prompts, T = S + N + HW tokens, D embed_dim,
h heads of width d, L blocks.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


@dataclass(frozen=True)
class Ropes:
    """The rotary positions of an `Eva`'s patches, which every block turns queries and keys by; of a network without
    such positions, nothing.

    patches: sines beside cosines, (HW, 2d), or (L, h, HW, 2d) where every head of every block has its own. prefix: S.
    """

    patches: Tensor | None
    prefix: int

    def of_block(self, index: int, prompts: int = 0) -> Tensor | None:
        """Of all tokens of block `index`, (T, 2d) or (h, T, 2d): prefix and prompts are not turned."""
        if self.patches is None:
            return None
        return extend_rope(self.patches[index] if self.patches.ndim == 4 else self.patches, self.prefix + prompts)


def extend_rope(rope: Tensor, count: int) -> Tensor:
    """Rotary positions (..., T, 2d) of tokens, with `count` tokens that are not turned before them."""
    still = rope.new_zeros(*rope.shape[:-2], count, rope.shape[-1])
    still[..., rope.shape[-1] // 2 :] = 1  # the cosines
    return torch.cat([still, rope], dim=-2)


def enter_blocks(vit: "VisionTransformer", images: Tensor) -> tuple[Tensor, Ropes]:
    """Tokens entering block 0, (B, S+HW, D), and the rotary positions: timm's own embedding."""
    placed: Any = vit._pos_embed(vit.patch_embed(images))  # timm has no public method that ends before the first block
    if isinstance(placed, tuple):  # Eva's
        tokens, rope = placed
        return vit.norm_pre(tokens), Ropes(rope, vit.num_prefix_tokens)
    return vit.norm_pre(vit.patch_drop(placed)), Ropes(None, vit.num_prefix_tokens)


def find_ropes(vit: "VisionTransformer") -> Ropes:
    """The rotary positions at the size that the network was loaded at, for a forward that starts above block 0."""
    rope: Any = getattr(vit, "rope", None)
    if rope is None:
        return Ropes(None, vit.num_prefix_tokens)
    # Networks of any image size keep no positions, nor do some kinds of rotary positions: those of the grid are made.
    kept = hasattr(rope, "feat_shape") and not vit.dynamic_img_size
    return Ropes(rope.get_embed() if kept else rope.get_embed(shape=vit.patch_embed.grid_size), vit.num_prefix_tokens)


def call_block(vit: "VisionTransformer", index: int, x: Tensor, ropes: Ropes) -> Tensor:
    """timm's own block `index` over [prefix | prompts | patches], (B, T, D).

    ropes: of `enter_blocks` or `find_ropes`.
    """
    prompts = x.shape[1] - vit.num_prefix_tokens - vit.patch_embed.num_patches
    return run_whole_block(vit.blocks[index], x, ropes.of_block(index, prompts))


def run_whole_block(block: Any, x: Tensor, rope: Tensor | None) -> Tensor:
    """timm's own block over tokens (B, T, D). rope: of all of them, `Ropes.of_block`."""
    if rope is None:
        whole: Tensor = block(x)
        return whole
    turned: Tensor = block(x, rope=rope[..., block.attn.num_prefix_tokens :, :])  # timm leaves the prefix out itself
    return turned


def scale_attended(block: Any, x: Tensor) -> Tensor:
    """What attention adds to the tokens, by the block's layer scale, if it has one."""
    return _scale(block, "ls1", "gamma_1", x)


def scale_fed(block: Any, x: Tensor) -> Tensor:
    """What the MLP adds to the tokens, by the block's layer scale, if it has one."""
    return _scale(block, "ls2", "gamma_2", x)


def _scale(block: Any, module: str, parameter: str, x: Tensor) -> Tensor:
    scale = getattr(block, module, None)  # VisionTransformer's; Eva has a parameter in its place
    if scale is not None:
        scaled: Tensor = scale(x)
        return scaled
    gamma: Tensor | None = getattr(block, parameter)
    return x if gamma is None else gamma * x
