"""An adapter as MLflow serves it: logged *as this file* with the adapter folder as its artifact, so nothing is pickled.

A request is a table with one column `image` of base64 texts; the answer has a row an image: `label` and, for every
class, `p_<class>`. Both `mlflow.pyfunc.load_model("models:/<domain>@champion")` and `mlflow models serve` with
`--env-manager local` end here. The environment must have Tessera installed.
"""

import base64
import binascii
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.models
import mlflow.pyfunc
import pandas as pd  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from PIL import Image


class AdapterModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow ships no types
    """`serving.predictor.Predictor` behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        from components.serving.predictor import Predictor  # here, so that logging a model does not load torch

        self.predictor = Predictor(Path(context.artifacts["adapter"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        images = [read_base64(text, row) for row, text in enumerate(model_input["image"])]
        answers = self.predictor.predict(images)
        return pd.DataFrame(
            [{"label": a.label} | {f"p_{name}": p for name, p in a.probabilities.items()} for a in answers],
            columns=["label", *(f"p_{name}" for name in self.predictor.classes)],
        )


def read_base64(text: str, row: int = 0) -> "Image.Image":
    """One image of a request. Raises DataError that names the row, never skips it."""
    from PIL import Image

    from components.data.images import FORMATS, UNDECODABLE
    from components.errors import DataError

    try:
        image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=FORMATS)
        image.load()
    except (binascii.Error, Image.DecompressionBombError, *UNDECODABLE) as error:
        raise DataError(
            f"image in row {row}",
            expected="the base64 text of a JPEG or PNG file",
            found=str(error),
            mend='Send {"dataframe_records": [{"image": "<base64>"}]}.',
        ) from None
    return image


mlflow.models.set_model(AdapterModel())
