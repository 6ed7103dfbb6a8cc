"""Features of a bare frozen backbone: each is the same whatever is computed beside it, so that it can be kept.

A kernel's last bits depend on the shape of its batch, so batches are always full. On a CPU in float32 they also depend
on the place in the batch, because a product's bits depend on how its matrices lie in memory: there an image is computed
alone. (Both were seen with torch 2; in bfloat16 an image has the same bits at all places of any batch of two or more.)
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

from components.data.batches.feature_store import FeatureStore
from components.data.batches.pixels import DECODER
from components.domain.canvas import Fit, ImgSize
from components.models.adapter import BackboneMeta
from components.models.backbones import Backbone
from components.models.encoders import PromptedEncoder
from components.models.engine import Engine

ON_GPU, ON_CPU = 32, 8  # images in a full batch


@dataclass(frozen=True)
class FeatureSource:
    """Where features of a backbone on images of one size are kept. facts: what they depend on besides the machine."""

    cache: Path
    img_size: ImgSize
    facts: dict[str, Any]

    @staticmethod
    def of(backbone: Backbone | BackboneMeta, fit: Fit, cache: Path) -> "FeatureSource":
        facts = {
            "backbone": backbone.sha256,
            "img_size": str(backbone.img_size),
            "fit": fit,
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "decoder": DECODER,
            "feature": "pooled",
        }
        return FeatureSource(cache, backbone.img_size, facts)

    def open(self, encoder: PromptedEncoder, engine: Engine) -> FeatureStore:
        """The store for this machine. encoder: prepared for the engine.

        The last bits depend on processor, kernels, threads and libraries. The feature of a fixed picture is therefore
        part of the set's name: what is read from the store is what would be computed here and now.
        """
        here = {
            "dtype": str(engine.dtype).removeprefix("torch."),
            "device": engine.device.type,
            "batch": choose_batch(engine),
            "probe": _probe(encoder, engine, self.img_size),
        }
        return FeatureStore(self.cache, self.facts | here)


def is_bare(encoder: torch.nn.Module) -> TypeGuard[PromptedEncoder]:
    """Whether the encoder is the frozen backbone itself."""
    return isinstance(encoder, PromptedEncoder) and encoder.prompts is None


def choose_batch(engine: Engine) -> int:
    """How many images are computed together."""
    if engine.device.type != "cpu":
        return ON_GPU
    return 1 if engine.dtype == torch.float32 else ON_CPU


@torch.no_grad()
def extract_pooled(
    encoder: PromptedEncoder, engine: Engine, images: Iterable[NDArray[np.uint8]]
) -> Iterator[NDArray[np.float32]]:
    """Pooled features (n, D) of images (3, H, W) uint8, batch after batch in their order.

    The encoder is in eval mode and prepared for the engine.
    """
    size, waiting = choose_batch(engine), iter(images)
    while some := list(islice(waiting, size)):
        batch = torch.from_numpy(fill_batch(some, size))
        with engine.autocast():
            pooled = encoder(engine.normalise(batch)).pooled.float().cpu()
        yield pooled[: len(some)].numpy()


def fill_batch(images: list[NDArray[np.uint8]], size: int) -> NDArray[np.uint8]:
    """A batch (size, ...) of at most as many images; the rest are black."""
    batch = np.zeros((size, *images[0].shape), np.uint8)
    batch[: len(images)] = images
    return batch


@torch.no_grad()
def _probe(encoder: PromptedEncoder, engine: Engine, img_size: ImgSize) -> str:
    """Hash of the feature of a fixed picture of noise."""
    count = 3 * img_size.height * img_size.width
    noise = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) >> np.uint64(13)).astype(np.uint8)
    picture = torch.from_numpy(noise.reshape(1, 3, img_size.height, img_size.width))
    with engine.autocast():
        feature = encoder(engine.normalise(picture)).pooled.float().cpu().numpy()
    return hashlib.sha256(feature.tobytes()).hexdigest()[:16]
