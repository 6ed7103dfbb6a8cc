"""`tessera predict`: the champion's answer for images on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.errors import DataError, PromotionError
from components.promotion import registry
from components.workspace import Workspace


def predict(workspace: Workspace, name: str, images: Sequence[Path]) -> dict[str, Any]:
    """Class probabilities of every image. Raises PromotionError without a champion, DataError for a bad image."""
    from components.serving.predictor import Predictor
    from flows.history import open_registry

    for path in images:
        if not path.is_file():
            mend = "Name image files; a shell pattern such as folder/*.jpg names many."
            raise DataError(str(path), expected="an image file", found="nothing there", mend=mend)
    open_registry(workspace, name)
    champion = registry.load_version(name, registry.CHAMPION)
    if champion is None:
        raise PromotionError(
            f"prediction with {name}",
            expected="a champion",
            found="none",
            mend=f"Train and promote one with `tessera retrain {name}`.",
        )
    predictor = Predictor(registry.fetch_adapter(champion, workspace.adapters))
    rows = [
        {
            "path": str(path),
            "label": prediction.label,
            "probabilities": prediction.probabilities,
            "model_version": champion.version,
        }
        for path, prediction in zip(images, predictor.predict(list(images)), strict=True)
    ]
    return {"domain": name, "version": champion.version, "tuner": champion.tuner, "predictions": rows}
