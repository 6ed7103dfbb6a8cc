"""DoRA (Liu et al., ICML 2024, https://arxiv.org/abs/2402.09353): LoRA for the direction of every row of a matrix, and
its length learned apart."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from components.models.tuners.base import LearningRate, TunerBase, WeightDecay
from components.models.tuners.lora import Targets

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from components.models.encoders import TunedEncoder


class DoraTuner(TunerBase):
    """`{kind: dora, rank: 8}`; options as LoRA's. In training dropout costs each target a second product."""

    merges: ClassVar[bool] = True

    kind: Literal["dora"] = "dora"
    rank: int = Field(default=8, ge=1, le=1024)
    alpha: float = Field(default=8, gt=0, le=10_000)
    dropout: float = Field(default=0, ge=0, lt=1)
    targets: Targets
    lr: LearningRate = 1e-3
    weight_decay: WeightDecay = 1e-4

    def apply(self, vit: "VisionTransformer") -> "TunedEncoder":
        """The frozen backbone with products and lengths at the targets of every block; they start as its own."""
        from components.models.encoders import TunedEncoder
        from components.models.inserts import insert_low_rank

        # Lengths of rounded rows are off by up to 2^-9: held in bfloat16 it would not start as the backbone.
        encoder = TunedEncoder(vit, precise=self.targets)
        insert_low_rank(encoder.vit, self.rank, self.alpha, self.dropout, self.targets, magnitudes=True)
        return encoder
