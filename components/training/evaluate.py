"""Predictions of a network over a manifest: the currency that metrics, gates and pictures are paid in."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import Dataset

from components.data.loading import Features, Samples, create_loader
from components.domain import Domain
from components.models.fast import choose_attention
from components.models.network import Network
from components.training.job import PROBABILITY
from components.training.team import ALONE, Team


@dataclass(frozen=True)
class Engine:
    """The device, its number format and attention kernel, the pixel statistics the backbone was trained with, and who
    else computes."""

    device: torch.device
    dtype: torch.dtype
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fused_attention: bool
    team: Team = ALONE

    def prepare(self, network: Network) -> Network:
        """Move the network here and put its frozen part into the form that is fastest here."""
        network.to(self.device)
        network.encoder.prepare(self.dtype, self.fused_attention)
        return network

    def forward(self, network: Network, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) in float32 of uint8 images (B, 3, H, W), or of their features (B, D)."""
        if images.ndim == 2:
            scores: torch.Tensor = network.head(images.to(self.device))
            return scores
        pixels = self.normalise(images)
        with self.autocast():
            logits: torch.Tensor = network(pixels)
        return logits.float()

    def autocast(self) -> torch.autocast:
        """Computes in the engine's number format what is not held in it."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Pixels as the backbone wants them."""
        mean = torch.tensor(self.mean, device=self.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=self.device).view(1, -1, 1, 1)
        return (images.to(self.device, non_blocking=True).float() / 255 - mean) / std


def create_engine(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    team: Team = ALONE,
) -> Engine:
    """A GPU where there is one; by itself bfloat16 where the device computes in it natively."""
    if torch.cuda.is_available():
        device, native = torch.device("cuda", torch.cuda.current_device()), torch.cuda.is_bf16_supported()
    else:
        device = torch.device("cpu")
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    chosen = {"auto": torch.bfloat16 if native else torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}
    return Engine(device, chosen[dtype], mean, std, choose_attention(device, chosen[dtype]), team)


@torch.no_grad()
def extract_features(network: Network, samples: Samples, engine: Engine, batch_size: int) -> Features:
    """The encoder's features of every sample, not augmented."""
    network.eval()
    plain = Samples(samples.pixels, samples.rows, samples.targets, None)
    parts = []
    for images, _ in create_loader(plain, batch_size):
        with engine.autocast():
            parts.append(network.encoder(engine.normalise(images)).float().cpu())
    return Features(torch.cat(parts).numpy(), samples)


@torch.no_grad()
def predict_probabilities(
    network: Network, samples: Dataset[Any], engine: Engine, batch_size: int
) -> NDArray[np.float64]:
    """Class probabilities (N, C) in the samples' order."""
    network.eval()
    parts = [
        F.softmax(engine.forward(network, images), dim=-1).cpu() for images, _ in create_loader(samples, batch_size)
    ]
    probabilities: NDArray[np.float64] = torch.cat(parts).double().numpy()
    return probabilities


def cross_entropy(targets: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Mean negative log likelihood in nats."""
    likely = probabilities[np.arange(len(targets)), targets]
    return float(-np.log(np.clip(likely, 1e-12, None)).mean())


def frame_predictions(manifest: pl.DataFrame, probabilities: NDArray[np.float64], domain: Domain) -> pl.DataFrame:
    """The rows of the manifest with what was predicted for them, one column a class."""
    classes = np.array(domain.classes)
    keep = ["id", "path", "crop", "group", "split", "label", *domain.slices]
    columns = [pl.Series(f"{PROBABILITY}{name}", probabilities[:, k]) for k, name in enumerate(domain.classes)]
    predicted = pl.Series("predicted", classes[probabilities.argmax(axis=1)])
    return manifest.select(keep).with_columns(predicted, *columns)


def hash_split(manifest: pl.DataFrame) -> str:
    """Name of who is on which side: sha256 over the sorted (id, label, split) of every row."""
    rows = sorted(manifest.select("id", "label", "split").iter_rows())
    return hashlib.sha256(repr(rows).encode()).hexdigest()
