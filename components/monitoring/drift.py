"""Drift: the share of new pictures that are unlike all pictures that a model was trained on (the pictures *seen*).

For each picture seen, take the distance by frozen features to its nearest neighbour in another group. A new picture is
unlike if its nearest neighbour among the pictures seen is farther away than 95 % of these distances (Sun et al.,
Out-of-Distribution Detection with Deep Nearest Neighbors, https://arxiv.org/abs/2204.06507, with one neighbour).
Nothing is fitted, and new pictures form groups of their own, too, so without drift about 5 % are unlike in any domain.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.data.checks.features import decode_features
from components.data.checks.look_alikes import CHUNK
from components.data.sample_keys import content_of, sample_key
from components.records.operations import Drift
from components.tasks.base import by_class

EXPECTED = 0.05
FEWEST = 20  # least number of pictures seen, in at least a quarter as many groups: fewer give no 95 % quantile
MOST = 2000  # most pictures of either kind whose neighbours are searched: enough for a share to within one percent


def measure_drift(seen: pl.DataFrame, present: pl.DataFrame, features: pl.DataFrame) -> Drift:
    """Measure drift. seen, present: manifests of the model's data version and of the present one; features: of the
    present images.

    The share is None if most pictures seen have no features any more, if too few were seen, or if nothing is new.
    """
    new = present.filter(~pl.col("id").is_in(seen["id"].to_list()))
    vectors = dict(zip(features["key"], decode_features(features), strict=True))
    (known, groups), (fresh, _) = _pick(seen, vectors), _pick(new, vectors)
    fresh, share = fresh[:MOST], None
    if len(fresh) and len(known) > max(FEWEST, len(seen) / 2) and len(set(groups)) > FEWEST / 4:
        share = float(np.mean(find_unlike(known, groups, fresh)))
    labels = sorted(set(by_class(present)["label"]))
    classes = {label: (_share(seen, label), _share(new, label)) for label in labels}
    return Drift(new=len(new), images=len(fresh), share=share, expected=EXPECTED, classes=classes)


def find_unlike(seen: NDArray[np.float32], groups: NDArray[np.str_], new: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of the new vectors (N, D) are farther from those seen than 95 % of these are from other groups."""
    near, other = _unit(seen), _unit(new)
    alike = np.sort(_nearest(near[:MOST], near, groups))
    # Without drift a new picture is exchangeable with those seen: all len + 1 ranks are equally probable.
    return np.asarray(_nearest(other, near) < alike[int(EXPECTED * (len(alike) + 1)) - 1])


def _nearest(
    pictures: NDArray[np.float32], near: NDArray[np.float32], groups: NDArray[np.str_] | None = None
) -> NDArray[np.float32]:
    """The cosine to the most similar vector in `near`. groups: the groups of `near`, which begins with `pictures`; the
    picture's own group is left out."""
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
    """The vectors (N, D) and groups of the rows that have a vector, in an arbitrary but fixed order."""
    triples = rows.select("id", "crop", "group").iter_rows()
    names = {sample_key(content_of(name), tuple(crop) if crop else None): group for name, crop, group in triples}
    there = [key for key in sorted(names) if key in vectors]
    found = np.stack([vectors[key] for key in there]) if there else np.zeros((0, 1), np.float32)
    return found, np.array([names[key] for key in there], dtype=np.str_)


def _share(rows: pl.DataFrame, label: str) -> float:
    return len(by_class(rows).filter(pl.col("label") == label)) / max(len(rows), 1)
