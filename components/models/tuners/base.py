"""The base of every tuner: label, learning rate, weight decay, the space of a search, learning rates by parameter.

An annotation of a field says which values a search may try: `rank: Annotated[int, Among(4, 8, 16)] = 8`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from components.domain.strict import Strict

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Within:
    """Any number from default / factor to default * factor, uniform in the logarithm."""

    factor: float


@dataclass(frozen=True, init=False)
class Among:
    """One of these values, which include the default."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        object.__setattr__(self, "values", values)


LearningRate = Annotated[float, Field(gt=0, le=100, description="AdamW's peak learning rate."), Within(10)]
WeightDecay = Annotated[float, Field(ge=0, le=10, description="AdamW's weight decay."), Among(1e-4, 1e-2, 0.05)]


class TunerBase(Strict):
    """The options that every tuner has.

    merges: whether the encoder's `merge()` returns a plain network that computes the same at no extra cost.
    without_effect: fields that are accepted but change nothing where the head is solved; without_effect_trained: where
    it is trained, as dense heads are. A domain that sets one gets a note.
    """

    merges: ClassVar[bool] = False
    without_effect: ClassVar[frozenset[str]] = frozenset()
    without_effect_trained: ClassVar[frozenset[str]] = frozenset()

    name: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9_.-]{0,40}$")
    """Replaces the label if one method is used with several options."""
    lr: LearningRate
    weight_decay: WeightDecay

    @property
    def label(self) -> str:
        """The name of the candidate in tables and paths."""
        return self.name or self._default_label()

    def space(self) -> dict[str, Within | Among]:
        """The values that a search may try, by field; a field that the user set is not searched."""
        fields = {key: field for key, field in type(self).model_fields.items() if key not in self.model_fields_set}
        kinds = (Within, Among)
        return {key: said for key, field in fields.items() for said in field.metadata if isinstance(said, kinds)}

    def lr_scales(self, encoder: Any) -> "dict[nn.Parameter, float]":
        """Factors of the learning rate for those parameters of the encoder that have a lower one."""
        return {}

    def _default_label(self) -> str:
        return str(type(self).model_fields["kind"].default)
