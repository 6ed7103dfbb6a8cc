"""Visual adaptive prompt tuning (Le et al., ICLR 2026, https://arxiv.org/abs/2501.18936): prompts from the image."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from components.models.tuners.base import Among, LearningRate, TunerBase, WeightDecay

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from components.models.encoders import PromptedEncoder


class VaptTuner(TunerBase):
    """`{kind: vapt, num_prompts: 10}`"""

    kind: Literal["vapt"] = "vapt"
    """A small network that computes prompts from the image's own tokens learns."""
    num_prompts: Annotated[int, Among(5, 10, 20, 50)] = Field(default=10, ge=1, le=1000)
    """Prompt tokens per block."""
    static_blocks: int = Field(default=1, ge=1)
    """Number of first blocks whose prompts do not depend on the image."""
    kernel: int = Field(default=2, ge=1, le=16)
    """Side of the one convolution kernel per block."""
    bottleneck: Annotated[int, Among(4, 8, 16)] = Field(default=8, ge=1, le=1024)
    """Width of the shared feature projector."""
    start: Literal["regions", "zeros"] = "regions"
    """Initial adaptive prompts: means of regions of the image, or zeros, as in the paper."""
    dropout: Annotated[float, Among(0.0, 0.1)] = Field(default=0.1, ge=0, lt=1)
    """Dropout of the prompts."""
    lr: LearningRate = 3e-3
    weight_decay: WeightDecay = 1e-4

    def apply(self, vit: "VisionTransformer") -> "PromptedEncoder":
        """The frozen backbone with static prompts in the first `static_blocks` blocks and adaptive ones above."""
        from components.models.encoders import PromptedEncoder
        from components.models.prompts import AdaptivePrompts

        sizes = self.num_prompts, self.static_blocks, self.kernel, self.bottleneck
        prompts = AdaptivePrompts(vit, *sizes, self.dropout, from_zero=self.start == "zeros")
        return PromptedEncoder(vit, prompts)

    def _default_label(self) -> str:
        return "vapt" if self.start == "regions" else "vapt-zeros"
