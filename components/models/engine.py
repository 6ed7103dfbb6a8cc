"""Where a network runs: its device, its number format and its attention."""

from dataclasses import dataclass
from typing import Literal

import torch

from components.models.fast import choose_attention
from components.models.network import Network
from components.models.process_group import ALONE, ProcessGroup
from components.models.side import Lower
from components.models.tokens import Tokens


@dataclass(frozen=True)
class Engine:
    """The device, its number format and attention kernel, the pixel statistics the backbone was trained with, and who
    else computes."""

    device: torch.device
    dtype: torch.dtype
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fused_attention: bool
    peers: ProcessGroup = ALONE

    def prepare(self, network: Network) -> Network:
        """Move the network here and put its frozen part into the form that is fastest here."""
        network.prepare(self.dtype, self.device, self.fused_attention)
        return network

    def forward(self, network: Network, images: torch.Tensor | Lower) -> torch.Tensor:
        """Logits (B, C) in float32 of uint8 images (B, 3, H, W), of their pooled features (B, D), or of what untouched
        blocks made of them."""
        if isinstance(images, Lower):
            states = images.states.to(self.device, non_blocking=True)
            pixels = self.normalise(images.images) if images.images.ndim == 4 else None
            with self.autocast():
                return network.finish(states, pixels).float()
        if images.ndim == 2:
            scores: torch.Tensor = network.head(Tokens(pooled=images.to(self.device)))
            return scores
        pixels = self.normalise(images)
        with self.autocast():
            logits: torch.Tensor = network(pixels)
        return logits.float()

    def judge(self, network: Network, features: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) in float32 of pooled features (B, D), as `forward` computes them behind the backbone."""
        with self.autocast():
            logits: torch.Tensor = network.head(Tokens(pooled=features.to(self.device)))
        return logits.float()

    def autocast(self) -> torch.autocast:
        """Computes in the engine's number format what is not held in it."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Pixels as the backbone wants them."""
        mean = torch.tensor(self.mean, device=self.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=self.device).view(1, -1, 1, 1)
        pixels = images.to(self.device, torch.float32, non_blocking=True, copy=True)
        return pixels.div_(255).sub_(mean).div_(std)  # in place, for a batch is larger than the processor's cache


def create_engine(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    peers: ProcessGroup = ALONE,
) -> Engine:
    """A GPU where there is one; by itself bfloat16 where the device computes in it natively."""
    if torch.cuda.is_available():
        device, native = torch.device("cuda", torch.cuda.current_device()), torch.cuda.is_bf16_supported()
    else:
        device = torch.device("cpu")
        native = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_tile"))
    chosen = {"auto": torch.bfloat16 if native else torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}
    return Engine(device, chosen[dtype], mean, std, choose_attention(device, chosen[dtype]), peers)
