"""Adapters with prompts as data: linear, vpt and vapt, deep and shallow.

Deep prompts only act as further keys and values (`fast`). A static prompt's are the same for every image, so they are
computed when the adapter is added; VAPT's projectors are folded then. Everything is held as the adapter's own network
would compute it: the backbone, its residual stream and the keys in the engine's dtype, what learns in float32.

Letters as in `prompts`: N prompts, HW patches, D embed_dim, L blocks, A adaptive blocks; n rows of a span.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from components.models.backbones import Backbone
from components.models.encoders import set_attention
from components.models.engine import Engine
from components.models.fast import forward_fast, project_prompts
from components.models.mixed.forward import forward_mixed
from components.models.mixed.pools import Pools, Slot, split_spans
from components.models.prompts import fold_projection
from components.models.tokens import Needs, Tokens
from components.models.tuners import Tuner

if TYPE_CHECKING:
    from timm.models.vision_transformer import Block, VisionTransformer

EPS = 1e-5  # of VAPT's norm


class PromptedFamily:
    """Linear probes, deep prompts and adaptive prompts, in one forward."""

    def __init__(self, backbone: Backbone, engine: Engine) -> None:
        self.vit, self.pools = open_prompted(backbone, engine), Pools(engine.device)

    def add(self, tensors: Mapping[str, Tensor], tuner: Tuner) -> Slot:
        """tensors: of the adapter without its head, by their names in a `PromptedEncoder`."""
        static = tensors.get("prompts.tokens", tensors.get("prompts.static.tokens"))
        if static is None:
            return self.pools.put({}, 0)
        held = self._project_static(static) | self._fold_adaptive(tensors)
        return self.pools.put(held, static.shape[1])

    def sort_key(self, place: Slot) -> tuple[int, ...]:
        """Rows with equally many prompts lie together, whatever their kind."""
        counts = [form.shape[1] for form in place.pool.layout if form.name == "pairs"]
        return (*counts, id(place.pool), place.number)

    def forward(self, images: Tensor, places: Sequence[Slot], needs: Needs) -> Tokens:
        with torch.autocast(images.device.type, enabled=False):
            spans = [PromptSpan(rows, same[0].pool.take(same), self.vit) for rows, same in split_spans(places)]
            return forward_mixed(self.vit, images, spans, needs)

    def _project_static(self, static: Tensor) -> dict[str, Tensor]:
        """Keys and values (blocks, N, 2gd) of prompts (blocks, N, D): as wide as those of the block that has most, the
        others' filled up with zeros."""
        form = self.vit.patch_embed.proj.weight
        prompts = zip(self.vit.blocks, static.to(form), strict=False)
        pairs = [project_prompts(block, tokens[None]) for block, tokens in prompts]
        widest = max(map(count_pair_channels, self.vit.blocks))
        return {"pairs": torch.cat([F.pad(pair, (0, widest - pair.shape[-1])) for pair in pairs])}

    def _fold_adaptive(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The projectors of the adaptive blocks, folded (A, N, HW), with what follows them; nothing for vpt."""
        rows: dict[str, list[Tensor]] = {name: [] for name in ("fold", "sums", "gain", "offset", "bias")}
        grid, dtype = self.vit.patch_embed.grid_size, self.vit.patch_embed.proj.weight.dtype
        while (name := f"prompts.tokenwise.{len(rows['fold'])}") + ".kernel" in tensors:
            fold = fold_projection(tensors[f"{name}.linear.weight"], tensors[f"{name}.kernel"], grid)
            found = fold.to(dtype), fold.sum(1), tensors[f"{name}.norm.weight"], tensors[f"{name}.norm.bias"]
            for part, tensor in zip(rows.values(), (*found, tensors[f"{name}.linear.bias"]), strict=True):
                part.append(tensor)
        if not rows["fold"]:
            return {}
        shared = {part: tensors[f"prompts.featurewise.{part}.weight"] for part in ("down", "up")}
        return {part: torch.stack(found) for part, found in rows.items()} | shared


def count_pair_channels(block: "Block") -> int:
    """Of a block's keys and values together, 2gd; several heads of queries may share one of keys."""
    attn: Any = block.attn
    channels: int = 2 * getattr(attn, "num_kv_heads", attn.num_heads) * attn.head_dim
    return channels


@dataclass(frozen=True)
class PromptSpan:
    """Rows of adapters with equally many prompts, static in equally many blocks. held: tensors (1 or n, ...)."""

    rows: slice
    held: Mapping[str, Tensor]
    vit: "VisionTransformer"

    def find_pairs(self, index: int, block: "Block", x: Tensor) -> Tensor | None:
        if not self.held:
            return None
        static = self.held["pairs"].shape[1]
        if index < static:
            return self.held["pairs"][:, index, :, : count_pair_channels(block)]
        return project_prompts(block, self._adapt(index - static, x).to(x.dtype))

    def run_beside(self, index: int, x: Tensor) -> Tensor | None:
        return None

    def _adapt(self, number: int, x: Tensor) -> Tensor:
        """VAPT's prompts (n, N, D) in float32 of the tokens before the block: `AdaptivePrompts.answer_fast` by row."""
        fold, sums, gain, offset, bias = (
            self.held[part][:, number] for part in ("fold", "sums", "gain", "offset", "bias")
        )
        plain = F.layer_norm(x, x.shape[-1:], eps=EPS)[:, self.vit.num_prefix_tokens :]  # (n, HW, D)
        mixed = torch.matmul(fold, plain).float()  # (n, N, D)
        mixed = mixed * gain[:, None] + sums[..., None] * offset[:, None] + bias[..., None]
        down, up = self.held["down"], self.held["up"]  # (n, r, D), (n, D, r)
        return mixed + F.relu(mixed @ down.transpose(1, 2)) @ up.transpose(1, 2)


class FlowingFamily:
    """Shallow prompts, which are tokens of all blocks: rows with equally many of them share one forward."""

    def __init__(self, backbone: Backbone, engine: Engine) -> None:
        self.vit, self.pools = open_prompted(backbone, engine), Pools(engine.device)

    def add(self, tensors: Mapping[str, Tensor], tuner: Tuner) -> Slot:
        return self.pools.put({"tokens": tensors["prompts.tokens"][0].to(self.vit.patch_embed.proj.weight)})

    def sort_key(self, place: Slot) -> tuple[int, ...]:
        return (id(place.pool), place.number)

    def forward(self, images: Tensor, places: Sequence[Slot], needs: Needs) -> Tokens:
        with torch.autocast(images.device.type, enabled=False):
            parts = [
                forward_fast(self.vit, images[rows], FlowingPrompts(same[0].pool.take(same)["tokens"]), needs)
                for rows, same in split_spans(places)
            ]
        return Tokens.join(parts)


@dataclass(frozen=True)
class FlowingPrompts:
    """A prompt source: tokens (1 or n, N, D) before block 0."""

    tokens: Tensor
    flows: bool = True

    def __call__(self, index: int, x: Tensor, /) -> Tensor | None:
        return self.tokens.expand(len(x), -1, -1) if index == 0 else None

    def answer_fast(self, index: int, x: Tensor, /) -> Tensor | None:
        return self.tokens if index == 0 else None


def open_prompted(backbone: Backbone, engine: Engine) -> "VisionTransformer":
    """The backbone as a prepared `PromptedEncoder` holds it."""
    vit = backbone.at(engine.dtype, engine.device).eval()
    set_attention(vit, engine.fused_attention)
    return vit
