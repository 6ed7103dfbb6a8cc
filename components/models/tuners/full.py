"""Full fine-tuning: the whole network learns, and the adapter holds all of it. The expensive upper yardstick."""

from typing import TYPE_CHECKING, Literal

from components.models.tuners.base import LearningRate, TunerBase, WeightDecay

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from components.models.encoders import FullEncoder


class FullTuner(TunerBase):
    """`{kind: full}`"""

    kind: Literal["full"] = "full"
    lr: LearningRate = 1e-4
    weight_decay: WeightDecay = 0.05

    def apply(self, vit: "VisionTransformer") -> "FullEncoder":
        """A trainable copy: the backbone that other tuners share stays as it was."""
        from components.models.encoders import FullEncoder

        return FullEncoder(vit)
