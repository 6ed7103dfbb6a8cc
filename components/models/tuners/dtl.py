"""Disentangled transfer learning (Fu et al., AAAI 2024, https://arxiv.org/abs/2312.07856): a thin network beside the
upper blocks."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from components.models.tuners.base import Among, LearningRate, TunerBase, WeightDecay

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from components.models.side import SideEncoder


class DtlTuner(TunerBase):
    """`{kind: dtl, rank: 16, first: 7, views: 4}`. Blocks below `first` stay as they are, so a training computes them
    once for each view of an image, not in every epoch."""

    kind: Literal["dtl"] = "dtl"
    """A thin side network beside the upper blocks learns."""
    rank: Annotated[int, Among(4, 8, 16, 32)] = Field(default=16, ge=1, le=256)
    """Rank of the side network's matrices."""
    first: int | None = Field(default=None, ge=0)
    """How many lower blocks stay untouched; seven twelfths of them when left out, 7 of 12."""
    views: int = Field(default=4, ge=1, le=1000)
    """Augmented views of each training image. Epochs show them in turn."""
    lr: LearningRate = 1e-3
    weight_decay: WeightDecay = 1e-4

    def choose_first(self, depth: int) -> int:
        """The number of untouched blocks in a backbone of this depth."""
        return self.first if self.first is not None else min(round(depth * 7 / 12), depth - 1)

    def apply(self, vit: "VisionTransformer") -> "SideEncoder":
        """The frozen backbone with a side network, which changes nothing at first."""
        from components.models.side import SideEncoder

        return SideEncoder(vit, self.choose_first(len(vit.blocks)), self.rank)
