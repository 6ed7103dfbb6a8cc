"""How far new pictures lie from what a model has seen: the share that is unlike all of it.

A picture is unlike what was seen where its nearest neighbour there, by frozen features, is farther than 95 % of the
pictures seen have theirs in another group than their own (Sun et al., Out-of-Distribution Detection with Deep Nearest
Neighbors, https://arxiv.org/abs/2204.06507, with one neighbour). Nothing is fitted, and new pictures come in groups of
their own as well, so without any drift about 5 % are unlike, whatever the domain.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.data.checks.features import content_of, decode_features, sample_key
from components.data.checks.look_alikes import CHUNK
from components.domain.strict import Strict
from components.tasks.base import by_class

EXPECTED = 0.05
FEWEST = 20  # pictures seen, in as many groups as a quarter of that: fewer have no 95 % to speak of
MOST = 2000  # pictures on either side whose neighbour is looked for: they tell a share to within a percent


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

    The share is None where most of what was seen has no features any more, or too little was seen, or nothing is new.
    """
    new = present.filter(~pl.col("id").is_in(seen["id"].to_list()))
    vectors = dict(zip(features["key"], decode_features(features), strict=True))
    (known, groups), (fresh, _) = _pick(seen, vectors), _pick(new, vectors)
    fresh, share = fresh[:MOST], None
    if len(fresh) and len(known) > max(FEWEST, len(seen) / 2) and len(set(groups)) > FEWEST / 4:
        share = float(np.mean(find_unlike(known, groups, fresh)))
    labels = sorted(set(by_class(present)["label"]))
    classes = {label: (_share(seen, label), _share(new, label)) for label in labels}
    return Drift(new=len(new), images=len(fresh), share=share, classes=classes)


def find_unlike(seen: NDArray[np.float32], groups: NDArray[np.str_], new: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of the new (N, D) are farther from what was seen than 95 % of that is from the other groups."""
    near, other = _unit(seen), _unit(new)
    alike = np.sort(_nearest(near[:MOST], near, groups))
    # A picture of the same kind is one more of them: it has each of their len + 1 ranks with equal chance.
    return np.asarray(_nearest(other, near) < alike[int(EXPECTED * (len(alike) + 1)) - 1])


def _nearest(
    pictures: NDArray[np.float32], near: NDArray[np.float32], groups: NDArray[np.str_] | None = None
) -> NDArray[np.float32]:
    """The cosine to the most similar. groups: those of `near`, which begins with `pictures`; one's own is left out."""
    found = []
    for start in range(0, len(pictures), CHUNK):
        alike = pictures[start : start + CHUNK] @ near.T
        if groups is not None:
            alike[groups[start : start + len(alike), None] == groups] = -2
        found.append(alike.max(axis=1))
    return np.concatenate(found)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6), np.float32)


def _pick(rows: pl.DataFrame, vectors: dict[str, NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """The vectors (N, D) and groups of the rows that have one, in an order that has no meaning."""
    triples = rows.select("id", "crop", "group").iter_rows()
    names = {sample_key(content_of(name), tuple(crop) if crop else None): group for name, crop, group in triples}
    there = [key for key in sorted(names) if key in vectors]
    found = np.stack([vectors[key] for key in there]) if there else np.zeros((0, 1), np.float32)
    return found, np.array([names[key] for key in there], dtype=np.str_)


def _share(rows: pl.DataFrame, label: str) -> float:
    return len(by_class(rows).filter(pl.col("label") == label)) / max(len(rows), 1)
