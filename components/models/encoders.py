"""Encoders: images to tokens, through a backbone of which some, none or all parameters learn.

`encoder(images, needs)` takes normalised images (B, 3, height, width) and returns the `Tokens` that a head needs.
"""

import copy
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from components.models.fast import cast_backbone, forward_fast
from components.models.inserts import merge_inserts
from components.models.prompts import AdaptivePrompts, StaticPrompts, forward_prompted
from components.models.tokens import POOLED, Needs, Tokens, forward_plain

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

Form = Literal["fast", "textbook"]
FORMS: tuple[Form, ...] = get_args(Form)


class PromptedEncoder(nn.Module):
    """Images to tokens through a frozen backbone; only the prompts learn.

    The backbone is shared, not copied: any number of encoders may stand on one. It stays in eval mode
    whatever mode the encoder is in, so that train mode switches the prompts' dropout and nothing else.
    """

    def __init__(self, vit: "VisionTransformer", prompts: StaticPrompts | AdaptivePrompts | None) -> None:
        super().__init__()
        self.vit = vit.requires_grad_(False)
        self.prompts = prompts
        self.form: Form = "fast"
        self.train()

    def train(self, mode: bool = True) -> "PromptedEncoder":
        super().train(mode)
        self.vit.eval()
        return self

    def prepare(self, dtype: torch.dtype, fused_attention: bool) -> None:
        """Hold the backbone in `dtype` from now on; what learns stays float32."""
        self.vit = cast_backbone(self.vit, dtype)
        set_attention(self.vit, fused_attention)

    def forward(self, images: Tensor, needs: Needs = POOLED) -> Tokens:
        if self.form == "textbook":
            return forward_prompted(self.vit, images, self.prompts, needs)
        # The weights' own dtype decides: autocast would have norms and softmax in float32, and copies of every weight.
        with torch.autocast(images.device.type, enabled=False):
            return forward_fast(self.vit, images, self.prompts, needs)


class TunedEncoder(nn.Module):
    """Images to tokens by timm's own forward, through a backbone with a few parts of its own: a tuner replaces modules
    or parameters of `self.vit`, whose other weights are the shared backbone's.

    The backbone's modules stay in eval mode, so that train mode switches the tuner's dropout and no other.
    precise: endings of the names of matrices that stay float32, because what the tuner puts there reads them.
    """

    def __init__(self, vit: "VisionTransformer", precise: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.vit = share_weights(vit)
        # Both before a tuner puts in its own; plain lists, which register nothing.
        self.borrowed = [*self.vit.modules()]
        named = self.vit.named_modules()
        self.matrices = [m for name, m in named if isinstance(m, nn.Linear) and not name.endswith(precise)]
        self.train()

    def train(self, mode: bool = True) -> "TunedEncoder":
        super().train(mode)
        for module in self.borrowed:
            module.training = False
        return self

    def prepare(self, dtype: torch.dtype, fused_attention: bool) -> None:
        """Hold the frozen matrices in `dtype` from now on, which spares autocast a copy of each at every step.

        What learns stays float32. So does all else: norms and positions are small, and the residual stream gains by it.
        """
        for linear in self.matrices:
            if linear.weight.dtype != dtype:
                linear.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
        set_attention(self.vit, fused_attention)

    def merge(self) -> "VisionTransformer":
        """A plain network in eval mode that computes the same: a copy, of which nothing is shared.

        Before `prepare`, which takes the matrices their last bits. TypeError where the tuner's `merges` is False.
        """
        vit = copy.deepcopy(self.vit)
        merge_inserts(vit)
        return vit.requires_grad_(False).eval()

    def forward(self, images: Tensor, needs: Needs = POOLED) -> Tokens:
        return forward_plain(self.vit, images, needs)


def share_weights(vit: "VisionTransformer") -> "VisionTransformer":
    """The same network over the same tensors: its modules may be replaced without touching the other's."""
    tensors = [*vit.parameters(), *vit.buffers()]
    return copy.deepcopy(vit, {id(tensor): tensor for tensor in tensors}).requires_grad_(False)


class FullEncoder(nn.Module):
    """Images to tokens through a backbone that learns with the rest: a copy, because the original is shared."""

    def __init__(self, vit: "VisionTransformer") -> None:
        super().__init__()
        self.vit = copy.deepcopy(vit).requires_grad_(True)
        self.train()

    def prepare(self, dtype: torch.dtype, fused_attention: bool) -> None:
        """Nothing is frozen here: autocast decides where to compute in `dtype`."""
        set_attention(self.vit, fused_attention)

    def forward(self, images: Tensor, needs: Needs = POOLED) -> Tokens:
        return forward_plain(self.vit, images, needs)


def set_attention(vit: "VisionTransformer", fused: bool) -> None:
    """timm's own switch between the fused kernel and products with softmax."""
    for block in vit.blocks:
        block.attn.fused_attn = fused
