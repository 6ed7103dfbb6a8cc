"""A network is an encoder and a head: what a candidate trains and what is served."""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from components.models.backbones import Backbone
from components.models.encoders import set_attention
from components.models.heads import Shape, create_head
from components.models.plain import require_plain_vit
from components.models.tokens import Tokens
from components.tasks import CLASSIFICATION, Task

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from components.models.side import SideEncoder
    from components.models.tuners import Tuner


class Network(nn.Module):
    """Normalised images (B, 3, height, width) to the head's outputs, in float32 until an engine prepares it."""

    def __init__(self, backbone: Backbone, tuner: "Tuner", num_classes: int, task: Task) -> None:
        super().__init__()
        self.backbone_params = sum(parameter.numel() for parameter in backbone.vit.parameters())
        self.backbone: Backbone | None = backbone  # until the network is prepared
        self.form: tuple[torch.dtype, torch.device] | None = None
        self.encoder = tuner.apply(backbone.vit)
        self.head = create_head(task, Shape.of(backbone.vit), num_classes)
        if not self.head.needs.pooled:
            _freeze_pooling(self.encoder.vit)

    def forward(self, images: Tensor) -> Tensor:
        return self._read(self.encoder(images, self.head.needs), images)

    def finish(self, states: Tensor, images: Tensor | None) -> Tensor:
        """The same from the states (B, K, T, D) of untouched blocks (`side.list_states`); images for heads that read
        them."""
        encoder = cast("SideEncoder", self.encoder)
        return self._read(encoder.run_upper(states.unbind(1), self.head.needs), images)

    def _read(self, tokens: Tokens, images: Tensor | None) -> Tensor:
        tokens.pixels = images
        outputs: Tensor = self.head(tokens)
        return outputs

    def prepare(self, dtype: torch.dtype, device: torch.device, fused_attention: bool) -> None:
        """Move to `device`, where the frozen part is the backbone's own, in `dtype`, shared with other networks on it.

        The weights as they were loaded are let go, so that they are freed where nobody else uses them. A second call
        must ask for the same dtype and device; ValueError otherwise.
        """
        if self.backbone is not None:
            self.encoder.prepare(self.backbone, dtype, device, fused_attention)
            self.head.to(device)
            self.backbone, self.form = None, (dtype, device)
        elif self.form != (dtype, device):
            raise ValueError(f"the network was prepared for {self.form}, and is asked for {(dtype, device)}")
        else:
            set_attention(self.encoder.vit, fused_attention)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Everything that learns, by name: what an optimiser, a checkpoint and an adapter hold."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    @property
    def learns_head_only(self) -> bool:
        """Whether an image's features are the same all through training."""
        return not any(parameter.requires_grad for parameter in self.encoder.parameters())

    def num_trainable(self, with_head: bool) -> int:
        """Count of the parameters that learn. Papers count the head, which says more of the task than of the method."""
        counts = {name: parameter.numel() for name, parameter in self.trainable_parameters().items()}
        return sum(count for name, count in counts.items() if with_head or not name.startswith("head."))


def _freeze_pooling(vit: "VisionTransformer") -> None:
    """Nothing learns there if the head reads tokens alone: a parameter without a gradient would be weight in every
    adapter, and a process group would wait for it."""
    for module in (vit.fc_norm, vit.attn_pool):
        if module is not None:
            module.requires_grad_(False)


def create_network(
    backbone: Backbone, tuner: "Tuner", num_classes: int, seed: int, task: Task = CLASSIFICATION
) -> Network:
    """A fresh network in train mode. `seed` decides head and prompts; the caller's random state is left alone."""
    require_plain_vit(backbone.vit, backbone.name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed GPUs, unforked
        return Network(backbone, tuner, num_classes, task)
