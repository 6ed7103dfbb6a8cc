"""Masks to rows: instance ids give crops, semantic masks the labels of pictures; both give regions or boxes, too."""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.data.annotations.crops import draw_background, find_boxes, read_ids, square_around
from components.data.annotations.guessing import refuse_layout, require_folder
from components.data.annotations.mask_boxes import APART, box_instances, box_object_masks, box_regions
from components.data.annotations.regions import Pixels, count_pixels_of, paint, read_mask, read_values
from components.data.annotations.tree import (
    Index,
    bare_stem,
    cut_ending,
    cut_words,
    find_masks_beside,
    stem_of,
    walk_files,
)
from components.data.manifest import Reading, Row, Wanted, find_digest
from components.data.sources.images import UNDECODABLE, brief
from components.data.sources.names import SUFFIXES
from components.domain.layouts import Instances, Masks, Table
from components.records.maps import MOST_CLASSES, Regions
from components.records.reasons import Reason

THRESHOLD = "masks with values between the two, cut at `threshold`"


def read_instances(layout: Instances, raw: Path, wanted: Wanted) -> Reading:
    """One row per instance, and as many rows of background, cropped as squares. The id mask is the mask of each row.

    With regions or boxes wanted, a row is a picture: all its instances are of one class. Where the folder of pictures
    holds one picture and no mask has its name, the masks are its objects, one per file.
    """
    pictures, index = _pair(raw, layout, layout.images, layout.instances, "id masks")
    objects = sorted(index.files) if len(pictures) == 1 and not index.find_mask(pictures[0]) else []
    if objects:
        return Reading(_object_rows(pictures[0], objects, layout, raw, wanted))
    if (painting := wanted.painting) is not None:
        names = {0: painting.background, 1: layout.label}
        rows = _read_all(lambda path: [_paint_row(path, raw, index, lambda ids, _: paint(ids != 0, names))], pictures)
        return Reading(rows + _without_picture(pictures, index))
    if wanted.boxed:
        apart = list[int]()
        rows = _read_all(lambda path: [_boxed_row(path, layout, raw, index, apart)], pictures)
        return Reading(rows + _without_picture(pictures, index), notes={APART: sum(apart)} if sum(apart) else {})
    return Reading(_read_all(lambda path: _instance_rows(path, layout, raw, index, wanted), pictures))


def _object_rows(path: str, masks: list[str], layout: Instances, raw: Path, wanted: Wanted) -> list[Row]:
    """The rows of a picture with one mask per object; where objects overlap, the later one counts."""
    if wanted.boxed:
        return [box_object_masks(Row(path=path, mask=masks[0], further=masks[1:]), layout.label, raw, wanted)]
    ids = np.zeros((0, 0), np.int64)
    for number, mask in enumerate(masks, 1):
        pixels = read_mask(raw, mask)
        if isinstance(pixels, Reason):
            return [Row(path=path, mask=masks[0], further=masks[1:], problem=pixels)]
        ids = ids if ids.size else np.zeros(pixels.shape, np.int64)
        if pixels.shape != ids.shape:
            size = " x ".join(map(str, pixels.shape[::-1]))
            expected = f"masks of one size, {ids.shape[1]} x {ids.shape[0]} pixels as {masks[0]}"
            problem = Reason(expected, f"{size} in {mask}", "Export the mask again at the image's size.")
            return [Row(path=path, mask=masks[0], further=masks[1:], problem=problem)]
        ids[pixels != 0] = number
    if (painting := wanted.painting) is None:
        return [replace(row, further=masks[1:]) for row in _cut_instances(path, masks[0], ids, layout, raw, wanted)]
    regions = paint(ids != 0, {0: painting.background, 1: layout.label})
    return [Row(path=path, mask=masks[0], further=masks[1:], regions=regions)]


def read_masks(layout: Masks, raw: Path, wanted: Wanted) -> Reading:
    """One row per picture with the class that its mask shows (multilabel: all classes).

    With regions wanted, the row has the class of every pixel; with boxes wanted, a box around each connected component.
    A mask without a picture gives a row with a problem.
    """
    pictures, index = _pair(raw, layout, layout.images, layout.masks, "masks")
    soft, notes = list[str](), Counter[str]()
    if (painting := wanted.painting) is not None:
        rows = _read_all(lambda path: [_region_row(path, layout, raw, index, painting.background, soft)], pictures)
    elif wanted.boxed:
        rows = _read_all(lambda path: [_region_row(path, layout, raw, index, None, soft)], pictures)
        rows, counts = box_regions(rows, layout.background)
        notes.update(counts)
    else:
        rows = _read_all(lambda path: [_mask_row(path, layout, raw, index, wanted)], pictures)
    notes[THRESHOLD] += len(soft)
    return Reading(rows + _without_picture(pictures, index), notes=dict(+notes))


def _pair(raw: Path, layout: Instances | Masks, images: str, masks: str, what: str) -> tuple[list[str], Index]:
    """Pictures, and an index of their masks."""
    base, other = require_folder(raw, images, layout), require_folder(raw, masks, layout)
    pictures = [path for path in walk_files(raw, base) if path.lower().endswith(SUFFIXES)]
    masked = [path for path in walk_files(raw, other) if path.lower().endswith(SUFFIXES)]
    suffix = layout.suffix if isinstance(layout, Masks) else None
    if suffix is not None:
        index = Index([path for path in masked if cut_ending(path, suffix) is not None], other, suffix)
        stems = {stem_of(path) for path in pictures}  # `a_2nd.png` beside `a.jpg` is no picture either
        pictures = [p for p in pictures if base != other or not stems & set(cut_words(stem_of(p)))]
    else:
        index = Index(find_masks_beside(masked) if base == other else masked, other)
    pictures = [path for path in pictures if path not in index.files]
    if not pictures or not index.files:
        refuse_layout(raw, layout, f"images in {images!r} and {what} in {masks!r}", "none")
    return pictures, index


def _without_picture(pictures: list[str], index: Index) -> list[Row]:
    """A row with a problem for every mask that belongs to no picture."""
    problem = Reason("a picture of the same name as the mask", "none", "Add the picture, or remove the mask.")
    if index.suffix is None:
        stems = {stem_of(path) for path in pictures}
        alone = frozenset(path for path in index.files if not {stem_of(path), bare_stem(path)} & stems)
    else:
        alone = index.files - {mask for path in pictures for mask in index.find_mask(path)}
    return [Row(path=path, problem=problem) for path in sorted(alone)]


def _read_all(read: Callable[[str], list[Row]], paths: Iterable[str]) -> list[Row]:
    """Read files in threads, and return the rows in the order of `paths`: Pillow and numpy release the GIL."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [row for rows in pool.map(read, paths) for row in rows]


def _no_mask(path: str, found: list[str], what: str) -> Row:
    hint = f"Add the {what}, or remove the picture."
    return Row(path=path, problem=Reason(f"one {what} of the same name", ", ".join(found[:4]) or "none", hint))


def _instance_rows(path: str, layout: Instances, raw: Path, index: Index, wanted: Wanted) -> list[Row]:
    found = index.find_mask(path)
    if len(found) != 1:
        return [_no_mask(path, found, "id mask")]
    try:
        _require_lossless(found[0])
        ids = read_ids(raw / found[0])
    except (Image.DecompressionBombError, *UNDECODABLE) as error:
        hint = "Save instance ids as one 8- or 16-bit channel, 0 = background."
        return [Row(path=path, problem=Reason(f"an id mask {found[0]}", brief(error), hint))]
    return _cut_instances(path, found[0], ids, layout, raw, wanted)


def _cut_instances(
    path: str, mask: str, ids: NDArray[np.int64], layout: Instances, raw: Path, wanted: Wanted
) -> list[Row]:
    around = (square_around(box, ids.shape[1], ids.shape[0]) for box in find_boxes(ids))
    squares = list(dict.fromkeys(around))  # two instances with the same square are one crop
    seed = find_digest(raw, path, wanted.digests) or "0"
    empty = draw_background(ids, [x1 - x0 for x0, _, x1, _ in squares], seed)
    labelled = [(layout.label, crop) for crop in squares] + [(layout.background, crop) for crop in empty]
    return [Row(path=path, label=label, mask=mask, crop=crop) for label, crop in labelled]


def _boxed_row(path: str, layout: Instances, raw: Path, index: Index, apart: list[int]) -> Row:
    """A row with the box of every instance. apart: receives the number of those of several parts."""
    found = index.find_mask(path)
    if len(found) > 1:
        return _no_mask(path, found, "id mask")
    if not found:
        return Row(path=path)
    ids = read_mask(raw, found[0])
    if isinstance(ids, Reason):
        return Row(path=path, mask=found[0], problem=ids)
    row, parts = box_instances(Row(path=path, mask=found[0]), ids, layout.label)
    apart.append(parts)
    return row


def _require_lossless(path: str) -> None:
    """Raise ValueError for a mask in a format whose compression changes its values."""
    if path.lower().endswith((".jpg", ".jpeg")):
        raise ValueError("a JPEG, whose compression changes the numbers that were written")


# Semantic masks


def _mask_row(path: str, layout: Masks, raw: Path, index: Index, wanted: Wanted) -> Row:
    found = index.find_mask(path)
    if len(found) != 1:
        return _no_mask(path, found, "mask")
    try:
        _require_lossless(found[0])
        areas = count_values(raw / found[0], in_colour(layout))
    except (Image.DecompressionBombError, *UNDECODABLE) as error:
        hint = "Save it as PNG with one 8- or 16-bit channel of class ids, or with the colours given in `ids`."
        return Row(path=path, problem=Reason(f"a mask {found[0]}", brief(error), hint))
    names = {value: _name_of(value, layout, layout.background) for value in areas}
    if unknown := {value: areas[value] for value, name in names.items() if name is None}:
        problem = _explain_unknown(unknown, found[0], layout)
        return Row(path=path, mask=found[0], problem=problem)
    shown: dict[str, int] = {}
    for value, name in names.items():
        if name and name != layout.background:
            shown[name] = shown.get(name, 0) + areas[value]
    if wanted.many:
        return Row(path=path, labels=sorted(shown), mask=found[0])
    if len(shown) > 1:
        several = ", ".join(
            f"{name} ({area:,} pixels)" for name, area in sorted(shown.items(), key=lambda item: -item[1])
        )
        hint = "Choose the task multilabel, or take the others out of the mask."
        problem = Reason(f"one class in the mask {found[0]}", several, hint)
        return Row(path=path, mask=found[0], problem=problem, several=True)
    return Row(path=path, label=next(iter(shown), layout.background), mask=found[0])


def _region_row(path: str, layout: Masks, raw: Path, index: Index, background: str | None, soft: list[str]) -> Row:
    """A row with the class of every pixel. soft: receives the masks that `threshold` changes."""

    def name(pixels: Pixels, mask: str) -> Regions | Reason:
        if layout.threshold is None:
            return name_values(pixels, mask, layout, background)
        top = next(iter(layout.ids.values()))
        shown = np.where(pixels.astype(np.int64) >= layout.threshold, top, 0)
        if ((pixels != shown) & (pixels != pixels.max())).any():
            soft.append(mask)
        return name_values(shown, mask, layout, background)

    return _paint_row(path, raw, index, name, colours=in_colour(layout), grey=layout.threshold is not None)


def _paint_row(
    path: str,
    raw: Path,
    index: Index,
    name: Callable[[Pixels, str], Regions | Reason],
    *,
    colours: bool = False,
    grey: bool = False,
) -> Row:
    """The row of a picture and its mask, whose values `name` turns into regions; without a mask, only the picture."""
    found = index.find_mask(path)
    if not found:
        return Row(path=path)
    if len(found) > 1:
        return _no_mask(path, found, "mask")
    pixels = read_mask(raw, found[0], colours=colours, grey=grey)
    named = pixels if isinstance(pixels, Reason) else name(pixels, found[0])
    if isinstance(named, Reason):
        return Row(path=path, mask=found[0], problem=named)
    return Row(path=path, mask=found[0], regions=named)


def name_values(pixels: Pixels, mask: str, layout: Masks | Table, background: str | None) -> Regions | Reason:
    """The regions of a mask whose values `ids` and `ignore` of the layout name, or why it cannot be used."""
    areas = count_pixels_of(pixels)
    names = {value: _name_of(value, layout, background) for value in areas}
    if unknown := {value: areas[value] for value, name in names.items() if name is None}:
        return _explain_unknown(unknown, mask, layout)
    if len(names) > MOST_CLASSES:
        hint = "Masks with a number per object are the layout instances; soft edges must be 0 or 255."
        return Reason(f"at most {MOST_CLASSES} classes in the mask {mask}", f"{len(names)} values", hint)
    return paint(pixels, {value: name or None for value, name in names.items()})


def count_values(path: Path, colours: bool) -> dict[int, int]:
    """The number of pixels of every class id in a mask, or of every colour as 0xRRGGBB.

    Raises ValueError for an image whose mode cannot hold ids or colours.
    """
    return count_pixels_of(read_values(path, colours))


def in_colour(layout: Masks | Table) -> bool:
    return any(isinstance(value, str) for value in layout.ids.values())


def _number(value: int | str) -> int:
    return int(value.removeprefix("#"), 16) if isinstance(value, str) else value


def _name_of(value: int, layout: Masks | Table, background: str | None) -> str | None:
    """The class of a value; "" for a value to be ignored, None for a value that is not declared.

    background: the class of 0 where `ids` says nothing else; None: 0 is ignored.
    """
    if value in map(_number, layout.ignore):
        return ""
    names = {_number(number): name for name, number in layout.ids.items()}
    if value in names:
        return names[value]
    if value == 0 and background not in layout.ids:
        return background or ""
    return None if layout.ids else f"class_{value}"


def _explain_unknown(unknown: dict[int, int], mask: str, layout: Masks | Table) -> Reason:
    form = "#{:06x}" if in_colour(layout) else "{}"
    most = sorted(unknown.items(), key=lambda item: (-item[1], item[0]))[:4]
    listed = ", ".join(f"{form.format(value)} ({area:,} pixels)" for value, area in most)
    more = f" and {len(unknown) - 4} more values" if len(unknown) > 4 else ""
    hint = "Add the value to `ids` or `ignore` in domain.yaml, or correct the mask (JPEG changes colours: use PNG)."
    return Reason(f"the values of `ids` in the mask {mask}", listed + more, hint)
