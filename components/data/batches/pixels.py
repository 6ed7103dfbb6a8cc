"""The pixel cache: every image is decoded once, at training size, into one file that training maps into memory.

    <cache>/pixels/<name>.u8        all images of a manifest, (N, img_size, img_size, 3) bytes and nothing else
    <cache>/pixels/<name>.partial   the same while it is being written, and <name>.lock, which its writer holds
    <cache>/sums/<name>.crc         CRC-32 of every image in it, (N,) little-endian uint32, and one over these

Before a file is mapped, several threads read it once and compare it with its checksums; a damaged file is rebuilt. The
name of a file depends on its content (ids, crops, size, decoder), so it is never stale. Locks are kernel locks: a
reader holds a shared lock on its file as long as its map exists, and a killed process holds none. Files in use are
therefore distinguished from leftovers without guessing about process ids. Writers lock a separate file, because waiting
for a lock on the pixels would mean waiting for the last reader.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import math
import os
import shutil
import zlib
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

from components.data.sources.images import MAX_MEGAPIXELS, UNDECODABLE, UnfitPicture, Upright, open_picture
from components.errors import DataError
from components.files import write_whole
from components.sealed import warn_of_damage
from components.workspace import DISK_TROUBLE, cache_limit, describe_disk_trouble

Pixels = NDArray[np.uint8]

#: Everything that may change the decoded pixels; increase the first number when `decode_image` changes.
DECODER = ("2", PIL.__version__)
CHECKED = 64  # images that a thread compares with their checksums at a time
BLOCK = 256  # files whose pixels may wait in memory to be written


def decode_image(
    source: Path | Image.Image,
    img_size: int,
    crop: Sequence[int] | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Pixels:
    """One image as (img_size, img_size, 3) uint8: upright, cut to `crop`, resized without keeping the aspect ratio.

    Raises DataError that names a file which cannot be read.
    """
    with open_upright(source, str(source), max_megapixels) as picture:
        return _shrink(picture, img_size, crop)


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


def shrink(upright: Image.Image, img_size: int, crop: Sequence[int] | None) -> Pixels:
    """The pixels (img_size, img_size, 3) of an upright picture, as training uses them."""
    return _shrink(Upright(upright), img_size, crop)


def _shrink(picture: Upright, img_size: int, crop: Sequence[int] | None) -> Pixels:
    box = (crop[0], crop[1], crop[2], crop[3]) if crop is not None else None
    return np.asarray(picture.shrink((img_size, img_size), "RGB", box))


def load_pixels(manifest: pl.DataFrame, raw: Path, img_size: int, cache: Path, max_megapixels: float) -> Pixels:
    """All images of the manifest in its order, (N, img_size, img_size, 3) uint8, memory-mapped read-only.

    If several processes need the same file, one decodes and the others wait. Raises DataError for an image that cannot
    be read or differs from the one in the manifest, and WorkspaceError if the disk is full.
    """
    facts = (manifest["id"].to_list(), manifest["crop"].to_list(), img_size, DECODER)
    path = cache / "pixels" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.u8"
    if path.exists() and not _is_intact(path):
        warn_of_damage(path)
        path.unlink(missing_ok=True)  # processes that have mapped it keep it
    shape = (manifest.height, img_size, img_size, 3)
    while True:
        pixels = _map(path, shape)
        if pixels is None:
            pixels = _make(path, shape, decode_rows(manifest, raw, img_size, max_megapixels))
        if pixels is not None:
            return pixels


def decode_rows(manifest: pl.DataFrame, raw: Path, img_size: int, max_megapixels: float) -> Iterator[Pixels]:
    """The manifest's images in its order, decoded on every core: Pillow releases the GIL while it decodes.

    A picture with several crops is decoded once: its rows are neighbours, because manifests are sorted by path.
    """
    rows = zip(manifest["path"], manifest["id"], manifest["crop"].to_list(), strict=True)
    files = [(path, list(group)) for path, group in groupby(rows, key=lambda row: row[0])]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), BLOCK):
            block = files[start : start + BLOCK]
            for images in pool.map(lambda item: _decode_file(raw / item[0], item[1], img_size, max_megapixels), block):
                yield from images


def _decode_file(
    path: Path, rows: Sequence[tuple[str, str, Sequence[int] | None]], img_size: int, max_megapixels: float
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
        return [_shrink(picture, img_size, crop) for _, _, crop in rows]


def _map(path: Path, shape: tuple[int, ...]) -> Pixels | None:
    """Map the file, with a shared lock as long as the map exists; None if it is missing or incomplete."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            if not _is_at(file, path) or os.fstat(file.fileno()).st_size != math.prod(shape):
                return None
            os.utime(path)  # records the last use: file systems seldom keep access times
            pixels: Pixels = np.memmap(file, np.uint8, "r", shape=shape)  # its file descriptor keeps the lock
            return pixels
    except FileNotFoundError:
        return None


def _make(path: Path, shape: tuple[int, ...], images: Iterator[Pixels]) -> Pixels | None:
    """Write the file and map it. Waits for another process that writes it; None if that process gave up."""
    partial, lock = path.with_suffix(".partial"), path.with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not _is_at(held, lock):
                return _map(path, shape)
            try:
                if (made := _map(path, shape)) is not None:
                    return made
                _make_room(path.parent, math.prod(shape))
                write_whole(_locate_sums(path), _write(partial, images))
                os.replace(partial, path)
                return _map(path, shape)
            finally:
                partial.unlink(missing_ok=True)
                lock.unlink()
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        raise describe_disk_trouble(path.parent, error) from None


def _write(partial: Path, images: Iterator[Pixels]) -> bytes:
    """Write the images and return their checksums. Writing to a map would kill the process when the disk is full."""
    sums = []
    with partial.open("wb") as file:
        for image in images:
            file.write(image.data)
            sums.append(zlib.crc32(image.data))
        file.flush()
        os.fsync(file.fileno())
    packed = np.array(sums, "<u4").tobytes()
    return packed + zlib.crc32(packed).to_bytes(4, "little")


def _locate_sums(path: Path) -> Path:
    """The path of the checksums of a file of pixels."""
    return path.parent.with_name("sums") / f"{path.stem}.crc"


def _is_intact(path: Path) -> bool:
    """Whether the pixels are those that were written: every image fits its checksum."""
    try:
        packed = _locate_sums(path).read_bytes()
        sums = np.frombuffer(packed[:-4], "<u4")
    except (OSError, ValueError):
        return False
    if not sums.size or zlib.crc32(packed[:-4]).to_bytes(4, "little") != packed[-4:]:
        return False
    with path.open("rb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        each, rest = divmod(os.fstat(file.fileno()).st_size, sums.size)

        def compare(first: int) -> bool:
            part = range(first, min(first + CHECKED, sums.size))
            return all(zlib.crc32(os.pread(file.fileno(), each, number * each)) == sums[number] for number in part)

        return not rest and all(pool.map(compare, range(0, sums.size, CHECKED)))


def _make_room(folder: Path, wanted: int) -> None:
    """Remove leftovers of killed writers, and the least recently used files that are not in use, until `wanted` fits.

    Raises OSError if the disk is still too full.
    """
    limit = cache_limit()
    for partial in folder.glob("*.partial"):
        _remove_stale(partial)
    with os.scandir(folder) as entries:
        facts = [(entry.stat(), Path(entry)) for entry in entries if entry.name.endswith(".u8")]
    kept = sum(stat.st_size for stat, _ in facts)
    for stat, path in sorted(facts, key=lambda fact: fact[0].st_mtime_ns):
        if kept + wanted <= limit and shutil.disk_usage(folder).free >= wanted:
            return
        kept -= stat.st_size if _remove_unused(path) else 0
    if shutil.disk_usage(folder).free < wanted:
        raise OSError(errno.ENOSPC, f"less than the {wanted / 1e9:.2f} GB that the decoded images take")


def _remove_stale(partial: Path) -> None:
    """Remove a partial file unless its writer is still running."""
    lock = partial.with_suffix(".lock")
    with lock.open("ab") as held, contextlib.suppress(BlockingIOError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(held, lock):
            partial.unlink(missing_ok=True)
            lock.unlink()


def _remove_unused(path: Path) -> bool:
    """Remove a file unless a running process has mapped it; whether it is gone."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                path.unlink()
                _locate_sums(path).unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether the open file still has this path: another process may have moved or removed it before the lock came."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
