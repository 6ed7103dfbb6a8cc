"""Pictures and class maps at training size: every one is made once, and training maps all of them into memory.

`cache.py` keeps the files. Their names depend on their content (ids, crops, size, fit, decoder, class maps).
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import IO

import numpy as np
import PIL
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from components.data.batches.cache import load_mapped
from components.data.batches.geometry import Pixels, fit_image, fit_map
from components.data.sources.images import MAX_MEGAPIXELS, UNDECODABLE, Box, UnfitPicture, Upright, open_picture
from components.domain.canvas import Fit, ImgSize
from components.errors import DataError
from components.records.maps import decode_map

ClassMaps = NDArray[np.uint8]  # (N, height, width)
Sample = tuple[str, str, Sequence[int] | None]  # path, id and crop of a row

#: Everything that may change the decoded pixels; increase the first number when `fit_image` changes.
DECODER = ("2", PIL.__version__)
BLOCK = 256  # files whose pixels may wait in memory to be written


def decode_image(
    source: Path | Image.Image,
    img_size: ImgSize,
    crop: Sequence[int] | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    fit: Fit = "squash",
) -> Pixels:
    """One image as (height, width, 3) uint8: upright, cut to `crop`, and put on the canvas.

    Raises DataError that names a file which cannot be read.
    """
    with open_upright(source, str(source), max_megapixels) as picture:
        return fit_image(picture, img_size, fit, _box(crop))


@contextlib.contextmanager
def open_upright(
    source: Path | IO[bytes] | Image.Image, name: str, max_megapixels: float = MAX_MEGAPIXELS
) -> Iterator[Upright]:
    """The whole upright picture. Raises DataError that names it if it cannot be read, or has too many pixels,
    transparent pixels, or more than 8 bits per channel.
    """
    with contextlib.ExitStack() as stack:
        try:
            picture = stack.enter_context(open_picture(source, max_megapixels)).decode_plain()
        except UnfitPicture as error:
            why = error.reason
            raise DataError(name, expected=why.expected, found=why.found, hint=why.hint) from None
        except UNDECODABLE as error:
            hint = "Export it again as JPEG or PNG."
            raise DataError(name, expected="a readable image", found=str(error), hint=hint) from None
        yield picture


def load_pixels(
    manifest: pl.DataFrame,
    raw: Path,
    img_size: ImgSize,
    cache: Path,
    max_megapixels: float,
    fit: Fit = "squash",
) -> Pixels:
    """All images of the manifest in its order, (N, height, width, 3) uint8, memory-mapped read-only.

    Raises DataError for an image that cannot be read or differs from the one in the manifest, and WorkspaceError if the
    disk is full.
    """
    facts = (manifest["id"].to_list(), manifest["crop"].to_list(), tuple(img_size), fit, DECODER)
    shape = (manifest.height, *img_size, 3)
    return load_mapped(cache, facts, shape, lambda: decode_rows(manifest, raw, img_size, max_megapixels, fit))


def load_maps(manifest: pl.DataFrame, img_size: ImgSize, fit: Fit, cache: Path) -> ClassMaps:
    """The class maps of the manifest's rows, (N, height, width) uint8, where `load_pixels` has their pictures.

    Memory-mapped read-only. Raises WorkspaceError if the disk is full.
    """
    maps = manifest["class_map"]
    facts = ([hashlib.sha256(data).hexdigest() for data in maps], tuple(img_size), fit, "class maps 1")
    shape = (manifest.height, *img_size)
    return load_mapped(cache, facts, shape, lambda: (fit_map(decode_map(data), img_size, fit) for data in maps))


def decode_rows(
    manifest: pl.DataFrame, raw: Path, img_size: ImgSize, max_megapixels: float, fit: Fit = "squash"
) -> Iterator[Pixels]:
    """The manifest's images in its order, decoded on every core: Pillow releases the GIL while it decodes.

    A picture with several crops is decoded once: its rows are neighbours, because manifests are sorted by path.
    """
    rows = zip(manifest["path"], manifest["id"], manifest["crop"].to_list(), strict=True)
    files = [(path, list(group)) for path, group in groupby(rows, key=lambda row: row[0])]

    def decode(item: tuple[str, list[Sample]]) -> list[Pixels]:
        return _decode_file(raw / item[0], item[1], img_size, max_megapixels, fit)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), BLOCK):
            for images in pool.map(decode, files[start : start + BLOCK]):
                yield from images


def _decode_file(
    path: Path, rows: Sequence[Sample], img_size: ImgSize, max_megapixels: float, fit: Fit
) -> list[Pixels]:
    """All crops of one file. Raises DataError if the file cannot be read or has changed since the manifest was made."""
    try:
        content = path.read_bytes()
    except OSError as error:
        hint = "Fetch the data version again with `dvc checkout`."
        found = error.strerror or str(error)
        raise DataError(str(path), expected="a readable image", found=found, hint=hint) from None
    if hashlib.sha256(content).hexdigest() != rows[0][1].partition("#")[0]:
        raise DataError(
            str(path),
            expected="the file that the manifest was made from",
            found="other bytes: the file has changed since",
            hint="Run the command again: it reads the images again.",
        )
    with open_upright(io.BytesIO(content), str(path), max_megapixels) as picture:
        return [fit_image(picture, img_size, fit, _box(crop)) for _, _, crop in rows]


def _box(crop: Sequence[int] | None) -> Box | None:
    return None if crop is None else (crop[0], crop[1], crop[2], crop[3])
