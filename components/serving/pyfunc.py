"""An adapter as MLflow serves it: logged *as this file* with the adapter folder as its artifact, so nothing is pickled.

A request is a table with a column `image` of base64 texts and, for an adapter that was trained on crops, a column `box`
with "x0 y0 x1 y1" in pixels. The answer has one row per request row: `label` (or `labels`, a list, where an image has
any number of them) and, for every class, `p_<class>`. An adapter that abstains has also the column `abstained`: where
it is true a person must look at the image, and `label` is the most probable class that does not let it pass. Where
every pixel is answered instead, there are `mask`, the base64 text of a PNG with the numbers of the classes,
`area_<class>` in pixels and `components_<class>`. Where boxes are answered, there are `objects`, the JSON text of a
list of label, box and confidence, and `count_<class>`. The parameter `whole` says that the images are crops already.
Both `mlflow.pyfunc.load_model("models:/<domain>@champion")` and `mlflow models serve` with `--env-manager local` end
here. The environment must have Tessera installed.

The adapter must have the sha256 that stands in the `MLmodel` file beside it; whether that file is the registered one
only the registry knows (`tessera ledger verify`, `tessera doctor`).
"""

import base64
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.models
import mlflow.pyfunc
import pandas as pd  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from components.models.adapter import AdapterMeta
    from components.serving.describing import Prediction


class AdapterModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow ships no types
    """`serving.predictor.Predictor` behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        # Here, so that logging a model does not load torch.
        from components.models.adapter import require_intact
        from components.serving.predictor import Predictor

        folder = Path(context.artifacts["adapter"])
        require_intact(folder, read_bound_hash(folder))
        self.predictor = Predictor(folder)
        if self.predictor.doubt:
            warnings.warn(self.predictor.doubt, stacklevel=2)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        from components.errors import DataError
        from components.serving.columns import flatten, read_box
        from components.serving.questions import Question

        meta = self.predictor.meta
        columns = list(meta.outputs)
        boxes = model_input["box"] if "box" in model_input else [None] * len(model_input)
        questions = [
            Question(read_image(text, row), read_box(box, row), f"image in row {row}")
            for row, (text, box) in enumerate(zip(model_input["image"], boxes, strict=True))
        ]
        rows = []
        for answer in self.predictor.answer(questions, whole=bool((params or {}).get("whole"))):
            if isinstance(answer, DataError):
                raise answer
            rows.append(flatten(_list_fields(answer, meta), columns))
        return pd.DataFrame(rows, columns=columns)


def _list_fields(answer: "Prediction", meta: "AdapterMeta") -> dict[str, Any]:
    """The fields of an answer, as `flatten` takes them."""
    from components.tasks.base import MapTask

    fields = answer.answer | {"probabilities": answer.probabilities}
    if answer.class_map is None or not isinstance(meta.task, MapTask):
        return fields
    from components.serving.map_files import encode_mask

    png = io.BytesIO()
    encode_mask(answer.class_map, meta.classes, meta.task.background_class).save(png, format="PNG")
    return fields | {"mask": base64.b64encode(png.getvalue()).decode()}


def read_bound_hash(adapter: Path) -> str:
    """The sha256 of adapter.json that the model's `MLmodel` names; empty, with a warning, where it names none."""
    from mlflow.models import Model

    model = next((folder for folder in adapter.parents[:2] if (folder / "MLmodel").is_file()), None)
    metadata = Model.load(str(model)).metadata if model else None
    bound = str((metadata or {}).get("adapter_json_sha256", ""))
    if not bound:
        warnings.warn(f"Nothing says which sha256 adapter.json in {adapter} must have.", stacklevel=2)
    return bound


def read_image(text: object, row: int) -> io.BytesIO:
    """The bytes of one image of a request, not decoded yet. Raises DataError that names the row, never skips it."""
    from PIL import Image

    from components.data.sources.images import FORMATS, UNDECODABLE
    from components.serving.columns import read_base64, refuse_image

    data = read_base64(text, row)
    try:
        Image.open(io.BytesIO(data), formats=FORMATS).close()
    except Image.DecompressionBombError:
        pass  # the predictor says which limit the size breaks
    except UNDECODABLE as error:
        raise refuse_image(row, str(error)) from None
    return io.BytesIO(data)


mlflow.models.set_model(AdapterModel())
