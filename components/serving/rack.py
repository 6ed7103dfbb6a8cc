"""The rack: one resident backbone, and adapters as data on it.

    rack = Rack(load_backbone("embedded"))
    rack.add("plates", folder)                              a folder with adapter.safetensors and adapter.json
    rack.replace("plates", newer)                           whoever holds the old resident may still ask it
    rows = rack.answer(pixels, [rack["plates"], rack["tiles"]])
    saliency = rack.explain(rack["plates"], pixels[0])      which patches speak for the answer
    rack.remove("plates")

Rows of different adapters share one forward: the backbone's matrices see the whole batch. Only networks that cannot
share it, `full` ones, run by themselves.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.data.batches.geometry import Pixels
from components.domain.canvas import ImgSize
from components.errors import AdapterError, DataError
from components.models.adapter import WEIGHTS_FILE, AdapterMeta, BackboneMeta, load_meta
from components.models.backbones import Backbone, load_backbone
from components.models.engine import create_engine
from components.models.heads import Head, Shape, create_head
from components.models.mixed.families import Family, choose_family
from components.models.network import Network, create_network
from components.models.saliency import map_saliency
from components.models.tuners.full import FullTuner
from components.models.weights import load_adapter, load_tensors
from components.serving.looks import Eye
from components.tasks.base import DenseTask

EXPLAINED = 4  # adapters whose networks are kept for further explanations


@dataclass(frozen=True)
class RackKey:
    """What adapters must have in common to stand on one rack. sha256: of the backbone's weights."""

    sha256: str
    img_size: ImgSize
    dtype: str


@dataclass(frozen=True, eq=False)
class Resident:
    """An adapter on a rack. Rows of the same `kind` are computed in one pass. Two with the same data are two.

    size: bytes that the rack holds for it, the shared backbone left out. Whoever holds a resident may ask it: its
    memory is freed when it is collected, not when its name is removed or given to another.
    """

    folder: Path
    meta: AdapterMeta
    kind: str
    size: int
    eye: Eye = field(repr=False)
    head: Head = field(repr=False)
    family: Family = field(repr=False)
    place: Any = field(repr=False)

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """Rows that are sorted by it lie so that they share most."""
        return (self.kind, *self.family.sort_key(self.place), id(self))


class Rack:
    """Adapters on one backbone, by name. Safe for several threads, which compute one after the other."""

    def __init__(self, backbone: Backbone, dtype: Literal["auto", "float32", "bfloat16"] = "auto") -> None:
        self.backbone, self.engine = backbone, create_engine(backbone.mean, backbone.std, dtype)
        name = str(self.engine.dtype).removeprefix("torch.")
        self.key = RackKey(backbone.sha256, backbone.img_size, name)
        self._residents: Mapping[str, Resident] = {}
        self._families: dict[type[Family], Family] = {}
        self._forms: dict[tuple[str, str, int], Mapping[str, Tensor]] = {}
        self._turn = threading.Lock()
        self._explained = WeakKeyDictionary[Resident, Network]()  # the latest last

    def __getitem__(self, name: str) -> Resident:
        return self._residents[name]

    def __contains__(self, name: object) -> bool:
        return name in self._residents

    def __iter__(self) -> Iterator[str]:
        return iter(self._residents)

    def __len__(self) -> int:
        return len(self._residents)

    def add(self, name: str, folder: Path) -> Resident:
        """Load an adapter beside those that are here. Raises ValueError where the name is taken, AdapterError where the
        adapter is damaged or stands on another backbone."""
        if name in self._residents:
            raise ValueError(f"{name} is on this rack already")
        return self.replace(name, folder)

    def replace(self, name: str, folder: Path) -> Resident:
        """Load an adapter, and then give it the name; until then, and where that fails, the old one answers."""
        resident = self._load(folder)
        with self._turn:
            self._residents = {**self._residents, name: resident}
        return resident

    def remove(self, name: str) -> None:
        """KeyError where there is no such name."""
        with self._turn:
            kept = dict(self._residents)
            del kept[name]
            self._residents = kept

    def _load(self, folder: Path) -> Resident:
        tensors, meta = load_tensors(folder, self.backbone, self._describe)
        form = choose_family(meta.tuner, len(self.backbone.vit.blocks))
        with self._turn:
            head = self._create_head(meta, tensors)
            family = self._families.get(form) or self._families.setdefault(form, form(self.backbone, self.engine))
            encoder = {name.removeprefix("encoder."): tensor for name, tensor in tensors.items()}
            place = family.add({name: encoder[name] for name in encoder if not name.startswith("head.")}, meta.tuner)
        size = sum(tensor.nbytes for tensor in tensors.values())
        return Resident(folder, meta, f"{form.__name__} {head.needs}", size, Eye(meta), head, family, place)

    def _create_head(self, meta: AdapterMeta, tensors: Mapping[str, Tensor]) -> Head:
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and thrown away
            head = create_head(meta.task, Shape.of(self.backbone.vit), len(meta.classes))
        head.load_state_dict({name: tensors[f"head.{name}"] for name, _ in head.named_parameters()}, strict=False)
        return head.to(self.engine.device).requires_grad_(False).eval()

    def _describe(self, meta: AdapterMeta) -> Mapping[str, Tensor]:
        """The tensors, without memory, that the network of such an adapter trains; built once for each kind."""
        key = (meta.tuner.model_dump_json(), meta.task.model_dump_json(), len(meta.classes))
        if key not in self._forms:
            network = create_network(self.backbone, meta.tuner, len(meta.classes), meta.seed, meta.task)
            self._forms[key] = {name: each.to("meta") for name, each in network.trainable_parameters().items()}
        return self._forms[key]

    @torch.inference_mode()
    def forward(self, pixels: Pixels, rows: Sequence[Resident]) -> list[Tensor]:
        """What each row's head puts out, in float32 and without the batch's axis: logits (C,), (C, h, w), or what the
        head of boxes has. pixels: uint8 (B, H, W, 3), one for each of `rows`."""
        answers = [torch.empty(0)] * len(rows)
        for places, outputs in self._run(pixels, rows):
            for place, output in zip(places, outputs, strict=True):
                answers[place] = output
        return answers

    @torch.inference_mode()
    def answer(self, pixels: Pixels, rows: Sequence[Resident]) -> list[NDArray[np.float64]]:
        """What each row's head decodes of its outputs, as `components.serving.describing.describe` takes it."""
        answers = [np.empty(0)] * len(rows)
        for places, outputs in self._run(pixels, rows):
            for place, decoded in zip(places, decode(rows[places[0]], outputs), strict=True):
                answers[place] = decoded
        return answers

    def _run(self, pixels: Pixels, rows: Sequence[Resident]) -> list[tuple[list[int], Tensor]]:
        """The places in the batch of each resident's rows, and what its head puts out of them (n, ...)."""
        order = sorted(range(len(rows)), key=lambda place: rows[place].sort_key)
        answered, start = list[tuple[list[int], Tensor]](), 0
        with self._turn:
            images = self.engine.normalise(torch.from_numpy(pixels[order]).permute(0, 3, 1, 2))
            for _, same in groupby(order, lambda place: rows[place].kind):
                places = list(same)
                answered += self._run_kind(images[start : start + len(places)], places, rows)
                start += len(places)
        return answered

    def _run_kind(
        self, images: Tensor, places: Sequence[int], rows: Sequence[Resident]
    ) -> list[tuple[list[int], Tensor]]:
        """Rows of one kind, whose residents lie together: one pass through the backbone, then a head for each."""
        first, answered, start = rows[places[0]], list[tuple[list[int], Tensor]](), 0
        tokens = first.family.forward(images, [rows[place].place for place in places], first.head.needs)
        tokens.pixels = images
        with self.engine.autocast():
            for resident, same in groupby(places, lambda place: rows[place]):
                own = list(same)
                outputs = resident.head(tokens.of_rows(slice(start, start + len(own))))
                answered.append((own, outputs.float()))
                start += len(own)
        return answered

    def explain(self, resident: Resident, pixels: Pixels) -> NDArray[np.float32]:
        """What speaks for the answer: (rows, columns) of the patch grid of the canvas, from 0 to 1. pixels: uint8
        (H, W, 3).

        It needs gradients, hence a network of the adapter's own, which is read from its folder again. Raises DataError
        for tasks that have no saliency, AdapterError where the folder no longer holds this adapter.
        """
        if isinstance(resident.meta.task, DenseTask):
            raise DataError(
                "saliency",
                expected="a task that answers a picture as a whole",
                found=f"{resident.meta.task.kind}, whose answer itself shows the places",
                hint="Ask for the answer without saliency.",
            )
        image = torch.tensor(pixels).permute(2, 0, 1)[None]  # a copy: Pillow's pixels are read-only
        with self._turn:
            return map_saliency(self._open_network(resident), self.engine, image)

    def _open_network(self, resident: Resident) -> Network:
        network = self._explained.pop(resident, None)
        if network is None:
            network, meta = load_adapter(resident.folder, self.backbone)
            if meta != resident.meta:
                raise AdapterError(
                    f"adapter {resident.folder}",
                    expected="the adapter that answers, to explain what it answered",
                    found="another one in its folder",
                    hint="Ask again: the newer adapter answers soon.",
                )
            self.engine.prepare(network)
        if isinstance(resident.meta.tuner, FullTuner):
            return network  # of the backbone's size: not one more is kept
        self._explained[resident] = network
        for oldest in list(self._explained)[:-EXPLAINED]:
            self._explained.pop(oldest, None)
        return network


def decode(resident: Resident, outputs: Tensor) -> NDArray[np.float64]:
    """Outputs (B, ...) of one resident's head to probabilities (B, C), calibrated, or to what dense tasks bring back to
    their picture first, not calibrated: (B, C, h, w) or (B, K, 6)."""
    meta = resident.meta
    temperature = 1.0 if isinstance(meta.task, DenseTask) else meta.temperature
    rows: NDArray[np.float64] = resident.head.decode(outputs, temperature).double().cpu().numpy()
    return rows


class Racks:
    """The racks of a process: one for each backbone and size, opened with its first adapter and closed with its last.

    `racks.put("plates", folder)` adds an adapter, or replaces the one of that name, wherever it stood.

    most_full_bytes: of the weights of all `full` adapters together, each of which is a whole network; None for no
    limit. One that is replaced counts no longer, although it is there until its last rows are answered.
    """

    def __init__(
        self, dtype: Literal["auto", "float32", "bfloat16"] = "auto", most_full_bytes: int | None = None
    ) -> None:
        self.dtype: Literal["auto", "float32", "bfloat16"] = dtype
        self.most_full_bytes = most_full_bytes
        self._racks: list[Rack] = []
        self._turn = threading.RLock()

    def __iter__(self) -> Iterator[Rack]:
        return iter(self._racks)

    def put(self, name: str, folder: Path) -> tuple[Rack, Resident]:
        """The adapter on its rack, by this name. Where it raises AdapterError or BackboneError, all stays as it was."""
        meta = load_meta(folder)
        with self._turn:
            if isinstance(meta.tuner, FullTuner):
                self._require_room(name, folder)
            rack = self._find(meta.backbone)
            resident = rack.replace(name, folder)
            self._keep([*self._racks, *(() if rack in self._racks else (rack,))], name, rack)
        return rack, resident

    def _require_room(self, name: str, folder: Path) -> None:
        """Raise AdapterError where a `full` adapter is too much beside those of other names."""
        others = [rack[other] for rack in self._racks for other in rack if other != name]
        taken = sum(other.size for other in others if isinstance(other.meta.tuner, FullTuner))
        weights = folder / WEIGHTS_FILE
        size = weights.stat().st_size if weights.exists() else 0  # its absence is found when it is loaded
        if self.most_full_bytes is not None and taken + size > self.most_full_bytes:
            raise AdapterError(
                f"{name}, an adapter of the tuner full",
                expected=f"at most {_megabytes(self.most_full_bytes)} of such adapters together, which is the limit",
                found=f"{_megabytes(size)} beside {_megabytes(taken)} of others",
                hint="Raise the limit, or promote a version of another tuner, which shares the backbone.",
            )

    def remove(self, name: str) -> None:
        with self._turn:
            self._keep(self._racks, name)

    def _keep(self, racks: Sequence[Rack], name: str, only: Rack | None = None) -> None:
        """Leave the name on this rack alone, and close those that are empty then."""
        for rack in racks:
            if name in rack and rack is not only:
                rack.remove(name)
        self._racks = [rack for rack in racks if len(rack)]

    def _find(self, wanted: BackboneMeta) -> Rack:
        found = (
            rack for rack in self._racks if (rack.key.sha256, rack.key.img_size) == (wanted.sha256, wanted.img_size)
        )
        return next(found, None) or Rack(load_backbone(wanted.name, wanted.img_size), self.dtype)


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.1f} MB"
