"""What a frozen backbone's features are worth: a linear probe and nearest neighbours on the class token, and a
linear probe that finds defects by the patches' features.

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
from torch.nn import functional as F  # noqa: N812

from components.models.backbones import Backbone
from components.models.pretrain.distil import resample_patches

FOLDS, NEIGHBOURS = 5, 5


@dataclass(frozen=True)
class Bench:
    """Labelled images; groups None where the plain stratified folds of the literature are meant.

    masks: of some images, white where the defect is; an image without one has none.
    """

    name: str
    paths: tuple[Path, ...]
    labels: NDArray[Any]
    groups: NDArray[Any] | None = None
    masks: tuple[Path, ...] | None = None


@dataclass(frozen=True)
class Scores:
    """Balanced accuracies in percent."""

    linear_probe: float
    knn: float


@dataclass(frozen=True)
class Features:
    """Of the class token (N, D), and of the patches of a grid over the image (N, rows, columns, D)."""

    images: NDArray[np.float32]
    patches: NDArray[np.float32]


def extract_features(
    backbone: Backbone, paths: Sequence[Path], img_size: int | None = None, batch_size: int = 64
) -> Features:
    """Features of images squashed to a square of `img_size`, the backbone's own size by default.

    A backbone of another size sees them enlarged, and its patches are averaged to the grid it would have at img_size.
    """
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    vit, (height, width) = backbone.vit, backbone.img_size
    side = img_size or height
    found: tuple[int, int] = vit.patch_embed.grid_size
    wanted = (side * found[0] // height, side * found[1] // width)
    images, patches = [], []
    for start in range(0, len(paths), batch_size):
        pixels = np.stack([_read(path, side) for path in paths[start : start + batch_size]])
        batch = ((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2)
        with torch.inference_mode():
            if (side, side) != (height, width):
                batch = F.interpolate(batch, [height, width], mode="bicubic", antialias=True)
            states = vit.forward_features(batch)
            images.append(vit.forward_head(states, pre_logits=True).float().numpy())
            grid = resample_patches(states, found, wanted)[:, 1:].reshape(len(batch), *wanted, -1)
            patches.append(grid.float().numpy())
    return Features(np.concatenate(images), np.concatenate(patches))


def score_patches(patches: NDArray[np.float32], masks: Sequence[Path], groups: NDArray[Any] | None = None) -> float:
    """Average precision in percent with which a linear probe finds the patches that a quarter of which is defect.

    patches (N, rows, columns, D); folds are of images, by groups where given. Not accuracy, nor a threshold's overlap:
    one patch in thirty is defective.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    count, rows, columns, width = patches.shape
    defective = np.concatenate([read_defects(path, rows, columns).ravel() for path in masks])
    images = np.unique(groups, return_inverse=True)[1] if groups is not None else np.arange(count)
    folds = GroupKFold(FOLDS, shuffle=True, random_state=0)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    chances = cross_val_predict(
        probe,
        patches.reshape(-1, width),
        defective,
        groups=np.repeat(images, rows * columns),
        cv=folds,
        method="predict_proba",
    )
    return round(100 * float(average_precision_score(defective, chances[:, 1])), 1)


def read_defects(path: Path, rows: int, columns: int) -> NDArray[np.bool_]:
    """The cells (rows, columns) of a mask image that are at least a quarter white; none where there is no file."""
    if not path.exists():
        return np.zeros((rows, columns), bool)
    with Image.open(path) as mask:
        white = mask.convert("L").point(lambda value: 255 if value > 127 else 0)
        return np.asarray(white.resize((columns, rows), Image.Resampling.BOX)) >= 64


def score_features(features: NDArray[np.float32], labels: NDArray[Any], groups: NDArray[Any] | None = None) -> Scores:
    """Both readers over the same folds, on features standardised by the training folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

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
