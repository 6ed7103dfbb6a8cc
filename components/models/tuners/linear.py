"""Linear probe: only the head learns. The yardstick every other tuner must beat to be worth its parameters.

Features are computed once, of the images as they are, so it sees no augmentation; the head is solved to its optimum
(components/training/probe.py), so neither epochs nor a seed change it.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from components.models.tuners.base import TunerBase

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from components.models.encoders import PromptedEncoder


class LinearTuner(TunerBase):
    """`{kind: linear}`, or `{kind: linear, strength: 0.01}`."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"lr", "weight_decay"})

    kind: Literal["linear"] = "linear"
    """The head alone, on frozen features."""
    strength: float | None = Field(default=None, ge=1e-8, le=1e6)
    """Half of it times the sum of squared weights, of standardised features, is added to the mean loss; without one
    cross-validation over groups chooses it."""
    lr: float = Field(default=1.0, gt=0, le=100, exclude=True)
    """Without effect, for the head is solved; read because older domains and adapters have it."""
    weight_decay: float = Field(default=0.0, ge=0, le=10, exclude=True)
    """Without effect, as `lr`."""

    def apply(self, vit: "VisionTransformer") -> "PromptedEncoder":
        """The frozen backbone itself: a prompted encoder without prompts."""
        from components.models.encoders import PromptedEncoder

        return PromptedEncoder(vit, prompts=None)
