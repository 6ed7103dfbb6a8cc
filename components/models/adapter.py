"""The adapter on disk: a folder of two files that never needs unpickling.

    adapter.safetensors   what was trained (prompts, projectors, head; for `full` the whole network)
    adapter.json          what it is, and the sha256 of the other file: the whole of AdapterMeta

The sha256 of adapter.json therefore stands for the whole adapter: weights, classes, temperature, thresholds, input.
The registry and the ledger keep it, and `require_intact` compares it with a folder. Other files in the folder are
refused.

No torch here: `weights.py` writes and loads the tensors. Both files are written into a folder beside the final one,
flushed, and renamed into place, so that a reader finds the old adapter or the new one. The same weights give the same
bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import (
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from components.domain.canvas import Fit, Size
from components.domain.licences import normalise
from components.domain.strict import Strict
from components.errors import AdapterError
from components.models.tuners import Tuner
from components.records.decisions import PassRule
from components.tasks import CLASSIFICATION, Member, TaskRecord
from components.tasks.calibration import Calibration

if TYPE_CHECKING:
    from components.models.backbones import Backbone
    from components.models.network import Network

UNCALIBRATED: Final = Calibration()
FORMAT_VERSION: Final = 1
WEIGHTS_FILE, META_FILE = "adapter.safetensors", "adapter.json"
RETRAIN = "Take an undamaged copy, or train it again."


class BackboneMeta(Strict):
    """The backbone an adapter stands on, and how its images are prepared: to img_size, then (x - mean) / std."""

    name: str
    sha256: str
    img_size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    trained: bool
    licence: str

    @staticmethod
    def of(backbone: "Backbone | BackboneMeta") -> "BackboneMeta":
        """The record of a loaded backbone, without its weights."""
        return BackboneMeta(**{key: getattr(backbone, key) for key in BackboneMeta.model_fields})


class InputMeta(Strict):
    """What one input of an adapter is, as training accepted, cut and resized it.

    kind: `picture`, all of a picture file; `crop`, the part of it inside a box; `either`, where training saw both.
    cut: what a box becomes: `box`, exactly the part inside it; `square`, a square half as long again as the box's
    longer side, with the box in its middle (`crops.square_around`), as the layout `instances` cuts its objects.
    fit: how it is brought to the backbone's img_size, bicubic: `squash` without keeping the aspect, `letterbox` in the
    middle of a grey canvas. Adapters of earlier releases say `resize: stretch`, which is `squash`.
    max_megapixels, min_side (pixels): limits of the whole picture, from the domain's `validation`.
    """

    kind: Literal["picture", "crop", "either"]
    cut: Literal["box", "square"] = "box"
    fit: Fit = "squash"
    max_megapixels: FiniteFloat = Field(gt=0)
    min_side: int = Field(ge=1)

    @model_validator(mode="before")
    @classmethod
    def _stretch_is_squash(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("resize") == "stretch":
            return {"fit": "squash", **{key: item for key, item in value.items() if key != "resize"}}
        return value


class Origin(Strict):
    """What an adapter recorded of its origin when it was trained; both licences as `normalise` writes them.

    data_licence: `unknown` where domain.yaml stated none, and in adapters of earlier releases.
    """

    backbone: str
    backbone_sha256: str
    backbone_licence: str
    data_licence: str
    data_version: str


class AdapterMeta(Strict):
    """All that is known of an adapter.

    input: what it was trained on; None in adapters written before this was recorded, where it is unknown.

    trainable_params: without the head. share: of those to the backbone's parameters. adapter_sha256: of
    adapter.safetensors, filled in when it is written. thresholds: a class's decision threshold, where set.
    temperature: what logits are divided by, so that probabilities are frequencies; fitted on validation, and 1 where
    that does not help. offset: what is added to them then, for boxes. calibration: a sentence on why it is that.
    decision: from which probability on the class that lets an image pass is answered; adapter.json has no such key
    where the most probable class is the answer. data_licence: that of the images, as domain.yaml stated it when this
    was trained; adapter.json has no such key where nothing was stated.
    """

    format_version: Literal[1] = FORMAT_VERSION
    tuner: Tuner
    task: TaskRecord
    classes: tuple[str, ...] = Field(min_length=1)
    backbone: BackboneMeta
    data_version: str
    data_licence: str = ""
    split_sha256: str
    git_commit: str
    seed: int
    metrics: dict[str, FiniteFloat]
    thresholds: dict[str, FiniteFloat] = Field(default_factory=dict)
    temperature: FiniteFloat = Field(default=1.0, gt=0)
    offset: FiniteFloat = 0.0
    calibration: str = ""
    decision: PassRule | None = None
    input: InputMeta | None = None
    trainable_params: int
    head_params: int
    share: float
    adapter_sha256: str = ""

    @field_validator("task", mode="before")
    @classmethod
    def _task_by_name(cls, value: Any) -> Any:
        """Adapters of earlier releases name the task alone."""
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _decides_on_a_class(self) -> "AdapterMeta":
        if self.decision is not None and self.decision.label not in self.classes:
            raise ValueError(f"decision.label is {self.decision.label}, which is not among the classes")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_what_is_not_stated(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """An adapter without a decision or a licence of its data has the bytes, and so the sha256, it always had."""
        record: dict[str, Any] = serialize(self)
        for key in ("decision", "data_licence"):
            if not getattr(self, key):
                record.pop(key, None)
        return record

    @property
    def label(self) -> str:
        return self.tuner.label

    @property
    def fit(self) -> Fit:
        """How its images are brought to their size; adapters that do not say what an input is were squashed."""
        return self.input.fit if self.input else "squash"

    @property
    def calibrated(self) -> Calibration:
        """How outputs become answers."""
        return Calibration(self.temperature, self.calibration, self.thresholds, self.offset, self.decision)

    @property
    def outputs(self) -> dict[str, str]:
        """Columns of a served answer and their MLflow types: those of the task, and whether the adapter abstains."""
        abstained = {"abstained": "boolean"} if self.decision is not None and self.decision.abstain else {}
        return self.task.outputs(self.classes) | abstained

    @property
    def answering(self) -> dict[str, Any]:
        """Whatever decides the answers; two adapters that agree in it give the same ones.

        The rest says how the adapter came about: data, code, scores.
        """
        fields = {"tuner", "task", "classes", "backbone", "thresholds", "temperature", "offset", "decision", "input"}
        fields |= {"adapter_sha256"}
        return self.model_dump(mode="json", include=fields)

    @property
    def origin(self) -> Origin:
        """What licences hold for."""
        return Origin(
            backbone=self.backbone.name,
            backbone_sha256=self.backbone.sha256,
            backbone_licence=normalise(self.backbone.licence),
            data_licence=normalise(self.data_licence),
            data_version=self.data_version,
        )

    @staticmethod
    def describe(
        network: "Network",
        backbone: "Backbone | BackboneMeta",
        tuner: Tuner,
        *,
        classes: Iterable[str],
        data_version: str,
        split_sha256: str,
        git_commit: str,
        seed: int,
        metrics: Mapping[str, float],
        calibration: Calibration = UNCALIBRATED,
        inputs: InputMeta | None = None,
        task: Member = CLASSIFICATION,
        data_licence: str = "",
    ) -> "AdapterMeta":
        """The record of a trained network; sizes are counted here, everything else is given."""
        tuned = network.num_trainable(with_head=False)
        return AdapterMeta(
            tuner=tuner,
            task=task,
            classes=tuple(classes),
            backbone=BackboneMeta.of(backbone),
            data_version=data_version,
            data_licence=data_licence,
            split_sha256=split_sha256,
            git_commit=git_commit,
            seed=seed,
            metrics=dict(metrics),
            thresholds=dict(calibration.thresholds),
            temperature=calibration.temperature,
            offset=calibration.offset,
            calibration=calibration.reason,
            decision=calibration.decision,
            input=inputs,
            trainable_params=tuned,
            head_params=network.num_trainable(with_head=True) - tuned,
            share=tuned / network.backbone_params,
        )


def hash_meta(folder: Path) -> str:
    """sha256 of adapter.json, which stands for the whole adapter. Raises AdapterError where there is none."""
    return hashlib.sha256(_read_meta(folder)).hexdigest()


def load_meta(folder: Path) -> AdapterMeta:
    """Read and check adapter.json. Raises AdapterError where it is missing, damaged or of another format version."""
    return _parse_meta(folder, _read_meta(folder))


def require_intact(folder: Path, meta_sha256: str = "") -> AdapterMeta:
    """The record of an adapter whose files are all there, unchanged, and the only ones in the folder.

    meta_sha256: what adapter.json must hash to; empty where that is not known. Needs no torch: the files are hashed.
    Raises AdapterError saying which file differs.
    """
    data = _read_meta(folder)
    found = hashlib.sha256(data).hexdigest()
    if meta_sha256 and found != meta_sha256:
        raise AdapterError(
            f"adapter {folder}, {META_FILE}",
            expected=f"the sha256 {meta_sha256[:12]}, with which it was registered",
            found=f"{found[:12]}: the file was edited or replaced",
            hint=RETRAIN,
        )
    meta = _parse_meta(folder, data)
    require_alone(folder)
    try:
        with (folder / WEIGHTS_FILE).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        what, found = f"adapter {folder}, {WEIGHTS_FILE}", error.strerror or "none"
        raise AdapterError(what, expected="a file", found=found, hint=RETRAIN) from None
    require_digest(folder, meta, digest)
    return meta


def _read_meta(folder: Path) -> bytes:
    try:
        return (folder / META_FILE).read_bytes()
    except OSError as error:
        what, found = f"adapter {folder}", error.strerror or "none"
        raise AdapterError(what, expected=f"a file {META_FILE}", found=found, hint=RETRAIN) from None


def _parse_meta(folder: Path, data: bytes) -> AdapterMeta:
    what = f"adapter {folder}"
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise AdapterError(what, expected=f"JSON in {META_FILE}", found=str(error), hint=RETRAIN) from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        found = f"version {version}"
        hint = "Use the release of Tessera that wrote it, or train it again."
        raise AdapterError(what, expected=f"format version {FORMAT_VERSION}", found=found, hint=hint)
    try:
        return AdapterMeta.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise AdapterError(what, expected=f"a legal {META_FILE}", found=found, hint=RETRAIN) from None


def require_alone(folder: Path) -> None:
    """Nobody vouches for a further file, and some program may read it one day."""
    if extra := sorted({path.name for path in folder.iterdir()} - {WEIGHTS_FILE, META_FILE}):
        raise AdapterError(
            f"adapter {folder}",
            expected=f"the files {META_FILE} and {WEIGHTS_FILE} alone",
            found=f"also {name_some(extra)}",
            hint="Find out where that came from, and remove it.",
        )


def require_digest(folder: Path, meta: AdapterMeta, digest: str) -> None:
    if digest != meta.adapter_sha256:
        raise AdapterError(
            f"adapter {folder}, {WEIGHTS_FILE}",
            expected=f"the sha256 in {META_FILE}, {meta.adapter_sha256[:12] or 'which is empty'}",
            found=f"{digest[:12]}, other weights",
            hint=RETRAIN,
        )


def name_some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
