"""Which family computes which tuner, and the two that need no pools of tensors: `full` and `pixels`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor

from components.models.backbones import Backbone
from components.models.encoders import BlindEncoder
from components.models.engine import Engine
from components.models.mixed.pools import Pools, Slot
from components.models.mixed.prompted import FlowingFamily, PromptedFamily
from components.models.mixed.side import SideFamily
from components.models.mixed.tuned import TunedFamily
from components.models.tokens import Needs, Tokens
from components.models.tuners import Tuner
from components.models.tuners.dtl import DtlTuner
from components.models.tuners.full import FullTuner
from components.models.tuners.linear import LinearTuner
from components.models.tuners.pixels import PixelsTuner
from components.models.tuners.vapt import VaptTuner
from components.models.tuners.vpt import VptTuner


class Family(Protocol):
    """Adapters whose rows share a forward.

    add: hold an adapter's tensors, which are named as in its encoder; returns its place, which frees them when it is
    collected. sort_key: rows are to be sorted by it. forward: tokens of normalised images (B, 3, height, width), each
    of the adapter at its place. None of the three may run at the same time as another.
    """

    def __init__(self, backbone: Backbone, engine: Engine) -> None: ...

    def add(self, tensors: Mapping[str, Tensor], tuner: Tuner) -> Any: ...

    def sort_key(self, place: Any) -> tuple[int, ...]: ...

    def forward(self, images: Tensor, places: Sequence[Any], needs: Needs) -> Tokens: ...


def choose_family(tuner: Tuner, depth: int) -> type[Family]:
    """depth: of the backbone; prompts that enter at its only block do not flow."""
    if isinstance(tuner, VptTuner) and not tuner.deep and depth > 1:
        return FlowingFamily
    if isinstance(tuner, LinearTuner | VptTuner | VaptTuner):
        return PromptedFamily
    if isinstance(tuner, DtlTuner):
        return SideFamily
    if isinstance(tuner, PixelsTuner):
        return BlindFamily
    return FullFamily if isinstance(tuner, FullTuner) else TunedFamily


class BlindFamily:
    """The control of dense tasks, whose tokens are zeros."""

    def __init__(self, backbone: Backbone, engine: Engine) -> None:
        self.encoder, self.pools = BlindEncoder(backbone.vit), Pools(engine.device)

    def add(self, tensors: Mapping[str, Tensor], tuner: Tuner) -> Slot:
        return self.pools.put({})

    def sort_key(self, place: Slot) -> tuple[int, ...]:
        return ()

    def forward(self, images: Tensor, places: Sequence[Slot], needs: Needs) -> Tokens:
        return self.encoder.forward(images, needs)


@dataclass(frozen=True, eq=False)
class Own:
    """The encoder of one adapter that shares nothing."""

    encoder: Any


class FullFamily:
    """Networks of their own, one after the other."""

    def __init__(self, backbone: Backbone, engine: Engine) -> None:
        self.backbone, self.engine = backbone, engine

    def add(self, tensors: Mapping[str, Tensor], tuner: Tuner) -> Own:
        encoder = tuner.apply(self.backbone.vit)
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                if name in tensors:  # a pooling that the head does not read is the backbone's
                    parameter.copy_(tensors[name])
        engine = self.engine
        encoder.prepare(self.backbone, engine.dtype, engine.device, engine.fused_attention)
        return Own(encoder.requires_grad_(False).eval())

    def sort_key(self, place: Own) -> tuple[int, ...]:
        return (id(place),)

    def forward(self, images: Tensor, places: Sequence[Own], needs: Needs) -> Tokens:
        parts, start = [], 0
        with self.engine.autocast():
            for place, same in groupby(places):
                stop = start + len(list(same))
                parts.append(place.encoder(images[start:stop], needs))
                start = stop
        return Tokens.join(parts)
