"""DoRA (Liu et al., ICML 2024, https://arxiv.org/abs/2402.09353): LoRA for the direction of every row of a matrix, and
its length learned apart."""

from typing import TYPE_CHECKING, Literal

from components.models.tuners.lora import LowRankTuner

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from components.models.encoders import TunedEncoder


class DoraTuner(LowRankTuner):
    """`{kind: dora, rank: 8}`; in training dropout costs each target a second product."""

    kind: Literal["dora"] = "dora"
    """As lora, with lengths that learn of their own."""

    def apply(self, vit: "VisionTransformer") -> "TunedEncoder":
        """The frozen backbone with products and lengths at the targets of every block; they start as its own."""
        from components.models.encoders import TunedEncoder
        from components.models.inserts import insert_low_rank

        # Lengths of rounded rows are off by up to 2^-9: held in bfloat16 it would not start as the backbone.
        encoder = TunedEncoder(vit, precise=self.targets)
        insert_low_rank(encoder.vit, self.rank, self.alpha, self.dropout, self.targets, magnitudes=True)
        return encoder
