"""A side network beside a frozen backbone, whose lower blocks it leaves alone.

    DTL   Fu et al., AAAI 2024, https://arxiv.org/abs/2312.07856

Letters: B images, T tokens, D embed_dim, L blocks, M untouched lower blocks, P = L - M + 1 places, r rank.

Place p lies before block M + p, the last one behind block L - 1. There the side state h (B, T, D) takes up what a
low-rank product makes of the tokens x, and changes them:

    h = h + x A[p] B[p]
    x = x + h sigmoid(100 h)

The paper reads the tokens before every block of the network and writes behind the blocks from M on. Here all places are
read and written, and none lies lower: what blocks 0 .. M-1 compute is a function of the image alone, one state of it
(B, T, D) is all that the side network reads, and a training computes it once for all its epochs. B starts at zero, so
the network starts as the backbone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from components.errors import BackboneError
from components.models.blocks import call_block, enter_blocks, find_ropes
from components.models.encoders import FrozenEncoder
from components.models.fast import run_or_recompute
from components.models.tokens import POOLED, Needs, Tokens, read_tokens

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

STEEPNESS = 100.0  # of the sigmoid: the paper's, nearly a ReLU


class Lower(NamedTuple):
    """A batch whose untouched lower blocks were computed before. states: (B, K, T, D), see `list_states`. images:
    (B, 3, H, W) uint8 for heads that read pixels; (B, 0) for others."""

    images: Tensor
    states: Tensor

    def chunk(self, parts: int) -> "list[Lower]":
        """As `Tensor.chunk`, along the batch."""
        return [Lower(*pair) for pair in zip(self.images.chunk(parts), self.states.chunk(parts), strict=True)]


class SideLayers(nn.Module):
    """The matrices of all places: down and up, (P, r, D) each."""

    def __init__(self, places: int, rank: int, width: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(places, rank, width))
        self.up = nn.Parameter(torch.zeros(places, rank, width))
        for matrix in self.down:
            nn.init.xavier_uniform_(matrix)

    def begin(self) -> "SideState":
        return SideState(self.down[None], self.up[None])


class SideState:
    """The side state of one forward. down, up: (1, P, r, D), or (B, P, r, D) where every row has its own.

    h is the product of all that was read so far, (B, T, p r), with the matrices `up` of the places so far, so that it
    is neither stored nor added up.
    """

    def __init__(self, down: Tensor, up: Tensor) -> None:
        self.down, self.up = down, up
        self.read: list[Tensor] = []

    def change(self, x: Tensor) -> Tensor:
        """The tokens (B, T, D) at the next place; T may be smaller at the last one, where the first tokens are left."""
        place = len(self.read)
        self.read.append(_multiply(x, self.down[:, place].to(x.dtype).transpose(1, 2)))
        read = torch.cat([low[:, : x.shape[1]] for low in self.read], dim=-1)  # (B, T, (p + 1) r)
        up = self.up[:, : place + 1].flatten(1, 2) * STEEPNESS
        return x + F.silu(_multiply(read, up.to(x.dtype))) / STEEPNESS  # silu(100 h) / 100 = h sigmoid(100 h)


def _multiply(x: Tensor, matrices: Tensor) -> Tensor:
    """x (B, T, in) by one matrix for all rows, (1, in, out), or by each row's own, (B, in, out)."""
    return x @ (matrices[0] if len(matrices) == 1 else matrices)


class SideEncoder(FrozenEncoder):
    """Images to tokens through a frozen backbone beside which a side network learns, from block `first` on."""

    def __init__(self, vit: "VisionTransformer", first: int, rank: int) -> None:
        super().__init__(vit)
        depth, width = len(vit.blocks), vit.embed_dim
        _require_fit(depth, width, first, rank)
        self.first = first
        self.side = SideLayers(depth - first + 1, rank, width)
        self.train()

    def forward(self, images: Tensor, needs: Needs = POOLED) -> Tokens:
        return self.run_upper(self.run_lower(images, needs), needs)

    def run_lower(self, images: Tensor, needs: Needs = POOLED) -> list[Tensor]:
        """What the untouched blocks make of normalised images (B, 3, height, width): one (B, T, D) for each of
        `list_states`, in the dtype of the weights."""
        with torch.autocast(images.device.type, enabled=False):
            return run_lower(self.vit, self.first, images, needs)

    def run_upper(self, states: Sequence[Tensor], needs: Needs = POOLED) -> Tokens:
        """The rest of the forward, from what `run_lower` returned."""
        with torch.autocast(states[0].device.type, enabled=False):
            return run_upper(self.vit, self.first, states, self.side.begin(), needs, whole=self.form == "textbook")


def list_states(first: int, depth: int, needs: Needs) -> list[int]:
    """Behind how many blocks each of the states lies that are read of the untouched part; the last one enters the rest.

    depth: of the backbone. Heads that read layers read some of the untouched part, too.
    """
    return sorted({layer + 1 for layer in needs.layers if layer < first} | {min(first, needs.count_blocks(depth))})


def run_lower(vit: "VisionTransformer", first: int, images: Tensor, needs: Needs) -> list[Tensor]:
    x, ropes = enter_blocks(vit, images.to(vit.patch_embed.proj.weight.dtype))  # (B, T, D)
    wanted = list_states(first, len(vit.blocks), needs)
    states = {0: x}
    for index in range(wanted[-1]):
        x = call_block(vit, index, x, ropes)
        states[index + 1] = x
    return [states[count] for count in wanted]


def run_upper(
    vit: "VisionTransformer", first: int, states: Sequence[Tensor], side: SideState, needs: Needs, *, whole: bool
) -> Tokens:
    """whole: compute the last block for all tokens even where the head reads the first alone."""
    depth = needs.count_blocks(len(vit.blocks))
    layers = {count - 1: state for count, state in zip(list_states(first, len(vit.blocks), needs), states, strict=True)}
    first_alone = needs.read_one_token(vit) and not whole
    x, ropes = states[-1], find_ropes(vit)
    for index in range(first, depth):
        x = side.change(x) if index == first else x
        queries = 1 if first_alone and index == depth - 1 else None
        x = run_or_recompute(vit, vit.blocks[index], x, None, queries, ropes.of_block(index))
        x = side.change(x)
        if index in needs.layers:
            layers[index] = x
    return read_tokens(vit, x, layers, needs)


def _require_fit(depth: int, width: int, first: int, rank: int) -> None:
    """Raise BackboneError unless a block is left to change, and the products are of lower rank than the tokens."""
    if first >= depth:
        raise BackboneError(
            "tuner dtl",
            expected=f"first below {depth}, the backbone's depth",
            found=f"first: {first}",
            hint="Lower it, or leave it out for seven twelfths of the depth.",
        )
    if rank > width:
        raise BackboneError(
            "tuner dtl",
            expected=f"a rank of {width} at most, the backbone's width",
            found=f"rank: {rank}",
            hint="Lower it.",
        )
