"""Linear probe: only the head learns. It is the baseline that every other tuner must beat to be worth its parameters.

Features are computed once from the original images, so there is no augmentation. The head is solved to its optimum
(components/training/probe.py), so neither epochs nor seeds change it. A head that is more than one layer is trained
like any other candidate, on the frozen backbone.
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
    without_effect_trained: ClassVar[frozenset[str]] = frozenset({"lr", "strength", "weight_decay"})

    kind: Literal["linear"] = "linear"
    """Only the head learns, on frozen features."""
    strength: float | None = Field(default=None, ge=1e-8, le=1e6)
    """L2 strength: strength / 2 times the sum of squared weights, for standardised features, is added to the mean loss.
    When left out, cross-validation over groups chooses it."""
    lr: float = Field(default=1.0, gt=0, le=100, exclude=True)
    """Without effect, because the head is solved, or has a learning rate of its own; accepted because older domains and
    adapters have it."""
    weight_decay: float = Field(default=0.0, ge=0, le=10, exclude=True)
    """Without effect, like `lr`."""

    def apply(self, vit: "VisionTransformer") -> "PromptedEncoder":
        """The frozen backbone itself: a prompted encoder without prompts."""
        from components.models.encoders import PromptedEncoder

        return PromptedEncoder(vit, prompts=None)
