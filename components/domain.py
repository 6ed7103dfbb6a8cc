"""A domain: what is to be recognised, in which images, and under which terms.

`data/<name>/domain.yaml` is the only file a user writes. It is strict (an unknown key is an error that
names the known ones) and frozen; everything has a default, so the smallest legal file is four lines:

    name: tiles
    task: classification
    classes: [good, cracked]
    layout: folders

Candidates are kept here as plain mappings: their options belong to the tuners, which check them
(`components.models.tuners.create_tuners`), because a domain must not know about models.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

import yaml
from cronsim import CronSim, CronSimError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from components.errors import DomainError, TesseraError

NAME_PATTERN = r"^[a-z][a-z0-9_]{0,62}$"
PART = re.compile(r"<([a-z][a-z0-9_]*)>")  # of a folder's path in a layout: stands for every name
PRESETS = ("none", "industrial", "pathology", "xray")
RESERVED_COLUMNS = (
    *("id", "path", "label", "labels", "group", "mask", "boxes", "crop"),
    *("width", "height", "split", "stated_size", "problem"),
)


class Strict(BaseModel):
    """A frozen record that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Tree(Strict):
    """What layouts of folders have in common: a part `<name>` of `images` stands for every folder at that place."""

    images: str = "."
    """The folder of the pictures; a part `<name>` stands for every folder at that place."""

    @field_validator("images", "masks", "annotations", "instances", check_fields=False)
    @classmethod
    def _legal_parts(cls, value: str | None, info: ValidationInfo) -> str | None:
        names = PART.findall(value or "")
        if len(set(names)) != len(names):
            raise ValueError("names a part in angle brackets twice")
        if "class" in names and not (cls is Folders and info.field_name == "images"):
            raise ValueError("only `images` of the layout folders may hold the part <class>")
        known = set(PART.findall(info.data.get("images", value) or ""))
        if info.field_name != "images" and (strange := set(names) - known - {"split"}):
            raise ValueError(f"the part <{strange.pop()}> is none of `images`")
        return value

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts in angle brackets, which are columns of the rows."""
        return tuple(PART.findall(self.images))


class Folders(Tree):
    """One folder per class: `<images>/<class>/*.jpg`, and masks `<masks>/<class>/<same stem>.png` where given.

    A mask may also be called `<stem>_mask.png`, and `masks: .` takes masks that lie beside their pictures. A part of
    `images` in angle brackets stands for every folder at that place: `images: <split>` reads train/good and
    test/good, `<lot>` reads P00/good and P01/good, `<class>/<lot>` reads good/P00. Its name is a column that may
    serve as `group` or as a slice, except that `<split>` stands for names of splits alone and serves `split: given`.
    The layouts voc, coco, instances and masks take such parts as well: `{kind: masks, images: <split>/images, masks:
    <split>/masks}`.
    """

    kind: Literal["folders"] = "folders"
    """One folder per class."""
    images: str = "."
    """The folder that holds one folder per class; a part `<name>` stands for every folder at that place."""
    masks: str | None = None
    """The folder that holds the masks, in folders of the same names."""


class Table(Strict):
    """What a csv and a parquet table have in common."""

    table: str = "labels.csv"
    """Path of the table below the images' folder."""
    image: str = "image"
    """The column that names the picture."""
    label: str = "label"
    """The column that names the class."""
    separator: str | None = Field(default=None, min_length=1)
    """What stands between several labels in one cell (task `multilabel`)."""
    one_hot: bool = False
    """Whether each class has a column of 0 and 1, with exactly one 1 per row."""
    mask: str | None = None
    """The column that names the mask."""
    boxes: str | None = None
    """The column that holds boxes, in pixels."""
    crop: str | tuple[str, str, str, str] | None = None
    """The column that holds one box, or the four columns of its corners: the row is then that part of the picture."""
    box_form: Literal["corners", "size"] = "corners"
    """Whether a box is `x0 y0 x1 y1` (corners) or `x y width height` (size)."""


class Csv(Table):
    """One table, one row per image; paths in it are relative to the table or to the top folder.

    `tessera import` finds the table, its columns and its form, and writes them down; what `--layout` names is not
    searched for. `delimiter` stands between columns, `header: false` says that the first line is data (the columns are
    then `column_1`, `column_2` and so on). Any further column may serve as `group` or as a slice. `boxes` holds
    `x0 y0 x1 y1` in pixels, several boxes joined by `;`. `crop` holds one such box, or names four columns
    (`[xmin, ymin, xmax, ymax]`): the row is then that part of the picture; `box_form: size` says that boxes are
    `x y width height`. `one_hot: true`: the table has one column of 0 and 1 per class, named as the class, with exactly
    one 1 per row. With the task `multilabel` there are such columns with any number of 1s; or, where `separator` is
    given, the column `label` holds all labels joined by it (none: an empty cell).
    """

    kind: Literal["csv"] = "csv"
    """A table as text."""
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    """The mark between columns."""
    encoding: str = "utf-8"
    """The encoding of the text."""
    header: bool = True
    """Whether the first line names the columns; else they are `column_1`, `column_2` and so on."""

    @field_validator("delimiter")
    @classmethod
    def _is_delimiter(cls, value: str) -> str:
        if value.isalnum() or value in '"\n\r':
            raise ValueError("wants a mark that stands between columns, such as `;`")
        return value

    @field_validator("encoding")
    @classmethod
    def _is_known_encoding(cls, value: str) -> str:
        try:
            "".encode(value)
        except (LookupError, ValueError):  # ValueError: a zero byte in the name
            raise ValueError("wants the name of a text encoding, such as utf-8, utf-16, cp1252") from None
        return value


class Parquet(Table):
    """The same as csv in a parquet file; a column of lists is read as its values joined by `separator` (or `;`)."""

    kind: Literal["parquet"] = "parquet"
    """A table as a parquet file."""
    table: str = "labels.parquet"
    """Path of the table below the images' folder."""


class Voc(Tree):
    """Pascal VOC: each annotated object becomes one crop, and all crops of a picture are one group.

    The lists in ImageSets/Main, where there are any, name the split of a picture.
    """

    kind: Literal["voc"] = "voc"
    """Pascal VOC."""
    images: str = "JPEGImages"
    """The folder of the pictures; a part `<name>` stands for every folder at that place."""
    annotations: str = "Annotations"
    """The folder of the XML files."""


class Coco(Tree):
    """COCO instances: each annotation's box becomes one crop, and all crops of a picture are one group.

    `annotations` is one .json file or a folder of them, or, with the part `<split>`, one file per split
    (`annotations/instances_<split>.json`, `<split>/_annotations.coco.json`). A segmentation gives its extent where
    there is no box, and is not kept otherwise; crowds (`iscrowd: 1`) are passed over. Further keys of an annotation
    or of its image may serve as `group` or as slices; `mask`, `boxes` and `whole: true` (the picture itself instead
    of a crop) are read as `tessera export` writes them. With the task `multilabel` a row is a picture with all its
    categories.
    """

    kind: Literal["coco"] = "coco"
    """COCO."""
    images: str = "images"
    """The folder that file names are relative to; a part `<name>` stands for every folder at that place."""
    annotations: str = "annotations.json"
    """The .json file or a folder of them; with the part `<split>` one file per split."""


class Yolo(Strict):
    """YOLO detection: each line `class cx cy width height` of a label file becomes one crop.

    The label file of `<images>/train/a.jpg` is `<labels>/train/a.txt`, `labels` beside `images` (`train/images/a.jpg`,
    `train/labels/a.txt`), or `a.txt` beside the picture. `names` is the file that names the classes, data.yaml or a
    text file with one name per line; found where it is left out. An empty label file means background.
    """

    kind: Literal["yolo"] = "yolo"
    """YOLO detection."""
    images: str = "images"
    """The folder of the pictures."""
    labels: str = "labels"
    """The folder of the label files."""
    names: str | None = None
    """The file that names the classes, data.yaml or a text file; found where it is left out."""


class Instances(Tree):
    """Instance-id masks (0 = background): a crop an instance, and as many crops of empty background."""

    kind: Literal["instances"] = "instances"
    """Masks with one number per object."""
    images: str = "images"
    """The folder of the pictures; a part `<name>` stands for every folder at that place."""
    instances: str = "instances"
    """The folder of the masks."""
    label: str = "object"
    """The class of every object."""
    background: str = "background"
    """The class of the crops of background."""


class Masks(Tree):
    """Semantic masks, `<masks>/<same stem>.png` with a class in every pixel: a picture gets the class its mask shows.

    `ids` says which number in the mask, or which colour `"#rrggbb"`, is which class; left out, number k is `class_k`.
    The mask of `a.jpg` may also be called `a_mask.png`, and lie beside it (`masks: .`). 0 (black) is `background`,
    the label of pictures that show nothing else; numbers or colours in `ignore` count for nothing. A picture that
    shows several classes has no one label and goes to quarantine; the task `multilabel` takes them all, and
    background is then no label.
    """

    kind: Literal["masks"] = "masks"
    """Masks with one number or colour per class."""
    images: str = "images"
    """The folder of the pictures; a part `<name>` stands for every folder at that place."""
    masks: str = "masks"
    """The folder of the masks; `.` where they lie beside their pictures."""
    ids: Mapping[str, int | str] = {}
    """Which number or colour `"#rrggbb"` is which class; left out, number k is `class_k`."""
    background: str = "background"
    """The class of pictures that show nothing else; 0 (black) in the mask."""
    ignore: tuple[int | str, ...] = ()
    """Numbers or colours that count for nothing."""

    @field_validator("ids", "ignore")
    @classmethod
    def _numbers_or_colours(cls, value: Any) -> Any:
        values = list(value.values()) if isinstance(value, Mapping) else list(value)
        colours = [v for v in values if isinstance(v, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", v)]
        numbers = [v for v in values if isinstance(v, int) and 0 <= v < 2**32]
        if len(values) not in (len(colours), len(numbers)):
            raise ValueError('wants whole numbers, or else colours such as "#ff0000" in quotes')
        if len({str(v).lower() for v in values}) != len(values):
            raise ValueError("gives one value to two classes")
        return value


Layout = Annotated[
    Folders | Csv | Parquet | Voc | Coco | Yolo | Instances | Masks,
    Field(discriminator="kind"),
]
LAYOUTS: dict[str, type[Folders | Csv | Parquet | Voc | Coco | Yolo | Instances | Masks]] = {
    "folders": Folders,
    "csv": Csv,
    "parquet": Parquet,
    "voc": Voc,
    "coco": Coco,
    "yolo": Yolo,
    "instances": Instances,
    "masks": Masks,
}
WITH_COLUMNS = ("csv", "parquet", "coco")  # layouts that can hold a group and slices
WITH_LABELS = ("csv", "parquet", "coco", "masks")  # layouts that can give one picture several labels


class Split(Strict):
    """Shares of the groups, not of the images: all images of a group are in one split."""

    val: float = Field(default=0.15, gt=0, lt=0.5)
    """Share of the groups for validation, on which candidates are selected."""
    test: float = Field(default=0.25, gt=0, lt=0.5)
    """Share of the groups for the test, on which gates judge."""
    seed: int = 0
    """Seed of the hash that splits new groups."""
    given: bool = False
    """Keep the split that the tree or table names (`split: given` says the same). Where it has no val, the share `val`
    of the groups in train becomes val."""


class Groups(Strict):
    """What holds images together besides their content or group column."""

    near_duplicates: Literal["off", "report", "join"] = "join"
    """`join` keeps pictures that show one thing in one group, and so in one split; `report` finds and shows them but
    joins nothing; `off` does not look for them."""

    @field_validator("near_duplicates", mode="before")
    @classmethod
    def _off_by_yaml(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false


class Validation(Strict):
    """Floors and ceilings the data must keep before anything is trained on them."""

    min_images_per_class: int = Field(default=4, ge=2)
    """Fewest fit images a class must have."""
    min_groups_per_class: int = Field(default=3, ge=3)
    """Fewest groups a class must have, so that each split gets one."""
    min_side: int = Field(default=16, ge=1)
    """Shortest side of a fit image in pixels."""
    max_megapixels: float = Field(default=100.0, gt=0)
    """Most pixels of a fit image, in millions."""
    max_quarantined: float = Field(default=0.05, ge=0, le=1)
    """Largest share of unfit images with which a check still passes."""
    near_duplicate_bits: int = Field(default=4, ge=0, le=32)
    """Most bits in which two images' perceptual hashes differ for a closer look at the pair."""


class Training(Strict):
    """One budget for every candidate, so that a method never wins by training longer."""

    epochs: int = Field(default=20, ge=1)
    """Times that every training image is seen."""
    batch_size: int = Field(default=32, ge=2)
    """Images per step, however it is computed: in `accumulate` parts, shared among `devices`."""
    warmup_epochs: float = Field(default=2.0, ge=0)
    """Epochs in which the learning rate rises to its peak."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """One training per candidate and seed."""
    workers: int = Field(default=0, ge=0)
    """Processes that load images; 0 loads them in the training process."""
    accumulate: int = Field(default=1, ge=1)
    """Parts in which a step is computed, one after the other, where memory is short."""
    gradient_checkpointing: bool = False
    """Less memory for a third more time."""
    devices: int = Field(default=1, ge=1, le=64)
    """Processes, one per GPU where there are any, that share one training."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What is computed in; `auto` is bfloat16 where the device has it."""
    checkpoint_seconds: float = Field(default=10.0, ge=0)
    """Least seconds between two checkpoints."""


class Search(Strict):
    """How long each candidate's options are searched before the final seeds are trained; the same for all of them."""

    trials: int | None = Field(default=None, ge=2, le=1000)
    """Configurations tried per candidate."""
    seconds: float | None = Field(default=None, gt=0)
    """Seconds of training processes, start to end; another machine may come to another result with them. Whichever of
    `trials` and `seconds` is used up first ends the search."""
    halving: int = Field(default=3, ge=2, le=10)
    """One in so many trials goes on at each rung, and a rung has so many times the epochs of the one before."""

    @model_validator(mode="after")
    def _some_budget(self) -> "Search":
        if self.trials is None and self.seconds is None:
            raise ValueError("give a budget: trials, seconds or both")
        return self


class Gates(Strict):
    """When a challenger may become champion. Scores are balanced accuracies on the test groups."""

    use: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The gates that judge; all when left out."""
    floor: float | None = Field(default=None, ge=0, le=1)
    """What the lower end of the challenger's interval must reach; chance level when left out."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of every interval."""
    slice_margin: float = Field(default=0.05, ge=0, le=1)
    """How much worse any slice may get."""
    max_adapter_mb: float | None = Field(default=None, gt=0)
    """Limit of the artifact's size in MB; none when left out."""
    max_ece: float | None = Field(default=None, gt=0, le=1)
    """Limit of the calibration error; none when left out."""
    max_latency_ms: float | None = Field(default=None, gt=0)
    """Limit in ms for one image on the device that judges; none when left out."""
    max_memory_mb: float | None = Field(default=None, gt=0)
    """Limit of memory in MB for one image on the device that judges; none when left out."""
    costs: Mapping[str, Mapping[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]] = {}
    """What a mistake costs, by truth and prediction; others cost 1. `{"*": {good: 20}}`: a missed defect costs as much
    as 20 false alarms."""
    max_cost: float | None = Field(default=None, ge=0)
    """Limit of the mean cost per image; none when left out."""
    approval: bool = False
    """Whether a person must agree, too (`tessera approve`)."""

    def cost(self, truth: str, predicted: str) -> float:
        """Of taking one class for another; nothing where that is right."""
        if truth == predicted:
            return 0.0
        known = (self.costs.get(row, {}).get(predicted) for row in (truth, "*"))
        return next((cost for cost in known if cost is not None), 1.0)


class Schedule(Strict):
    """When to retrain by itself: a cron line or an interval, and whenever a data version is named (`on_version`)."""

    cron: str | None = None
    """Five fields, minute first, as in `0 3 * * 1`."""
    interval_hours: float | None = Field(default=None, ge=1 / 3600, le=24 * 3660)
    """Hours between two retrains."""
    timezone: str = "UTC"
    """A name of the IANA database, by whose clock both are meant; changes of the clock are observed."""
    on_version: bool = False
    """Retrain whenever a data version is named."""

    @model_validator(mode="after")
    def _says_when(self) -> "Schedule":
        if self.cron is not None and self.interval_hours is not None:
            raise ValueError("give exactly one of cron and interval_hours")
        if self.cron is None and self.interval_hours is None and not self.on_version:
            raise ValueError("give cron, interval_hours or on_version: true")
        return self

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, value: str | None) -> str | None:
        """What Prefect reads in the same way: a sixth field would mean seconds, to each at another end."""
        if value is None:
            return None
        hint = "five fields, minute first, as in `0 3 * * 1` (Mondays at 03:00)"
        if len(value.split()) != 5 or not re.fullmatch(r"[\w*,/\- ]+", value.strip()):
            raise ValueError(f"cron wants {hint}")
        try:
            next(CronSim(value, datetime.now(UTC)))
        except (CronSimError, StopIteration) as error:
            raise ValueError(f"cron wants {hint}; this one says: {error or 'a day that never comes'}") from None
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        known = available_timezones()
        if value not in known:
            close = difflib.get_close_matches(value, [name for name in known if "/" in name], 1, cutoff=0.8)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"timezone wants a name such as Europe/Zurich or UTC{hint}")
        return value


class Domain(Strict):
    """Everything a `domain.yaml` may say."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the domain, as its folder is called."""
    task: Literal["classification", "multilabel"]
    """`classification` gives an image one label; `multilabel` any number, and can be checked, split and exported, but
    not trained yet."""
    classes: tuple[str, ...] = Field(min_length=2)
    """The labels that images may have."""
    layout: Layout
    """How the labels are kept: the name of a layout, or a mapping with its options."""
    rename: Mapping[str, str] = {}
    """Labels as they are written, and the class each belongs to: `{Good: good, NG: bad}`."""
    group: str | None = None
    """The column that names what belongs together (lot, patient, part): never in two splits."""
    groups: Groups = Groups()
    """Which pictures are held together besides."""
    slices: tuple[str, ...] = ()
    """Columns by whose values scores are told apart."""
    split: Split = Split()
    """How groups are split."""
    validation: Validation = Validation()
    """What the data must keep before anything is trained on them."""
    augmentation: str | dict[str, Any] = "industrial"
    """One of the presets, or a pipeline that albumentations saved: its `*.yaml` beside domain.yaml, or itself."""
    backbone: str = "auto"
    """`embedded`, a .safetensors path, a timm name, or `auto`: the hub's default if the hub answers, else the embedded
    one."""
    img_size: int | None = Field(default=None, ge=16, le=2048)
    """Side of training images in pixels; the backbone's own when left out."""
    candidates: tuple[Mapping[str, Any], ...] = Field(
        default=({"kind": "linear"}, {"kind": "vpt"}, {"kind": "vapt"}, {"kind": "full"}), min_length=1
    )
    """The tuners to train, by kind or as mappings with their options."""
    training: Training = Training()
    """The budget of every candidate."""
    search: Search | None = None
    """How long each candidate's options are searched; not at all when left out."""
    gates: Gates = Gates()
    """When a challenger may become champion."""
    schedule: Schedule | None = None
    """When to retrain by itself; never when left out."""
    work_pool: str | None = None
    """The Prefect work pool whose workers train the candidates; without one, or without a Prefect server, they are
    trained where the retrain runs."""
    title: str = ""
    """Name of the domain for people."""
    description: str = ""
    """What the images show."""
    intended_use: str = ""
    """For whom and for what the adapters are; the model card says it first."""
    source: str = ""
    """Where the images come from."""
    licence: str = ""
    """Terms of the images."""
    citation: str = ""
    """How to cite the images."""

    @field_validator("rename")
    @classmethod
    def _to_classes(cls, value: Mapping[str, str], info: ValidationInfo) -> Mapping[str, str]:
        known = info.data.get("classes", ())
        if strangers := sorted(set(value.values()) - set(known)):
            raise ValueError(f"renames to {', '.join(strangers)}; the classes are {', '.join(known)}")
        if both := sorted(set(value) & set(known)):
            raise ValueError(f"renames {', '.join(map(repr, both))}, which `classes` names, too: take it out there")
        return value

    @field_validator("layout", mode="before")
    @classmethod
    def _layout_by_name(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("split", mode="before")
    @classmethod
    def _split_by_name(cls, value: Any) -> Any:
        return {"given": True} if value == "given" else value

    @field_validator("layout")
    @classmethod
    def _fits_task(cls, value: Layout, info: ValidationInfo) -> Layout:
        many = info.data.get("task") == "multilabel"
        if many and value.kind not in WITH_LABELS:
            raise ValueError(f"the task multilabel wants one of the layouts {', '.join(WITH_LABELS)}")
        if isinstance(value, Table) and value.separator and not many:
            raise ValueError("only the task multilabel has a separator; what stands between columns is the `delimiter`")
        if isinstance(value, Table) and value.one_hot and many:
            raise ValueError("one_hot says that a row has one label; the task multilabel reads such columns without it")
        return value

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

    @field_validator("gates")
    @classmethod
    def _costs_of_classes(cls, value: Gates, info: ValidationInfo) -> Gates:
        known = info.data.get("classes", ())
        named = {name for row in value.costs.values() for name in row} | set(value.costs) - {"*"}
        if strangers := sorted(named - set(known)):
            raise ValueError(f"gates.costs speaks of {', '.join(strangers)}; the classes are {', '.join(known)}")
        if value.max_cost is not None and not value.costs:
            raise ValueError("max_cost is a limit of `costs`: give these, too")
        return value

    @field_validator("slices")
    @classmethod
    def _free_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if taken := set(value) & set(RESERVED_COLUMNS):
            raise ValueError(f"slice columns may not be called {', '.join(sorted(taken))}")
        return value


def load_domain(path: Path, overrides: Sequence[str] = ()) -> Domain:
    """Read and check one `domain.yaml`; `overrides` are `key.sub=value` texts with YAML values.

    Raises DomainError for a missing file, broken YAML, an unknown key or an illegal value.
    """
    if not path.is_file():
        known = sorted(p.parent.name for p in path.parent.parent.glob("*/domain.yaml"))
        raise DomainError(
            f"domain {path.parent.name!r}",
            expected=f"a file {path}",
            found=f"none; the domains here are: {', '.join(known) or 'none yet'}",
            mend="Name one of these, or bring in a new one with `tessera import SOURCE --domain NAME --layout ...`.",
        )
    raw = read_yaml(path)
    for text in overrides:
        _override(raw, text)
    domain = parse_domain(raw, " with ".join([str(path), *(f"--set {text}" for text in overrides)]))
    if domain.name != path.parent.name:
        raise DomainError(
            str(path),
            expected=f"name: {path.parent.name}, as the folder is called",
            found=f"name: {domain.name}",
            mend="Rename the folder or change the name.",
        )
    return domain


def parse_domain(raw: Mapping[str, Any], where: str) -> Domain:
    """Check a mapping that claims to be a domain. `where` opens the error message."""
    try:
        return Domain.model_validate(raw)
    except ValidationError as error:
        raise explain(error, where, Domain) from None


def explain(error: ValidationError, where: str, model: type[BaseModel]) -> DomainError:
    """Turn pydantic's report into one paragraph about the first and most telling mistake.

    An unknown key is more telling than a missing one, which it often is with another spelling.
    """
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"]) or "the file"
    more = f" ({error.error_count() - 1} more after this one)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        expected, found = f"one of the keys {', '.join(known)}", f"the unknown key {key!r}"
        return DomainError(where, expected=expected, found=found + more, mend=f"{hint}Rename or remove it.")
    if first["type"] == "missing":
        return DomainError(where, expected=f"the key {key!r}", found="no such key" + more, mend="Add it.")
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    expected = message[0].lower() + message[1:]
    found = f"{key} = {first['input']!r}"
    return DomainError(where, expected=expected, found=found[:200] + more, mend=f"Change {key!r}.")


def _known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Keys legal at the place an unknown one was found; walks nested models, and layouts by their kind."""
    fields = model.model_fields
    for part in loc[:-1]:
        if isinstance(part, str) and part in LAYOUTS:
            fields = LAYOUTS[part].model_fields
        elif isinstance(part, str) and part in fields:
            annotation = fields[part].annotation
            candidates = [annotation, *getattr(annotation, "__args__", ())]
            nested = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
            fields = nested.model_fields if nested else fields
    return list(fields)


class _Loader(yaml.SafeLoader):
    """Plain YAML: no alias, which may make a few lines into more text than any memory holds, and no key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.get_mark()
            raise yaml.constructor.ConstructorError(None, None, "an alias", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            names = [self.construct_object(key) for key, _ in node.value]
            twice = next(name for name in names if names.count(name) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} twice", node.start_mark)
        return mapping


def parse_yaml(text: str) -> Any:
    """The value of a text of plain YAML. Raises ValueError, which says what is wrong and where."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the 99th of a month
        raise ValueError(" ".join(str(error).split())[:300]) from None


def read_yaml(path: Path, mend: str = "Correct that line.", kind: type[TesseraError] = DomainError) -> dict[str, Any]:
    """A mapping out of a file of plain YAML. Raises an error of that kind."""
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:  # a UnicodeDecodeError is one
        raise kind(str(path), expected="legal YAML", found=str(error), mend=mend) from None
    if not isinstance(raw, dict):
        found = "an empty file" if raw is None else f"a {type(raw).__name__}"
        raise kind(str(path), expected="a mapping, `key: value` lines", found=found, mend=mend)
    return raw


def parse_layout(text: str, where: str = "--layout") -> Layout:
    """A layout as a command line gives it: its kind, or the mapping that domain.yaml would hold. Raises DomainError."""
    try:
        raw = parse_yaml(text)
    except ValueError as error:
        raise DomainError(where, expected="legal YAML", found=str(error), mend="Correct it.") from None
    facts = {"kind": raw} if isinstance(raw, str) else raw
    kinds = ", ".join(LAYOUTS)
    if not isinstance(facts, dict) or not isinstance(facts.get("kind"), str) or facts["kind"] not in LAYOUTS:
        kind = facts.get("kind") if isinstance(facts, dict) else raw
        close = difflib.get_close_matches(str(kind), LAYOUTS, 1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        found = f"{str(text)[:100]!r}"
        mend = (
            f"{hint}Write for example `--layout '{{kind: csv, image: file, label: grade}}'`; data/README.md lists all."
        )
        raise DomainError(where, expected=f"a kind ({kinds}), or a mapping with it", found=found, mend=mend)
    model = LAYOUTS[facts["kind"]]
    try:
        return model.model_validate(facts)
    except ValidationError as error:
        raise explain(error, where, model) from None


def write_layout(layout: Layout) -> str | dict[str, Any]:
    """A layout as domain.yaml holds it: its kind alone, or with the options that are not the default."""
    options = layout.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    return {"kind": layout.kind, **options} if options else layout.kind


def render_layout(layout: Layout) -> str:
    """The same on one line of YAML, which `--layout` and `layout:` take."""
    written = write_layout(layout)
    text = yaml.safe_dump(written, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _override(raw: dict[str, Any], text: str) -> None:
    """Apply one `a.b.c=value` in place; a part that is a number picks from a list."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        mend = "Write for example `--set training.epochs=5`."
        raise DomainError(f"--set {text!r}", expected="key=value", found="no such form", mend=mend)
    *path, last = key.strip().split(".")
    try:
        parsed = parse_yaml(value)
        place: Any = raw
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = parsed
    except (ValueError, IndexError, TypeError, AttributeError):
        expected = "a key of domain.yaml, parts joined by dots, and a YAML value"
        mend = "Write for example `--set training.epochs=5` or `--set 'candidates=[linear, vapt]'`."
        raise DomainError(f"--set {text!r}", expected=expected, found="none", mend=mend) from None
