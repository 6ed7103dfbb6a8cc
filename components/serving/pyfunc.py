"""An adapter as MLflow serves it: logged *as this file* with the adapter folder as its artifact, so nothing is pickled.

A request is a table with a column `image` of base64 texts and, for an adapter that was trained on crops, a column `box`
with "x0 y0 x1 y1" in pixels. The answer has one row per request row: `label` (or `labels`, a list, where an image has
any number of them) and, for every class, `p_<class>`. Where every pixel is answered instead, there are `mask`, the
base64 text of a PNG with the numbers of the classes, `area_<class>` in pixels and `components_<class>`. Where boxes are
answered, there are `objects`, the JSON text of a list of label, box and confidence, and `count_<class>`. The parameter
`whole` says that the images are crops already. Both `mlflow.pyfunc.load_model("models:/<domain>@champion")`
and `mlflow models serve` with `--env-manager local` end here. The environment must have Tessera installed.

The adapter must have the sha256 that stands in the `MLmodel` file beside it; whether that file is the registered one
only the registry knows (`tessera ledger verify`, `tessera doctor`).
"""

import base64
import binascii
import io
import json
import warnings
from collections import Counter
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
        from components.serving.questions import Question

        boxes = model_input["box"] if "box" in model_input else [None] * len(model_input)
        questions = [
            Question(read_base64(text, row), read_box(box, row), f"image in row {row}")
            for row, (text, box) in enumerate(zip(model_input["image"], boxes, strict=True))
        ]
        rows = []
        for answer in self.predictor.answer(questions, whole=bool((params or {}).get("whole"))):
            if isinstance(answer, DataError):
                raise answer
            rows.append(_flatten(answer, self.predictor.meta))
        return pd.DataFrame(rows, columns=list(self.predictor.meta.task.outputs(self.predictor.classes)))


def _flatten(answer: "Prediction", meta: "AdapterMeta") -> dict[str, Any]:
    """The columns of one answer."""
    from components.tasks.base import MapTask

    if answer.found is not None:
        numbers = {f"count_{name}": float(number) for name, number in answer.answer["counts"].items()}
        return {"label": answer.label, "objects": json.dumps(answer.answer["objects"], ensure_ascii=False), **numbers}
    if answer.class_map is None or not isinstance(meta.task, MapTask):
        return answer.answer | {f"p_{name}": p for name, p in (answer.probabilities or {}).items()}
    from components.serving.map_files import encode_mask

    png, background = io.BytesIO(), meta.task.background_class
    encode_mask(answer.class_map, meta.classes, background).save(png, format="PNG")
    counts = Counter(component["label"] for component in answer.answer["components"])
    found = {name: area for name, area in answer.answer["areas"].items() if name != background}
    facts = {f"area_{name}": float(area) for name, area in found.items()}
    facts |= {f"components_{name}": float(counts[name]) for name in found}
    return {"label": answer.label, "mask": base64.b64encode(png.getvalue()).decode(), **facts}


def read_bound_hash(adapter: Path) -> str:
    """The sha256 of adapter.json that the model's `MLmodel` names; empty, with a warning, where it names none."""
    from mlflow.models import Model

    model = next((folder for folder in adapter.parents[:2] if (folder / "MLmodel").is_file()), None)
    metadata = Model.load(str(model)).metadata if model else None
    bound = str((metadata or {}).get("adapter_json_sha256", ""))
    if not bound:
        warnings.warn(f"Nothing says which sha256 adapter.json in {adapter} must have.", stacklevel=2)
    return bound


def read_base64(text: str, row: int = 0) -> io.BytesIO:
    """The bytes of one image of a request, not decoded yet. Raises DataError that names the row, never skips it."""
    from PIL import Image

    from components.data.sources.images import FORMATS, UNDECODABLE
    from components.errors import DataError

    try:
        data = base64.b64decode(text, validate=True)
        Image.open(io.BytesIO(data), formats=FORMATS).close()
    except Image.DecompressionBombError:
        pass  # the predictor says which limit the size breaks
    except (binascii.Error, *UNDECODABLE) as error:
        raise DataError(
            f"image in row {row}",
            expected="the base64 text of a JPEG or PNG file",
            found=str(error),
            hint='Send {"dataframe_records": [{"image": "<base64>"}]}.',
        ) from None
    return io.BytesIO(data)


def read_box(value: object, row: int = 0) -> Any:
    """The box of one row of a request, None where the cell is empty. Raises DataError that names the row."""
    from components.serving.questions import parse_box

    missing = value is None or value != value or value == ""  # a missing cell is NaN in pandas
    return None if missing else parse_box(str(value), f"box in row {row}")


mlflow.models.set_model(AdapterModel())
