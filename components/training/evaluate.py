"""Predictions of a network over a manifest: what metrics, gates and pictures are computed from."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from components.data.batches.loading import Features, Samples, create_loader
from components.domain.domain import Domain
from components.models.encoders import PromptedEncoder
from components.models.engine import Engine
from components.models.extraction import FeatureSource, extract_pooled, is_bare
from components.models.network import Network
from components.records.boxes import read_objects
from components.records.jobs import PROBABILITY
from components.tasks import Task, create_task
from components.tasks.calibration import Calibration


@torch.no_grad()
def extract_features(
    network: Network,
    samples: Samples,
    engine: Engine,
    batch_size: int,
    source: FeatureSource | None = None,
    pause: Callable[[], None] = lambda: None,
) -> Features:
    """The pooled features of every sample, not augmented.

    source: where features of the bare backbone are kept; those of named samples are read from there if they are known.
    batch_size: for an encoder that is not the bare backbone. pause: called between batches, may raise.
    """
    network.eval()
    plain = Samples(samples.pixels, samples.rows, samples.targets, None)
    if is_bare(encoder := network.encoder):
        return Features(_extract_bare(encoder, plain, samples.names, engine, source, pause), samples)
    parts = []
    for images, _ in create_loader(plain, batch_size):
        with engine.autocast():
            parts.append(network.encoder(engine.normalise(images)).pooled.float().cpu())
    return Features(torch.cat(parts).numpy(), samples)


def _extract_bare(
    encoder: PromptedEncoder,
    plain: Samples,
    names: Sequence[str] | None,
    engine: Engine,
    source: FeatureSource | None,
    pause: Callable[[], None],
) -> NDArray[np.float32]:
    def compute(places: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        return extract_pooled(encoder, engine, (plain[place][0].numpy() for place in places))

    if source is None or names is None:
        return np.concatenate(list(compute(range(len(plain)))))
    return source.open(encoder, engine).complete(names, compute, pause)


@torch.no_grad()
def answer_batches(
    network: Network, samples: Dataset[Any], engine: Engine, batch_size: int
) -> Iterator[tuple[NDArray[np.float64], NDArray[Any]]]:
    """Probabilities (B, C, ...), not calibrated, and targets of batch after batch, in the samples' order."""
    network.eval()
    for images, targets in create_loader(samples, batch_size):
        yield network.head.decode(engine.forward(network, images)).cpu().double().numpy(), targets.numpy()


@torch.no_grad()
def predict_probabilities(
    network: Network, samples: Samples, engine: Engine, batch_size: int, source: FeatureSource | None = None
) -> NDArray[np.float64]:
    """Probabilities (N, C) in the samples' order, not calibrated.

    source: where features of the bare backbone are kept, from which a head that reads them alone answers.
    """
    if source is not None and network.head.solvable and is_bare(network.encoder):
        features = torch.from_numpy(extract_features(network, samples, engine, batch_size, source).features)
        answers = [network.head.decode(engine.judge(network, batch)) for batch in torch.split(features, batch_size)]
        return torch.cat(answers).cpu().double().numpy()
    return np.concatenate([chances for chances, _ in answer_batches(network, samples, engine, batch_size)])


def keep_answers(
    network: Network, samples: Dataset[Any], engine: Engine, batch_size: int, task: Task
) -> NDArray[np.float64]:
    """What the task keeps of each answer, (N, K), in the samples' order."""
    batches = answer_batches(network, samples, engine, batch_size)
    return np.concatenate([task.keep(chances, targets) for chances, targets in batches])


def frame_predictions(
    manifest: pl.DataFrame, probabilities: NDArray[np.float64], domain: Domain, calibration: Calibration
) -> pl.DataFrame:
    """The rows of the manifest with what was answered for them, and one column of probabilities per class."""
    task = create_task(domain)
    keep = ["id", "path", "crop", "group", "split", *task.columns(), *domain.slices]
    columns = [pl.Series(f"{PROBABILITY}{name}", probabilities[:, k]) for k, name in enumerate(domain.classes)]
    answers = task.answers(probabilities, domain.classes, calibration)
    return manifest.select(keep).with_columns(*answers, *columns)


def hash_split(manifest: pl.DataFrame) -> str:
    """Name of who is on which side: sha256 over the sorted (id, label, split) of every row, and the hash of its class
    map or of its objects where it has one."""
    facts = manifest.select("id", "label", "split")
    if "class_map" in manifest.columns:
        facts = facts.with_columns(
            truth=pl.Series([hashlib.sha256(each).hexdigest() for each in manifest["class_map"]])
        )
    if "objects" in manifest.columns:
        texts = [repr(read_objects(each)) for each in manifest["objects"]]
        facts = facts.with_columns(truth=pl.Series([hashlib.sha256(each.encode()).hexdigest() for each in texts]))
    return hashlib.sha256(repr(sorted(facts.iter_rows())).encode()).hexdigest()
