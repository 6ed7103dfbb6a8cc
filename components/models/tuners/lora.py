"""LoRA (Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685): a low-rank product beside a large matrix."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from components.models.tuners.base import Among, LearningRate, TunerBase, WeightDecay

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from components.models.encoders import TunedEncoder

#: The targets in a block. The paper (section 7.1) finds many matrices at a low rank better than few at a high rank, and
#: all four of attention as good as any choice. In timm queries, keys and values are one matrix, the output another. In
#: networks that split them, `attn.qkv` means the three of queries, keys and values, `mlp.fc1` the two before the gate.
Targets = Annotated[
    tuple[Literal["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"], ...],
    Field(default=("attn.qkv", "attn.proj"), min_length=1),
]


class LowRankTuner(TunerBase):
    """The options of lora and dora."""

    merges: ClassVar[bool] = True

    rank: Annotated[int, Among(4, 8, 16, 32)] = Field(default=8, ge=1, le=1024)
    """Rank of the product."""
    alpha: float = Field(default=8, gt=0, le=10_000)
    """The product is multiplied by alpha / rank."""
    dropout: Annotated[float, Among(0.0, 0.1)] = Field(default=0.0, ge=0, lt=1)
    """Dropout of the product's input."""
    targets: Targets
    """The matrices of a block that get a product."""
    lr: LearningRate = 1e-3
    weight_decay: WeightDecay = 1e-4


class LoraTuner(LowRankTuner):
    """`{kind: lora, rank: 8}`"""

    kind: Literal["lora"] = "lora"
    """Low-rank products beside the matrices of attention learn."""

    def apply(self, vit: "VisionTransformer") -> "TunedEncoder":
        """The frozen backbone with products beside the targets of every block, which are zero at first."""
        from components.models.encoders import TunedEncoder
        from components.models.inserts import insert_low_rank, resolve_targets

        matrices = resolve_targets(vit, self.kind, self.targets)
        encoder = TunedEncoder(vit)
        insert_low_rank(encoder.vit, self.rank, self.alpha, self.dropout, matrices, magnitudes=False)
        return encoder
