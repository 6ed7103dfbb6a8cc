"""The prompted forward as it is trained and served: the same numbers as `prompts.forward_prompted` at lower cost.

A deep prompt's own output is thrown away, so it only ever acts as one more key and value: it needs no query, no
output projection and no MLP, and a static one's key and value are the same for every image. Where the head reads the
class token alone, so is the last block computed for it alone. The frozen weights may be held in bfloat16, and the
residual stream with them; everything that learns stays float32.

Letters as in `prompts`; h heads of width d, T = S + HW tokens. In an `Eva`, rotary positions turn
queries and keys of patches alone: prompts, like the prefix, have no place.
"""

import time
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from components.models.attention import (
    attend,
    attend_at_once,
    attend_by_groups,
    needs_one_call,
    project_all,
    project_pairs,
    project_queries,
    turn_all,
)
from components.models.blocks import enter_blocks, run_whole_block, scale_attended, scale_fed
from components.models.prompts import PromptSource
from components.models.tokens import POOLED, Needs, Tokens, read_tokens

if TYPE_CHECKING:
    from timm.models.vision_transformer import Block, VisionTransformer

PROBE_SHAPE = (8, 3, 197, 64)  # (B, h, T, d): small enough to take milliseconds, large enough to tell
PROBE_ROUNDS = 5
MUST_WIN_BY = 2.0


def forward_fast(
    vit: "VisionTransformer", images: Tensor, source: PromptSource | None, needs: Needs = POOLED
) -> Tokens:
    """What a head needs of normalised images (B, 3, height, width), in the dtype of the weights."""
    x, ropes = enter_blocks(vit, images.to(vit.patch_embed.proj.weight.dtype))  # (B, S+HW, D)
    prefix, depth = vit.num_prefix_tokens, needs.count_blocks(len(vit.blocks))
    first_alone = needs.read_one_token(vit)
    flowing = 0  # prompts among the tokens: those of a shallow tuner, whose outputs flow on
    layers = {}
    for index, block in enumerate(islice(vit.blocks, depth)):
        prompts = source.answer_fast(index, x) if source else None  # (1, N, D) or (B, N, D)
        prompts = None if prompts is None else prompts.to(x.dtype)
        if prompts is not None and source is not None and source.flows:
            flowing = prompts.shape[1]
            x = torch.cat([x[:, :prefix], prompts.expand(x.shape[0], -1, -1), x[:, prefix:]], dim=1)
            prompts = None
        queries = 1 if first_alone and index == depth - 1 else None
        rope = ropes.of_block(index, flowing)
        x = run_or_recompute(vit, block, x, prompts, queries, rope)
        if index in needs.layers:
            layers[index] = _strip(x, prefix, flowing)
    return read_tokens(vit, x if first_alone else _strip(x, prefix, flowing), layers, needs)


def _strip(x: Tensor, prefix: int, flowing: int) -> Tensor:
    """Tokens (B, S+N+HW, D) without the N prompts that flow with them."""
    return torch.cat([x[:, :prefix], x[:, prefix + flowing :]], dim=1) if flowing else x


def run_or_recompute(
    vit: "VisionTransformer",
    block: "Block",
    x: Tensor,
    prompts: Tensor | None,
    queries: int | None,
    rope: Tensor | None,
) -> Tensor:
    """`run_block`, of which nothing but its inputs is kept for the backward pass where the network is so set."""
    if vit.grad_checkpointing and torch.is_grad_enabled():
        recomputed: Tensor = checkpoint(run_block, block, x, prompts, queries, rope, use_reentrant=False)
        return recomputed
    return run_block(block, x, prompts, queries, rope)


def run_block(
    block: "Block", x: Tensor, prompts: Tensor | None, queries: int | None, rope: Tensor | None = None
) -> Tensor:
    """A block over x (B, T, D) with prompts (1 or B, N, D) as further keys and values; for the first `queries` tokens
    only, where given: (B, queries or T, D). rope: the rotary positions of the T tokens; prompts are not turned."""
    if prompts is None and queries is None:
        return run_whole_block(block, x, rope)
    pairs = None if prompts is None else project_prompts(block, prompts)
    return feed_tokens(block, attend_tokens(block, x, [Keys(slice(None), pairs)], queries, rope))


class Keys(NamedTuple):
    """Keys and values (1 or n, N, 2D) that n rows of a batch, which lie together, have besides their own tokens'."""

    rows: slice
    pairs: Tensor | None


def project_prompts(block: "Block", prompts: Tensor) -> Tensor:
    """Keys and values (1 or B, N, 2gd) of prompts (1 or B, N, D)."""
    attn: Any = block.attn
    return project_pairs(attn, block.norm1(prompts))


def attend_tokens(
    block: "Block", x: Tensor, keys: Sequence[Keys], queries: int | None = None, rope: Tensor | None = None
) -> Tensor:
    """The first half of a block: tokens x (B, T, D), or the first `queries` of them, plus what attention adds.

    keys: for all rows of x, in order. Only the scores are computed by these spans; matrices see the whole batch. rope:
    the rotary positions of the T tokens, `Ropes.of_block`.
    """
    attn: Any = block.attn
    h = block.norm1(x)
    asking = h if queries is None else h[:, :queries]
    if queries is None and not needs_one_call(attn):
        qkv = turn_all(attn, project_all(attn, h), rope)
        parts = [attend_by_groups(attn, qkv[rows], pairs) for rows, pairs in keys]
    else:
        q, kv = project_queries(attn, asking), project_pairs(attn, h)
        parts = [attend_at_once(attn, q[rows], kv[rows], pairs, rope) for rows, pairs in keys]
    mixed = attn.norm(parts[0] if len(parts) == 1 else torch.cat(parts))  # (B, queries or T, D)
    if attn.gate is not None:
        mixed = mixed * attn.gate(asking).sigmoid()
    attended = block.drop_path1(scale_attended(block, attn.proj_drop(attn.proj(mixed))))
    out: Tensor = (x if queries is None else x[:, :queries]) + attended
    return out


def feed_tokens(block: "Block", x: Tensor) -> Tensor:
    """The second half of a block: tokens (B, T, D) plus what the MLP makes of them."""
    out: Tensor = x + block.drop_path2(scale_fed(block, block.mlp(block.norm2(x))))
    return out


def choose_attention(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's fused attention is to be used: measured here, forward and backward.

    In bfloat16 on a CPU it takes up to five times the time of products and softmax; on a GPU it is far ahead. A choice
    changes the last bits of what is learned, so it must come out the same on the same machine whatever else is running
    there: a processor's own time is counted, not the clock's, and the device's habit is left for a clear win alone.
    """
    seconds = {True: float("inf"), False: float("inf")}
    tensors = [torch.full(PROBE_SHAPE, 0.1, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
    with torch.enable_grad():
        for _ in range(PROBE_ROUNDS):
            for fused in seconds:
                seconds[fused] = min(seconds[fused], _time_attention(tensors, fused))
    usual = device.type != "cpu"
    return usual if seconds[usual] < MUST_WIN_BY * seconds[not usual] else not usual


def _time_attention(tensors: list[Tensor], fused: bool) -> float:
    q, k, v = tensors
    clock = time.process_time if q.device.type == "cpu" else time.perf_counter
    _wait(q.device)
    begin = clock()
    attend(q, k, v, q.shape[-1] ** -0.5, fused).sum().backward()  # type: ignore[no-untyped-call]
    _wait(q.device)
    return clock() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
