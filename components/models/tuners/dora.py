"""DoRA (Liu et al., ICML 2024, https://arxiv.org/abs/2402.09353): LoRA for the direction of every row of a matrix; the
length of the row is learned separately."""

from typing import TYPE_CHECKING, Literal

from components.models.tuners.lora import LowRankTuner

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from components.models.encoders import TunedEncoder


class DoraTuner(LowRankTuner):
    """`{kind: dora, rank: 8}`. With dropout, training needs a second product per target."""

    kind: Literal["dora"] = "dora"
    """As lora, with row lengths that learn separately."""

    def apply(self, vit: "VisionTransformer") -> "TunedEncoder":
        """The frozen backbone with products and lengths at the targets of every block, at first without effect."""
        from components.models.encoders import TunedEncoder
        from components.models.inserts import insert_low_rank, resolve_targets

        matrices = resolve_targets(vit, self.kind, self.targets)
        # Lengths of rounded rows are off by up to 2^-9: in bfloat16 the encoder would not start equal to the backbone.
        encoder = TunedEncoder(vit, precise=matrices)
        insert_low_rank(encoder.vit, self.rank, self.alpha, self.dropout, matrices, magnitudes=True)
        return encoder
