"""What an encoder gives a head: pooled features, patch tokens, or those of earlier blocks, computed only as asked.

    Needs(pooled=True)              what a classifier reads
    Needs(patches=True)             what a dense head reads
    Needs(layers=(3, 5, 8, 11))     what a head reads that mixes depths, by the numbers of the blocks

Letters: B images, S prefix tokens (CLS, registers), H x W patch grid, D embed_dim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, cat

from components.errors import BackboneError

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


@dataclass(frozen=True)
class Needs:
    """What a head reads of each image; at least one of these.

    pooled: the backbone's own pooling, with its norm. patches: the tokens of the last block, after the final norm.
    layers: blocks, by ascending number from 0, whose patch tokens are read, after the final norm as well.
    """

    pooled: bool = False
    patches: bool = False
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not (self.pooled or self.patches or self.layers):
            raise ValueError("a head reads pooled features, patches or layers")
        if list(self.layers) != sorted(set(self.layers)) or any(layer < 0 for layer in self.layers):
            raise ValueError(f"layers ascend from 0 and are named once each; found {self.layers}")

    def count_blocks(self, depth: int) -> int:
        """How many of a backbone's blocks must run. Raises BackboneError for a layer it does not have."""
        if self.layers and self.layers[-1] >= depth:
            raise BackboneError(
                "the layers that a head reads",
                expected=f"numbers below {depth}, the backbone's depth",
                found=", ".join(map(str, self.layers)),
                hint="Lower them, or choose a deeper backbone.",
            )
        return depth if self.pooled or self.patches else self.layers[-1] + 1

    def read_one_token(self, vit: "VisionTransformer") -> bool:
        """Whether only the first token leaves the last block, so that the block need not compute the others."""
        whole = self.patches or len(vit.blocks) - 1 in self.layers
        alone = vit.global_pool == "token" and vit.attn_pool is None and not joins_mean(vit)
        return self.pooled and not whole and alone


POOLED = Needs(pooled=True)


class Tokens:
    """An encoder's answer. Reading a part that was not asked for raises ValueError.

    grid: (H, W), the rows and columns of the patches. layers: one (B, HW, D) for each of `needs.layers`, in its order.
    pixels: the normalised images (B, 3, height, width) themselves, which the network adds.
    """

    def __init__(
        self,
        grid: tuple[int, int] = (0, 0),
        *,
        pooled: Tensor | None = None,
        patches: Tensor | None = None,
        layers: tuple[Tensor, ...] = (),
    ) -> None:
        self.grid, self.layers = grid, layers
        self._pooled, self._patches = pooled, patches
        self.pixels: Tensor | None = None

    @property
    def pooled(self) -> Tensor:
        """(B, D), or (B, 2D) of a network that joins the mean (`join_mean`)."""
        return _require(self._pooled, "pooled")

    @property
    def patches(self) -> Tensor:
        """(B, HW, D), the rows of the grid one after the other."""
        return _require(self._patches, "patches")

    def of_rows(self, rows: slice) -> "Tokens":
        """The same of some of the images."""
        parts = (None if part is None else part[rows] for part in (self._pooled, self._patches, self.pixels))
        pooled, patches, pixels = parts
        some = Tokens(self.grid, pooled=pooled, patches=patches, layers=tuple(layer[rows] for layer in self.layers))
        some.pixels = pixels
        return some

    @staticmethod
    def join(parts: "Sequence[Tokens]") -> "Tokens":
        """The tokens of several batches as one."""
        if len(parts) == 1:
            return parts[0]
        pooled, patches = ([part._pooled for part in parts], [part._patches for part in parts])
        return Tokens(
            parts[0].grid,
            pooled=_join(pooled),
            patches=_join(patches),
            layers=tuple(cat(layers) for layers in zip(*(part.layers for part in parts), strict=True)),
        )


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return cat(found) if found else None


def _require(part: Tensor | None, name: str) -> Tensor:
    if part is None:
        raise ValueError(f"{name} was not computed, because the head's `needs` do not name it")
    return part


def join_mean(vit: "VisionTransformer") -> None:
    """From now on a pooled feature of this network, and of its copies, is [class token | mean of the patches], (B, 2D).

    Raises BackboneError where it has no class token.
    """
    if vit.cls_token is None:
        raise BackboneError(
            "the feature token+mean",
            expected="a network with a class token",
            found="none",
            hint="Leave out `feature`, or set class_token: true in model_args.",
        )
    vit.joins_mean = True


def joins_mean(vit: "VisionTransformer") -> bool:
    """Whether `join_mean` was called on this network or the one that it was copied from."""
    return bool(getattr(vit, "joins_mean", False))


def pool(vit: "VisionTransformer", states: Tensor) -> Tensor:
    """Pooled features (B, D) of tokens (B, S+HW, D) behind the final norm: timm's own pooling, unless the mean is
    joined, (B, 2D)."""
    if joins_mean(vit):
        return cat([states[:, 0], states[:, vit.num_prefix_tokens :].mean(dim=1)], dim=1)
    pooled: Tensor = vit.forward_head(states, pre_logits=True)
    return pooled


def count_pooled(vit: "VisionTransformer") -> int:
    """Channels of a pooled feature."""
    return int(vit.num_features) * (2 if joins_mean(vit) else 1)


def read_tokens(vit: "VisionTransformer", x: Tensor, layers: Mapping[int, Tensor], needs: Needs) -> Tokens:
    """The parts that are asked for, out of tokens from which prompts are stripped.

    x: (B, S+HW, D) behind the last block that ran, or (B, 1, D) where the first token is read alone. layers: number of
    a block -> (B, S+HW, D) behind it. Both before the final norm.
    """
    states = vit.norm(x) if needs.pooled or needs.patches else x
    rows, columns = vit.patch_embed.grid_size
    return Tokens(
        (rows, columns),
        pooled=pool(vit, states) if needs.pooled else None,
        patches=states[:, vit.num_prefix_tokens :] if needs.patches else None,
        layers=tuple(vit.norm(layers[number])[:, vit.num_prefix_tokens :] for number in needs.layers),
    )


def forward_plain(vit: "VisionTransformer", images: Tensor, needs: Needs = POOLED) -> Tokens:
    """What a head needs of normalised images (B, 3, height, width), by timm's own forward."""
    partial = needs.count_blocks(len(vit.blocks)) < len(vit.blocks)
    if needs.layers:
        asked = {"indices": list(needs.layers), "norm": True, "stop_early": partial, "output_fmt": "NLC"}
        states, layers = vit.forward_intermediates(images, **asked)
    else:
        states, layers = vit.forward_features(images), []
    rows, columns = vit.patch_embed.grid_size
    return Tokens(
        (rows, columns),
        pooled=pool(vit, states) if needs.pooled else None,
        patches=states[:, vit.num_prefix_tokens :] if needs.patches else None,
        layers=tuple(layers),
    )
