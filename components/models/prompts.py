"""Prompted forwards of timm's `VisionTransformer` and `Eva`, in their textbook form: concatenate, run, strip.

    VPT   Jia et al., ECCV 2022, https://arxiv.org/abs/2203.12119
    VAPT  Le et al., ICLR 2026, https://arxiv.org/abs/2501.18936

Letters: B images, S prefix tokens (CLS, registers), H x W patch grid, N prompts, D embed_dim, L blocks,
r bottleneck, A adaptive blocks. A token sequence is always [prefix | prompts | patches].

`forward_prompted` is the definition, `fast.forward_fast` computes the same faster; a tuner differs from another in
its prompt source alone: a module asked before every block, with the tokens that enter it, for that block's prompts.
"""

import math
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  its usual name

from components.errors import BackboneError
from components.models.blocks import call_block, enter_blocks
from components.models.tokens import POOLED, Needs, Tokens, read_tokens

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


class PromptSource(Protocol):
    """`source(index, x)`: prompts (B, N, D) for block `index`, or None to let the previous block's outputs flow on.

    `answer_fast` says the same at less cost, (1, N, D) where all images get the same. flows: prompts enter at the
    bottom only, and their outputs flow through all blocks.
    """

    @property
    def flows(self) -> bool: ...

    def __call__(self, index: int, x: Tensor, /) -> Tensor | None: ...

    def answer_fast(self, index: int, x: Tensor, /) -> Tensor | None: ...


def forward_prompted(
    vit: "VisionTransformer", images: Tensor, source: PromptSource | None, needs: Needs = POOLED
) -> Tokens:
    """What a head needs of normalised images (B, 3, height, width)."""
    x, ropes = enter_blocks(vit, images)  # (B, S+HW, D)
    prefix = vit.num_prefix_tokens
    prompts = x[:, :0]  # (B, 0, D)
    layers = {}
    for index in range(needs.count_blocks(len(vit.blocks))):
        fresh = source(index, x) if source else None
        prompts = prompts if fresh is None else fresh  # (B, N, D)
        mixed = call_block(
            vit, index, torch.cat([x[:, :prefix], prompts, x[:, prefix:]], dim=1), ropes
        )  # (B, S+N+HW, D)
        end = prefix + prompts.shape[1]
        prompts = mixed[:, prefix:end]
        x = torch.cat([mixed[:, :prefix], mixed[:, end:]], dim=1)  # (B, S+HW, D)
        if index in needs.layers:
            layers[index] = x
    # The prompts were stripped above, so that no pooling and no head ever sees one.
    return read_tokens(vit, x, layers, needs)


class StaticPrompts(nn.Module):
    """Prompts that are parameters: one set a block for the first `layers` blocks.

    layers = L is VPT-deep. layers = 1 is VPT-shallow: from block 1 on the prompts' outputs flow.
    """

    def __init__(self, vit: "VisionTransformer", layers: int, num_prompts: int, dropout: float) -> None:
        super().__init__()
        height, width = vit.patch_embed.patch_size
        self.flows = layers < len(vit.blocks)
        bound = math.sqrt(6 / (3 * height * width + vit.embed_dim))  # Xavier's, for a patch as input (VPT, section 4)
        self.tokens = nn.Parameter(torch.empty(layers, num_prompts, vit.embed_dim).uniform_(-bound, bound))
        self.dropout = nn.Dropout(dropout)

    @torch.no_grad()
    def start_from(self, tokens: Tensor) -> None:
        """Begin as these tokens (layers, N, D) of the network.

        A deep prompt meets the block's norm first, which takes its size away: it keeps that of the random start, to
        which the learning rates belong. One whose output flows on is a token as it is.
        """
        if not self.flows:
            sizes = tokens.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(torch.finfo(tokens.dtype).tiny)
            tokens = tokens / sizes * self.tokens.square().mean().sqrt()
        self.tokens.copy_(tokens)

    def forward(self, index: int, x: Tensor) -> Tensor | None:
        if index >= len(self.tokens):
            return None
        dropped: Tensor = self.dropout(self.tokens[index].expand(len(x), -1, -1))  # (B, N, D)
        return dropped

    def answer_fast(self, index: int, x: Tensor) -> Tensor | None:
        if self.training and self.dropout.p > 0:
            return self.forward(index, x)  # every image drops its own
        if index >= len(self.tokens):
            return None
        shared: Tensor = self.tokens[index : index + 1]
        return shared


@torch.no_grad()
def gather_tokens(vit: "VisionTransformer", images: Tensor, places: Tensor) -> Tensor:
    """Tokens (layers, B, D) of normalised images (B, 3, height, width): of image b that of the patch places[l, b] as it
    enters block l, without any prompts. places: (layers, B)."""
    x, ropes = enter_blocks(vit, images.to(vit.patch_embed.proj.weight.dtype))  # (B, S+HW, D)
    rows, tokens = torch.arange(len(x), device=x.device), []
    for index, chosen in enumerate(places):
        x = call_block(vit, index - 1, x, ropes) if index else x
        tokens.append(x[rows, vit.num_prefix_tokens + chosen])
    return torch.stack(tokens).float()


class AdaptivePrompts(nn.Module):
    """VAPT: static prompts for the first blocks, then prompts that are functions of the tokens entering the block."""

    def __init__(
        self,
        vit: "VisionTransformer",
        num_prompts: int,
        static_blocks: int,
        kernel: int,
        bottleneck: int,
        dropout: float,
        from_zero: bool = False,
    ) -> None:
        super().__init__()
        _require_room(vit, static_blocks, kernel)
        self.flows = False
        self.static = StaticPrompts(vit, static_blocks, num_prompts, dropout)
        adaptive = len(vit.blocks) - static_blocks
        self.tokenwise = nn.ModuleList(
            TokenProjector(vit, num_prompts, kernel, dropout, from_zero) for _ in range(adaptive)
        )
        self.featurewise = FeatureProjector(vit.embed_dim, bottleneck, dropout)  # shared by all blocks

    def forward(self, index: int, x: Tensor) -> Tensor | None:
        static = len(self.static.tokens)
        if index < static:
            prompts: Tensor | None = self.static(index, x)
        else:
            prompts = self.featurewise(self.tokenwise[index - static](x))  # no detach: gradients reach lower prompts
        return prompts

    def answer_fast(self, index: int, x: Tensor) -> Tensor | None:
        static = len(self.static.tokens)
        if index < static:
            return self.static.answer_fast(index, x)
        projector: TokenProjector = self.tokenwise[index - static]  # type: ignore[assignment]  # a ModuleList's item
        prompts: Tensor = self.featurewise(projector.project_folded(x))
        return prompts


class TokenProjector(nn.Module):
    """Tokens (B, S+HW, D) to G (B, N, D): mix the patches in space, the same way for every channel.

    Every prompt starts as the mean of a region of its own, a token like those the backbone knows. The paper's start,
    `from_zero`, makes every adaptive prompt exactly zero: the block's LayerNorm turns what the first step adds into
    noise of full size, the prompts of a block get equal gradients and stay equal but for dropout's noise, and a short
    training does not recover (benchmarks/README.md, Methods).
    """

    def __init__(
        self, vit: "VisionTransformer", num_prompts: int, kernel: int, dropout: float, from_zero: bool = False
    ) -> None:
        super().__init__()
        self.grid: tuple[int, int] = tuple(vit.patch_embed.grid_size)
        self.prefix: int = vit.num_prefix_tokens
        self.norm = nn.LayerNorm(vit.embed_dim, eps=1e-5)
        self.kernel = nn.Parameter(torch.randn(1, 1, kernel, kernel))
        self.channel_dropout = nn.Dropout2d(dropout)
        height, width = (side - kernel + 1 for side in self.grid)
        self.linear = nn.Linear(height * width, num_prompts)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        if not from_zero:
            nn.init.constant_(self.kernel, 1 / kernel**2)
            with torch.no_grad():
                self.linear.weight.copy_(average_regions(num_prompts, height, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)[:, self.prefix :].transpose(1, 2)  # (B, D, HW)
        planes = y.unflatten(2, self.grid).flatten(0, 1).unsqueeze(1)  # (B*D, 1, H, W)
        mixed = F.conv2d(planes, self.kernel).reshape(*y.shape[:2], -1, 1)  # (B, D, hw, 1)
        mixed = self.channel_dropout(mixed).squeeze(-1)  # whole channels of an image
        projected: Tensor = self.linear(mixed).transpose(1, 2)  # (B, D, N) -> (B, N, D)
        return projected

    def project_folded(self, x: Tensor) -> Tensor:
        """The same, with everything linear folded into one matrix M (N, HW) by `fold_projection`.

        The norm's gain, the channels' dropout and the norm's offset are of a channel each, and come after:
        M (g x + o) = g (M x) + o (M 1).
        """
        fold = fold_projection(self.linear.weight, self.kernel, self.grid)
        plain = F.layer_norm(x, x.shape[-1:], eps=self.norm.eps)[:, self.prefix :]  # (B, HW, D)
        mixed = torch.matmul(fold.to(x.dtype), plain).to(fold.dtype)  # (B, N, D)
        mixed = mixed * self.norm.weight + fold.sum(1, keepdim=True) * self.norm.bias
        channels = mixed.new_ones(x.shape[0], x.shape[-1], 1, 1)
        kept = self.channel_dropout(channels).view(x.shape[0], 1, -1)
        projected: Tensor = mixed * kept + self.linear.bias[:, None]
        return projected


def fold_projection(weight: Tensor, kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    """The one matrix (N, HW) that convolves a grid of patches (H, W) and projects the places (N, hw).

    Both mix places, so it is the projector's weights convolved backwards with the kernel.
    """
    size = kernel.shape[-1]
    planes = weight.view(-1, 1, grid[0] - size + 1, grid[1] - size + 1)
    return F.conv_transpose2d(planes, kernel).flatten(1)


def average_regions(count: int, height: int, width: int) -> Tensor:
    """Weights (count, height * width), each row the mean over one of `count` regions of the grid."""
    rows = math.isqrt(count)
    places = torch.eye(height * width).view(-1, height, width)
    regions = F.adaptive_avg_pool2d(places, (rows, math.ceil(count / rows)))  # (height * width, rows, columns)
    return regions.flatten(1).T[:count]


class FeatureProjector(nn.Module):
    """G (B, N, D) to P = G + W2 relu(W1 G). Without the residual the zero start could never learn."""

    def __init__(self, embed_dim: int, bottleneck: int, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(embed_dim, bottleneck, bias=False)
        self.up = nn.Linear(bottleneck, embed_dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, g: Tensor) -> Tensor:
        prompts: Tensor = g + self.up(self.dropout(F.relu(self.down(g))))
        return prompts


def _require_room(vit: "VisionTransformer", static_blocks: int, kernel: int) -> None:
    """Raise BackboneError unless adaptive blocks remain and the kernel fits the grid."""
    blocks, (height, width) = len(vit.blocks), vit.patch_embed.grid_size
    if static_blocks >= blocks:
        raise BackboneError(
            "tuner vapt",
            expected=f"static_blocks below {blocks}, the backbone's depth",
            found=f"static_blocks: {static_blocks}",
            hint="Lower it, or use `kind: vpt`, which is static in every block.",
        )
    if kernel > min(height, width):
        raise BackboneError(
            "tuner vapt",
            expected=f"a kernel no larger than the patch grid, {height} x {width}",
            found=f"kernel: {kernel}",
            hint="Lower it, or choose a larger img_size.",
        )
