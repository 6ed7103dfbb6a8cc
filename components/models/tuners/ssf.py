"""SSF (Lian et al., NeurIPS 2022, https://arxiv.org/abs/2210.08823): every layer's channels scaled and shifted."""

from typing import TYPE_CHECKING, ClassVar, Literal

from components.models.tuners.base import LearningRate, TunerBase, WeightDecay

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from components.models.encoders import TunedEncoder


class SsfTuner(TunerBase):
    """`{kind: ssf}`"""

    merges: ClassVar[bool] = True

    kind: Literal["ssf"] = "ssf"
    """A scale and a shift after every layer learn."""
    lr: LearningRate = 3e-3
    weight_decay: WeightDecay = 1e-4

    def apply(self, vit: "VisionTransformer") -> "TunedEncoder":
        """The frozen backbone with scales near 1 and shifts near 0, so its features differ slightly from the start."""
        from components.models.encoders import TunedEncoder
        from components.models.inserts import insert_scale_shift

        encoder = TunedEncoder(vit)
        insert_scale_shift(encoder.vit)
        return encoder
