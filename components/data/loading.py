"""From manifest rows to batches: every image is decoded once, at training size, into one memory-mapped file."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from components.data.images import UNDECODABLE, pixel_limit, read_picture
from components.data.transforms import Augmentation
from components.errors import DataError

Pixels = NDArray[np.uint8]


def decode_image(source: Path | Image.Image, img_size: int, crop: tuple[int, ...] | None = None) -> Pixels:
    """One image as (img_size, img_size, 3) uint8: EXIF turned, cut to `crop`, resized without keeping the aspect.

    Raises DataError naming a file that cannot be read, or has more than 8 bits a channel.
    """
    try:
        upright = read_picture(source)
    except (Image.DecompressionBombError, *UNDECODABLE) as error:
        mend = "Export it again as JPEG or PNG."
        raise DataError(str(source), expected="a readable image", found=str(error), mend=mend) from None
    if crop is not None:
        upright = upright.crop((crop[0], crop[1], crop[2], crop[3]))
    return np.asarray(upright.resize((img_size, img_size), Image.Resampling.BICUBIC, reducing_gap=3.0))


def load_pixels(manifest: pl.DataFrame, raw: Path, img_size: int, cache: Path, max_megapixels: float) -> Pixels:
    """All images of the manifest in its order, (N, img_size, img_size, 3) uint8, memory-mapped read-only.

    The file is named by the content of the images (their ids and crops), so it never goes stale, and is put
    in place in one move, so a killed writer leaves nothing that looks whole.
    """
    key = hashlib.sha256(repr((manifest["id"].to_list(), manifest["crop"].to_list(), img_size, 1)).encode())
    path = cache / f"{key.hexdigest()[:32]}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        shape = (manifest.height, img_size, img_size, 3)
        pixels = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        jobs = list(zip(manifest["path"], manifest["crop"].to_list(), strict=True))
        with pixel_limit(max_megapixels), ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = pool.map(lambda job: decode_image(raw / job[0], img_size, job[1]), jobs)
            for index, image in enumerate(decoded):
                pixels[index] = image
        pixels.flush()
        os.replace(partial, path)
    loaded: Pixels = np.load(path, mmap_mode="r")
    return loaded


class Samples(Dataset[tuple[torch.Tensor, int]]):
    """Rows of the pixel cache with their class numbers; augmented where an augmentation is given."""

    def __init__(
        self, pixels: Pixels, rows: NDArray[np.int64], targets: NDArray[np.int64], augmentation: Augmentation | None
    ) -> None:
        self.pixels, self.rows, self.targets, self.augmentation = pixels, rows, targets, augmentation
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.rows)

    def locate(self, index: int) -> int:
        """The place in `rows` of this epoch's sample `index`."""
        return index

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        place = self.locate(index)
        row = int(self.rows[place])
        image = np.array(self.pixels[row])
        if self.augmentation is not None:
            image = self.augmentation(image, self.epoch, row)
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), int(self.targets[place])


class Features(Samples):
    """What a network that does not learn makes of the samples, once: features (rows, D) float32 instead of images."""

    def __init__(self, features: NDArray[np.float32], samples: Samples) -> None:
        super().__init__(samples.pixels, samples.rows, samples.targets, None)
        self.features, self.samples = features, samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.samples.epoch = self.epoch
        place = self.samples.locate(index)
        return torch.from_numpy(self.features[place]), int(self.targets[place])


class EpochOrder(Sampler[int]):
    """A permutation that depends on (seed, epoch) alone."""

    def __init__(self, samples: Samples, seed: int) -> None:
        self.samples, self.seed = samples, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[int]:
        state = np.random.SeedSequence([self.seed, self.samples.epoch]).generate_state(1)
        yield from np.random.default_rng(int(state[0])).permutation(len(self.samples)).tolist()


def create_loader(samples: Samples, batch_size: int, *, workers: int = 0, seed: int | None = None) -> DataLoader[Any]:
    """Batches of (B, 3, H, W) uint8, or (B, D) features, and (B,) int64; shuffled by `seed`, in order without one."""
    order = None if seed is None else EpochOrder(samples, seed)
    # A last batch of one image would be a very noisy step; it is dropped only where others remain.
    drop_last = seed is not None and len(samples) > batch_size
    return DataLoader(samples, batch_size=batch_size, sampler=order, num_workers=workers, drop_last=drop_last)
