"""Pools: adapters of one form, each of which is one row of a matrix.

pool = Pool(describe_layout(tensors), device)
slot = pool.put(tensors)                    a row; freed when the slot is collected
pool.take([slot, slot, other])              tensors (3, ...) by name, gathered
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

FIRST = 4  # rows of a new pool


class Form(NamedTuple):
    """The name, shape and dtype of one tensor of an adapter."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


Layout = tuple[Form, ...]


def describe_layout(tensors: Mapping[str, Tensor]) -> Layout:
    return tuple(Form(name, tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(tensors.items()))


@dataclass(frozen=True, eq=False)
class Slot:
    """The place of one adapter in a pool, which is free for another as soon as nobody holds the slot."""

    pool: "Pool"
    number: int


class Pool:
    """Adapters of one layout: for each dtype a matrix, of which each adapter has one row.

    A matrix that is full is copied into one of twice its rows, so that adding an adapter costs the same on average
    however many there are. Not safe for several threads, except for the collection of slots.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout, self.device = layout, device
        self.widths: dict[torch.dtype, int] = {}
        self._places: dict[str, tuple[torch.dtype, int, int, tuple[int, ...]]] = {}
        for name, shape, dtype in layout:
            begin = self.widths.get(dtype, 0)
            self.widths[dtype] = begin + torch.Size(shape).numel()
            self._places[name] = (dtype, begin, self.widths[dtype], shape)
        self._matrices: dict[torch.dtype, Tensor] = {}
        self._free: list[int] = []  # list.append is atomic: a slot may be collected in any thread
        self._rows = 0

    @property
    def row_bytes(self) -> int:
        return sum(width * dtype.itemsize for dtype, width in self.widths.items())

    def put(self, tensors: Mapping[str, Tensor]) -> Slot:
        """Copy an adapter's tensors into a free row."""
        if not self._free:
            self._grow()
        number = self._free.pop()
        for name, (dtype, begin, end, _) in self._places.items():
            self._matrices[dtype][number, begin:end] = tensors[name].flatten()
        slot = Slot(self, number)
        weakref.finalize(slot, self._free.append, number)
        return slot

    def take(self, slots: Sequence[Slot]) -> dict[str, Tensor]:
        """The tensors of several adapters by name, (n, ...); (1, ...) where all are the same one, without a copy."""
        numbers = [slot.number for slot in slots]
        if len(set(numbers)) == 1:
            rows = {dtype: matrix[numbers[0]][None] for dtype, matrix in self._matrices.items()}
        else:
            index = torch.tensor(numbers, device=self.device)
            rows = {dtype: matrix.index_select(0, index) for dtype, matrix in self._matrices.items()}
        places = self._places.items()
        return {name: rows[dtype][:, begin:end].view(-1, *shape) for name, (dtype, begin, end, shape) in places}

    def _grow(self) -> None:
        before, self._rows = self._rows, max(FIRST, 2 * self._rows)
        for dtype, width in self.widths.items():
            # Memory that was never written takes no place.
            larger = torch.empty(self._rows, width, dtype=dtype, device=self.device)
            if before:
                larger[:before] = self._matrices[dtype]
            self._matrices[dtype] = larger
        self._free.extend(reversed(range(before, self._rows)))


class Pools:
    """The pools of a family, one for each layout."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pools: dict[object, Pool] = {}

    def put(self, tensors: Mapping[str, Tensor], *form: object) -> Slot:
        """In the pool of this layout; form: whatever else must be equal for rows to be computed together."""
        layout = describe_layout(tensors)
        pool = self._pools.get((layout, form)) or self._pools.setdefault((layout, form), Pool(layout, self.device))
        return pool.put(tensors)


def split_spans(slots: Iterable[Slot]) -> list[tuple[slice, list[Slot]]]:
    """Rows that lie together and are of one pool."""
    spans: list[tuple[slice, list[Slot]]] = []
    for place, slot in enumerate(slots):
        if spans and spans[-1][1][0].pool is slot.pool:
            rows, same = spans[-1]
            spans[-1] = (slice(rows.start, place + 1), [*same, slot])
        else:
            spans.append((slice(place, place + 1), [slot]))
    return spans
