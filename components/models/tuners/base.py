"""What every tuner has: a label, and its optimiser's two numbers."""

from typing import Annotated

from pydantic import Field

from components.domain import Strict

LearningRate = Annotated[float, Field(gt=0, le=100)]
WeightDecay = Annotated[float, Field(ge=0, le=10)]


class TunerBase(Strict):
    """lr: AdamW's peak learning rate. name: replaces the label where one method is tried with several options."""

    name: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9_.-]{0,40}$")
    lr: LearningRate
    weight_decay: WeightDecay

    @property
    def label(self) -> str:
        """What the candidate is called in tables and paths."""
        return self.name or self._default_label()

    def _default_label(self) -> str:
        return str(type(self).model_fields["kind"].default)
