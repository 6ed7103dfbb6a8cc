"""Adapters that change modules of the backbone, as data: lora, dora, ssf, bitfit and adaptformer.

One copy of the network serves all, over the backbone's tensors as `TunedEncoder.prepare` holds them. Behind each shared
product stands what the row's adapter changes of it, a `Change`:

    y = W x + b                          the shared module, for the whole batch
    y = scale * y + shift + up down x    of rows whose adapter has these; down is (r, in), up (C, r)

    lora         up = alpha / rank * B, down = A
    dora         scale = m / |W + alpha / rank * B A| by rows of W, shift = b - scale * b, up = scale * lora's
    ssf          scale and shift
    bitfit       shift = its bias - b

AdaptFormer's bottleneck runs beside the MLP. Scales are held in float32, as in training; matrices in the engine's
dtype, in which autocast computes with them anyway.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from components.models.backbones import Backbone
from components.models.encoders import TunedEncoder
from components.models.engine import Engine
from components.models.mixed.forward import forward_mixed
from components.models.mixed.pools import Pools, Slot, split_spans
from components.models.tokens import Needs, Tokens
from components.models.tuners import Tuner
from components.models.tuners.adaptformer import AdaptFormerTuner
from components.models.tuners.bitfit import BitFitTuner
from components.models.tuners.lora import LowRankTuner

if TYPE_CHECKING:
    from timm.models.vision_transformer import Block

PARTS = ("scale", "shift", "down", "up")
BOTTLENECK = "bottleneck"


class TunedFamily:
    """All tuners of this module, in one forward."""

    def __init__(self, backbone: Backbone, engine: Engine) -> None:
        self.backbone, self.engine, self.pools = backbone, engine, Pools(engine.device)
        encoder = TunedEncoder(backbone.vit)
        encoder.prepare(backbone, engine.dtype, engine.device, engine.fused_attention)
        self.vit = encoder.eval().vit
        self.shared: dict[str, SharedModule] = {}
        for name, module in encoder.borrowed.items():
            if isinstance(module, nn.Linear | nn.Conv2d) or hasattr(module, "normalized_shape"):
                self.shared[name] = SharedModule(module)
                self.vit.set_submodule(name, self.shared[name])

    def add(self, tensors: Mapping[str, Tensor], tuner: Tuner) -> Slot:
        """tensors: of the adapter without its head, by their names in a `TunedEncoder`."""
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            module, part = split_name(name.removeprefix("vit."))
            groups.setdefault(module, {})[part] = tensor.to(self.engine.device)
        self._join_biases(groups)
        changes = {module: self._convert(module, parts, tuner) for module, parts in groups.items()}
        if isinstance(tuner, BitFitTuner):
            changes = self._fold_norms(changes)
        held = {f"{module}:{part}": each for module, parts in changes.items() for part, each in parts.items()}
        return self.pools.put(held, tuner.kind)

    def _join_biases(self, groups: dict[str, dict[str, Tensor]]) -> None:
        """BitFit's biases of queries and values, where attention holds them apart, as one of the matrix before them:
        the keys' stays zero."""
        for module in [module for module, parts in groups.items() if "q_bias" in parts]:
            parts = groups.pop(module)
            queries, values = (
                parts[name] - self.backbone.tensor(f"{module}.{name}", torch.float32, self.engine.device)
                for name in ("q_bias", "v_bias")
            )
            shift = torch.cat([queries, torch.zeros_like(queries), values]).to(self.engine.dtype)
            groups[f"{module}.qkv"] = {"shift": shift}

    def _fold_norms(self, shifts: Mapping[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """BitFit's shifts, of which those of a block's norms are left to the only layer that reads them:
        W (x + d) + b = W x + (b + W d). That spares a pass over the batch for each."""
        from timm.layers import Mlp

        folded = dict(shifts)
        for index, block in enumerate(self.vit.blocks):
            readers = {"norm1": "attn.qkv", "norm2": "mlp.fc1"}
            if block.attn.gate is not None or block.attn.qkv is None or not isinstance(block.mlp, Mlp):
                continue
            for norm, reader in ((f"blocks.{index}.{a}", f"blocks.{index}.{b}") for a, b in readers.items()):
                if norm in folded:
                    weight = self.backbone.tensor(f"{reader}.weight", torch.float32, self.engine.device)
                    moved = weight @ folded.pop(norm)["shift"]
                    before = folded[reader]["shift"] if reader in folded else 0
                    folded[reader] = {"shift": (before + moved).to(self.engine.dtype)}
        return folded

    def _convert(self, module: str, parts: Mapping[str, Tensor], tuner: Tuner) -> dict[str, Tensor]:
        """The change of one module that an adapter's tensors make."""
        dtype = self.engine.dtype
        if isinstance(tuner, AdaptFormerTuner):
            factors = {"up.weight": tuner.scale, "up.bias": tuner.scale}
            return {name: (tensor * factors.get(name, 1)).to(dtype) for name, tensor in parts.items()}
        if isinstance(tuner, LowRankTuner):
            found = self._convert_low_rank(module, parts, tuner.alpha / tuner.rank)
            return {name: tensor.to(torch.float32 if name in ("scale", "shift") else dtype) for name, tensor in found}
        if "bias" in parts:
            before = self.backbone.tensor(f"{module}.bias", torch.float32, self.engine.device)
            held = torch.float32 if self.shared[module].normalises else dtype
            return {"shift": (parts["bias"] - before).to(held)}
        return dict(parts)

    def _convert_low_rank(self, module: str, parts: Mapping[str, Tensor], factor: float) -> list[tuple[str, Tensor]]:
        down, up = parts["lora_A"], parts["lora_B"]
        if "lora_magnitude_vector" not in parts:
            return [("down", down), ("up", up * factor)]
        weight = self.backbone.tensor(f"{module}.weight", torch.float32, self.engine.device)
        with self.engine.autocast():  # in training the product is computed in the engine's dtype
            product = F.linear(up, down.T)
        scale = parts["lora_magnitude_vector"] / torch.linalg.norm(weight + factor * product, dim=1)
        bias = self.shared[module].base.bias
        shift = torch.zeros_like(scale) if bias is None else bias - scale * bias
        return [("scale", scale), ("shift", shift), ("down", down), ("up", up * (scale * factor)[:, None])]

    def sort_key(self, place: Slot) -> tuple[int, ...]:
        return (id(place.pool), place.number)

    def forward(self, images: Tensor, places: Sequence[Slot], needs: Needs) -> Tokens:
        spans = [TunedSpan.of(rows, same[0].pool.take(same)) for rows, same in split_spans(places)]
        try:
            for span in spans:
                for name, change in span.changes.items():
                    self.shared[name].changes.append(change)
            with self.engine.autocast():
                return forward_mixed(self.vit, images, spans, needs)
        finally:
            for module in self.shared.values():
                module.changes.clear()


def split_name(name: str) -> tuple[str, str]:
    """`blocks.0.attn.qkv.lora_A.default.weight` to module `blocks.0.attn.qkv` and part `lora_A`."""
    for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
        if f".{part}." in name:
            return name.partition(f".{part}.")[0], part
    if f".{BOTTLENECK}." in name:
        block, _, part = name.partition(f".{BOTTLENECK}.")
        return f"{block}.{BOTTLENECK}", part
    module, _, part = name.rpartition(".")
    return module, part


class Change:
    """What the adapters of a span of n rows change of one module's outputs: tensors (1 or n, ...)."""

    def __init__(
        self,
        rows: slice,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        down: Tensor | None = None,
        up: Tensor | None = None,
    ) -> None:
        self.rows, self.scale, self.shift, self.down, self.up = rows, scale, shift, down, up

    def apply(self, y: Tensor, x: Tensor, columns: slice | None, channels: int) -> None:
        """Change the outputs y of the whole batch in place; x: what the module read. columns: of the module's outputs,
        which y holds; all by default. channels: their axis in y."""
        y, scale, shift, up = y[self.rows], self.scale, self.shift, self.up
        if columns is not None:
            scale, shift, up = (None if part is None else part[:, columns] for part in (scale, shift, up))
        low = None
        if self.down is not None and up is not None:
            low = multiply(multiply(x[self.rows].to(self.down.dtype), self.down), up)
        if scale is not None and shift is not None:
            changed = (y * _spread(scale, y, channels)).add_(_spread(shift, y, channels))
            y.copy_(changed if low is None else changed.add_(low))
        elif shift is not None:
            y.add_(_spread(shift, y, channels))
        elif low is not None:
            y.add_(low)


def multiply(x: Tensor, matrices: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (n, T, in) by each row's own matrix, (1 or n, out, in), plus its bias (1 or n, out)."""
    if len(matrices) == 1:
        return F.linear(x, matrices[0], None if bias is None else bias[0])
    if bias is None:
        return torch.bmm(x, matrices.transpose(1, 2))
    return torch.baddbmm(bias[:, None], x, matrices.transpose(1, 2))


def _spread(rows: Tensor, y: Tensor, channels: int) -> Tensor:
    """(1 or n, C) so that it can be added to y, whose channels are on that axis."""
    if y.ndim == 3:
        return rows[:, None]
    shape = [1] * y.ndim
    shape[0], shape[channels] = rows.shape
    return rows.view(shape)


class SharedModule(nn.Module):
    """A module of the backbone, and what the spans of the batch that runs now change of its outputs."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base, self.changes = base, list[Change]()
        self.normalises = hasattr(base, "normalized_shape")
        self.channels = 1 if isinstance(base, nn.Conv2d) else -1

    @property
    def weight(self) -> Tensor:
        weight: Tensor = self.base.weight
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return self._change(self.base(x), x, None)

    def project(self, x: Tensor, columns: slice) -> Tensor:
        """Some of a linear layer's outputs."""
        bias = self.base.bias
        return self._change(F.linear(x, self.base.weight[columns], None if bias is None else bias[columns]), x, columns)

    def _change(self, y: Tensor, x: Tensor, columns: slice | None) -> Tensor:
        for change in self.changes:
            change.apply(y, x, columns, self.channels)
        return y


@dataclass(frozen=True)
class TunedSpan:
    """Rows of one kind of adapters. changes: by module; bottlenecks: by block, tensors by name."""

    rows: slice
    changes: Mapping[str, Change] = field(default_factory=dict)
    bottlenecks: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @staticmethod
    def of(rows: slice, held: Mapping[str, Tensor]) -> "TunedSpan":
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in held.items():
            module, _, part = name.partition(":")
            groups.setdefault(module, {})[part] = tensor
        bottlenecks = {name: parts for name, parts in groups.items() if name.endswith(BOTTLENECK)}
        changes = {name: Change(rows, **parts) for name, parts in groups.items() if name not in bottlenecks}
        return TunedSpan(rows, changes, bottlenecks)

    def find_pairs(self, index: int, block: "Block", x: Tensor) -> Tensor | None:
        return None

    def run_beside(self, index: int, x: Tensor) -> Tensor | None:
        parts = self.bottlenecks.get(f"blocks.{index}.{BOTTLENECK}")
        if parts is None:
            return None
        hidden = multiply(x.to(parts["down.weight"].dtype), parts["down.weight"], parts["down.bias"]).relu_()
        return multiply(hidden, parts["up.weight"], parts["up.bias"])
