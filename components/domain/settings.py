"""The sections of domain.yaml: splits, groups, validation, training, search, gates and schedule."""

import difflib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator, model_validator

from components.domain.licences import normalise
from components.domain.strict import Strict


class Split(Strict):
    """Shares of the groups, not of the images: all images of a group are in one split."""

    val: float = Field(default=0.15, gt=0, lt=0.5)
    """Share of the groups for validation, on which candidates are selected."""
    test: float = Field(default=0.25, gt=0, lt=0.5)
    """Share of the groups for test, on which gates judge."""
    seed: int = 0
    """Seed of the hash that splits new groups."""
    given: bool = False
    """Keep the split that the tree or table names (`split: given` means the same). If it has no val, the share `val`
    of the groups in train becomes val."""


class Groups(Strict):
    """What joins images into groups besides their group column."""

    near_duplicates: Literal["off", "report", "join"] = "join"
    """`join` puts pictures that show one thing into one group, and so into one split; `report` finds and shows them but
    joins nothing; `off` does not search for them."""

    @field_validator("near_duplicates", mode="before")
    @classmethod
    def _off_by_yaml(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false


class Validation(Strict):
    """Limits that the images must satisfy before anything is trained on them."""

    min_images_per_class: int = Field(default=4, ge=2)
    """Fewest fit images that a class must have."""
    min_groups_per_class: int = Field(default=3, ge=3)
    """Fewest groups that a class must have, so that each split gets one."""
    min_side: int = Field(default=16, ge=1)
    """Shortest side of a fit image in pixels."""
    max_megapixels: float = Field(default=100.0, gt=0)
    """Most pixels of a fit image, in millions."""
    max_quarantined: float = Field(default=0.05, ge=0, le=1)
    """Largest share of unfit images with which a check still passes."""
    near_duplicate_bits: int = Field(default=4, ge=0, le=32)
    """Most bits in which the perceptual hashes of two images may differ for the pair to be compared closely."""


class Training(Strict):
    """The budget of every candidate; it is the same for all, so that no method wins by training longer."""

    epochs: int = Field(default=20, ge=1)
    """How many times every training image is used."""
    batch_size: int = Field(default=32, ge=2)
    """Images per step, whether it is computed in `accumulate` parts or shared among `devices`."""
    warmup_epochs: float = Field(default=2.0, ge=0)
    """Epochs in which the learning rate rises to its peak."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """One training per candidate and seed."""
    workers: int = Field(default=0, ge=0)
    """Processes that load images; 0 loads them in the training process."""
    accumulate: int = Field(default=1, ge=1)
    """Parts in which a step is computed, one after the other, if memory is short."""
    gradient_checkpointing: bool = False
    """Use less memory for a third more time."""
    devices: int = Field(default=1, ge=1, le=64)
    """Number of processes (one per GPU, if there are any) that share one training."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the computation; `auto` is bfloat16 if the device supports it."""
    checkpoint_seconds: float = Field(default=10.0, ge=0)
    """Least seconds between two checkpoints."""


class Search(Strict):
    """How long the options of each candidate are searched before the final seeds are trained; the same for all."""

    trials: int | None = Field(default=None, ge=2, le=1000)
    """Configurations tried per candidate."""
    seconds: float | None = Field(default=None, gt=0)
    """Total seconds of the training processes; the result may then depend on the machine. The search ends when `trials`
    or `seconds` is used up."""
    halving: int = Field(default=3, ge=2, le=10)
    """At each rung one in `halving` trials continues, with `halving` times as many epochs."""

    @model_validator(mode="after")
    def _some_budget(self) -> "Search":
        if self.trials is None and self.seconds is None:
            raise ValueError("give a budget: trials, seconds or both")
        return self


class Decision(Strict):
    """From which probability on an image is answered the class that lets it pass, such as `good`."""

    escape: float = Field(gt=0, lt=1)
    """Largest share of the images of other classes that may be answered this class. The lowest threshold that keeps it
    on validation is chosen, one half at least; the share is averaged over the images of a group, then over groups."""
    abstain: bool = False
    """Whether an image is left to a person where this class is the most probable one but below the threshold; else the
    most probable other class is answered. Scores and gates count it as that class either way."""


class Gates(Strict):
    """When a challenger may become champion. Scores are the task's metric on the test groups."""

    use: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The gates that judge; all when left out."""
    floor: float | None = Field(default=None, ge=0, le=1)
    """The value that the lower end of the challenger's interval must reach; chance level when left out."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of every interval."""
    slice_margin: float = Field(default=0.05, ge=0, le=1)
    """How much worse any slice may become."""
    max_adapter_mb: float | None = Field(default=None, gt=0)
    """Limit of the artifact's size in MB; none when left out."""
    max_ece: float | None = Field(default=None, gt=0, le=1)
    """Limit of the calibration error; none when left out."""
    max_latency_ms: float | None = Field(default=None, gt=0)
    """Limit in ms for one image on the device that judges; none when left out."""
    max_memory_mb: float | None = Field(default=None, gt=0)
    """Limit of memory in MB for one image on the device that judges; none when left out."""
    costs: Mapping[str, Mapping[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]] = {}
    """The cost of a mistake, by true class and predicted class; other mistakes cost 1. `{"*": {good: 20}}`: a missed
    defect costs as much as 20 false alarms. Of labels, `{crack: {(none): 20}}` is the cost of a missed crack and
    `{(none): {crack: 2}}` that of a false one; likewise of boxes, each missed object and each false alarm. Of pixels,
    the cost of each, as the mean over an image's pixels."""
    max_cost: float | None = Field(default=None, ge=0)
    """Limit of the mean cost per image; none when left out."""
    licences: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The only licences under which backbone, data and code may stand, such as `[apache-2.0, mit, cc0-1.0]`; any when
    left out. Case does not count, and `unknown` is one like the others. Judges whatever `use` picks."""
    approval: bool = False
    """Whether a person must approve, too (`tessera approve`)."""

    @field_validator("licences")
    @classmethod
    def _as_compared(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and not all(licence.strip() for licence in value):
            raise ValueError("names an empty licence; one that nobody stated is `unknown`")
        return None if value is None else tuple(dict.fromkeys(map(normalise, value)))

    def cost(self, truth: str, predicted: str) -> float:
        """The cost of predicting one class for another; 0 for the right class."""
        if truth == predicted:
            return 0.0
        known = (self.costs.get(row, {}).get(predicted) for row in (truth, "*"))
        return next((cost for cost in known if cost is not None), 1.0)


class Schedule(Strict):
    """When to retrain automatically: by a cron line or an interval, and when a data version is named (`on_version`)."""

    cron: str | None = None
    """Cron line with five fields, minute first, such as `0 3 * * 1`."""
    interval_hours: float | None = Field(default=None, ge=1 / 3600, le=24 * 3660)
    """Hours between two retrains."""
    timezone: str = "UTC"
    """Time zone of both, a name of the IANA database; daylight saving time is observed."""
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
        """Accept only lines that Prefect reads in the same way: a sixth field would be seconds, at different ends."""
        if value is None:
            return None
        hint = "five fields, minute first, as in `0 3 * * 1` (Mondays at 03:00)"
        if len(value.split()) != 5 or not re.fullmatch(r"[\w*,/\- ]+", value.strip()):
            raise ValueError(f"cron needs {hint}")
        try:
            next(CronSim(value, datetime.now(UTC)))
        except (CronSimError, StopIteration) as error:
            raise ValueError(f"cron needs {hint}; the error is: {error or 'a day that never comes'}") from None
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        known = available_timezones()
        if value not in known:
            close = difflib.get_close_matches(value, [name for name in known if "/" in name], 1, cutoff=0.8)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"timezone must be a name such as Europe/Zurich or UTC{hint}")
        return value
