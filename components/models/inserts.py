"""Modules that tuners insert into their copy of a vision transformer, and how they are merged into its weights.

    SSF          Lian et al., NeurIPS 2022, https://arxiv.org/abs/2210.08823
    AdaptFormer  Chen et al., NeurIPS 2022, https://arxiv.org/abs/2205.13535
    LoRA, DoRA   Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685; Liu et al., ICML 2024,
                 https://arxiv.org/abs/2402.09353; both computed by the peft library

Letters: B images, T tokens, D embed_dim, C channels of a module's output, r bottleneck.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from components.errors import BackboneError
from components.models.blocks import scale_attended, scale_fed

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

#: A target of low-rank products by its name in `VisionTransformer`, and by the names of the matrices that stand for it
#: where queries, keys and values have their own, or where an MLP has a gate of its own.
SEPARATE = {"attn.qkv": ("attn.q_proj", "attn.k_proj", "attn.v_proj"), "mlp.fc1": ("mlp.fc1_g", "mlp.fc1_x")}
SCALE_STD = 0.02  # of scales around 1 and shifts around 0 at the start, as in the SSF paper's experiments


class ScaleShift(nn.Module):
    """Every channel of what `base` puts out, times its scale, plus its shift."""

    def __init__(self, base: nn.Module, channels: int) -> None:
        super().__init__()
        self.base = base
        self.scale = nn.Parameter(1 + SCALE_STD * torch.randn(channels))
        self.shift = nn.Parameter(SCALE_STD * torch.randn(channels))
        self.behind = (1, 1) if isinstance(base, nn.Conv2d) else ()  # dimensions behind the channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        # In float32 whatever the dtype of y: bfloat16 knows but two numbers between 1 and 1.02.
        return (y * self.scale.view(-1, *self.behind) + self.shift.view(-1, *self.behind)).to(y.dtype)

    def merge(self) -> nn.Module:
        """`base` itself, its weight and bias changed so that it puts out the same alone."""
        base: Any = self.base
        if not hasattr(base, "bias"):
            raise BackboneError(
                "tuner ssf",
                expected="layers whose bias can take up the shifts",
                found=f"a {type(base).__name__}, which has no bias",
                hint="Serve it unmerged, which computes the same.",
            )
        rows = self.scale if base.weight is None else base.weight * self.scale.view(-1, *[1] * (base.weight.ndim - 1))
        shift = self.shift if base.bias is None else base.bias * self.scale + self.shift
        base.weight, base.bias = nn.Parameter(rows.detach()), nn.Parameter(shift.detach())
        return self.base


def insert_scale_shift(vit: "VisionTransformer") -> None:
    """A scale and shift behind the patch projection, every norm of tokens and every linear layer of the blocks.

    Not behind the norms of queries and keys, which the paper's networks do not have (what shifts all keys alike,
    softmax takes out again), nor in an attention pooling, which belongs to a head rather than to the features. Biases
    of queries and values that are parameters of their own are added behind the scale.
    """
    _call_projections(vit)
    for name, module in list(vit.named_modules()):
        channels = _count_channels(module)
        if channels and not name.startswith("attn_pool") and not name.endswith(("q_norm", "k_norm")):
            vit.set_submodule(name, ScaleShift(module, channels))


def _count_channels(module: nn.Module) -> int | None:
    """Of the output of a layer that projects or normalises; None for other modules."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Conv2d):
        return module.out_channels
    shape = getattr(module, "normalized_shape", None)  # LayerNorm and RmsNorm have no ancestor in common
    return int(shape[-1]) if shape else None


class Bottleneck(nn.Module):
    """s W2 relu(W1 x) over tokens (B, T, D), through r channels. It starts at exactly zero, for W2 does."""

    def __init__(self, embed_dim: int, width: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(embed_dim, width)
        self.up = nn.Linear(width, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(self.dropout(F.relu(self.down(x)))) * self.scale
        return out


class AdaptedBlock(nn.Module):
    """timm's block with a bottleneck beside its MLP, which reads the residual stream before norm2."""

    def __init__(self, block: Any, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.block = block
        self.bottleneck = bottleneck

    @property
    def attn(self) -> Any:
        """Where timm's own blocks have it."""
        return self.block.attn

    def forward(self, x: Tensor, **positions: Any) -> Tensor:
        """positions: what timm's `Eva` passes on to attention."""
        block = self.block
        x = x + block.drop_path1(scale_attended(block, block.attn(block.norm1(x), **positions)))
        out: Tensor = x + block.drop_path2(scale_fed(block, block.mlp(block.norm2(x)))) + self.bottleneck(x)
        return out


def insert_bottlenecks(vit: "VisionTransformer", width: int, scale: float, dropout: float) -> None:
    """A bottleneck of its own for every block."""
    for index, block in enumerate(vit.blocks):
        vit.blocks[index] = AdaptedBlock(block, Bottleneck(vit.embed_dim, width, scale, dropout))


def insert_low_rank(
    vit: "VisionTransformer", rank: int, alpha: float, dropout: float, matrices: Sequence[str], magnitudes: bool
) -> None:
    """Beside each of the matrices W of every block alpha / rank * B A, where B starts at zero.

    With `magnitudes` the rows of the sum are brought to a length that is learned, |W|'s at the start: DoRA.
    matrices: of `resolve_targets`.
    """
    kind = "dora" if magnitudes else "lora"
    for name in matrices:
        for block in vit.blocks:
            _require_rank(kind, block.get_submodule(name), name, rank)
    from peft import LoraConfig, inject_adapter_in_model

    names = "|".join(name.replace(".", r"\.") for name in matrices)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=rf"blocks\.\d+\.({names})",
        use_dora=magnitudes,
    )
    if "attn.qkv" in matrices:
        _call_projections(vit)
    inject_adapter_in_model(config, vit)


def resolve_targets(vit: "VisionTransformer", kind: str, targets: Sequence[str]) -> tuple[str, ...]:
    """The matrices of this network's blocks that the targets of a lora or dora mean: `attn.qkv` means the one that
    makes queries, keys and values, or the three that do, `mlp.fc1` the one behind norm2, or the two.

    Raises BackboneError for a target that no matrix of a block stands for.
    """
    return tuple(name for target in targets for name in _resolve_target(vit.blocks[0], kind, target))


def _resolve_target(block: nn.Module, kind: str, target: str) -> tuple[str, ...]:
    linear = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
    for names in ((target,), SEPARATE.get(target, ())):
        if names and set(linear).issuperset(names):
            return names
    raise BackboneError(
        f"tuner {kind}",
        expected=f"targets among {', '.join(linear)}",
        found=f"{target}, which this backbone has not",
        hint="Correct `targets`.",
    )


def _require_rank(kind: str, linear: Any, name: str, rank: int) -> None:
    """Raise BackboneError unless the rank is below full."""
    most = min(linear.in_features, linear.out_features)
    if rank > most:
        raise BackboneError(
            f"tuner {kind}",
            expected=f"a rank of {most} at most, the smaller side of {name} in this backbone",
            found=f"rank: {rank}",
            hint="Lower it; ranks from 4 to 16 are usual.",
        )


def _call_projections(vit: "VisionTransformer") -> None:
    """Have attention call what stands in the place of its `qkv`. With biases of its own, timm's `EvaAttention` reads
    the weight of that layer instead and would pass by whatever is inserted there."""
    for block in vit.blocks:
        if hasattr(block.attn, "qkv_bias_separate"):
            block.attn.qkv_bias_separate = True


def _read_weights_again(vit: "VisionTransformer") -> None:
    """The reverse, once `qkv` is a plain layer again: where it has no bias of its own, which SSF's shift becomes."""
    for block in vit.blocks:
        if getattr(block.attn, "qkv", None) is not None and hasattr(block.attn, "qkv_bias_separate"):
            block.attn.qkv_bias_separate = block.attn.qkv.bias is not None


def merge_inserts(vit: "VisionTransformer") -> None:
    """Fold everything inserted into the layers it stands at: afterwards `vit` is timm's plain network again.

    Changes the weights in place: give it a copy. TypeError for AdaptFormer, whose ReLU no matrix can hold.
    """
    for name, module in list(vit.named_modules()):
        if isinstance(module, AdaptedBlock):
            raise TypeError("AdaptFormer cannot be merged, as its tuner's `merges` says")
        if isinstance(module, ScaleShift):
            vit.set_submodule(name, module.merge())
        elif hasattr(module, "get_base_layer"):  # peft's layers; to ask for their type would import peft
            layer: Any = module
            layer.merge()
            vit.set_submodule(name, layer.get_base_layer())
    _read_weights_again(vit)
    vars(vit).pop("peft_config", None)
