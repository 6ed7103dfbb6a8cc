"""Attention of a block's tokens and its prompts, from one door for timm's three attentions: `Attention`, and `Eva`'s
`EvaAttention` and `AttentionRope`.

    project_queries, project_pairs     what the products of a block make of tokens
    attend_by_groups, attend_at_once   their attention, for a CPU and for the rest

Letters: B images, T tokens, N prompts, D width of all heads together, h heads of width d, g heads of keys (g <= h).
Pairs are keys beside values.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from components.models.blocks import extend_rope

KEYS_MULTIPLE = 32  # of a vector register's numbers
FEW_SCORES_BYTES = 2 << 20
SCORES_BYTES = 4 << 20  # what stays near a processor core; 2 MB were slower for ViT-B


def project_queries(attn: Any, x: Tensor) -> Tensor:
    """Queries (B, T, D) of normalised tokens."""
    queries: Tensor = attn.q_proj(x) if _is_split(attn) else _project(attn, x, slice(0, count_channels(attn)))
    return queries


def project_pairs(attn: Any, x: Tensor) -> Tensor:
    """Keys and values (B, T, 2gd) of normalised tokens."""
    if _is_split(attn):
        return torch.cat([attn.k_proj(x), attn.v_proj(x)], dim=-1)
    return _project(attn, x, slice(count_channels(attn), None))


def project_all(attn: Any, x: Tensor) -> Tensor:
    """Queries, keys and values (B, T, D + 2gd) of normalised tokens."""
    if _is_split(attn):
        return torch.cat([attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)], dim=-1)
    return _project(attn, x, slice(None))


def count_channels(attn: Any) -> int:
    """D."""
    channels: int = attn.num_heads * attn.head_dim
    return channels


def _is_split(attn: Any) -> bool:
    """Whether queries, keys and values have matrices of their own."""
    return getattr(attn, "q_proj", None) is not None


def _project(attn: Any, x: Tensor, columns: slice) -> Tensor:
    """Some of the outputs of the one matrix that makes queries, keys and values."""
    linear, separate = attn.qkv, getattr(attn, "q_bias", None)
    if separate is not None:  # EvaAttention's: keys have a constant in the place of a bias
        separate = torch.cat([attn.q_bias, attn.k_bias.to(attn.q_bias), attn.v_bias])[columns]
    if isinstance(linear, nn.Linear):
        bias = separate if linear.bias is None else linear.bias[columns]
        return F.linear(x, linear.weight[columns], bias)
    part: Tensor = linear.project(x, columns)  # one that changes rows of the batch, each in its own way
    return part if separate is None else part + separate


def needs_one_call(attn: Any) -> bool:
    """Whether `attend_by_groups` cannot compute this attention: it normalises queries and keys, or several heads of
    queries share one of keys."""
    plain = isinstance(attn.q_norm, nn.Identity) and isinstance(attn.k_norm, nn.Identity)
    return attn.fused_attn or not plain or getattr(attn, "num_kv_groups", 1) > 1


def attend_by_groups(attn: Any, qkv: Tensor, pairs: Tensor | None) -> Tensor:
    """Attention (B, T, D) of tokens, whose queries, keys and values (B, T, 3D) are turned already, to themselves and to
    prompts' pairs (1 or B, N, 2D), for a CPU.

    Without prompts and with few scores there is nothing to gain from rounding the keys' number up.
    """
    scores = qkv.shape[0] * attn.num_heads * qkv.shape[1] ** 2 * qkv.element_size()
    if pairs is None and scores <= FEW_SCORES_BYTES:
        channels = count_channels(attn)
        return attend_at_once(attn, qkv[..., :channels], qkv[..., channels:], None, None)
    grouped: Tensor = ImageWiseAttention.apply(qkv, pairs, attn.num_heads, attn.scale)
    return grouped


def attend_at_once(attn: Any, q: Tensor, kv: Tensor, pairs: Tensor | None, rope: Tensor | None) -> Tensor:
    """Attention (B, ., D) of the first tokens' queries (B, ., D) to pairs (B, T, 2gd) and to prompts' pairs (1 or B, N,
    2gd) in one call, for a GPU, for the few queries of a last block, and where `needs_one_call` says so.

    rope: the rotary positions of the T tokens.
    """
    k, v = kv.chunk(2, dim=-1)
    if pairs is not None:
        prompt_k, prompt_v = pairs.expand(kv.shape[0], -1, -1).chunk(2, dim=-1)
        k, v = torch.cat([prompt_k, k], dim=1), torch.cat([prompt_v, v], dim=1)  # (B, N+T, gd)
    q, k, v = (split_heads(part, attn.head_dim) for part in (q, k, v))  # (B, h or g, ., d)
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        q = turn(attn, q, rope[..., : q.shape[2], :])
        k = turn(attn, k, rope if pairs is None else extend_rope(rope, pairs.shape[1]))
    if k.shape[1] < q.shape[1]:
        k, v = (part.repeat_interleave(attn.num_kv_groups, dim=1) for part in (k, v))
    mixed = attend(q, k, v, attn.scale, attn.fused_attn)
    return mixed.transpose(1, 2).flatten(2)


def turn_all(attn: Any, qkv: Tensor, rope: Tensor | None) -> Tensor:
    """Queries, keys and values (B, T, 3D), of which the first two are turned by rotary positions."""
    if rope is None:
        return qkv
    *both, values = qkv.chunk(3, dim=-1)
    heads = (turn(attn, split_heads(part, attn.head_dim), rope) for part in both)
    return torch.cat([*(part.transpose(1, 2).flatten(2) for part in heads), values], dim=-1)


def split_heads(rows: Tensor, width: int) -> Tensor:
    """(B, T, h d) as (B, h, T, d)."""
    return rows.reshape(*rows.shape[:-1], -1, width).transpose(1, 2)


def turn(attn: Any, heads: Tensor, rope: Tensor) -> Tensor:
    """Queries or keys (B, h, T, d), turned by rotary positions (T, 2d) or (h, T, 2d)."""
    from timm.layers import apply_rot_embed_cat

    turned: Tensor = apply_rot_embed_cat(heads, rope, half=attn.rotate_half)
    return turned


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
