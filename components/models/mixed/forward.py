"""The forward of a batch whose spans of rows belong to different adapters: `fast.forward_fast` for several at once."""

from collections.abc import Sequence
from itertools import groupby, islice
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from components.models.blocks import enter_blocks
from components.models.fast import Keys, attend_tokens, feed_tokens
from components.models.tokens import Needs, Tokens, read_tokens

if TYPE_CHECKING:
    from timm.models.vision_transformer import Block, VisionTransformer


class Span(Protocol):
    """What the adapters of n rows, which lie together in the batch, add to block `index`, of x (n, T, D) before it.

    find_pairs: keys and values (1 or n, N, 2D) beside the tokens' own. run_beside: what is added to the tokens beside
    the MLP, (n, T, D), of those that it reads.
    """

    @property
    def rows(self) -> slice: ...

    def find_pairs(self, index: int, block: "Block", x: Tensor) -> Tensor | None: ...

    def run_beside(self, index: int, x: Tensor) -> Tensor | None: ...


def forward_mixed(vit: "VisionTransformer", images: Tensor, spans: Sequence[Span], needs: Needs) -> Tokens:
    """What heads of equal needs read of normalised images (B, 3, height, width). spans: of all rows, in order."""
    x, ropes = enter_blocks(vit, images.to(vit.patch_embed.proj.weight.dtype))  # (B, S+HW, D)
    depth, first_alone = needs.count_blocks(len(vit.blocks)), needs.read_one_token(vit)
    layers = {}
    for index, block in enumerate(islice(vit.blocks, depth)):
        keys = join_keys([Keys(span.rows, span.find_pairs(index, block, x[span.rows])) for span in spans])
        queries = 1 if first_alone and index == depth - 1 else None
        x = attend_tokens(block, x, keys, queries, ropes.of_block(index))
        beside = [(span.rows, span.run_beside(index, x[span.rows])) for span in spans]
        x = feed_tokens(block, x)
        for rows, added in beside:
            if added is not None:
                x[rows] += added
        if index in needs.layers:
            layers[index] = x
    return read_tokens(vit, x, layers, needs)


def join_keys(keys: Sequence[Keys]) -> list[Keys]:
    """Neighbours with equally many keys as one, because few large products take less time than many small ones."""
    joined = []
    for count, group in groupby(keys, lambda one: 0 if one.pairs is None else one.pairs.shape[1]):
        same = list(group)
        rows = slice(same[0].rows.start, same[-1].rows.stop)
        if len(same) == 1 or not count:
            joined.append(Keys(rows, same[0].pairs))
        else:
            parts = [one.pairs.expand(one.rows.stop - one.rows.start, -1, -1) for one in same if one.pairs is not None]
            joined.append(Keys(rows, torch.cat(parts)))
    return joined
