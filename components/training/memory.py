"""The memory that a training needs, computed before it starts: its steps are rehearsed without any tensor's memory.

The rehearsal runs the training's own code (forward, loss, backward, validation) on torch's fake tensors, which have
shapes, dtypes and an autograd graph but no data, and counts the bytes of the storages that are alive. So it knows every
tuner, head and architecture that can be trained. What it cannot see is what kernels allocate inside of them, and what
an allocator wastes: see the margins in components/training/room.py.
"""

import copy
import weakref
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from components.data.batches.loading import AHEAD
from components.domain.canvas import ImgSize
from components.domain.settings import Training
from components.models.backbones import Backbone
from components.models.engine import Engine
from components.models.extraction import choose_batch
from components.models.network import Network
from components.records.memory import Memory
from components.tasks import Task
from components.tasks.base import BoxTask

CPU, META = torch.device("cpu"), torch.device("meta")
ModuleT = TypeVar("ModuleT", bound=nn.Module)
COPIES = 4  # of what learns: itself, AdamW's two moments, the best epoch's


class Rehearsal:
    """A network as the engine would prepare it, without memory for its tensors.

    network: not prepared yet, its tensors real or on the meta device; it stays as it is. img_size: of its images.
    """

    def __init__(self, network: Network, engine: Engine, task: Task, num_classes: int, img_size: ImgSize) -> None:
        self.task, self.num_classes, self.img_size, self.peers = task, num_classes, img_size, engine.peers.size
        # A GPU is rehearsed as a CPU: its fused attention keeps the same, and its autocast rounds the same products.
        self.engine = Engine(CPU, engine.dtype, engine.mean, engine.std, engine.fused_attention)
        self.on_gpu, self.at_once = engine.device.type == "cuda", choose_batch(engine)  # images, for features
        self.fake, self.known = FakeTensorMode(), dict[tuple[int, int, bool], Memory]()
        self.loaded = count_bytes(_tensors(network))  # the backbone's original, and a copy of it that learns
        empty = replace_tensors(network, META)
        empty.prepare(engine.dtype, META, engine.fused_attention)
        with self.fake:
            self.network = replace_tensors(empty, CPU)
        self.learned = count_bytes(self.network.trainable_parameters().values())
        self.weights = count_bytes(_tensors(self.network)) - self.learned

    def measure(self, training: Training) -> Memory:
        """What the training takes with these settings."""
        key = (training.batch_size, training.accumulate, training.gradient_checkpointing)
        if key not in self.known:
            self.known[key] = self._measure(training)
        return self.known[key]

    def _measure(self, training: Training) -> Memory:
        share = -(-training.batch_size // self.peers)
        held, kept, step = self._rehearse_step(training, -(-share // training.accumulate))
        cast = 0 if self.on_gpu else self.weights  # of the original, in another dtype where that differs
        loading = self.loaded + (cast if self.engine.dtype != torch.float32 else 0)
        return Memory(
            weights=self.weights,
            learned=held,
            kept=kept,
            step=step,
            update=self._measure_update(),
            validation=self._rehearse_validation(
                2 * training.batch_size // self.peers if self.trains else self.at_once
            ),
            pixels=self._count_pixels(share),
            loading=loading,
        )

    @property
    def trains(self) -> bool:
        """Whether there are steps at all: a head that is solved takes none."""
        return not (self.network.learns_head_only and self.network.head.solvable)

    def _rehearse_step(self, training: Training, images: int) -> tuple[int, int, int]:
        """Bytes that what learns takes all along, bytes kept for backward, and the most bytes alive during a part."""
        if not self.trains:
            return self.learned, 0, 0
        self.network.train()
        self.network.encoder.vit.set_grad_checkpointing(training.gradient_checkpointing)
        with self.fake, self._gradients(training.accumulate > 1) as held:
            pixels, targets, balance = self._create_batch(images)
            with Ledger() as ledger:
                loss = self._measure_loss(self.engine.forward(self.network, pixels), targets, balance)
                kept = ledger.live
                loss.backward()  # type: ignore[no-untyped-call]
        return held, kept, ledger.peak

    @contextmanager
    def _gradients(self, kept: bool) -> Any:
        """Yields the bytes of what learns and its optimizer; kept: with gradients that earlier parts have left."""
        parameters = list(self.network.trainable_parameters().values())
        if kept:
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
        buckets = self.learned if self.peers > 1 else 0  # in which a process group adds its gradients
        yield COPIES * self.learned + (self.learned if kept else 0) + buckets
        for parameter in parameters:
            parameter.grad = None

    def _measure_update(self) -> int:
        """Gradients at the update and, on a GPU, where torch updates all parameters at once, a further copy."""
        return self.learned * (2 if self.on_gpu else 1) if self.trains else 0

    def _rehearse_validation(self, images: int) -> int:
        """The most bytes alive while a batch is answered."""
        self.network.eval()
        with self.fake, torch.no_grad():
            pixels, _, _ = self._create_batch(images)
            with Ledger() as ledger:
                self.engine.forward(self.network, pixels)
        return int(ledger.peak)

    def _create_batch(self, images: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W), targets as the task makes them, and weights of the classes, all without content."""
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "label": ((images,), torch.int64),
            "labels": ((images, self.num_classes), torch.float32),
            "mask": ((images, *self.img_size), torch.uint8),
            "boxes": ((images, 1, 6), torch.float32),
        }
        shape, dtype = shapes[self.task.annotation]
        pixels = torch.empty((images, 3, *self.img_size), dtype=torch.uint8)
        return pixels, torch.empty(shape, dtype=dtype), torch.ones(self.num_classes)

    def _measure_loss(self, outputs: Tensor, targets: Tensor, balance: Tensor) -> Tensor:
        if isinstance(self.task, BoxTask):  # which answers are assigned to an object depends on data
            return outputs.square().sum()
        return self.network.head.loss(outputs, targets, balance)

    def _count_pixels(self, images: int) -> int:
        """Batches of the loader: the one in use and those made ahead."""
        return (1 + AHEAD) * images * 3 * self.img_size.height * self.img_size.width


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Counts the storages that are created inside it and have not been freed. live, peak: bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.live = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for output in outputs if isinstance(outputs, tuple | list) else (outputs,):
            if isinstance(output, Tensor):
                self._add(output.untyped_storage(), args)
        return outputs

    def _add(self, storage: torch.UntypedStorage, args: tuple[Any, ...]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or any(isinstance(arg, Tensor) and arg.untyped_storage()._cdata == key for arg in args):
            return  # a view, or what was there before
        self._seen[key] = weakref.ref(storage, lambda _: self._drop(key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _drop(self, key: int, size: int) -> None:
        if self._seen.pop(key, None) is not None:
            self.live -= size


def replace_tensors(module: ModuleT, device: torch.device) -> ModuleT:
    """A copy of the module whose tensors are new ones of the same shapes and dtypes, with any content."""
    memo: dict[int, Any] = {}
    for tensor in _tensors(module):
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        of_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if of_parameter else empty
    return copy.deepcopy(module, memo)


def _tensors(module: nn.Module) -> list[Tensor]:
    """All that the module holds, the backbone that a network is to stand on included, each once."""
    backbone: Backbone | None = getattr(module, "backbone", None)
    modules = [module] if backbone is None else [module, backbone.vit]
    found = {id(each): each for part in modules for each in (*part.parameters(), *part.buffers())}
    return list(found.values())


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Of the distinct storages."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
