"""Visual prompt tuning (Jia et al., ECCV 2022, https://arxiv.org/abs/2203.12119): learned tokens beside the patches."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from components.models.tuners.base import Among, LearningRate, TunerBase, WeightDecay

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from components.models.encoders import PromptedEncoder


class VptTuner(TunerBase):
    """`{kind: vpt, num_prompts: 50}`; with `deep: false` the prompts enter before block 0 only and flow through all."""

    kind: Literal["vpt"] = "vpt"
    """Prompt tokens learn."""
    deep: bool = True
    """Whether every block has its own prompts; otherwise prompts enter only before block 0."""
    num_prompts: Annotated[int, Among(5, 10, 20, 50)] = Field(default=10, ge=1, le=1000)
    """Prompt tokens per block."""
    dropout: Annotated[float, Among(0.0, 0.1)] = Field(default=0.0, ge=0, lt=1)
    """Dropout of the prompts, drawn for each image. Without it, their keys and values are computed once per step."""
    lr: LearningRate = 3e-3
    weight_decay: WeightDecay = 1e-4

    def _default_label(self) -> str:
        return "vpt-deep" if self.deep else "vpt-shallow"

    def apply(self, vit: "VisionTransformer") -> "PromptedEncoder":
        """The frozen backbone with prompts for every block (deep), or for block 0 only (shallow)."""
        from components.models.encoders import PromptedEncoder
        from components.models.prompts import StaticPrompts

        layers = len(vit.blocks) if self.deep else 1
        return PromptedEncoder(vit, StaticPrompts(vit, layers, self.num_prompts, self.dropout))
