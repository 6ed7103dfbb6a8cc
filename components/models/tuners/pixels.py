"""The control of dense tasks: the same head without the backbone's tokens. Its score is what pixels alone give.

A head that also reads the pixels may reach a score to which the backbone adds little or nothing. The other candidates
are worth their backbone where they are surely better than this one.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from components.models.tuners.base import TunerBase

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from components.models.encoders import BlindEncoder


class PixelsTuner(TunerBase):
    """`{kind: pixels}`"""

    without_effect_trained: ClassVar[frozenset[str]] = frozenset({"lr", "weight_decay"})

    kind: Literal["pixels"] = "pixels"
    """Only the head learns, without the backbone: the control of dense tasks."""
    lr: float = Field(default=1.0, gt=0, le=100, exclude=True)
    """Without effect, because a dense head has a learning rate of its own."""
    weight_decay: float = Field(default=0.0, ge=0, le=10, exclude=True)
    """Without effect, like `lr`."""

    def apply(self, vit: "VisionTransformer") -> "BlindEncoder":
        """Zeros in the place of tokens."""
        from components.models.encoders import BlindEncoder

        return BlindEncoder(vit)
