"""Full fine-tuning: the whole network learns, and the adapter holds all of it. The expensive upper yardstick."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from components.models.tuners.base import Among, LearningRate, TunerBase, WeightDecay

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn

    from components.models.encoders import FullEncoder


class FullTuner(TunerBase):
    """`{kind: full, layer_decay: 0.75}`.

    Lower layers hold what all images have in common: ELECTRA (https://arxiv.org/abs/2003.10555) and BEiT
    (https://arxiv.org/abs/2106.08254) let them learn more slowly.
    """

    kind: Literal["full"] = "full"
    """Every parameter learns."""
    layer_decay: Annotated[float, Among(0.65, 0.75, 0.85, 1.0)] = Field(default=0.75, gt=0, le=1)
    """A layer's learning rate as a share of the next higher one's; 1 for the same in all."""
    lr: LearningRate = 3e-4  # at 1e-4 a layer decay of 0.75 leaves the lower layers where they are
    weight_decay: WeightDecay = 0.05

    def apply(self, vit: "VisionTransformer") -> "FullEncoder":
        """A trainable copy: the backbone that other tuners share stays as it was."""
        from components.models.encoders import FullEncoder

        return FullEncoder(vit)

    def lr_scales(self, encoder: Any) -> "dict[nn.Parameter, float]":
        """layer_decay to the power of a layer's distance from the head, by timm's own account of its layers.

        Embedding and blocks are layers 0 to L, and what comes behind them L + 1. timm's `param_groups_layer_decay`
        counts from the backbone's own top, which is no fixed distance from our head: there is a norm behind the
        blocks or there is not.
        """
        from timm.models import group_parameters

        vit = encoder.vit
        layers = group_parameters(vit, vit.group_matcher(coarse=False), reverse=True)  # name -> number
        top = len(vit.blocks) + 1
        return {parameter: self.layer_decay ** (top - layers[name]) for name, parameter in vit.named_parameters()}
