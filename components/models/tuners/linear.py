"""Linear probe: only the head learns. The yardstick every other tuner must beat to be worth its parameters.

Features are computed once, of the images as they are; so it sees no augmentation.
"""

from typing import TYPE_CHECKING, Literal

from components.models.tuners.base import LearningRate, TunerBase, WeightDecay

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from components.models.encoders import PromptedEncoder


class LinearTuner(TunerBase):
    """`{kind: linear}`"""

    kind: Literal["linear"] = "linear"
    """The head alone, on frozen features."""
    lr: LearningRate = 3e-3
    weight_decay: WeightDecay = 1e-4

    def apply(self, vit: "VisionTransformer") -> "PromptedEncoder":
        """The frozen backbone itself: a prompted encoder without prompts."""
        from components.models.encoders import PromptedEncoder

        return PromptedEncoder(vit, prompts=None)
