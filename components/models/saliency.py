"""What a network looked at: which patches of an image speak for the class it answers.

HiResCAM (Draelos & Carin, https://arxiv.org/abs/2011.08891): activation times gradient, summed over channels, at the
patch tokens that enter the last block, the last place where a token is still about its own patch and the class token
still reads it. Attention alone would show what was read, not what it was read for, and is the same for every class.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from components.models.encoders import BlindEncoder, FrozenEncoder
from components.models.engine import Engine
from components.models.network import Network


def map_saliency(network: Network, engine: Engine, image: torch.Tensor) -> NDArray[np.float32]:
    """(rows, columns) of the patch grid, from 0 to 1, for one uint8 image (1, 3, H, W) and its likeliest class.

    All 0 for a network that runs no block and so looks at no patch.
    """
    caught: list[torch.Tensor] = []

    def catch(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        tokens, *rest = inputs
        caught.append(tokens if tokens.requires_grad else tokens.detach().requires_grad_())
        return (caught[0], *rest)

    encoder: Any = network.encoder
    rows, columns = encoder.vit.patch_embed.grid_size
    if isinstance(encoder, BlindEncoder):
        return np.zeros((rows, columns), np.float32)
    network.eval()
    with whole_blocks(encoder), torch.enable_grad():
        hook = encoder.vit.blocks[-1].register_forward_pre_hook(catch)
        try:
            (gradient,) = torch.autograd.grad(engine.forward(network, image).max(), caught)
        finally:
            hook.remove()
    (tokens,) = caught
    saliency = (tokens * gradient)[0, -rows * columns :].sum(-1).float().clamp(min=0).reshape(rows, columns)
    scaled: NDArray[np.float32] = (saliency / saliency.max().clamp(min=1e-12)).detach().cpu().numpy()
    return scaled


@contextmanager
def whole_blocks(encoder: Any) -> Iterator[None]:
    """The forward of a frozen backbone in its textbook form, where tokens pass from block to block.

    That form wants float32: a copy of the weights as they answered, rounded where they are held in bfloat16. Inside
    another of its kind it changes nothing, so that several images share one copy.
    """
    if not isinstance(encoder, FrozenEncoder) or encoder.form == "textbook":
        yield
        return
    vit = encoder.vit
    encoder.form, encoder.vit = "textbook", copy.deepcopy(vit).float()
    try:
        yield
    finally:
        encoder.form, encoder.vit = "fast", vit
