"""What every tuner has: a name of its own and its optimiser's two numbers."""

from pydantic import Field

from components.domain import Strict


class TunerBase(Strict):
    """lr: AdamW's peak learning rate. name: replaces the label where one method is tried with several options."""

    name: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9_.-]{0,40}$")
    lr: float = Field(gt=0, le=100)
    weight_decay: float = Field(ge=0, le=10)

    @property
    def label(self) -> str:
        """What the candidate is called in tables and paths."""
        return self.name or self._default_label()

    def _default_label(self) -> str:
        return str(type(self).model_fields["kind"].default)
