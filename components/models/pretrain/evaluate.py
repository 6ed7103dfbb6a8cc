"""What a frozen backbone's features are worth: a linear probe and nearest neighbours on the class token.

Balanced accuracy, because the bench's classes are as unequal as 952 to 32, over the pooled predictions of five
folds; where images have a source, folds respect it. Both readers, because they ask different things: the probe
whether classes can be told apart by a plane, the neighbours whether alike images lie together unaided.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from components.models.backbones import Backbone

FOLDS, NEIGHBOURS = 5, 5


@dataclass(frozen=True)
class Bench:
    """Labelled images; groups None where the plain stratified folds of the literature are meant."""

    name: str
    paths: tuple[Path, ...]
    labels: NDArray[Any]
    groups: NDArray[Any] | None = None


@dataclass(frozen=True)
class Scores:
    """Balanced accuracies in percent."""

    linear_probe: float
    knn: float


def extract_features(backbone: Backbone, paths: Sequence[Path], batch_size: int = 64) -> NDArray[np.float32]:
    """Class-token features (N, D) of the images, squashed to the backbone's square."""
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    parts = []
    for start in range(0, len(paths), batch_size):
        pixels = np.stack([_read(path, backbone.img_size) for path in paths[start : start + batch_size]])
        images = ((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2)
        with torch.inference_mode():
            parts.append(backbone.vit(images).float().numpy())
    return np.concatenate(parts)


def score_features(features: NDArray[np.float32], labels: NDArray[Any], groups: NDArray[Any] | None = None) -> Scores:
    """Both readers over the same folds, on features standardised by the training folds."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
    from sklearn.metrics import balanced_accuracy_score  # type: ignore[import-untyped]
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict  # type: ignore[import-untyped]
    from sklearn.neighbors import KNeighborsClassifier  # type: ignore[import-untyped]
    from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]
    from sklearn.preprocessing import Normalizer, StandardScaler  # type: ignore[import-untyped]

    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    folds = list(kind(FOLDS, shuffle=True, random_state=0).split(features, labels, groups))
    probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    neighbours = make_pipeline(StandardScaler(), Normalizer(), KNeighborsClassifier(NEIGHBOURS))
    shares = [
        balanced_accuracy_score(labels, cross_val_predict(reader, features, labels, cv=folds))
        for reader in (probe, neighbours)
    ]
    return Scores(*(round(100 * float(share), 1) for share in shares))


def _read(path: Path, side: int) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), np.uint8)
