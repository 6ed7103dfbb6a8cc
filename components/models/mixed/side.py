"""Side networks as data: dtl.

What the untouched blocks make of a picture is the same for every adapter that leaves as many blocks alone, so rows of
one picture share it: a picture asked of many adapters passes the lower blocks once.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import cast

import torch
from torch import Tensor

from components.models.backbones import Backbone
from components.models.engine import Engine
from components.models.mixed.pools import Pools, Slot, split_spans
from components.models.mixed.prompted import open_prompted
from components.models.side import SideState, run_lower, run_upper
from components.models.tokens import Needs, Tokens
from components.models.tuners import Tuner
from components.models.tuners.dtl import DtlTuner

SAMPLES = 64  # numbers of an image by which it is looked up before it is compared as a whole


class SideFamily:
    """Rows of adapters with equally many untouched blocks and of one rank share one forward."""

    def __init__(self, backbone: Backbone, engine: Engine) -> None:
        self.vit, self.pools = open_prompted(backbone, engine), Pools(engine.device)
        self.depth = len(self.vit.blocks)
        self.firsts: dict[int, int] = {}  # id of a pool -> untouched blocks of its adapters

    def add(self, tensors: Mapping[str, Tensor], tuner: Tuner) -> Slot:
        """tensors: of the adapter without its head, by their names in a `SideEncoder`."""
        first = cast(DtlTuner, tuner).choose_first(self.depth)
        slot = self.pools.put({name.removeprefix("side."): tensor for name, tensor in tensors.items()}, first)
        self.firsts[id(slot.pool)] = first
        return slot

    def sort_key(self, place: Slot) -> tuple[int, ...]:
        return (self.firsts[id(place.pool)], id(place.pool), place.number)

    def forward(self, images: Tensor, places: Sequence[Slot], needs: Needs) -> Tokens:
        parts = []
        with torch.autocast(images.device.type, enabled=False):
            for first, spans in groupby(split_spans(places), lambda span: self.firsts[id(span[1][0].pool)]):
                parts += self._run(images, first, list(spans), needs)
        return Tokens.join(parts)

    def _run(self, images: Tensor, first: int, spans: Sequence[tuple[slice, list[Slot]]], needs: Needs) -> list[Tokens]:
        """The tokens of each span of rows, which all leave `first` blocks untouched."""
        rows = slice(spans[0][0].start, spans[-1][0].stop)
        ones, same = find_same(images[rows])
        states = [state[same] for state in run_lower(self.vit, first, images[rows][ones], needs)]
        answers = []
        for span, slots in spans:
            own = slice(span.start - rows.start, span.stop - rows.start)
            held = slots[0].pool.take(slots)
            side = SideState(held["down"], held["up"])
            answers.append(run_upper(self.vit, first, [state[own] for state in states], side, needs, whole=False))
        return answers


def find_same(images: Tensor) -> tuple[list[int], list[int]]:
    """The numbers of images (B, ...) that differ from each other, and for each image which of these it equals."""
    flat = images.flatten(1)
    looks = flat[:, :: max(1, flat.shape[1] // SAMPLES)].tolist()
    known: dict[tuple[float, ...], list[int]] = {}  # places in `ones`
    ones: list[int] = []
    same: list[int] = []
    for number, look in enumerate(map(tuple, looks)):
        alike = known.setdefault(look, [])
        place = next((place for place in alike if torch.equal(flat[ones[place]], flat[number])), None)
        if place is None:
            place = len(ones)
            ones.append(number)
            alike.append(place)
        same.append(place)
    return ones, same
