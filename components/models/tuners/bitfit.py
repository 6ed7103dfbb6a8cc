"""BitFit (Ben Zaken et al., ACL 2022, https://arxiv.org/abs/2106.10199): only the backbone's biases learn."""

from typing import TYPE_CHECKING, ClassVar, Literal

from components.models.tuners.base import LearningRate, TunerBase, WeightDecay

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from components.models.encoders import TunedEncoder


class BitFitTuner(TunerBase):
    """`{kind: bitfit}`. Nothing is added, so inference costs the same as with the backbone alone."""

    merges: ClassVar[bool] = True

    kind: Literal["bitfit"] = "bitfit"
    """All biases learn."""
    lr: LearningRate = 1e-3
    weight_decay: WeightDecay = 1e-4

    def apply(self, vit: "VisionTransformer") -> "TunedEncoder":
        """The frozen backbone with trainable copies of its biases: of patch projection, blocks, norms and pooling.

        A bias of keys that a network keeps at zero, so that it is no parameter, does not learn.
        """
        from torch import nn

        from components.models.encoders import TunedEncoder

        encoder = TunedEncoder(vit)
        for module in encoder.vit.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if name.endswith("bias"):  # `bias`, and in some attentions `q_bias` and `v_bias`
                    setattr(module, name, nn.Parameter(parameter.detach().clone()))
        return encoder
