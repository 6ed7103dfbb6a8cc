"""AdaptFormer (Chen et al., NeurIPS 2022, https://arxiv.org/abs/2205.13535): a small MLP beside every large one."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from components.models.tuners.base import Among, LearningRate, TunerBase, WeightDecay

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from components.models.encoders import TunedEncoder


class AdaptFormerTuner(TunerBase):
    """`{kind: adaptformer, bottleneck: 64}`"""

    kind: Literal["adaptformer"] = "adaptformer"
    """A small MLP beside the MLP of every block learns."""
    bottleneck: Annotated[int, Among(16, 64, 128)] = Field(default=64, ge=1, le=1024)
    """Width of the small MLP's hidden layer."""
    scale: Annotated[float, Among(0.1, 0.3, 1.0)] = Field(default=0.1, gt=0, le=100)
    """Factor of the small MLP's output."""
    dropout: Annotated[float, Among(0.0, 0.1)] = Field(default=0.1, ge=0, lt=1)
    """Dropout of its hidden layer."""
    lr: LearningRate = 1e-2
    weight_decay: WeightDecay = 1e-4

    def apply(self, vit: "VisionTransformer") -> "TunedEncoder":
        """The frozen backbone with a small MLP in every block, whose output is zero at first."""
        from components.models.encoders import TunedEncoder
        from components.models.inserts import insert_bottlenecks

        encoder = TunedEncoder(vit)
        insert_bottlenecks(encoder.vit, self.bottleneck, self.scale, self.dropout)
        return encoder
