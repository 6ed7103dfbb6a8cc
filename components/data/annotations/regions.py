"""Mask files to regions, and what a picture without any annotation shows.

A mask is an image of the size of its picture with a number or a colour per pixel. `read_mask` returns its values,
`paint` names them, and `settle` decides on pictures that have no annotation at all.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from components.data.annotations.column_cells import read_size
from components.data.annotations.tree import walk_files
from components.data.manifest import Reading, Row, Wanted
from components.data.sources.images import FORMATS, UNDECODABLE, brief
from components.records.maps import IGNORE, Painting, Regions
from components.records.objects import Mask
from components.records.reasons import Reason

Pixels = NDArray[np.generic]

BRIGHT = 200  # the least highest value of a mask of two values
SOFT_VALUES = 5  # least different values of a mask with soft edges
MIDDLE = 0.2  # most pixels of such a mask that are clearly between its two values
FLAT = 0.25  # most values between the two that equal their neighbours
GREYED = ("RGB", "YCbCr", "CMYK")  # modes of JPEG
LOSSY = (".jpg", ".jpeg")
UNANNOTATED = Reason(
    "an annotation of the picture",
    "none",
    "Add one, or write `unannotated: background` into the task's options if such pictures show background alone.",
)
LEFT_OUT = "pictures without an annotation left out (the task's option `unannotated: background` includes them)"
AS_BACKGROUND = "pictures without an annotation, taken as background (the task's option `unannotated`)"
SOFT = "masks with several values beside 0: all that is not 0 is of the class"
UNITED = "pictures with several numbered masks, united"
CUT = "masks with soft edges, cut at half of their highest value"
SHOWS_NOTHING = "pictures whose annotation shows nothing, taken as background"


def read_mask(raw: Path, path: str, *, colours: bool = False, grey: bool = False) -> Pixels | Reason:
    """The values of a mask (H, W) as `read_values` returns them, or why it cannot be used."""
    hint = "Save it as PNG with one 8- or 16-bit channel of class ids, or with the colours given in `ids`."
    if path.lower().endswith(LOSSY) and not grey:
        found = "a JPEG, whose compression changes the numbers that were written"
        return Reason(f"a mask {path}", found, hint)
    try:
        return read_values(raw / path, colours, grey)
    except (Image.DecompressionBombError, *UNDECODABLE) as error:
        empty = not (raw / path).stat().st_size
        return Reason(f"a mask {path}", "an empty file" if empty else brief(error), hint)


def read_values(path: Path, colours: bool, grey: bool = False) -> Pixels:
    """The class id of every pixel of a mask (H, W), or its colour as 0xRRGGBB, or its grey value; upright.

    Raises ValueError for an image whose mode cannot hold ids or colours.
    """
    with Image.open(path, formats=FORMATS) as opened:
        if getattr(opened, "n_frames", 1) > 1:
            raise ValueError("several frames")
        upright = ImageOps.exif_transpose(opened)
        converted = (
            upright.convert("RGB") if colours else upright.convert("L") if grey and opened.mode in GREYED else upright
        )
        pixels, mode = np.asarray(converted), opened.mode
    if colours:
        pixels = pixels.astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
    elif pixels.ndim == 3 and mode in ("LA", "RGBA") and pixels[..., -1].min() < 255:
        raise ValueError(f"an image of mode {mode} with transparent pixels")
    elif pixels.ndim == 3 and mode in ("LA", "RGB", "RGBA") and _is_grey(pixels, mode):
        pixels = pixels[..., 0]  # ids that were saved as grey in several channels
    if pixels.ndim != 2 or pixels.dtype.kind not in "uib" or (pixels.dtype.kind == "i" and pixels.min() < 0):
        raise ValueError(f"an image of mode {mode}")
    return pixels


def count_pixels_of(pixels: Pixels) -> dict[int, int]:
    """The number of pixels of every value."""
    if pixels.dtype.itemsize <= 2:
        counts = np.bincount(pixels.ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, found = np.unique(pixels, return_counts=True)
    return dict(zip(values.tolist(), found.tolist(), strict=True))


def is_soft(pixels: Pixels) -> bool:
    """Whether a mask has two values and soft edges between them, from smoothing or from JPEG, instead of class ids.

    Areas of an id are flat; values between the two are not, and many different ones occur.
    """
    top = int(pixels.max())
    if pixels.dtype.kind == "b" or top < BRIGHT:
        return False
    values = pixels.astype(np.int64)
    between = (10 * values > top) & (values < top)
    middle = between & (10 * values < 9 * top)
    if len(np.unique(pixels)) < SOFT_VALUES or not between.any() or middle.mean() > MIDDLE:
        return False
    inner = between[:-1, :-1]
    flat = inner & (pixels[:-1, :-1] == pixels[1:, :-1]) & (pixels[:-1, :-1] == pixels[:-1, 1:])
    return int(flat.sum()) <= FLAT * max(int(inner.sum()), 1)


def paint(pixels: Pixels, names: Mapping[int, str | None]) -> Regions:
    """Regions of a mask whose values are named; None for values of which nothing is known.

    names: at most MOST_CLASSES different ones.
    """
    shown = sorted({name for name in names.values() if name is not None})
    classes = np.full(pixels.shape, IGNORE, np.uint8)
    for value, name in names.items():
        if name is not None:
            classes[pixels == value] = shown.index(name)
    return Regions.of(classes, shown)


def paint_classes(rows: list[Row], raw: Path, wanted: Wanted) -> tuple[list[Row], Counter[str]]:
    """Rows with a label and a mask, as regions: every pixel of the mask that is not 0 is of the class `label`.

    Also counts for the notes: masks with soft edges.

    Files are read in threads: Pillow and numpy release the GIL.
    """
    files, background = set(walk_files(raw)), (wanted.painting or Painting()).background
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        drawn = list(pool.map(lambda row: _paint_class(row, raw, files, background, wanted.rename), rows))
    return [row for row, _ in drawn], Counter(note for _, note in drawn if note)


def paint_masks(rows: list[Row], raw: Path, name: Callable[[Path, str], Regions | Reason]) -> list[Row]:
    """Rows with a mask, as regions: `name` returns those of a mask below raw/, or why it cannot be used."""
    files = set(walk_files(raw))

    def draw(row: Row) -> Row:
        if row.problem or row.mask is None:
            return row
        found = name(raw, row.mask) if row.mask in files else _no_mask(row.mask)
        return replace(row, problem=found) if isinstance(found, Reason) else replace(row, regions=found)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(draw, rows))


def _no_mask(mask: str) -> Reason:
    return Reason(f"its mask {mask}", "no such file", "Add the mask, or correct its name.")


def _paint_class(
    row: Row, raw: Path, files: Set[str], background: str | None, rename: Mapping[str, str]
) -> tuple[Row, str | None]:
    """The row with its regions, and a note where the mask has several values beside 0."""
    if row.problem or row.mask is None or row.label is None:
        return row, None
    found = read_shown(row, raw, files)
    if isinstance(found, Reason):
        return replace(row, problem=found), None
    masks, note = found
    shown = np.any(masks, axis=0)
    if shown.any() and rename.get(row.label, row.label) == background:
        expected = f"an empty mask, because {row.label!r} is the background"
        pixels = f"{np.count_nonzero(shown):,} pixels that are not 0 in {row.mask}"
        problem = Reason(expected, pixels, "Correct the mask, or move the picture to its class.")
        return replace(row, problem=problem), None
    return replace(row, regions=paint(shown, {0: background, 1: row.label})), note


def read_shown(row: Row, raw: Path, files: Set[str]) -> tuple[list[Mask], str | None] | Reason:
    """Where each mask of a row shows its class (H, W), and a note where one has several values beside 0; or why they
    cannot be used."""
    if row.mask not in files:
        return _no_mask(str(row.mask))
    read = [read_mask(raw, str(mask)) for mask in (row.mask, *row.further)]
    if problem := next((found for found in read if isinstance(found, Reason)), None) or _explain_sizes(row, read):
        return problem
    masks = [found for found in read if not isinstance(found, Reason)]
    soft = list(map(is_soft, masks))
    several = any(((mask != 0) & (mask != mask.max())).any() for mask in masks)
    note = CUT if any(soft) else SOFT if several else UNITED if row.further else None
    return [_cut(mask) if cut else mask != 0 for mask, cut in zip(masks, soft, strict=True)], note


def _cut(mask: Pixels) -> Mask:
    above: Mask = mask.astype(np.int64) > int(mask.max()) // 2
    return above


def _explain_sizes(row: Row, masks: list[Pixels | Reason]) -> Reason | None:
    """What is wrong with several masks of a picture that differ in size."""
    sizes = [" x ".join(map(str, mask.shape[::-1])) for mask in masks if not isinstance(mask, Reason)]
    if len(set(sizes)) < 2:
        return None
    return Reason("masks of one size", f"{', '.join(sizes[:4])} of {row.path}", "Export them at the image's size.")


def require_one_mask(rows: list[Row]) -> list[Row]:
    """Rows with a problem where several of them annotate one picture by different masks."""
    claims: dict[str, dict[str, None]] = {}
    for row in rows:
        claims.setdefault(row.path, {})[row.mask or "none"] = None
    hint = "Join the masks of a picture into one with a number per class (layout masks)."
    return [
        replace(row, regions=None, problem=Reason("one mask per picture", ", ".join(claims[row.path]), hint))
        if len(claims[row.path]) > 1 and not row.problem
        else row
        for row in rows
    ]


# Pictures without an annotation


def settle(reading: Reading, raw: Path, painting: Painting) -> Reading:
    """Decide on the pictures of which the reader returned neither regions nor a problem, and count what was decided.

    Such a picture shows background alone where its label says so (the folder of sound pictures), or where the domain
    says it of all of them; else it is left out. A picture without any labelled pixel gets a problem.
    """
    rows, ignored, notes = list[Row](), dict(reading.ignored), Counter(reading.notes)
    for row in reading.rows:
        if row.problem is None and row.regions is None:
            decided = _decide(row, raw, painting)
            if decided.problem == UNANNOTATED:
                ignored[row.path] = str(UNANNOTATED)
                notes[LEFT_OUT] += 1
                continue
            notes[AS_BACKGROUND] += decided.problem is None and row.label is None
        else:
            decided = row if row.problem else _require_labelled(row)
            if decided.regions and decided.regions.shown == [painting.background]:
                notes[SHOWS_NOTHING] += 1
        rows.append(decided)
    return Reading(rows, ignored, dict(+notes))


def _decide(row: Row, raw: Path, painting: Painting) -> Row:
    """A row without annotation as background, or with a problem."""
    background = painting.background
    sound = row.label is not None and row.label == background
    if background is None or not (sound or painting.unannotated == "background"):
        return replace(row, problem=UNANNOTATED)
    if row.label is not None and not sound:
        expected, hint = f"a mask that shows where {row.label!r} is", "Add it, or remove the picture."
        return replace(row, problem=Reason(expected, "none", hint))
    if (size := read_size(raw / row.path)) is None:
        problem = Reason("an image that can be decoded", "a file without a size", "Export it again, or remove it.")
        return replace(row, problem=problem)
    return replace(row, regions=Regions.of(np.zeros(size[::-1], np.uint8), [background]))


def _require_labelled(row: Row) -> Row:
    if row.regions is None or row.regions.shown:
        return row
    hint = "Annotate it, or say in domain.yaml what pixels without annotation show (the task's option `background`)."
    return replace(row, problem=Reason("at least one labelled pixel", "none: every pixel is to be ignored", hint))


def _is_grey(pixels: Pixels, mode: str) -> bool:
    return mode == "LA" or bool((pixels[..., :3] == pixels[..., :1]).all())
