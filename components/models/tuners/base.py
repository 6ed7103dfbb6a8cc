"""What every tuner has: a label, its optimiser's two numbers, and an answer to who learns how fast."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from components.domain import Strict

if TYPE_CHECKING:
    from torch import nn

LearningRate = Annotated[float, Field(gt=0, le=100)]
WeightDecay = Annotated[float, Field(ge=0, le=10)]


class TunerBase(Strict):
    """lr: AdamW's peak learning rate. name: replaces the label where one method is tried with several options.

    merges: whether the encoder's `merge()` gives a plain network that computes the same and costs nothing more.
    """

    merges: ClassVar[bool] = False

    name: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9_.-]{0,40}$")
    lr: LearningRate
    weight_decay: WeightDecay

    @property
    def label(self) -> str:
        """What the candidate is called in tables and paths."""
        return self.name or self._default_label()

    def lr_scales(self, encoder: Any) -> "dict[nn.Parameter, float]":
        """Shares of the learning rate for those of the encoder's parameters that do not learn at the whole of it."""
        return {}

    def _default_label(self) -> str:
        return str(type(self).model_fields["kind"].default)
