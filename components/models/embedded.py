"""The embedded backbone: a ViT-Tiny of fixed random numbers, so that everything runs with no download.

It has learned nothing: features of it show that the machinery works, not what the images hold. Its numbers
come from SHAKE-256 of (seed, tensor name), not from a library's random generator, whose normal
distribution differs between processors: the backbone's sha256 must be the same on every machine.
"""

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

ARCHITECTURE = "vit_tiny_patch16_224"
IMG_SIZE = 128
SEED = "tessera embedded 1"


def create_embedded() -> "VisionTransformer":
    """ViT-Tiny, patch 16, 128 px, no classifier, filled with its fixed numbers."""
    import timm

    with torch.device("meta"):
        vit = timm.create_model(ARCHITECTURE, pretrained=False, img_size=IMG_SIZE, num_classes=0)
    state = {name: create_tensor(name, tuple(tensor.shape)) for name, tensor in vit.state_dict().items()}
    vit.load_state_dict(state, strict=True, assign=True)
    return vit


def create_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """Norms are 1 and 0, biases 0, tokens of deviation 0.02; matrices of deviation 1/sqrt(inputs) keep the scale."""
    if name.endswith("bias"):
        return torch.zeros(shape)
    if "norm" in name:
        return torch.ones(shape)
    tokens = name.endswith(("pos_embed", "_token"))
    deviation = 0.02 if tokens else 1 / math.sqrt(math.prod(shape[1:]))
    return _uniform(name, shape, deviation * math.sqrt(3))


def _uniform(name: str, shape: tuple[int, ...], bound: float) -> Tensor:
    """Uniform in [-bound, bound): 24 bits a number, scaled by exact float32 operations only."""
    digest = hashlib.shake_256(f"{SEED}/{name}".encode()).digest(4 * math.prod(shape))
    whole = np.frombuffer(digest, "<u4") >> 8
    unit = whole.astype(np.float32) / np.float32(2**23) - np.float32(1)
    return torch.from_numpy(unit * np.float32(bound)).reshape(shape)
