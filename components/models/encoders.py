"""Encoders: images to tokens, through a backbone of which some, none or all parameters learn.

`encoder(images, needs)` takes normalised images (B, 3, height, width) and returns the `Tokens` that a head needs.
"""

import copy
from typing import TYPE_CHECKING, Literal, Self, get_args

import torch
from torch import Tensor, nn

from components.models.backbones import Backbone, share_weights
from components.models.fast import forward_fast
from components.models.inserts import merge_inserts
from components.models.prompts import AdaptivePrompts, StaticPrompts, forward_prompted
from components.models.tokens import POOLED, Needs, Tokens, count_pooled, forward_plain

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

Form = Literal["fast", "textbook"]
FORMS: tuple[Form, ...] = get_args(Form)


class FrozenEncoder(nn.Module):
    """The base of encoders whose backbone is frozen and shared, not copied: any number of them may stand on one.

    The backbone stays in eval mode whatever mode the encoder is in, so that train mode switches the dropout of what
    learns and nothing else. A subclass calls `train()` once its modules are there.
    """

    def __init__(self, vit: "VisionTransformer") -> None:
        super().__init__()
        self.vit = vit.requires_grad_(False)
        self.form: Form = "fast"

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.vit.eval()
        return self

    def prepare(self, backbone: Backbone, dtype: torch.dtype, device: torch.device, fused_attention: bool) -> None:
        """Stand on the backbone in `dtype` on `device` from now on; what learns moves there and stays float32."""
        self.vit = backbone.at(dtype, device).eval()
        self.to(device)
        set_attention(self.vit, fused_attention)


class PromptedEncoder(FrozenEncoder):
    """Images to tokens through a frozen backbone; only the prompts learn."""

    def __init__(self, vit: "VisionTransformer", prompts: StaticPrompts | AdaptivePrompts | None) -> None:
        super().__init__(vit)
        self.prompts = prompts
        self.train()

    @property
    def static_prompts(self) -> StaticPrompts | None:
        """Those that are parameters, and no function of the image."""
        return self.prompts.static if isinstance(self.prompts, AdaptivePrompts) else self.prompts

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
        self.vit, self.precise = share_weights(vit), precise
        # The backbone's modules by its own names, before a tuner wraps them; a plain dict, which registers nothing.
        self.borrowed = dict(self.vit.named_modules())
        self.train()

    def train(self, mode: bool = True) -> "TunedEncoder":
        super().train(mode)
        for module in self.borrowed.values():
            module.training = False
        return self

    def prepare(self, backbone: Backbone, dtype: torch.dtype, device: torch.device, fused_attention: bool) -> None:
        """Hold the frozen matrices in `dtype` on `device`, which spares autocast a copy of each at every step.

        What learns stays float32. So does all else: norms and positions are small, and the residual stream gains by it.
        """
        for name, module in self.borrowed.items():
            is_matrix = isinstance(module, nn.Linear) and not name.endswith(self.precise)
            buffers = list(module.named_buffers(recurse=False))  # rotary positions, biases that do not learn
            for part, tensor in [*module.named_parameters(recurse=False), *buffers]:
                if not tensor.requires_grad:  # those that learn are the tuner's own
                    precise = torch.float32 if tensor.is_floating_point() else tensor.dtype
                    form = dtype if is_matrix and part == "weight" else precise
                    setattr(module, part, backbone.tensor(f"{name}.{part}" if name else part, form, device))
        self.to(device)
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


class FullEncoder(nn.Module):
    """Images to tokens through a backbone that learns with the rest: a copy, because the original is shared."""

    def __init__(self, vit: "VisionTransformer") -> None:
        super().__init__()
        self.vit = copy.deepcopy(vit).requires_grad_(True)
        self.train()

    def prepare(self, backbone: Backbone, dtype: torch.dtype, device: torch.device, fused_attention: bool) -> None:
        """Nothing is frozen here: autocast decides where to compute in `dtype`."""
        self.to(device)
        set_attention(self.vit, fused_attention)

    def forward(self, images: Tensor, needs: Needs = POOLED) -> Tokens:
        return forward_plain(self.vit, images, needs)


class BlindEncoder(nn.Module):
    """Zeros in the place of every token, without running the backbone: the control of heads that read pixels."""

    def __init__(self, vit: "VisionTransformer") -> None:
        super().__init__()
        self.vit = vit.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "BlindEncoder":
        """The backbone, which others share, stays in eval mode."""
        super().train(mode)
        self.vit.eval()
        return self

    def prepare(self, backbone: Backbone, dtype: torch.dtype, device: torch.device, fused_attention: bool) -> None:
        """The backbone is not used, so it stays where it is."""

    def forward(self, images: Tensor, needs: Needs = POOLED) -> Tokens:
        height, width = self.vit.patch_embed.patch_size
        rows, columns = images.shape[-2] // height, images.shape[-1] // width
        empty = images.new_zeros(1, 1, self.vit.embed_dim).expand(images.shape[0], rows * columns, -1)
        return Tokens(
            (rows, columns),
            pooled=images.new_zeros(images.shape[0], count_pooled(self.vit)) if needs.pooled else None,
            patches=empty if needs.patches else None,
            layers=(empty,) * len(needs.layers),
        )


def set_attention(vit: "VisionTransformer", fused: bool) -> None:
    """timm's own switch between the fused kernel and products with softmax."""
    for block in vit.blocks:
        block.attn.fused_attn = fused
