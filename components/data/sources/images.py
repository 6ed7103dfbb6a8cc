"""Opens picture files, for every caller: few formats, a size limit, a memory limit for all threads, upright pixels.

    with open_picture(path, max_megapixels) as opened:    # checks the header; decodes nothing yet
        picture = opened.decode_plain()                   # decodes to the last pixel; refuses all but opaque 8 bits
        pixels = picture.shrink((224, 224))               # upright

A decoded picture of 99 megapixels takes 400 MB. IN_FLIGHT limits what all threads hold together, and whole pictures are
processed in bands: turning, converting colours and shrinking by whole steps need no second copy.
"""

import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from components.data.sources.names import SUFFIXES
from components.data.sources.tails import JPEG, Jpeg, find_bad_checksum
from components.domain.settings import Validation
from components.records.reasons import Reason

Box = tuple[int, int, int, int]
Mode = Literal["L", "RGB"]

#: Only these decoders are ever used: Pillow's list includes PostScript, which starts another program.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", TiffImagePlugin.TiffImageFile.format, WebPImagePlugin.WebPImageFile.format)
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "La", "RGBa")
ORIENTATION = 0x0112  # the EXIF tag
SIDEWAYS = (5, 6, 7, 8)  # its values that exchange width and height
#: The transposition that each value of the tag requires.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Errors of Pillow's decoders for damaged bytes (TypeError: TIFF without dimensions), and those of `open_picture`.
UNDECODABLE = (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, zlib.error)
MAX_MEGAPIXELS = Validation().max_megapixels
IN_FLIGHT = 320_000_000  # bytes of decoded pixels that all threads hold together; a larger picture is decoded alone
HUGE = 32_000_000  # pixels: of a larger picture no second copy is made, not even in grey
BLOCK = 64 << 20  # bytes that Pillow allocates at a time: from 32 MB on, the C library returns freed memory at once
BAND = 1 << 19  # pixels of a picture that are turned or converted at a time
REDUCING_GAP = 3.0  # of Pillow's resize: shrink by whole steps to at least this many times the target size


Image.core.set_block_size(BLOCK)  # type: ignore[attr-defined]  # same as setting PILLOW_BLOCK_SIZE


class UnfitPicture(ValueError):  # noqa: N818
    """A file that can be decoded but must not be used."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Upright(NamedTuple):
    """A decoded picture whose methods return upright pixels; only the requested part is turned."""

    stored: Image.Image
    orientation: int = 1
    turned: bool = False  # EXIF says that it is stored rotated or mirrored

    @property
    def size(self) -> tuple[int, int]:
        """Upright width and height in pixels."""
        width, height = self.stored.size
        return (height, width) if self.orientation in SIDEWAYS else (width, height)

    def cut(self, box: Box) -> Image.Image:
        """The part in `box`, in the file's own mode."""
        if (turn := TURNS.get(self.orientation)) is None:
            return self.stored.crop(box)
        x0, y0, x1, y1 = box
        width, height = self.size
        if self.orientation in (2, 3, 6, 7):
            x0, x1 = width - x1, width - x0
        if self.orientation in (3, 4, 7, 8):
            y0, y1 = height - y1, height - y0
        place = (y0, x0, y1, x1) if self.orientation in SIDEWAYS else (x0, y0, x1, y1)
        return self.stored.crop(place).transpose(turn)

    def bands(self, box: Box | None = None, step: int = 1) -> Iterator[tuple[int, Image.Image]]:
        """The picture, or a part of it, from top to bottom in bands of half a megapixel, each with its first row.

        step: every band except the last has a multiple of this number of rows.
        """
        x0, y0, x1, y1 = box or (0, 0, *self.size)
        rows = max(BAND // max(x1 - x0, 1) // step, 1) * step
        for top in range(y0, y1, rows):
            yield top - y0, self.cut((x0, top, x1, min(top + rows, y1)))

    def reduce(self, mode: Mode, steps: tuple[int, int], box: Box | None = None) -> Image.Image:
        """As Pillow's `reduce`, for the whole or a part: each pixel is the mean of a block of `steps` (x, y) pixels."""
        x0, y0, x1, y1 = box or (0, 0, *self.size)
        across, down = steps
        made = Image.new(mode, (-(-(x1 - x0) // across), -(-(y1 - y0) // down)))
        for top, band in self.bands((x0, y0, x1, y1), down):
            piece = convert(band, mode)
            made.paste(piece if steps == (1, 1) else piece.reduce(steps), (0, top // down))
        return made

    def shrink(self, size: tuple[int, int], mode: Mode = "RGB", box: Box | None = None) -> Image.Image:
        """Resize to (width, height), bit-identical to Pillow's bicubic `resize` of the whole with a reducing gap."""
        x0, y0, x1, y1 = box or (0, 0, *self.size)
        across, down = int((x1 - x0) / size[0] / REDUCING_GAP) or 1, int((y1 - y0) / size[1] / REDUCING_GAP) or 1
        reduced = self.reduce(mode, (across, down), (x0, y0, x1, y1))
        part = (0.0, 0.0, (x1 - x0) / across, (y1 - y0) / down)
        return reduced.resize(size, Image.Resampling.BICUBIC, box=part)

    def average(self, side: int) -> Image.Image:
        """Resize to a grey square, as Pillow's box filter of the whole does (huge pictures: within one grey level)."""
        width, height = self.size
        if width * height <= HUGE:
            return self.reduce("L", (1, 1)).resize((side, side), Image.Resampling.BOX)
        narrow = Image.new("L", (side, height))
        for top, band in self.bands():
            narrow.paste(convert(band, "L").resize((side, band.height), Image.Resampling.BOX), (0, top))
        return narrow.resize((side, side), Image.Resampling.BOX)

    def measure_range(self, box: Box | None = None) -> NDArray[np.int64]:
        """The minimum and maximum (2, 3) of every RGB channel, of the whole or of a part."""
        extrema = [np.array(convert(band, "RGB").getextrema(), np.int64) for _, band in self.bands(box)]
        return np.stack([np.min([each[:, 0] for each in extrema], 0), np.max([each[:, 1] for each in extrema], 0)])

    def is_flat(self, box: Box | None = None) -> bool:
        """Whether all pixels, of the whole or of a part, have one value."""
        return not np.ptp(self.measure_range(box), axis=0).any()

    def is_opaque(self) -> bool:
        """Whether no pixel is transparent."""
        if not self.stored.has_transparency_data:
            return True
        bands = (band for _, band in self.bands())
        return all(band.convert("RGBA").getchannel("A").getextrema()[0] == 255 for band in bands)


def convert(image: Image.Image, mode: Mode) -> Image.Image:
    """Convert an image by way of RGB, from which grey is computed for every mode."""
    if image.mode == mode:
        return image
    return image.convert(mode) if "RGB" in (mode, image.mode) else image.convert("RGB").convert(mode)


@dataclass
class Opened:
    """A file whose header was read and is within limits. `image` may be drafted; `decode` returns its pixels."""

    image: Image.Image
    stream: Path | IO[bytes] | None
    held: int = 0  # bytes of IN_FLIGHT that its pixels occupy

    def require_plain(self) -> None:
        """Raise UnfitPicture for several frames, more than 8 bits, or colours without an unambiguous conversion."""
        if problem := _find_form(self.image):
            raise UnfitPicture(problem)

    def decode(self, *, whole: bool = True) -> Upright:
        """Decode all pixels. Raises UnfitPicture if the file shows that some are lost, unless `whole` is False."""
        before = self._read_orientation() if self.image.format == "TIFF" else 1  # Pillow turns a TIFF while loading
        self.held += _take(self.image)
        self.image.load()
        if whole and (loss := _find_loss(self.stream)):
            raise UnfitPicture(damaged(loss))
        orientation = self._read_orientation()
        return Upright(self.image, orientation, turned=max(before, orientation) > 1)

    def _read_orientation(self) -> int:
        found = self.image.getexif().get(ORIENTATION, 1)
        return found if found in TURNS else 1

    def decode_plain(self) -> Upright:
        """Decode a picture for training or prediction: opaque, one frame, 8 bits per channel. Raises UnfitPicture."""
        self.require_plain()
        picture = self.decode()
        if not picture.is_opaque():
            hint = "Flatten it onto the background that it should have."
            raise UnfitPicture(Reason("an opaque image", "transparent pixels", hint))
        return picture


@contextmanager
def open_picture(source: Path | IO[bytes] | Image.Image, max_megapixels: float = MAX_MEGAPIXELS) -> Iterator[Opened]:
    """Open a file whose size is within the limit, without decoding it. Decoded pixels count until the block ends.

    Raises UnfitPicture for a picture that is too large; the decoder raises the other errors in UNDECODABLE.
    """
    with pixel_limit(max_megapixels), ExitStack() as stack:
        try:
            opened = _open(source)
            image = stack.enter_context(opened.image)
            stack.callback(_give_back, opened)
            if image is not source and (isinstance(source, Path) or opened.stream is not source):
                stack.callback(image.close)  # frees its pixels before others get the memory
            if image.width * image.height > max_megapixels * 1e6:
                raise UnfitPicture(too_large(f"{image.width} x {image.height}", max_megapixels))
            yield opened
        except (Image.DecompressionBombError, MemoryError):
            raise UnfitPicture(too_large("far more", max_megapixels)) from None


def read_picture(source: Path | IO[bytes] | Image.Image, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """The upright RGB pixels of a picture, without EXIF, comment or profile.

    Raises UnfitPicture, a ValueError, for what validation refuses: too many pixels, transparent pixels, lost pixels,
    and more than 8 bits, which Pillow would clip to white. The decoder raises the other errors in UNDECODABLE.
    """
    with open_picture(source, max_megapixels) as opened:
        return opened.decode_plain().reduce("RGB", (1, 1))


def too_large(found: str, max_megapixels: float) -> Reason:
    """The reason for a picture with too many pixels."""
    expected = f"at most {max_megapixels:g} megapixels (validation.max_megapixels)"
    return Reason(expected, f"{found} pixels", "Cut or shrink it, or raise the limit if the size is intended.")


_ACTIVE: list[float] = []
_CLEANING = ExitStack()
_LOCK = threading.Lock()


@contextmanager
def pixel_limit(megapixels: float) -> Iterator[None]:
    """Make Pillow refuse pictures above our limit instead of its own, which may be lower or higher than a domain's.

    Pillow has one limit for all threads: the largest that any of them requests.
    """
    with _LOCK:
        if not _ACTIVE:
            _CLEANING.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            _CLEANING.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # the report gives as reasons what Pillow warns of
        _ACTIVE.append(megapixels)
        Image.MAX_IMAGE_PIXELS = int(max(_ACTIVE) * 1e6)
    try:
        yield
    finally:
        with _LOCK:
            _ACTIVE.remove(megapixels)
            if _ACTIVE:
                Image.MAX_IMAGE_PIXELS = int(max(_ACTIVE) * 1e6)
            else:
                _CLEANING.close()


_MEMORY = threading.Condition()
_taken = {"bytes": 0}
_MINE = threading.local()


def _take(image: Image.Image) -> int:
    """Wait until there is memory for the image's pixels; a thread that already holds some does not wait."""
    wanted = image.width * image.height * (1 if image.mode in ("1", "L", "P") else 4)
    holding = getattr(_MINE, "bytes", 0)
    with _MEMORY:
        _MEMORY.wait_for(lambda: holding or not _taken["bytes"] or _taken["bytes"] + wanted <= IN_FLIGHT)
        _taken["bytes"] += wanted
    _MINE.bytes = holding + wanted
    return wanted


def _give_back(opened: Opened) -> None:
    """Return the memory of a picture that is not needed any more."""
    _MINE.bytes = getattr(_MINE, "bytes", 0) - opened.held
    with _MEMORY:
        _taken["bytes"] -= opened.held
        _MEMORY.notify_all()
    opened.held = 0


def _open(source: Path | IO[bytes] | Image.Image) -> Opened:
    if isinstance(source, Image.Image):
        return Opened(source, None)
    stream = _follow(source)
    return Opened(Image.open(stream, formats=FORMATS), stream)


def _follow(source: Path | IO[bytes]) -> Path | IO[bytes]:
    """Wrap a JPEG, so that the reading of its bytes can be followed; any other source is returned unchanged."""
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
        is_jpeg = file.read(len(JPEG)) == JPEG
        file.seek(0)
        return Jpeg(file.read()) if is_jpeg else source


def _find_loss(stream: Path | IO[bytes] | None) -> str | None:
    """What a decoded file shows of lost or changed pixels; None if it shows nothing."""
    if isinstance(stream, Jpeg):
        return stream.find_loss()
    if isinstance(stream, Path):
        with stream.open("rb") as file:
            return find_bad_checksum(file)
    if stream is None:
        return None
    stream.seek(0)
    return find_bad_checksum(stream)


def damaged(found: str) -> Reason:
    """The reason for a file with lost pixels."""
    expected = "an image that can be decoded to its end"
    return Reason(expected, f"damaged or truncated data ({found})", "Copy or export it again.")


def _find_form(image: Image.Image) -> Reason | None:
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # MPO: a photograph and its preview
        hint = "Export the frame that you need as a single image."
        return Reason("one picture per file", f"{getattr(image, 'n_frames', 0)} frames (animated or many pages)", hint)
    deep = image.mode.startswith(("I", "F")) or any(";16" in str(tile.args) for tile in getattr(image, "tile", []))
    if deep:
        hint = "Convert it to 8 bits with the intensity window that you need."
        return Reason("8 bits per channel", f"16-bit or deeper pixels (mode {image.mode})", hint)
    if image.mode not in MODES:
        hint = "Convert it to RGB, with its colour profile applied."
        return Reason("a grey or RGB image", f"colour mode {image.mode}", hint)
    return None


def brief(error: BaseException) -> str:
    """The message of another library's error, on one line and without our paths."""
    if isinstance(error, UnidentifiedImageError):
        return "a file that is not an image"
    return " ".join(str(error).split())[:160] or type(error).__name__


def not_an_image(path: str) -> Reason | None:
    """The reason for a file that is not an image by its name; None for an image's name."""
    if path.lower().endswith(SUFFIXES):
        return None
    found = f"a {os.path.splitext(path)[1] or 'nameless'} file"
    return Reason(f"an image ({', '.join(SUFFIXES)})", found, "Move it out of the raw folder, or convert it.")
