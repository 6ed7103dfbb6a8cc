"""Inspects one image file: decodes it fully, says why it is unfit, and measures what validation needs.

A reason has the parts of an error: expected, found, how to fix it. Every image passes through here before anything is
trained on it, so a damaged file appears in the report and not in the middle of a run.
"""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from components.data.sources.images import (
    FORMATS,
    SIDEWAYS,
    UNDECODABLE,
    Box,
    UnfitPicture,
    Upright,
    brief,
    damaged,
    open_picture,
    read_picture,
)
from components.domain.settings import Validation
from components.records.reasons import Reason

PART = 32  # files that a thread takes at a time
THUMBNAIL = 32  # side in pixels of the grey thumbnail by which near duplicates are found
LOOK = 256  # approximate side in pixels at which brightness and sharpness are measured: backbones see no finer detail
NOISE = 2  # grey levels by which lossy compression changes a constant picture
LOSSY = ("JPEG", "MPO", "WEBP")
SMALL = 48_000  # bytes: smaller files are decoded faster than threads switch
DARK, BRIGHT = 5, 250  # grey levels up to and from which a pixel counts as clipped


@dataclass(frozen=True)
class Picture:
    """The result of decoding a file: why it is unfit, or its upright size and its measurements.

    It depends only on the file's bytes, the crops and the limits.
    """

    problem: Reason | None = None
    width: int = 0
    height: int = 0
    turned: bool = False  # EXIF says that it is stored rotated or mirrored
    brightness: float = 0.0  # mean of the grey picture, 0..255
    sharpness: float = 0.0  # mean square of the Laplacian
    dark: float = 0.0  # share of pixels at most DARK
    bright: float = 0.0  # share of pixels at least BRIGHT
    flat_crops: frozenset[Box] = frozenset()  # crops in which every pixel has one value


def inspect_images(raw: Path, crops: Mapping[str, Iterable[Box]], limits: Validation) -> dict[str, Picture]:
    """Decode the files, given as a dict from path to crops.

    Large files are decoded in threads, because Pillow releases the GIL; with small files threads only wait for one
    another.
    """
    paths = list(crops)
    parts = [paths[start : start + PART] for start in range(0, len(paths), PART)]

    def look(part: list[str]) -> list[Picture]:
        return [inspect_image(raw / path, crops[path], limits) for path in part]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        spread = map if _are_small(raw, paths) else pool.map
        pictures = [picture for part in spread(look, parts) for picture in part]
    return dict(zip(paths, pictures, strict=True))


def _are_small(raw: Path, paths: Sequence[str]) -> bool:
    """Whether the files are small, judged by the first few: the files of a domain are similar."""
    found = [size for path in paths[:PART] if (size := _file_size(raw / path))]
    return sum(found) < SMALL * len(found)


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def inspect_image(path: Path | IO[bytes], crops: Iterable[Box], limits: Validation) -> Picture:
    """Decode one file (a path or an open file) to its last pixel.

    The measurements need a grey picture of LOOK pixels. A JPEG decoder produces it at lower cost: it still reads every
    byte, but computes no colours and no finer detail. Crops are cut from all pixels.
    """
    wanted = list(crops)
    try:
        with open_picture(path, limits.max_megapixels) as opened:
            image, size = opened.image, opened.image.size
            if min(size) < limits.min_side:
                return Picture(_too_small(size, limits))
            factor = max(1, round(max(size) / LOOK))
            if image.format == "JPEG" and not wanted:
                scale = next(step for step in (8, 4, 2, 1) if factor % step == 0)
                image.draft("L", (size[0] // scale, size[1] // scale))
                factor //= scale if image.size != size else 1
            picture = opened.decode_plain()
            grey = np.asarray(picture.reduce("L", (factor, factor)))
            width, height = size[::-1] if picture.orientation in SIDEWAYS else size
            inside = [box for box in wanted if not _outside(box, width, height)]
            flat = frozenset(box for box in inside if picture.is_flat(box))
            found = _describe(grey, (width, height), picture.turned, flat)
        if _has_one_value(grey) and (nothing := _explain_flat(path, limits)):
            return Picture(Reason("a picture of something", nothing, "Remove it, or export it again."))
        return found
    except UNDECODABLE as error:
        return Picture(explain_unfit(path, error))


def _describe(grey: NDArray[np.uint8], size: tuple[int, int], turned: bool, flat: frozenset[Box]) -> Picture:
    """The measurements of a fit picture, taken on its small grey copy."""
    import cv2  # imported here because it loads slower than the rest of this module

    return Picture(
        width=size[0],
        height=size[1],
        turned=turned,
        brightness=cv2.mean(grey)[0],
        sharpness=measure_sharpness(grey),
        dark=np.count_nonzero(grey <= DARK) / grey.size,
        bright=np.count_nonzero(grey >= BRIGHT) / grey.size,
        flat_crops=flat,
    )


def measure_sharpness(grey: NDArray[np.uint8]) -> float:
    """The mean square of the Laplacian, which blur reduces.

    Pech-Pacheco et al. (Diatom autofocusing in brightfield microscopy, ICPR 2000) take its variance; its mean is 0.
    """
    import cv2

    if min(grey.shape) < 3:
        return 0.0
    inside = cv2.Laplacian(grey, cv2.CV_16S)[1:-1, 1:-1]
    return float(cv2.norm(inside, cv2.NORM_L2SQR) / inside.size)


def read_fit_picture(source: Path | IO[bytes] | Image.Image, limits: Validation) -> Image.Image:
    """The upright RGB pixels of a picture. Serving reads pictures by it, so that it refuses what `tessera check` does.

    Raises UnfitPicture, a ValueError, with the reason that `check` gives. The header is checked against `limits` before
    any pixel is decoded. Of a picture in memory only size, mode and transparency are checked.
    """
    if isinstance(source, Image.Image):
        problem = _too_small(source.size, limits) if min(source.size) < limits.min_side else None
    else:
        problem = inspect_image(source, (), limits).problem
        _rewind(source)
    if problem:
        raise UnfitPicture(problem)
    return read_picture(source, limits.max_megapixels)


def inspect_masks(raw: Path, paths: Iterable[str], limits: Validation) -> dict[str, tuple[int, int] | Reason]:
    """The upright (width, height) of every mask, or why it cannot be used."""
    unique = sorted(set(paths))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(unique, pool.map(lambda path: _mask_size(raw / path, limits), unique), strict=True))


def unfit_boxes(boxes: Iterable[Box], width: int, height: int, what: str) -> Reason | None:
    """The reason if a box is empty, inverted or outside the picture; None if all boxes are valid."""
    for box in boxes:
        if _outside(box, width, height):
            expected = f"{what} x0 y0 x1 y1 with x0 < x1, y0 < y1 inside the {width} x {height} picture"
            return Reason(expected, " ".join(map(str, box)), "Correct the annotation.")
    return None


def unfit_crop(crop: Box, size: tuple[int, int], limits: Validation, *, flat: bool) -> Reason | None:
    """Why a crop of a picture of this (width, height) is unfit. flat: all its pixels have one value."""
    if why := unfit_boxes([crop], *size, "a box"):
        return why
    width, height = crop[2] - crop[0], crop[3] - crop[1]
    if min(width, height) < limits.min_side:
        expected = f"an object of at least {limits.min_side} x {limits.min_side} pixels (validation.min_side)"
        return Reason(expected, f"{width} x {height}", "Remove the box, or lower the minimum.")
    if flat:
        return Reason("an object in the box", "one value in every pixel", "Correct or remove the box.")
    return None


def require_fit_crop(upright: Image.Image, crop: Box, limits: Validation) -> None:
    """Raise UnfitPicture, with the reason that `tessera check` gives, unless this crop of a picture is fit."""
    problem = unfit_crop(crop, upright.size, limits, flat=False)  # before cutting: Pillow rejects inverted boxes
    problem = problem or unfit_crop(crop, upright.size, limits, flat=Upright(upright).is_flat(crop))
    if problem:
        raise UnfitPicture(problem)


def create_thumbnail(path: Path, crop: Box | None, side: int, max_megapixels: float) -> bytes | None:
    """A small JPEG for the report, also of unfit files; None if the file cannot be decoded."""
    try:
        with open_picture(path, max_megapixels) as opened:
            picture = _to_plain(opened.decode(whole=False))
            box = crop or (0, 0, *picture.size)
            width, height = box[2] - box[0], box[3] - box[1]
            zoom = min(1, side / max(width, height))
            small = picture.shrink((max(1, round(width * zoom)), max(1, round(height * zoom))), "RGB", box)
            data = io.BytesIO()
            small.save(data, "JPEG", quality=80)
            return data.getvalue()
    except UNDECODABLE:
        return None


def _too_small(size: tuple[int, int], limits: Validation) -> Reason:
    expected = f"sides of at least {limits.min_side} pixels (validation.min_side)"
    return Reason(expected, f"{size[0]} x {size[1]}", "Remove it, or lower the minimum.")


def _has_one_value(grey: NDArray[np.uint8]) -> bool:
    """Whether a grey copy has one value in every pixel, up to NOISE."""
    import cv2

    least, most, *_ = cv2.minMaxLoc(grey)
    return most - least <= NOISE


def _explain_flat(path: Path | IO[bytes], limits: Validation) -> str | None:
    """What a picture without content contains (one value, or the class ids of a mask); None if it has content.

    All pixels and colours are read. Losslessly compressed files keep exact values, so few small values are mask ids.
    """
    _rewind(path)
    with open_picture(path, limits.max_megapixels) as opened:
        least, most = opened.decode().measure_range()
    span = (most - least).max()
    if span > NOISE:
        return None
    if opened.image.format in LOSSY or not span:
        return "one value in every pixel (all black, white or grey)"
    return f"only the values {least.min()} to {most.max()}, like the class ids of a mask"


def _outside(box: Box, width: int, height: int) -> bool:
    x0, y0, x1, y1 = box
    return not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height)


def _rewind(source: Path | IO[bytes]) -> None:
    if not isinstance(source, Path):
        source.seek(0)


def _is_empty(source: Path | IO[bytes]) -> bool:
    return source.stat().st_size == 0 if isinstance(source, Path) else source.seek(0, os.SEEK_END) == 0


def explain_unfit(path: Path | IO[bytes], error: BaseException) -> Reason:
    """The reason for a file whose opening or decoding raised one of UNDECODABLE."""
    if isinstance(error, UnfitPicture):
        return error.reason
    if isinstance(error, FileNotFoundError):
        return Reason("a file", "no such file", "Add the image or remove its row.")
    if isinstance(error, UnidentifiedImageError):
        found = "an empty file" if _is_empty(path) else "a file in another format, whatever its name says"
        return Reason(f"an image ({', '.join(FORMATS)})", found, "Export it again, or remove it.")
    return damaged(brief(error))


def _mask_size(path: Path, limits: Validation) -> tuple[int, int] | Reason:
    """The size of a mask, or why it cannot be used. The file is decoded to its end."""
    if not path.is_file():
        return Reason(f"its mask {path.name}", "no such file", "Add the mask, or remove it from the layout.")
    try:
        with open_picture(path, limits.max_megapixels) as opened:
            return opened.decode().size
    except UNDECODABLE as error:
        found = explain_unfit(path, error)
        return Reason(f"{found.expected} as the mask {path.name}", found.found, found.hint)


def _to_plain(picture: Upright) -> Upright:
    """The picture for display: pixels of more than 8 bits are stretched to 8 bits."""
    if not picture.stored.mode.startswith(("I", "F")):
        return picture
    values = np.nan_to_num(np.asarray(picture.stored, dtype=np.float64))
    spread = max(float(np.ptp(values)), 1e-9)
    return picture._replace(stored=Image.fromarray(((values - values.min()) / spread * 255).astype(np.uint8)))
