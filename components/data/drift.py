"""How far new pictures lie from what a model was trained on: the share that is unlike all it has seen.

A picture is unlike what was seen where its nearest training picture, by frozen features, is farther than it is for 95 %
of the model's own held-out pictures (Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors,
https://arxiv.org/abs/2204.06507, with one neighbour). Nothing is fitted, and held-out pictures are from groups of their
own as new ones are, so without any drift 5 % are unlike, whatever the domain.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.data.duplicates import CHUNK
from components.data.features import content_of, decode_features, sample_key
from components.domain import Strict

EXPECTED = 0.05
FEWEST = 20  # held-out pictures: fewer have no 95 % to speak of
MOST = 2000  # held-out and new pictures that are looked at: they tell a share to within a percent


class Drift(Strict):
    """share: of `images` looked at, what is unlike all that was seen; `new` are all that were not seen.

    classes: each one's share among what was seen and among what is new.
    """

    new: int
    images: int
    share: float | None
    expected: float = EXPECTED
    classes: dict[str, tuple[float, float]]


def measure_drift(seen: pl.DataFrame, present: pl.DataFrame, features: pl.DataFrame) -> Drift:
    """seen, present: the manifests of the model's data version and of today's; features: of today's images.

    The share is None where most of what was seen has no features any more, or nothing is new, or too little was held
    out.
    """
    new = present.filter(~pl.col("id").is_in(seen["id"].to_list()))
    vectors = dict(zip(features["key"], decode_features(features), strict=True))
    train, held = (
        _pick(seen.filter(side), vectors) for side in (pl.col("split") == "train", pl.col("split") != "train")
    )
    fresh = _pick(new, vectors)[:MOST]
    share = None
    if len(fresh) and len(held) >= FEWEST and len(train) + len(held) > len(seen) / 2:
        share = float(np.mean(find_unlike(train, held[:MOST], fresh)))
    classes = {label: (_share(seen, label), _share(new, label)) for label in sorted(set(present["label"]))}
    return Drift(new=len(new), images=len(fresh), share=share, classes=classes)


def find_unlike(train: NDArray[np.float32], held: NDArray[np.float32], new: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of the new (N, D) are farther from the training pictures than 95 % of the held-out ones."""
    near, own, other = (_unit(part) for part in (train, held, new))
    alike = np.sort(_nearest(own, near))
    # A picture of the same kind is one more of them: it has each of their len + 1 ranks with equal chance.
    return np.asarray(_nearest(other, near) < alike[int(EXPECTED * (len(alike) + 1)) - 1])


def _nearest(pictures: NDArray[np.float32], near: NDArray[np.float32]) -> NDArray[np.float32]:
    """The cosine to the most similar one."""
    return np.concatenate([(pictures[i : i + CHUNK] @ near.T).max(axis=1) for i in range(0, len(pictures), CHUNK)])


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6), np.float32)


def _pick(rows: pl.DataFrame, vectors: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """The vectors (N, D) of the rows that have one, in an order that has no meaning."""
    pairs = rows.select("id", "crop").iter_rows()
    keys = sorted(sample_key(content_of(name), tuple(crop) if crop else None) for name, crop in pairs)
    found = [vectors[key] for key in keys if key in vectors]
    return np.stack(found) if found else np.zeros((0, 1), np.float32)


def _share(rows: pl.DataFrame, label: str) -> float:
    return len(rows.filter(pl.col("label") == label)) / max(len(rows), 1)
