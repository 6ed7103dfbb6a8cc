"""What the untouched blocks below a side network make of a training's images: computed once, read in every epoch.

    <cache>/pixels/<name>.u8    the states of all views of the training images, or of the validation images, row by row

Augmentation changes the pixels of every epoch, so a training shows a fixed number of views of each image (`views` of
the tuner): view v is a function of (seed, v), and epoch e shows view e modulo `views`. Each view is computed once.
Where there is no room, the states are computed at every step instead: the same bits on a processor, and an epoch of up
to twice the time.

Each process of a process group computes its share, every size-th row, and reads those of all. The files belong to the
cache of pixels, with its checksums, locks and limit: a killed training finds them again; a finished one removes them.

Letters: N images, K states (`side.list_states`), T tokens, D embed_dim.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from components.data.batches.cache import Bytes, load_mapped, remove_mapped
from components.data.batches.loading import Samples, Target, create_loader
from components.errors import WorkspaceError
from components.models.engine import Engine
from components.models.network import Network
from components.models.side import Lower, SideEncoder
from components.models.tuners import Tuner
from components.models.tuners.dtl import DtlTuner
from components.training.recipe import Stopped
from components.workspace import cache_limit

CHUNK = 32  # images per forward
SHARE = 0.5  # of the cache's limit that one training may take


@dataclass(frozen=True)
class Shelf:
    """Where states are kept. content: everything that the pixels, and the frozen network, depend on. note: tells the
    user something. stop: whether somebody asks the training to stop."""

    cache: Path
    content: object
    note: Callable[[str], None]
    stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class States:
    """States (rows, K, T, D) as bytes: row r is the row r // size of the share r % size."""

    shares: Sequence[Bytes]
    shape: tuple[int, int, int]
    dtype: torch.dtype

    def __getitem__(self, row: int) -> torch.Tensor:
        share = self.shares[row % len(self.shares)]
        return torch.from_numpy(np.array(share[row // len(self.shares)])).view(self.dtype).view(self.shape)


class Views(Samples):
    """Samples in a fixed number of views, which the epochs show in turn; as `Lower` where their states are kept.

    reads_pixels: whether the head wants the pixels, too. An image whose pixels nobody reads is not augmented again: the
    targets of such heads do not move with it.
    """

    def __init__(self, samples: Samples, views: int, states: States | None = None, reads_pixels: bool = True) -> None:
        super().__init__(samples.pixels, samples.rows, samples.targets, samples.augmentation, samples.groups)
        self.samples, self.views, self.states, self.reads_pixels = samples, views, states, reads_pixels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Target]:
        view = self.epoch % self.views
        self.samples.epoch = view
        if self.states is None:
            return self.samples[index]
        states = self.states[view * len(self) + index]
        if self.reads_pixels:
            image, target = self.samples[index]
            return Lower(image, states), target
        return Lower(torch.empty(0, dtype=torch.uint8), states), self.target(self.samples.locate(index))


class Share(Samples):
    """Every view of every size-th sample, from the first-th on, one after the other."""

    def __init__(self, samples: Samples, views: int, first: int, size: int) -> None:
        super().__init__(samples.pixels, samples.rows, samples.targets, samples.augmentation)
        self.samples, self.places = samples, range(first, views * len(samples), size)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Target]:
        self.samples.epoch, place = divmod(self.places[index], len(self.samples))
        return self.samples[place]


class Keeper:
    """Keeps the states of one training of so many epochs. samples: what to train and validate on. seconds: what
    computing the states took. `close` removes their files."""

    def __init__(
        self,
        network: Network,
        tuner: Tuner,
        sides: tuple[Samples, Samples],
        epochs: int,
        engine: Engine,
        shelf: Shelf,
    ) -> None:
        self.network, self.engine, self.shelf = network, engine, shelf
        self.encoder = cast(SideEncoder, network.encoder)
        self.facts: list[Any] = []
        self.samples, self.seconds = sides, 0.0
        if not isinstance(tuner, DtlTuner):
            return
        train, val = sides
        augmented = train.augmentation is not None and train.augmentation.pipeline is not None
        views = min(tuner.views, epochs) if augmented else 1
        started = time.monotonic()
        kept = self._keep([(train, views), (val, 1)])
        self.seconds = time.monotonic() - started
        reads_pixels = not network.head.needs.pooled
        first, second = kept or (None, None)
        self.samples = (Views(train, views, first, reads_pixels), Views(val, 1, second, reads_pixels))

    def close(self) -> None:
        """Remove the files; processes that read them keep what they read."""
        for facts in self.facts:
            remove_mapped(self.shelf.cache, facts)

    def _keep(self, sides: Sequence[tuple[Samples, int]]) -> list[States] | None:
        """The states of both splits, None where they have no room."""
        engine, peers = self.engine, self.engine.peers
        engine.prepare(self.network)
        example = self._run(torch.from_numpy(np.array(sides[0][0].pixels[:1])).permute(0, 3, 1, 2))[0]
        rows = [views * len(samples) for samples, views in sides]
        wanted = sum(rows) * example.nbytes
        if peers.any(not self._has_room(wanted)):
            return None
        try:
            mine = [self._share(samples, views, peers.rank, example) for samples, views in sides]
            failed = ""
        except WorkspaceError as error:
            failed = str(error)
        if peers.any(bool(failed)):  # also waits for the shares of the others
            if peers.leads:
                self._tell_no_room(failed or "the disk is full for another process")
            self.close()
            return None
        if peers.any(self.shelf.stop()):
            raise Stopped("training stopped after the untouched blocks were computed")
        found = []
        for number, (samples, views) in enumerate(sides):
            ranks = range(peers.size)
            shares = [
                mine[number] if rank == peers.rank else self._share(samples, views, rank, example) for rank in ranks
            ]
            found.append(States(shares, tuple(example.shape), example.dtype))  # type: ignore[arg-type]  # three axes
        return found

    def _share(self, samples: Samples, views: int, rank: int, example: torch.Tensor) -> Bytes:
        """The share of one process, computed unless it is there."""
        part = Share(samples, views, rank, self.engine.peers.size)
        facts = (
            *("states 1", self.shelf.content, samples.rows.tobytes(), _describe_augmentation(samples), views),
            *(self.encoder.first, repr(self.network.head.needs), str(example.dtype), self.engine.fused_attention),
            *(str(self.engine.device), torch.__version__, rank, self.engine.peers.size),
        )
        self.facts.append(facts)
        return load_mapped(self.shelf.cache, facts, (len(part), example.nbytes), partial(self._compute, part))

    def _compute(self, part: Share) -> Iterator[Bytes]:
        """The states of each sample as bytes."""
        for images, _ in create_loader(part, CHUNK):
            if self.engine.peers.size == 1 and self.shelf.stop():
                raise Stopped("training stopped while the untouched blocks were computed")
            states = self._run(images)
            yield from states.view(torch.uint8).flatten(1).numpy()

    @torch.no_grad()
    def _run(self, images: torch.Tensor) -> torch.Tensor:
        """(B, K, T, D) of uint8 images (B, 3, H, W)."""
        states = self.encoder.run_lower(self.engine.normalise(images), self.network.head.needs)
        return torch.stack(states, dim=1).cpu()

    def _has_room(self, wanted: int) -> bool:
        limit, cache = SHARE * cache_limit(), self.shelf.cache
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
        if wanted <= min(limit, free):
            return True
        if self.engine.peers.leads:
            why = (
                f"{limit / 1e9:.1f} GB are allowed (half of TESSERA_CACHE_GB)" if wanted > limit else "the disk is full"
            )
            self._tell_no_room(f"they take {wanted / 1e9:.1f} GB, and {why}")
        return False

    def _tell_no_room(self, why: str) -> None:
        self.shelf.note(
            f"dtl computes its untouched blocks at every step, because there is no room to keep their outputs: {why}. "
            "The result is the same, an epoch takes up to twice as long; lower `views`, or make room."
        )


def _describe_augmentation(samples: Samples) -> object:
    augmentation = samples.augmentation
    return None if augmentation is None else (repr(augmentation.recipe), augmentation.seed, augmentation.square)
