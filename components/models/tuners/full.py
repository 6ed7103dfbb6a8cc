"""Full fine-tuning: the whole network learns, and the adapter contains all of it. The expensive reference."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from components.models.tuners.base import Among, LearningRate, TunerBase, WeightDecay

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn

    from components.models.encoders import FullEncoder


class FullTuner(TunerBase):
    """`{kind: full, layer_decay: 0.75}`.

    Lower layers hold what all images have in common, so they learn more slowly, as in ELECTRA
    (https://arxiv.org/abs/2003.10555) and BEiT (https://arxiv.org/abs/2106.08254).
    """

    kind: Literal["full"] = "full"
    """Every parameter learns."""
    layer_decay: Annotated[float, Among(0.65, 0.75, 0.85, 1.0)] = Field(default=0.75, gt=0, le=1)
    """The learning rate of a layer as a fraction of the next higher layer's; 1 for equal rates."""
    lr: LearningRate = 3e-4  # at 1e-4 a layer decay of 0.75 leaves the lower layers unchanged
    weight_decay: WeightDecay = 0.05

    def apply(self, vit: "VisionTransformer") -> "FullEncoder":
        """A trainable copy of the backbone; the backbone that other tuners share stays unchanged."""
        from components.models.encoders import FullEncoder

        return FullEncoder(vit)

    def lr_scales(self, encoder: Any) -> "dict[nn.Parameter, float]":
        """layer_decay to the power of a layer's distance from the head, with timm's numbering of the layers.

        Embedding and blocks are layers 0 to L, and everything after them is L + 1. timm's `param_groups_layer_decay`
        counts from the backbone's own top, whose distance from our head varies: some backbones have a norm after the
        blocks.
        """
        from timm.models import group_parameters

        vit = encoder.vit
        layers = group_parameters(vit, vit.group_matcher(coarse=False), reverse=True)  # name to number
        # Learned rotary positions act in every block, and timm counts them to the top; the lowest of them decides.
        layers = {name: 0 if name.startswith("rope.") else number for name, number in layers.items()}
        top = len(vit.blocks) + 1
        return {parameter: self.layer_decay ** (top - layers[name]) for name, parameter in vit.named_parameters()}
