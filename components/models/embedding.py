"""`python -m components.models.embedding`: features of every sample of a manifest, in a process of its own.

The process reads a job (`EmbedJob`) as one line of JSON from stdin. It writes lines to stdout: how many features there
are and are known, how many are done, and at the end what was written, or the error that it met:

    {"total": 500, "known": 480}
    {"done": 8}
    {"features": {...}} or {"error": {...}}

Features are kept in the cache while they are computed (components/data/batches/feature_store.py), so a run that was
stopped is continued by the next one. When stdin closes, the process keeps what it has computed, and ends.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.data.batches.pixels import decode_rows
from components.data.manifest import load_samples
from components.data.sample_keys import name_samples
from components.errors import DataError, TesseraError
from components.files import whole_file
from components.records.embedding import EmbeddedBy, EmbedJob, Features
from components.tasks import choose_fit, create_task
from components.workspace import DISK_TROUBLE, describe_disk_trouble

Tell = Callable[[dict[str, Any]], None]
STOPPED = 130  # exit code
TEXTS = (pl.String, pl.List(pl.String))


class Abandoned(Exception):  # noqa: N818  asked for, so no error
    """Nobody waits for the features any more."""


def main() -> int:
    # stdout belongs to the replies; whatever a library prints goes to stderr.
    reply = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def tell(facts: dict[str, Any]) -> None:
        reply.write(json.dumps(facts) + "\n")

    line = sys.stdin.readline()
    if not line:
        return STOPPED
    job, gone = EmbedJob.model_validate_json(line), threading.Event()

    def watch() -> None:
        sys.stdin.read()
        gone.set()

    threading.Thread(target=watch, daemon=True).start()

    def pause() -> None:
        if gone.is_set():
            raise Abandoned

    try:
        features = embed(job, tell, pause)
    except Abandoned:
        return STOPPED
    except TesseraError as error:
        return _refuse(error, tell)
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        return _refuse(describe_disk_trouble(Path(error.filename or job.out), error), tell)
    tell({"features": features.model_dump(mode="json")})
    return 0


def _refuse(error: TesseraError, tell: Tell) -> int:
    tell({"error": error.to_dict()})
    return error.exit_code


def embed(job: EmbedJob, tell: Tell, pause: Callable[[], None]) -> Features:
    """Compute the features of all rows, and write the file. pause: called between batches, may raise.

    Raises BackboneError, DataError where an image cannot be read or is not the one in the manifest, and OSError.
    """
    from components.models.backbones import load_backbone
    from components.models.encoders import PromptedEncoder
    from components.models.engine import create_engine
    from components.models.extraction import FeatureSource, extract_pooled
    from components.models.tokens import joins_mean

    manifest, fit = load_samples(job.manifest, job.domain), choose_fit(job.domain)
    backbone = load_backbone(job.domain.backbone, job.domain.img_size)
    engine = create_engine(backbone.mean, backbone.std, job.domain.training.dtype)
    encoder = PromptedEncoder(backbone.vit, prompts=None).eval()
    encoder.prepare(backbone, engine.dtype, engine.device, engine.fused_attention)
    store = FeatureSource.of(backbone, fit, job.cache).open(encoder, engine)
    names, computed = name_samples(manifest), 0
    tell({"total": len(names), "known": len(set(names) & store.read().keys())})

    def compute(places: list[int]) -> Iterator[NDArray[np.float32]]:
        nonlocal computed
        limit = job.domain.validation.max_megapixels
        pixels = decode_rows(manifest[places], job.raw, backbone.img_size, limit, fit)
        for part in extract_pooled(encoder, engine, (image.transpose(2, 0, 1) for image in pixels)):
            computed += len(part)
            yield part
            tell({"done": len(part)})

    vectors = store.complete(names, compute, pause)
    features = Features(
        rows=len(vectors),
        width=vectors.shape[1],
        known=len(vectors) - computed,
        backbone=EmbeddedBy(
            name=backbone.name, sha256=backbone.sha256, licence=backbone.licence, trained=backbone.trained
        ),
        img_size=backbone.img_size,
        dtype=str(engine.dtype).removeprefix("torch."),
        device=engine.device.type,
    )
    about = {"backbone_architecture": backbone.architecture, "backbone_source": backbone.source}
    about |= {"feature": "token+mean" if joins_mean(encoder.vit) else "pooled"}
    _write(job, manifest, vectors, about | _describe(features, backbone.mean, backbone.std, fit))
    return features


def _describe(features: Features, mean: tuple[float, ...], std: tuple[float, ...], fit: str) -> dict[str, str]:
    return {
        "backbone": features.backbone.name,
        "backbone_sha256": features.backbone.sha256,
        "backbone_licence": features.backbone.licence,
        "img_size": str(features.img_size),
        "fit": fit,
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "dtype": features.dtype,
    }


def _write(job: EmbedJob, manifest: pl.DataFrame, vectors: NDArray[np.float32], facts: dict[str, str]) -> None:
    """One row per sample: id, path, crop, label or labels, group, slices, split, and `feature` (D,) float32."""
    said = [name for name, kind in create_task(job.domain).columns().items() if kind in TEXTS]
    columns = ["id", "path", "crop", *said, "group", *job.domain.slices, "split"]
    feature = pl.Series("feature", vectors, dtype=pl.Array(pl.Float32, vectors.shape[1]))
    frame = manifest.select(columns).with_columns(feature)
    metadata = {f"tessera.{key}": value for key, value in sorted((job.facts | facts).items()) if value}
    try:
        with whole_file(job.out) as partial:
            frame.write_parquet(partial, metadata=metadata)
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        hint = "Name another file."
        raise DataError(str(job.out), expected="a file", found=error.strerror or str(error), hint=hint) from None


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # taking down torch in order would only make the caller wait
