"""What every tuner has: a label, its optimiser's two numbers, what may be searched, and who learns how fast.

A field says beside its type what a search may try for it: `rank: Annotated[int, Among(4, 8, 16)] = 8`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from components.domain.strict import Strict

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Within:
    """Any number from the default / factor to the default * factor, as likely in each octave."""

    factor: float


@dataclass(frozen=True, init=False)
class Among:
    """One of these values, the default among them."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        object.__setattr__(self, "values", values)


LearningRate = Annotated[float, Field(gt=0, le=100, description="AdamW's peak learning rate."), Within(10)]
WeightDecay = Annotated[float, Field(ge=0, le=10, description="AdamW's weight decay."), Among(1e-4, 1e-2, 0.05)]


class TunerBase(Strict):
    """The options of every method.

    merges: whether the encoder's `merge()` gives a plain network that computes the same and costs nothing more.
    without_effect: fields that are read and change nothing; whoever writes one is told.
    """

    merges: ClassVar[bool] = False
    without_effect: ClassVar[frozenset[str]] = frozenset()

    name: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9_.-]{0,40}$")
    """Replaces the label where one method is tried with several options."""
    lr: LearningRate
    weight_decay: WeightDecay

    @property
    def label(self) -> str:
        """What the candidate is called in tables and paths."""
        return self.name or self._default_label()

    def space(self) -> dict[str, Within | Among]:
        """What a search may try, by field; a value the user wrote stays as it is."""
        fields = {key: field for key, field in type(self).model_fields.items() if key not in self.model_fields_set}
        kinds = (Within, Among)
        return {key: said for key, field in fields.items() for said in field.metadata if isinstance(said, kinds)}

    def lr_scales(self, encoder: Any) -> "dict[nn.Parameter, float]":
        """Shares of the learning rate for those of the encoder's parameters that do not learn at the whole of it."""
        return {}

    def _default_label(self) -> str:
        return str(type(self).model_fields["kind"].default)
