"""Predictions of a network over a manifest: the currency that metrics, gates and pictures are paid in."""

import hashlib
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import Dataset

from components.data.batches.loading import Features, Samples, create_loader
from components.domain.domain import Domain
from components.models.engine import Engine
from components.models.network import Network
from components.records import PROBABILITY


@torch.no_grad()
def extract_features(network: Network, samples: Samples, engine: Engine, batch_size: int) -> Features:
    """The pooled features of every sample, not augmented."""
    network.eval()
    plain = Samples(samples.pixels, samples.rows, samples.targets, None)
    parts = []
    for images, _ in create_loader(plain, batch_size):
        with engine.autocast():
            parts.append(network.encoder(engine.normalise(images)).pooled.float().cpu())
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
