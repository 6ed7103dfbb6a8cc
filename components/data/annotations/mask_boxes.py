"""Masks to labelled boxes: one around each connected component of a class, and one around each instance id."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from components.data.annotations.objects import BoxMark, place_boxes
from components.data.annotations.regions import Pixels, read_mask, read_shown
from components.data.annotations.tree import walk_files
from components.data.manifest import Row, Wanted
from components.records.boxes import LabelledBox
from components.records.fields import Corners
from components.records.maps import decode_map
from components.records.objects import Component, find_components
from components.records.reasons import Reason

SPECK = 5  # pixels
SPECKS = f"connected components of fewer than {SPECK} pixels, which are objects, but may be specks in a mask"
APART = "instances of several parts, whose box is around all of them"


def box_classes(rows: Sequence[Row], raw: Path) -> tuple[list[Row], Mapping[str, int]]:
    """Rows with a label and perhaps a mask, as objects, and counts for the notes.

    Each connected component of what a mask shows is an object of the label. A picture without a mask shows none, if no
    picture of its label has one; else it has a problem.
    """
    files, masked = set(walk_files(raw)), {row.label for row in rows if row.mask}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        drawn = list(pool.map(lambda row: _box_class(row, raw, files, masked), rows))
    return [row for row, _ in drawn], sum((counts for _, counts in drawn), Counter[str]())


def _box_class(row: Row, raw: Path, files: Set[str], masked: Set[str | None]) -> tuple[Row, Counter[str]]:
    label, row = str(row.label), replace(row, label=None)
    if row.problem:
        return row, Counter()
    if row.mask is None:
        expected, hint = f"a mask that shows where {label!r} is", "Add it, or remove the picture."
        problem = Reason(expected, "none", hint) if label in masked else None
        return replace(row, objects=None if problem else (), problem=problem), Counter()
    found = read_shown(row, raw, files)
    if isinstance(found, Reason):
        return replace(row, problem=found), Counter()
    masks, note = found
    components = [each for mask in masks for each in find_components(mask.astype(np.uint8), 1)]
    notes = Counter({note: 1} if note else {}) + _count_specks(components)
    return replace(row, objects=[LabelledBox(label, _box_of(each)) for each in components]), notes


def box_regions(rows: Sequence[Row], background: str) -> tuple[list[Row], Mapping[str, int]]:
    """Rows with regions, as objects, and counts for the notes: the connected components of each class but the
    background."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        drawn = list(pool.map(lambda row: _box_regions(row, background), rows))
    return [row for row, _ in drawn], sum((counts for _, counts in drawn), Counter[str]())


def _box_regions(row: Row, background: str) -> tuple[Row, Counter[str]]:
    if row.regions is None:
        return row, Counter()
    classes, names = decode_map(row.regions.data), row.regions.names
    numbers = [number for number, name in enumerate(names) if name != background]
    found = [(names[number], each) for number in numbers for each in find_components(classes, number)]
    objects = [LabelledBox(name, _box_of(each)) for name, each in found]
    return replace(row, regions=None, objects=objects), _count_specks([each for _, each in found])


def _count_specks(components: Sequence[Component]) -> Counter[str]:
    return +Counter({SPECKS: sum(each.area < SPECK for each in components)})


def _box_of(component: Component) -> Corners:
    x0, y0, x1, y1 = map(float, component.box)
    return x0, y0, x1, y1


def box_instances(row: Row, ids: Pixels, label: str) -> tuple[Row, int]:
    """The row with an object per id of a mask (H, W), and how many of them consist of several parts."""
    from scipy import ndimage  # takes a tenth of a second, which `tessera --help` need not wait for

    found, numbers = np.unique(ids, return_inverse=True)
    numbers = numbers.reshape(ids.shape) + (found[0] != 0)  # 0 stays 0: the background
    objects, apart = list[LabelledBox](), 0
    for number, (ys, xs) in enumerate(ndimage.find_objects(numbers), 1):
        objects.append(LabelledBox(label, (float(xs.start), float(ys.start), float(xs.stop), float(ys.stop))))
        apart += ndimage.label(numbers[ys, xs] == number, np.ones((3, 3)))[1] > 1
    return replace(row, objects=objects), apart


def box_object_masks(row: Row, label: str, raw: Path, wanted: Wanted) -> Row:
    """The row of a picture with one mask per object."""
    marks, sizes = list[BoxMark](), set[tuple[int, ...]]()
    for mask in (str(row.mask), *row.further):
        pixels = read_mask(raw, mask)
        if isinstance(pixels, Reason):
            return replace(row, problem=pixels)
        sizes.add(pixels.shape[::-1])
        ys, xs = np.nonzero(pixels)
        if not len(ys):
            return replace(row, problem=Reason(f"an object in the mask {mask}", "no pixel", "Remove the mask."))
        box = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        marks.append(BoxMark(label, (*map(float, box),), mask))  # type: ignore[arg-type]
    if len(sizes) > 1:
        listed = " and ".join(" x ".join(map(str, size)) for size in sorted(sizes))
        return replace(row, problem=Reason("masks of one size", listed, "Export them at the image's size."))
    width, height = sizes.pop()
    return place_boxes(replace(row, stated_size=(width, height)), marks, raw, wanted)[0]
