"""Whether a training fits its device, and by which settings it would: said before it starts, and changed by nobody."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from components.domain.canvas import ImgSize
from components.domain.settings import Training
from components.errors import TrainingError
from components.models.backbones import Backbone
from components.models.engine import Engine
from components.models.network import Network, create_network
from components.models.tuners import Tuner
from components.records.memory import Memory
from components.training.memory import META, Rehearsal, count_bytes, replace_tensors
from components.training.recipe import Recipe

#: What kernels allocate inside, and what allocators keep of what was freed: on a CPU up to a fifth was measured
#: (benchmarks/memory.py), on a GPU nothing. A training that fits without it alone may fail.
CPU_MARGIN, GPU_MARGIN = 1.2, 1.1
SMALL = 1_500_000_000  # bytes: where a bound is below, and below half of the room, nothing is computed or said
FEWEST = 4  # images in a part of a step, before a recomputation is the better way
GIGABYTE = 1e9
#: A kind of change -> the kinds that make it needless where they suffice.
SPARES = {"both": {"parts", "again"}, "smaller again": {"smaller"}}
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Room:
    """Bytes that are free for a training. name: of the device, for people. on_gpu: whether it has its own memory."""

    free: int
    name: str
    on_gpu: bool = False

    @property
    def margin(self) -> float:
        return GPU_MARGIN if self.on_gpu else CPU_MARGIN

    def count(self, memory: Memory) -> int:
        """What counts here."""
        return memory.device if self.on_gpu else memory.machine


@dataclass(frozen=True)
class Way:
    """Settings by which a training fits, what it then takes, and what they change."""

    settings: str
    bytes: int
    effect: str

    def __str__(self) -> str:
        return f"{self.settings} ({format_size(self.bytes)}; {self.effect})"


def find_room(device: torch.device) -> Room:
    """What is free now: on the GPU, or of the machine's memory and swap, or of what its container may use."""
    if device.type == "cuda":
        return Room(torch.cuda.mem_get_info(device)[0], torch.cuda.get_device_name(device), on_gpu=True)
    return Room(measure_free(), "this machine")


def measure_free(meminfo: Path = Path("/proc/meminfo"), cgroups: Path = CGROUPS) -> int:
    """Bytes of memory and swap that processes can still get here."""
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = (line.split() for line in meminfo.read_text().splitlines())
    kilobytes = {line[0].rstrip(":"): int(line[1]) for line in lines}
    free = 1024 * (kilobytes["MemAvailable"] + kilobytes.get("SwapFree", 0))
    return min([free, *_free_of_cgroup(cgroups)])


def _free_of_cgroup(folder: Path) -> Iterator[int]:
    """What a container's limit leaves; files that are mapped make room when asked."""
    for most, used, mapped in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = folder / most
        if limit.exists() and (text := limit.read_text().strip()).isdecimal():
            stat = dict(line.split() for line in limit.with_name("memory.stat").read_text().splitlines())
            yield max(0, int(text) - int((folder / used).read_text()) + int(stat.get(mapped, 0)))


def bound_memory(network: Network, training: Training, img_size: ImgSize, num_classes: int) -> int:
    """More bytes than any tuner's training takes, from the sizes of network and batch: 40 numbers of every channel and
    three of every score, in float32, and what dense heads keep of every pixel."""
    vit = network.encoder.vit
    height, width = vit.patch_embed.patch_size
    learned = sum(parameter.numel() for parameter in network.trainable_parameters().values())
    tokens = (img_size.height // height) * (img_size.width // width) + vit.num_prefix_tokens
    tokens += learned // (vit.embed_dim * len(vit.blocks))  # as if all that learns were prompts
    numbers = len(vit.blocks) * tokens * (40 * vit.embed_dim + 3 * vit.blocks[0].attn.num_heads * tokens)
    numbers += 0 if network.head.needs.pooled else img_size.height * img_size.width * (60 + 6 * num_classes)
    return int(4 * (training.batch_size * numbers + 6 * learned)) + 2 * count_bytes(vit.parameters())


def find_ways(rehearsal: Rehearsal, training: Training, room: Room) -> list[Way]:
    """Settings that fit with some margin, the cheapest first; of each kind the one that changes least."""
    ways: dict[str, Way] = {}
    for kind, changes, effect in _list_changes(training, rehearsal.peers):
        if kind in ways or ways.keys() & SPARES.get(kind, set()):
            continue
        takes = round(room.margin * room.count(rehearsal.measure(training.model_copy(update=changes))))
        if takes <= room.free:
            settings = " and ".join(f"training.{name}={str(value).lower()}" for name, value in changes.items())
            ways[kind] = Way(settings, takes, effect)
    return list(ways.values())


def _list_changes(training: Training, peers: int) -> Iterator[tuple[str, dict[str, int | bool], str]]:
    """Kinds of changes, settings and effects, the cheapest first; accumulate counts from what it is now."""
    again, saves = "the same results in a third more time", {"gradient_checkpointing": True}
    parts = "the same batches in parts: results differ by rounding and by what dropout draws"
    share, now = training.batch_size // peers, training.accumulate
    for count in _double(2 * now, share // FEWEST):
        yield "parts", {"accumulate": count}, parts
    if not training.gradient_checkpointing:
        yield "again", dict(saves), again
    for count in _double(2 * now, share):
        yield "both", saves | {"accumulate": count}, f"{parts}; a third more time"
    for smaller in (training.batch_size // count for count in _double(2, training.batch_size // 2)):
        whole: dict[str, int | bool] = {"batch_size": smaller} | ({"accumulate": 1} if now > 1 else {})
        yield "smaller", whole, "another training, with other results"
        yield "smaller again", whole | saves, "another training, with other results, in a third more time"


def _double(first: int, last: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= 2


@dataclass(frozen=True)
class Forecast:
    """What a candidate will take, and where."""

    label: str
    memory: Memory
    room: Room
    rehearsal: Rehearsal
    training: Training

    @property
    def takes(self) -> int:
        return self.room.count(self.memory)

    def describe(self) -> str:
        """A line for people, empty where it is of no interest; with advice where the memory may not suffice."""
        free = f"the {format_size(self.room.free)} free on {self.room.name}"
        line = f"{self.label} takes about {format_size(self.takes)} of {free}."
        if self.room.margin * self.takes > self.room.free:
            return f"{line} That may not suffice. {self.advise()}"
        return line if self.takes >= GIGABYTE else ""

    def advise(self) -> str:
        """Settings that fit; nobody sets them but the user."""
        ways = [str(way) for way in find_ways(self.rehearsal, self.training, self.room)]
        if not ways:
            return "No settings let this backbone fit: choose a smaller one, a smaller img_size or a larger device."
        return f"Set {', or '.join(ways)}."

    def refuse(self, found: str) -> TrainingError:
        """found: how much there is, or what happened."""
        memory = self.memory
        parts = {"frozen weights": memory.weights, "what learns": memory.learned, "a step": memory.step}
        sizes = ", ".join(f"{format_size(size)} for {name}" for name, size in parts.items())
        return TrainingError(
            f"memory of candidate {self.label}",
            expected=f"about {format_size(self.takes)} free on {self.room.name} ({sizes})",
            found=found,
            hint=self.advise(),
        )


def forecast(network: Network, recipe: Recipe, engine: Engine, img_size: ImgSize, room: Room) -> Forecast | None:
    """What training this network, not prepared yet, will take; None where that is little.

    Raises TrainingError where it cannot fit: it takes at least what is computed.
    """
    classes = len(recipe.classes)
    if bound_memory(network, recipe.training, img_size, classes) < min(SMALL, room.free // 2):
        return None
    rehearsal = Rehearsal(network, engine, recipe.task, classes, img_size)
    memory = rehearsal.measure(recipe.training)
    found = Forecast(recipe.tuner.label, memory, room, rehearsal, recipe.training)
    if found.takes > room.free:
        raise found.refuse(f"{format_size(room.free)} free")
    return found


def forecast_others(
    backbone: Backbone, tuners: Sequence[Tuner], recipe: Recipe, engine: Engine, room: Room
) -> Iterator[Forecast | None]:
    """The same of other candidates that will be trained like this one, on a backbone without weights."""
    for tuner in tuners:
        with torch.device(META):
            hollow = replace(backbone, vit=replace_tensors(backbone.vit, META))
            network = create_network(hollow, tuner, len(recipe.classes), recipe.seed, recipe.task)
        yield forecast(network, replace(recipe, tuner=tuner), engine, backbone.img_size, room)


@contextmanager
def explaining(recipe: Recipe, foreseen: Forecast | None) -> Iterator[None]:
    """Turn a GPU's lack of memory inside the block into a TrainingError with the settings that would fit."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        found = f"no more: {str(error).partition('. ')[0]}"
        if foreseen is not None:
            raise foreseen.refuse(found) from None
        raise TrainingError(
            f"memory of candidate {recipe.tuner.label}",
            expected="enough on the device for a small training",
            found=found,
            hint="End other programs on the device, or set training.accumulate=4.",
        ) from None


def format_size(size: float) -> str:
    """`5.1 GB`."""
    return f"{size / GIGABYTE:.1f} GB"
