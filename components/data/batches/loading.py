"""From decoded pixels to batches: samples, their order in an epoch, and the loader that keeps the step from waiting."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from components.data.batches.pixels import Pixels
from components.data.batches.transforms import Augmentation

AHEAD = 2  # batches: one that is ready, one under way


Target = int | torch.Tensor  # a class's number, or what a task makes of more than one number


class Samples(Dataset[tuple[torch.Tensor, Target]]):
    """Rows of the pixel cache with their targets; augmented where an augmentation is given.

    targets: (N, ...) as the task makes them. groups: the group of each row (N,), where known.
    """

    def __init__(
        self,
        pixels: Pixels,
        rows: NDArray[np.int64],
        targets: NDArray[Any],
        augmentation: Augmentation | None,
        groups: NDArray[np.generic] | None = None,
    ) -> None:
        self.pixels, self.rows, self.targets, self.augmentation = pixels, rows, targets, augmentation
        self.groups = groups
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.rows)

    def locate(self, index: int) -> int:
        """The place in `rows` of this epoch's sample `index`."""
        return index

    def target(self, place: int) -> Target:
        found = self.targets[place]
        return torch.from_numpy(found) if isinstance(found, np.ndarray) else int(found)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Target]:
        place = self.locate(index)
        row = int(self.rows[place])
        image = np.array(self.pixels[row])
        if self.augmentation is not None:
            image = self.augmentation(image, self.epoch, row)
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), self.target(place)


class Features(Samples):
    """What a network that does not learn makes of the samples, once: features (rows, D) float32 instead of images."""

    def __init__(self, features: NDArray[np.float32], samples: Samples) -> None:
        super().__init__(samples.pixels, samples.rows, samples.targets, None)
        self.features, self.samples = features, samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Target]:
        self.samples.epoch = self.epoch
        place = self.samples.locate(index)
        return torch.from_numpy(self.features[place]), self.target(place)


class StepOrder(Sampler[list[int]]):
    """The batches of an epoch: a permutation that depends on (seed, epoch) alone, cut into steps.

    start: the first step to give, which a resumed epoch moves. Of each step rank r of `size` processes gets every
    size-th sample, from the r-th on.
    """

    def __init__(self, samples: Samples, batch_size: int, seed: int, rank: int = 0, size: int = 1) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.rank, self.size = rank, size
        self.start = 0

    def __len__(self) -> int:
        # A last batch of one image would be a very noisy step; it is dropped only where others remain.
        return max(1, len(self.samples) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        state = np.random.SeedSequence([self.seed, self.samples.epoch]).generate_state(1)
        order = self.draw(np.random.default_rng(int(state[0])))
        for step in range(self.start, len(self)):
            yield order[step * self.batch_size : (step + 1) * self.batch_size][self.rank :: self.size].tolist()

    def draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """The epoch's order."""
        return rng.permutation(len(self.samples))


class Loader(DataLoader[Any]):
    """A DataLoader that, without workers, makes the next batches on a thread while the step computes.

    albumentations and numpy leave the interpreter free for most of their time, as torch does, so the thread hides most
    of what augmentation costs wherever the step leaves a core idle, and always where it runs on a GPU.
    """

    def __iter__(self) -> Any:
        batches = super().__iter__()
        augmented = isinstance(self.dataset, Samples) and self.dataset.augmentation is not None
        return _make_ahead(batches) if augmented and self.num_workers == 0 else batches


def _make_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches in the same order, AHEAD of them being made while one is used."""
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, batches, None) for _ in range(AHEAD))
        while (batch := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, batches, None))
            yield batch


def create_loader(
    samples: Dataset[Any], batch_size: int, *, workers: int = 0, order: StepOrder | None = None
) -> DataLoader[Any]:
    """Batches of (B, 3, H, W) uint8 or (B, D) features, and targets (B, ...), in the samples' order without another."""
    # A generator of its own: the loader would draw a number from torch's global one.
    # Forked, whatever the platform's habit, so that workers share the map: a pickled one would be a copy of all pixels.
    shared: dict[str, Any] = {
        "num_workers": workers,
        "generator": torch.Generator().manual_seed(0),
        "multiprocessing_context": "fork" if workers else None,
    }
    if order is None:
        return Loader(samples, batch_size=batch_size, **shared)
    return Loader(samples, batch_sampler=order, **shared)
