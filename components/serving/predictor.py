"""One adapter, ready to answer: images in, labels and probabilities out, prepared as evaluation prepares them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from components.data.pixels import decode_image
from components.models.adapter import load_adapter
from components.models.backbones import Backbone
from components.training.evaluate import create_engine


@dataclass(frozen=True)
class Prediction:
    """The answer for one image; path is empty where the image came from memory."""

    path: str
    label: str
    probabilities: dict[str, float]


class Predictor:
    """`Predictor(Path("adapter")).predict([Path("a.jpg")])`; give `backbone` to share one that is loaded already."""

    def __init__(self, adapter_folder: Path, backbone: Backbone | None = None) -> None:
        self.network, self.meta = load_adapter(adapter_folder, backbone)
        self.engine = create_engine(tuple(self.meta.backbone.mean), tuple(self.meta.backbone.std))
        self.engine.prepare(self.network).eval()
        self.classes = tuple(self.meta.classes)

    def predict(self, images: Sequence[Path | Image.Image], batch_size: int = 32) -> list[Prediction]:
        """One prediction an image, in order. Raises DataError naming the first image that cannot be read."""
        predictions: list[Prediction] = []
        for start in range(0, len(images), batch_size):
            predictions += self._predict_batch(images[start : start + batch_size])
        return predictions

    @torch.inference_mode()
    def _predict_batch(self, images: Sequence[Path | Image.Image]) -> list[Prediction]:
        pixels = np.stack([decode_image(image, self.meta.backbone.img_size) for image in images])  # (B, H, W, 3)
        logits = self.engine.forward(self.network, torch.from_numpy(pixels).permute(0, 3, 1, 2))
        rows = (logits / self.meta.temperature).softmax(dim=-1).double().cpu().numpy()  # (B, C)
        return [
            Prediction(
                path=image.as_posix() if isinstance(image, Path) else "",
                label=self.classes[int(row.argmax())],
                probabilities=dict(zip(self.classes, row.tolist(), strict=True)),
            )
            for image, row in zip(images, rows, strict=True)
        ]
