"""The prompted forward as it is trained and served: the same numbers as `prompts.forward_prompted` at lower cost.

A deep prompt's own output is thrown away, so it only ever acts as one more key and value: it needs no query, no
output projection and no MLP, and a static one's key and value are the same for every image. Where the head reads the
class token alone, so is the last block computed for it alone. The frozen weights may be held in bfloat16, and the
residual stream with them; everything that learns stays float32.

Letters as in `prompts`; h heads of width d, T = S + HW tokens.
"""

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from components.models.blocks import embed_images
from components.models.prompts import PromptSource
from components.models.tokens import POOLED, Needs, Tokens, read_tokens

if TYPE_CHECKING:
    from timm.models.vision_transformer import Block, VisionTransformer

PROBE_SHAPE = (8, 3, 197, 64)  # (B, h, T, d): small enough to take milliseconds, large enough to tell
PROBE_ROUNDS = 5
MUST_WIN_BY = 2.0
KEYS_MULTIPLE = 32  # of a vector register's numbers
FEW_SCORES_BYTES = 2 << 20
SCORES_BYTES = 4 << 20  # what stays near a processor core; 2 MB were slower for ViT-B


def forward_fast(
    vit: "VisionTransformer", images: Tensor, source: PromptSource | None, needs: Needs = POOLED
) -> Tokens:
    """What a head needs of normalised images (B, 3, height, width), in the dtype of the weights."""
    x = embed_images(vit, images.to(vit.patch_embed.proj.weight.dtype))  # (B, S+HW, D)
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
        if vit.grad_checkpointing and torch.is_grad_enabled():
            x = checkpoint(run_block, block, x, prompts, queries, use_reentrant=False)
        else:
            x = run_block(block, x, prompts, queries)
        if index in needs.layers:
            layers[index] = _strip(x, prefix, flowing)
    return read_tokens(vit, x if first_alone else _strip(x, prefix, flowing), layers, needs)


def _strip(x: Tensor, prefix: int, flowing: int) -> Tensor:
    """Tokens (B, S+N+HW, D) without the N prompts that flow with them."""
    return torch.cat([x[:, :prefix], x[:, prefix + flowing :]], dim=1) if flowing else x


def run_block(block: "Block", x: Tensor, prompts: Tensor | None, queries: int | None) -> Tensor:
    """A block over x (B, T, D) with prompts (1 or B, N, D) as further keys and values; for the first `queries` tokens
    only, where given: (B, queries or T, D)."""
    if prompts is None and queries is None:
        whole: Tensor = block(x)
        return whole
    pairs = None if prompts is None else project_prompts(block, prompts)
    return feed_tokens(block, attend_tokens(block, x, [Keys(slice(None), pairs)], queries))


class Keys(NamedTuple):
    """Keys and values (1 or n, N, 2D) that n rows of a batch, which lie together, have besides their own tokens'."""

    rows: slice
    pairs: Tensor | None


def project_prompts(block: "Block", prompts: Tensor) -> Tensor:
    """Keys and values (1 or B, N, 2D) of prompts (1 or B, N, D)."""
    attn: Any = block.attn
    return _project(attn.qkv, block.norm1(prompts), attn.attn_dim)


def attend_tokens(block: "Block", x: Tensor, keys: Sequence[Keys], queries: int | None = None) -> Tensor:
    """The first half of a block: tokens x (B, T, D), or the first `queries` of them, plus what attention adds.

    keys: for all rows of x, in order. Only the scores are computed by these spans; matrices see the whole batch.
    """
    attn: Any = block.attn
    h = block.norm1(x)
    asking = h if queries is None else h[:, :queries]
    if _is_plain(attn) and queries is None and not attn.fused_attn:
        qkv = attn.qkv(h)
        parts = [_attend_by_groups(attn, qkv[rows], pairs) for rows, pairs in keys]
    else:
        q, kv = _project(attn.qkv, asking, 0, attn.attn_dim), _project(attn.qkv, h, attn.attn_dim)
        parts = [_attend_at_once(attn, q[rows], kv[rows], pairs) for rows, pairs in keys]
    mixed = attn.norm(parts[0] if len(parts) == 1 else torch.cat(parts))  # (B, queries or T, D)
    if attn.gate is not None:
        mixed = mixed * attn.gate(asking).sigmoid()
    attended = block.drop_path1(block.ls1(attn.proj_drop(attn.proj(mixed))))
    out: Tensor = (x if queries is None else x[:, :queries]) + attended
    return out


def feed_tokens(block: "Block", x: Tensor) -> Tensor:
    """The second half of a block: tokens (B, T, D) plus what the MLP makes of them."""
    out: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return out


def _attend_by_groups(attn: Any, qkv: Tensor, pairs: Tensor | None) -> Tensor:
    """For a CPU. Without prompts and with few scores there is nothing to gain from rounding the keys' number up."""
    scores = qkv.shape[0] * attn.num_heads * qkv.shape[1] ** 2 * qkv.element_size()
    if pairs is None and scores <= FEW_SCORES_BYTES:
        q, kv = qkv[..., : attn.attn_dim], qkv[..., attn.attn_dim :]
        return _attend_at_once(attn, q, kv, None)
    grouped: Tensor = ImageWiseAttention.apply(qkv, pairs, attn.num_heads, attn.scale)
    return grouped


def _is_plain(attn: Any) -> bool:
    return isinstance(attn.q_norm, nn.Identity) and isinstance(attn.k_norm, nn.Identity)


def _attend_at_once(attn: Any, q: Tensor, kv: Tensor, pairs: Tensor | None) -> Tensor:
    """The attention of queries (B, ., D) to keys and values (B, T, 2D) in one call, for a GPU, for the few queries of
    a last block, and where queries and keys are normalised."""
    k, v = kv.chunk(2, dim=-1)
    if pairs is not None:
        prompt_k, prompt_v = pairs.expand(kv.shape[0], -1, -1).chunk(2, dim=-1)
        k, v = torch.cat([prompt_k, k], dim=1), torch.cat([prompt_v, v], dim=1)  # (B, N+T, D)
    q, k, v = (part.reshape(*part.shape[:2], attn.num_heads, -1).transpose(1, 2) for part in (q, k, v))  # (B, h, ., d)
    mixed = attend(attn.q_norm(q), attn.k_norm(k), v, attn.scale, attn.fused_attn)
    return mixed.transpose(1, 2).flatten(2)


class ImageWiseAttention(torch.autograd.Function):
    """Attention of tokens (B, T, 3D) to themselves and to prompts' keys and values (1 or B, N, 2D), for a CPU.

    A few images at a time the scores stay in the processor's cache, so it is cheap to compute them again for the
    backward pass instead of keeping them: they would be a third of everything kept.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, pairs: Tensor | None, heads: int, scale: float) -> Tensor:
        ctx.save_for_backward(qkv, pairs)
        ctx.heads, ctx.scale = heads, scale
        out = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
        for images, _, weights, _, values in _weigh_images(qkv, pairs, heads, scale):
            _put(torch.bmm(weights, values), out[images], heads)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = gradients
        qkv, pairs = ctx.saved_tensors
        heads, scale = ctx.heads, ctx.scale
        for_tokens, for_pairs = ctx.needs_input_grad[:2]
        count, end = _count_keys(qkv, pairs)
        grad_qkv = torch.empty_like(qkv) if for_tokens else None
        # A static prompt's gradient is a sum over all images: too long for bfloat16.
        precise = torch.promote_types(qkv.dtype, torch.float32)
        grad_pairs = torch.zeros_like(pairs, dtype=precise) if for_pairs else None
        for images, q, weights, keys, values in _weigh_images(qkv, pairs, heads, scale):
            g = _split_heads(grad[images], heads).flatten(0, 1)
            grad_v = torch.bmm(weights.transpose(1, 2), g)  # (G h, M, d)
            # Private, but what autograd itself calls; from public products it costs two more passes and other bits.
            grad_scores = torch._softmax_backward_data(torch.bmm(g, values.transpose(1, 2)), weights, -1, g.dtype)
            grad_k = torch.bmm(grad_scores.transpose(1, 2), q)  # q is scaled
            if grad_qkv is not None:
                to_q, to_k, to_v = grad_qkv[images].chunk(3, dim=-1)
                _put(torch.bmm(grad_scores, keys).mul_(scale), to_q, heads)
                _put(grad_k[:, count:end], to_k, heads)
                _put(grad_v[:, count:end], to_v, heads)
            if grad_pairs is not None:
                of_prompts = torch.cat([_join_heads(part[:, :count], heads) for part in (grad_k, grad_v)], dim=-1)
                if len(grad_pairs) == 1:
                    grad_pairs += of_prompts.sum(0, keepdim=True, dtype=precise)
                else:
                    grad_pairs[images] = of_prompts.to(precise)
        return grad_qkv, None if grad_pairs is None else grad_pairs.to(qkv.dtype), None, None


def _weigh_images(
    qkv: Tensor, pairs: Tensor | None, heads: int, scale: float
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
    """G images after G images: which, queries times scale (G h, T, d), attention weights (G h, T, M), keys and values
    (G h, M, d).

    M is N + T rounded up, because vectors of odd length cost the softmax half its speed; what is beyond weighs nothing.
    """
    batch, tokens, width = len(qkv), qkv.shape[1], qkv.shape[2] // 3
    count, end = _count_keys(qkv, pairs)
    padded = -(-end // KEYS_MULTIPLE) * KEYS_MULTIPLE
    group = min(batch, max(1, SCORES_BYTES // (heads * tokens * padded * qkv.element_size())))
    keys, values = (qkv.new_zeros(group, heads, padded, width // heads) for _ in range(2))
    for start in range(0, batch, group):
        images = slice(start, min(start + group, batch))
        size = images.stop - start
        if pairs is not None and (start == 0 or len(pairs) > 1):
            prompt_k, prompt_v = pairs[images if len(pairs) > 1 else slice(None)].chunk(2, dim=-1)
            keys[:size, :, :count] = _split_heads(prompt_k, heads)
            values[:size, :, :count] = _split_heads(prompt_v, heads)
        q, k, v = (_split_heads(part, heads) for part in qkv[images].chunk(3, dim=-1))
        keys[:size, :, count:end] = k
        values[:size, :, count:end] = v
        q = q.clone(memory_format=torch.contiguous_format).mul_(scale).flatten(0, 1)
        scores = torch.bmm(q, keys[:size].flatten(0, 1).transpose(1, 2))
        scores[:, :, end:] = -torch.inf
        yield images, q, scores.softmax(dim=-1), keys[:size].flatten(0, 1), values[:size].flatten(0, 1)


def _count_keys(qkv: Tensor, pairs: Tensor | None) -> tuple[int, int]:
    """N and N + T."""
    count = 0 if pairs is None else pairs.shape[1]
    return count, count + qkv.shape[1]


def _split_heads(rows: Tensor, heads: int) -> Tensor:
    """(B, T, D) as (B, h, T, d), without a copy."""
    return rows.view(*rows.shape[:2], heads, -1).transpose(1, 2)


def _join_heads(parts: Tensor, heads: int) -> Tensor:
    """(B h, T, d) to (B, T, D)."""
    return parts.view(-1, heads, *parts.shape[1:]).transpose(1, 2).flatten(2)


def _put(parts: Tensor, rows: Tensor, heads: int) -> None:
    """Write (B h, T, d) into (B, T, D)."""
    _split_heads(rows, heads).copy_(parts.view(-1, heads, *parts.shape[1:]))


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, fused: bool) -> Tensor:
    """softmax(q k^T scale) v, by the fused kernel or by products and softmax."""
    if fused:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    return ((q * scale) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def _project(linear: Any, x: Tensor, first: int, last: int | None = None) -> Tensor:
    """Some of a linear layer's outputs, the columns from `first` to `last`."""
    columns = slice(first, last)
    if isinstance(linear, nn.Linear):
        return F.linear(x, linear.weight[columns], None if linear.bias is None else linear.bias[columns])
    part: Tensor = linear.project(x, columns)  # one that changes rows of the batch, each in its own way
    return part


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
