"""Looking at one image file: decode it fully, say why it is unfit, and measure what validation needs.

A reason reads like our errors: expected, found, how to mend. Everything Pillow decodes passes through here
before anything is trained on it, so a damaged file is met in the report and not in the middle of a run.
"""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from components.domain import Validation

Box = tuple[int, int, int, int]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
#: Only these decoders are ever run: Pillow's list includes PostScript, which starts another program.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", TiffImagePlugin.TiffImageFile.format, WebPImagePlugin.WebPImageFile.format)
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "La", "RGBa")
ORIENTATION = 0x0112  # the EXIF tag
SIDEWAYS = (5, 6, 7, 8)  # its values under which width and height change places
#: What Pillow's decoders raise on damaged bytes (TIFF without its dimensions: TypeError).
UNDECODABLE = (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, zlib.error)
PART = 32  # files a thread takes at a time
THUMBNAIL = 32  # side of the grey picture that near duplicates are found by
LOOK = 256  # pixels: about the side at which looks are measured, because a backbone sees no finer detail
NOISE = 2  # grey levels: what JPEG makes of one value
SMALL = 48_000  # bytes: below, a file is decoded sooner than threads take turns
DARK, BRIGHT = 5, 250  # grey levels up to and from which a pixel counts as clipped


def reason(expected: str, found: str, mend: str) -> str:
    """Why a file is quarantined, in the same three parts as our errors."""
    return f"expected {expected}; found {found}. {mend}"


def split_reason(text: str) -> tuple[str, str, str]:
    """Expected, found and mend of a reason."""
    expected, _, rest = text.removeprefix("expected ").partition("; found ")
    found, _, mend = rest.partition(". ")
    return expected, found, mend


def brief(error: BaseException) -> str:
    """What an error of another library says, on one line and without our paths."""
    if isinstance(error, UnidentifiedImageError):
        return "a file that is no image"
    return " ".join(str(error).split())[:160] or type(error).__name__


def not_an_image(path: str) -> str | None:
    """Why a file is none by its name."""
    if path.lower().endswith(SUFFIXES):
        return None
    found = f"a {os.path.splitext(path)[1] or 'nameless'} file"
    return reason(f"an image ({', '.join(SUFFIXES)})", found, "Move it out of the raw folder, or convert it.")


@dataclass(frozen=True)
class Picture:
    """What one decoding of a file tells: why it is unfit, or its upright size and its looks.

    A function of the file's bytes, the crops and the limits alone.
    """

    problem: str | None = None
    width: int = 0
    height: int = 0
    turned: bool = False  # EXIF says that it is stored on its side or mirrored
    brightness: float = 0.0  # mean of the grey picture, 0..255
    sharpness: float = 0.0  # mean square of the Laplacian
    dark: float = 0.0  # share of pixels at most DARK
    bright: float = 0.0  # share of pixels at least BRIGHT
    flat_crops: frozenset[Box] = frozenset()  # crops in which every pixel has one value


def inspect_images(raw: Path, crops: Mapping[str, Iterable[Box]], limits: Validation) -> dict[str, Picture]:
    """Decode every file named (with the crops wanted of it).

    Several at a time where they are large, because Pillow frees the interpreter; for small ones threads only wait for
    each other.
    """
    paths = list(crops)
    parts = [paths[start : start + PART] for start in range(0, len(paths), PART)]

    def look(part: list[str]) -> list[Picture]:
        return [inspect_image(raw / path, crops[path], limits) for path in part]

    with pixel_limit(limits.max_megapixels), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        spread = map if _are_small(raw, paths) else pool.map
        pictures = [picture for part in spread(look, parts) for picture in part]
    return dict(zip(paths, pictures, strict=True))


def _are_small(raw: Path, paths: Sequence[str]) -> bool:
    """By the first few: a domain's files are of one kind."""
    found = [size for path in paths[:PART] if (size := _file_size(raw / path))]
    return sum(found) < SMALL * len(found)


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def inspect_image(path: Path | IO[bytes], crops: Iterable[Box], limits: Validation) -> Picture:
    """Decode one file, or one that is open, to its last pixel.

    Looks need the grey picture at LOOK pixels, and a JPEG's decoder gives it for less: it reads every byte as always,
    but makes no colours and no detail finer than that. Crops are cut from all pixels.
    """
    wanted = list(crops)
    try:
        with Image.open(path, formats=FORMATS) as opened:
            if problem := _unfit_header(opened, limits):
                return Picture(problem)
            orientation = opened.getexif().get(ORIENTATION, 1)
            turned, size = orientation not in (0, 1), opened.size
            factor = max(1, round(max(size) / LOOK))
            if opened.format == "JPEG" and not wanted:
                scale = next(step for step in (8, 4, 2, 1) if factor % step == 0)
                opened.draft("L", (size[0] // scale, size[1] // scale))
                factor //= scale if opened.size != size else 1
            opened.load()
            upright = ImageOps.exif_transpose(opened) if turned else opened  # which copies
            if problem := _unfit_transparency(upright):
                return Picture(problem)
            if upright.mode not in ("L", "RGB"):
                upright = upright.convert("RGB")
            small = upright if upright.mode == "L" else upright.convert("L")
            grey = np.asarray(small.reduce(factor) if factor > 1 else small)
            if _has_one_value(grey) and (found := _explain_flat(path)):
                return Picture(reason("a picture of something", found, "Remove it, or export it again."))
            width, height = size[::-1] if orientation in SIDEWAYS else size
            inside = [box for box in wanted if not _outside(box, width, height)]
            flat = frozenset(box for box in inside if _is_flat(upright.crop(box)))
            return _describe(grey, (width, height), turned, flat)
    except (Image.DecompressionBombError, MemoryError, *UNDECODABLE) as error:
        return Picture(_undecodable(path, error, limits))


def _describe(grey: NDArray[np.uint8], size: tuple[int, int], turned: bool, flat: frozenset[Box]) -> Picture:
    """The looks of a fit picture, measured on its small grey copy."""
    import cv2  # loads slower than all the rest of this module

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
    """Mean square of the Laplacian, which blur takes away.

    Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000; the Laplacian's mean is next to 0.
    """
    import cv2

    if min(grey.shape) < 3:
        return 0.0
    inside = cv2.Laplacian(grey, cv2.CV_16S)[1:-1, 1:-1]
    return float(cv2.norm(inside, cv2.NORM_L2SQR) / inside.size)


def read_picture(source: Path | IO[bytes] | Image.Image) -> Image.Image:
    """Upright RGB pixels and nothing else: no EXIF, comment or profile comes along.

    Raises ValueError for what validation refuses by its form, above all pixels of more than 8 bits: Pillow would clip
    them to white. The other errors in UNDECODABLE are the decoder's.
    """
    opened = source if isinstance(source, Image.Image) else Image.open(source, formats=FORMATS)
    with opened:
        if problem := _unfit_form(opened):
            raise ValueError(problem)
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    upright.info = {}  # Pillow would write a comment or profile from here into the next file
    return upright


def read_fit_picture(source: Path | IO[bytes] | Image.Image, limits: Validation) -> Image.Image:
    """Upright RGB pixels of a picture that `tessera check` would take: what serving reads, so that both refuse alike.

    Raises ValueError with the reason that `check` gives. A picture in memory is checked as far as it is not decoded
    yet: its size, form and transparency. The header is checked against `limits` before any pixel is decoded.
    """
    with pixel_limit(limits.max_megapixels):
        if isinstance(source, Image.Image):
            problem = _unfit_header(source, limits) or _unfit_transparency(source)
        else:
            problem = inspect_image(source, (), limits).problem
            _rewind(source)
        if problem:
            raise ValueError(problem)
        return read_picture(source)


def inspect_masks(raw: Path, paths: Iterable[str], limits: Validation) -> dict[str, tuple[int, int] | str]:
    """Upright (width, height) of every mask, or why it cannot be used."""
    unique = sorted(set(paths))
    with pixel_limit(limits.max_megapixels), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(unique, pool.map(lambda path: _mask_size(raw / path, limits), unique), strict=True))


def unfit_boxes(boxes: Iterable[Box], width: int, height: int, what: str) -> str | None:
    """The first box that is empty, upside down or outside the picture."""
    for box in boxes:
        if _outside(box, width, height):
            expected = f"{what} x0 y0 x1 y1 with x0 < x1, y0 < y1 inside the {width} x {height} picture"
            return reason(expected, " ".join(map(str, box)), "Correct the annotation.")
    return None


def unfit_crop(crop: Box, size: tuple[int, int], limits: Validation, *, flat: bool) -> str | None:
    """Why a crop of a picture of this (width, height) is unfit. flat: all its pixels have one value."""
    if why := unfit_boxes([crop], *size, "a box"):
        return why
    width, height = crop[2] - crop[0], crop[3] - crop[1]
    if min(width, height) < limits.min_side:
        expected = f"an object of at least {limits.min_side} x {limits.min_side} pixels (validation.min_side)"
        return reason(expected, f"{width} x {height}", "Remove the box, or lower the floor.")
    if flat:
        return reason("an object in the box", "one value in every pixel", "Correct or remove the box.")
    return None


def require_fit_crop(upright: Image.Image, crop: Box, limits: Validation) -> None:
    """Raise ValueError, with the reason that `tessera check` gives, unless this crop of a picture is fit."""
    problem = unfit_crop(crop, upright.size, limits, flat=False)  # first, for Pillow cuts no box that is upside down
    problem = problem or unfit_crop(crop, upright.size, limits, flat=_is_flat(upright.crop(crop)))
    if problem:
        raise ValueError(problem)


def create_thumbnail(path: Path, crop: Box | None, side: int, max_megapixels: float) -> bytes | None:
    """A small JPEG for the report, of unfit files too where they can be decoded at all; else None."""
    try:
        with pixel_limit(max_megapixels), Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > max_megapixels * 1e6:
                return None
            upright = ImageOps.exif_transpose(opened)
            picture = upright.crop(crop) if crop else upright
            picture = _to_rgb(picture)
            picture.info = {}  # a JPEG's comment would be written into the thumbnail
            picture.thumbnail((side, side))
            data = io.BytesIO()
            picture.save(data, "JPEG", quality=80)
            return data.getvalue()
    except (Image.DecompressionBombError, MemoryError, *UNDECODABLE):
        return None


@contextmanager
def pixel_limit(megapixels: float) -> Iterator[None]:
    """Let Pillow refuse from our own limit on, not from its own, which is lower or higher than a domain's."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = int(megapixels * 1e6)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what we put into the report as reasons
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _unfit_header(image: Image.Image, limits: Validation) -> str | None:
    """What can be said before any pixel is decoded."""
    if image.width * image.height > limits.max_megapixels * 1e6:
        return _too_large(f"{image.width} x {image.height}", limits)
    if min(image.size) < limits.min_side:
        expected = f"sides of at least {limits.min_side} pixels (validation.min_side)"
        return reason(expected, f"{image.width} x {image.height}", "Remove it, or lower the floor.")
    return _unfit_form(image)


def _unfit_form(image: Image.Image) -> str | None:
    """Frames, depth and colours that no rule could turn into one RGB picture without guessing."""
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # MPO: a photograph and its preview
        mend = "Export the frame that is meant as a single image."
        return reason("one picture a file", f"{getattr(image, 'n_frames', 0)} frames (animated or many pages)", mend)
    deep = image.mode.startswith(("I", "F")) or any(";16" in str(tile.args) for tile in getattr(image, "tile", []))
    if deep:
        mend = "Convert it to 8 bits with the intensity window that is meant."
        return reason("8 bits a channel", f"16-bit or deeper pixels (mode {image.mode})", mend)
    if image.mode not in MODES:
        mend = "Convert it to RGB, with its colour profile applied."
        return reason("a grey or RGB image", f"colour mode {image.mode}", mend)
    return None


def _unfit_transparency(image: Image.Image) -> str | None:
    if image.has_transparency_data and np.asarray(image.convert("RGBA").getchannel("A")).min() < 255:
        return reason("an opaque image", "transparent pixels", "Flatten it onto the background that is meant.")
    return None


def _has_one_value(grey: NDArray[np.uint8]) -> bool:
    """As far as a grey copy tells."""
    import cv2

    least, most, *_ = cv2.minMaxLoc(grey)
    return most - least <= NOISE


def _is_flat(image: Image.Image, noise: int = 0) -> bool:
    if image.mode == "L":
        least, most = cast(tuple[int, int], image.getextrema())
        return most - least <= noise
    extrema = np.atleast_2d(np.array((image if image.mode == "RGB" else image.convert("RGB")).getextrema()))
    return bool((extrema[:, 1] - extrema[:, 0] <= noise).all())


def _explain_flat(path: Path | IO[bytes]) -> str | None:
    """What a file without anything to see holds, by all its pixels and colours; None where there is something.

    What was not compressed with loss has its exact values: few small ones are the ids of a mask.
    """
    _rewind(path)
    with Image.open(path, formats=FORMATS) as opened:
        if not _is_flat(opened, NOISE):
            return None
        if opened.format in ("JPEG", "WEBP") or _is_flat(opened):
            return "one value in every pixel (all black, white or grey)"
        extrema = np.atleast_2d(np.array(opened.convert("RGB").getextrema()))
        return f"the values {extrema.min()} to {extrema.max()} alone, as the class ids of a mask"


def _outside(box: Box, width: int, height: int) -> bool:
    x0, y0, x1, y1 = box
    return not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height)


def _rewind(source: Path | IO[bytes]) -> None:
    if not isinstance(source, Path):
        source.seek(0)


def _is_empty(source: Path | IO[bytes]) -> bool:
    return source.stat().st_size == 0 if isinstance(source, Path) else source.seek(0, os.SEEK_END) == 0


def _undecodable(path: Path | IO[bytes], error: BaseException, limits: Validation) -> str:
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return _too_large("far more", limits)
    if isinstance(error, FileNotFoundError):
        return reason("a file", "no such file", "Add the image or remove its row.")
    if isinstance(error, UnidentifiedImageError):
        found = "an empty file" if _is_empty(path) else "a file that is no such image, whatever its name says"
        return reason(f"an image ({', '.join(FORMATS)})", found, "Export it again, or remove it.")
    found = f"damaged or truncated data ({' '.join(str(error).split())[:120] or type(error).__name__})"
    return reason("an image that can be decoded to its end", found, "Copy or export it again.")


def _too_large(found: str, limits: Validation) -> str:
    expected = f"at most {limits.max_megapixels:g} megapixels (validation.max_megapixels)"
    return reason(expected, f"{found} pixels", "Cut or shrink it, or raise the ceiling if the size is meant.")


def _mask_size(path: Path, limits: Validation) -> tuple[int, int] | str:
    if not path.is_file():
        return reason(f"its mask {path.name}", "no such file", "Add the mask, or take it out of the layout.")
    try:
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > limits.max_megapixels * 1e6:
                return f"mask: {_too_large(f'{opened.width} x {opened.height}', limits)}"
            return ImageOps.exif_transpose(opened).size
    except (Image.DecompressionBombError, *UNDECODABLE) as error:
        return f"mask {path.name}: {_undecodable(path, error, limits)}"


def _to_rgb(picture: Image.Image) -> Image.Image:
    """RGB for looking at; deep images are stretched to what 8 bits can show."""
    if picture.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        spread = max(float(np.ptp(values)), 1e-9)
        picture = Image.fromarray(((values - values.min()) / spread * 255).astype(np.uint8))
    return picture.convert("RGB")
