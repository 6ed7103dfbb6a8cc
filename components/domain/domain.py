"""A domain: what to recognise, in which images, and under which terms.

`data/<name>/domain.yaml` is the only file that a user writes. It is strict (an unknown key is an error that
names the known ones) and frozen. All other keys have a default, so the smallest legal file has four lines:

    name: tiles
    task: classification
    classes: [good, cracked]
    layout: folders

Task and candidates are kept as they are written. Tasks and tuners check their options (`components.tasks.create_task`,
`components.models.tuners.create_tuners`), because this room imports neither.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from components.domain.canvas import CanvasSize, Fit
from components.domain.layouts import RESERVED_COLUMNS, Layout
from components.domain.settings import Decision, Gates, Groups, Schedule, Search, Split, Training, Validation
from components.domain.strict import NAME_PATTERN, Strict

PRESETS = ("none", "industrial", "pathology", "xray")


class Domain(Strict):
    """Everything a `domain.yaml` may say."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the domain, as its folder is called."""
    task: str | Mapping[str, Any]
    """What is predicted of an image: the name of a task, or a mapping with its options."""
    classes: tuple[str, ...] = Field(min_length=1)
    """The labels that images may have."""
    layout: Layout
    """How the labels are kept: the name of a layout, or a mapping with its options."""
    rename: Mapping[str, str] = {}
    """Labels as the images have them, and the class of each: `{Good: good, NG: bad}`."""
    group: str | None = None
    """The column that names the group of an image (lot, patient, part); a group is never in two splits."""
    groups: Groups = Groups()
    """What else joins images into groups."""
    slices: tuple[str, ...] = ()
    """Columns by whose values scores are also reported separately."""
    split: Split = Split()
    """How groups are split."""
    validation: Validation = Validation()
    """Limits that the images must satisfy before anything is trained on them."""
    augmentation: str | dict[str, Any] = "industrial"
    """A preset, or a pipeline that albumentations saved: its `*.yaml` beside domain.yaml, or the content of it."""
    backbone: str = "auto"
    """`embedded`, a timm name, `hf-hub:owner/name`, the path of a .safetensors file or of a folder, with a slash in it,
    or `auto`: the hub's default if the hub answers, else the embedded one."""
    img_size: CanvasSize | None = None
    """Side of training images in pixels (16 to 2048), or `[height, width]`, multiples of the backbone's patch size; the
    backbone's own when left out."""
    fit: Fit | None = None
    """How a picture of another shape becomes a training image: `squash` changes its aspect, `letterbox` keeps it and
    fills the rest with grey. When left out, `letterbox` for boxes and `squash` otherwise."""
    candidates: tuple[Mapping[str, Any], ...] = Field(
        default=({"kind": "linear"}, {"kind": "vpt"}, {"kind": "vapt"}, {"kind": "full"}), min_length=1
    )
    """The tuners to train, by kind or as mappings with their options."""
    training: Training = Training()
    """The budget of every candidate."""
    search: Search | None = None
    """How long each candidate's options are searched; not at all when left out."""
    decision: Mapping[str, Decision] = {}
    """The class that lets an image pass, and how many of the others may pass with it: `{good: {escape: 0.01}}`. For
    tasks that answer one label; the most probable class is answered when left out."""
    gates: Gates = Gates()
    """When a challenger may become champion."""
    schedule: Schedule | None = None
    """When to retrain automatically; never when left out."""
    work_pool: str | None = None
    """The Prefect work pool whose workers train the candidates; without one, or without a Prefect server, they are
    trained where the retrain runs."""
    title: str = ""
    """Name of the domain for readers."""
    description: str = ""
    """What the images show."""
    intended_use: str = ""
    """For whom and for what the adapters are made; the first section of the model card."""
    source: str = ""
    """Where the images come from."""
    licence: str = ""
    """Licence of the images, an SPDX identifier such as `cc0-1.0` or their terms; `unknown` when left out."""
    citation: str = ""
    """How to cite the images."""

    @field_validator("rename")
    @classmethod
    def _to_classes(cls, value: Mapping[str, str], info: ValidationInfo) -> Mapping[str, str]:
        known = info.data.get("classes", ())
        if strangers := sorted(set(value.values()) - set(known)):
            raise ValueError(f"renames to {', '.join(strangers)}; the classes are {', '.join(known)}")
        if both := sorted(set(value) & set(known)):
            raise ValueError(f"renames {', '.join(map(repr, both))}, which `classes` names, too: remove it there")
        return value

    @field_validator("layout", mode="before")
    @classmethod
    def _layout_by_name(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("split", mode="before")
    @classmethod
    def _split_by_name(cls, value: Any) -> Any:
        return {"given": True} if value == "given" else value

    @field_validator("candidates", mode="before")
    @classmethod
    def _candidates_by_name(cls, value: Any) -> Any:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [{"kind": item} if isinstance(item, str) else item for item in value]
        return value

    @field_validator("augmentation", mode="before")
    @classmethod
    def _known_augmentation(cls, value: Any) -> Any:
        named = isinstance(value, str) and (value in PRESETS or value.endswith((".yaml", ".yml")))
        if not named and not (isinstance(value, dict) and isinstance(value.get("transform"), dict)):
            raise ValueError(f"one of {', '.join(PRESETS)}, or an albumentations file `*.yaml` beside domain.yaml")
        return value

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"names a class twice: {', '.join(value)}")
        return value

    @field_validator("decision")
    @classmethod
    def _one_class(cls, value: Mapping[str, Decision], info: ValidationInfo) -> Mapping[str, Decision]:
        known = info.data.get("classes", ())
        if strangers := sorted(set(value) - set(known)):
            raise ValueError(f"names {', '.join(strangers)}; the classes are {', '.join(known)}")
        if len(value) > 1:
            raise ValueError(f"one class may let an image pass; it names {', '.join(value)}")
        return value

    @field_validator("gates")
    @classmethod
    def _limit_of_costs(cls, value: Gates) -> Gates:
        if value.max_cost is not None and not value.costs:
            raise ValueError("max_cost is a limit on `costs`: write these, too")
        return value

    @field_validator("slices")
    @classmethod
    def _free_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if taken := set(value) & set(RESERVED_COLUMNS):
            raise ValueError(f"slice columns may not be called {', '.join(sorted(taken))}")
        return value

    @property
    def task_kind(self) -> str:
        """The name of the task; its options are `create_task`'s business."""
        return self.task if isinstance(self.task, str) else str(self.task.get("kind"))
