"""From decoded pixels to batches: samples, their order in an epoch, and a loader that prepares batches ahead."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from components.data.batches.boxes import pad_boxes
from components.data.batches.geometry import Pixels
from components.data.batches.transforms import Augmentation

AHEAD = 2  # batches made ahead: one that is ready and one in preparation


Target = int | torch.Tensor  # a class's number, or what a task makes of more than one number: flags, a map, boxes


class Samples(Dataset[tuple[torch.Tensor, Target]]):
    """Rows of the pixel cache with their targets, augmented if an augmentation is given.

    targets: (N, ...) of the samples, in their order, as the task makes them. Those of three axes are class maps
    (N, height, width) uint8 or boxes (N, M, 6) float32, which an augmentation moves together with the image. groups:
    the group of each row (N,), if known. names: the key of each row's content (`sample_key`), if known.
    """

    def __init__(
        self,
        pixels: Pixels,
        rows: NDArray[np.int64],
        targets: NDArray[Any],
        augmentation: Augmentation | None,
        groups: NDArray[np.generic] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.pixels, self.rows, self.targets, self.augmentation = pixels, rows, targets, augmentation
        self.groups, self.names = groups, names
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.rows)

    def plain(self) -> "Samples":
        """Every image once, in the rows' order, not augmented."""
        return Samples(self.pixels, self.rows, self.targets, None, self.groups)

    def locate(self, index: int) -> int:
        """The position in `rows` of the sample `index` of this epoch."""
        return index

    def target(self, place: int) -> Target:
        """That of the sample at a position in `rows`, before any augmentation."""
        found = self.targets[place]
        return torch.from_numpy(np.array(found)) if isinstance(found, np.ndarray) else int(found)  # a map is read-only

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Target]:
        place = self.locate(index)
        row = int(self.rows[place])
        image, target = np.array(self.pixels[row]), self.target(place)
        if self.augmentation is not None and isinstance(target, torch.Tensor) and target.ndim == 2:
            move = self.augmentation.with_boxes if target.is_floating_point() else self.augmentation.with_map
            image, moved = move(image, target.numpy(), self.epoch, row)
            target = torch.from_numpy(np.ascontiguousarray(moved))
        elif self.augmentation is not None:
            image = self.augmentation(image, self.epoch, row)
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), target


class Features(Samples):
    """Samples as features (rows, D) float32 of a frozen network, computed once, instead of images."""

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
    """The batches of an epoch: a permutation that depends only on (seed, epoch), cut into steps.

    start: the first step to return; a resumed epoch sets it. Rank r of `size` processes gets every size-th sample of
    each step, from the r-th on.
    """

    def __init__(self, samples: Samples, batch_size: int, seed: int, rank: int = 0, size: int = 1) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.rank, self.size = rank, size
        self.start = 0

    def __len__(self) -> int:
        # The last partial batch is dropped: a step on one image would be very noisy. A single batch is kept.
        return max(1, len(self.samples) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        state = np.random.SeedSequence([self.seed, self.samples.epoch]).generate_state(1)
        order = self.draw(np.random.default_rng(int(state[0])))
        for step in range(self.start, len(self)):
            yield order[step * self.batch_size : (step + 1) * self.batch_size][self.rank :: self.size].tolist()

    def draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """The order of the epoch's samples."""
        return rng.permutation(len(self.samples))


class Loader(DataLoader[Any]):
    """A DataLoader that, without workers, prepares the next batches in a thread while the step computes.

    albumentations and numpy release the GIL most of the time, as torch does. The thread therefore hides most of the
    cost of augmentation if the step leaves a core idle, which it always does on a GPU.
    """

    def __iter__(self) -> Any:
        batches = super().__iter__()
        augmented = isinstance(self.dataset, Samples) and self.dataset.augmentation is not None
        return _make_ahead(batches) if augmented and self.num_workers == 0 else batches


def _make_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield the same batches in the same order, and prepare AHEAD of them while one is used."""
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, batches, None) for _ in range(AHEAD))
        while (batch := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, batches, None))
            yield batch


def collate(samples: list[tuple[torch.Tensor, Target]]) -> Any:
    """A batch of images (B, 3, H, W) and targets (B, ...); boxes are filled up to the most that an image has."""
    images, targets = zip(*samples, strict=True)
    first = targets[0]
    if not (isinstance(first, torch.Tensor) and first.ndim == 2 and first.is_floating_point()):
        return default_collate(samples)
    return default_collate(list(images)), torch.from_numpy(pad_boxes([target.numpy() for target in targets]))


def create_loader(
    samples: Dataset[Any], batch_size: int, *, workers: int = 0, order: StepOrder | None = None
) -> DataLoader[Any]:
    """Batches of images (B, 3, H, W) uint8 or features (B, D), with targets (B, ...).

    order: the order of the samples; without it, that of `samples`.
    """
    # A generator of its own, because the loader would draw a number from torch's global generator.
    # Workers are forked on every platform, so that they share the memory map: pickling it would copy all pixels.
    shared: dict[str, Any] = {
        "collate_fn": collate,
        "num_workers": workers,
        "generator": torch.Generator().manual_seed(0),
        "multiprocessing_context": "fork" if workers else None,
    }
    if order is None:
        return Loader(samples, batch_size=batch_size, **shared)
    return Loader(samples, batch_sampler=order, **shared)
