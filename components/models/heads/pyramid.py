"""What the heads of dense tasks share: tokens of four depths of the backbone, a thin stem on the pixels, and the layers
that join them.

A patch token covers 16 x 16 pixels, hence cannot say where inside it an edge runs. The stem can: three convolutions
on the pixels themselves, joined where the pyramid has their stride.

There is no batch norm: running statistics differ between one process and several, are no parameters, so that an adapter
would lack them, and are noise at two pictures per step. Tokens are normalised one by one instead, and maps by groups of
channels.

Shapes: B images, D channels of a token, (H, W) patch grid.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from components.models.heads.base import HEAD_STD
from components.models.tokens import Tokens

DEPTHS = 4  # how many blocks a head reads
CHANNELS = 96
STEM = (16, 32, 64)  # channels at the strides 2, 4 and 8
GROUPS = 8  # of channels that are normalised together


def choose_layers(depth: int) -> tuple[int, ...]:
    """Four blocks at even distances, the last one included; all of them where there are no more."""
    return tuple(sorted({math.ceil(depth * part / DEPTHS) - 1 for part in range(1, DEPTHS + 1)}))


def join_layers(tokens: Tokens) -> Tensor:
    """(B, HW, D * layers), each token of each layer with mean 0 and variance 1."""
    return torch.cat([F.layer_norm(layer, layer.shape[-1:]) for layer in tokens.layers], dim=-1)


def lay_out(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, HW, D) to (B, D, H, W)."""
    return x.transpose(1, 2).reshape(x.shape[0], -1, *grid)


def enlarge(x: Tensor, beside: Tensor) -> Tensor:
    """x (B, D, H, W) at the size of `beside`."""
    return F.interpolate(x, beside.shape[-2:], mode="bilinear")


def join_enlarged(x: Tensor, beside: Tensor) -> Tensor:
    """x (B, D, H, W) enlarged to the size of `beside`, whose channels follow its own."""
    return torch.cat([enlarge(x, beside), beside], dim=1)


def convolve(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, outputs), nn.GELU())


def create_stem() -> nn.ModuleList:
    """Three layers, each of half the size of the one before."""
    return nn.ModuleList(convolve(a, b, stride=2) for a, b in zip((3, *STEM), STEM, strict=False))


def see(stem: nn.ModuleList, tokens: Tokens) -> list[Tensor]:
    """The pixels, and what each layer of a stem makes of them: strides 1, 2, 4 and 8. Raises ValueError where nobody
    put the pixels among the tokens."""
    seen = [require_pixels(tokens)]
    for layer in stem:
        seen.append(layer(seen[-1]))
    return seen


def require_pixels(tokens: Tokens) -> Tensor:
    if tokens.pixels is None:
        raise ValueError("a dense head reads the pixels, which `Network.forward` puts among the tokens")
    return tokens.pixels


def start_near_zero(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.normal_(layer.weight, std=HEAD_STD)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
