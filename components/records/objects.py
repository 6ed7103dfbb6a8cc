"""Objects of a class map: its connected components, and their masks as COCO's run lengths (RLE).

RLE counts pixels column by column: alternating runs of 0 and 1, beginning with 0. COCO stores the counts as a list, or
compressed into text: five bits per character, the lowest first, from the third count on as differences to the count
before the last one. Both are read and written here bit for bit as pycocotools does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.records.maps import ClassMap

Mask = NDArray[np.bool_]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Component:
    """A connected component. box: x0, y0, x1, y1, ends exclusive. area: pixels. mask: (h, w) inside the box."""

    box: tuple[int, int, int, int]
    area: int
    mask: Mask


def find_components(classes: ClassMap, number: int) -> list[Component]:
    """The 8-connected components of one class in a map (H, W), in the order of their first pixels, row by row."""
    from scipy import ndimage  # takes a tenth of a second, which `tessera --help` need not wait for

    labelled, found = ndimage.label(classes == number, np.ones((3, 3)))
    areas = np.bincount(labelled.reshape(-1), minlength=found + 1)
    return [
        Component((xs.start, ys.start, xs.stop, ys.stop), int(areas[place]), labelled[ys, xs] == place)
        for place, (ys, xs) in enumerate(ndimage.find_objects(labelled), 1)
    ]


# Run lengths


def encode_rle(mask: Mask, place: tuple[int, int] = (0, 0), size: tuple[int, int] | None = None) -> dict[str, Any]:
    """`{"size": [height, width], "counts": text}` of a mask (h, w).

    place: x and y of the mask's corner in a picture of `size` (width, height); by default the mask is the picture.
    """
    counts, height, width = _count_runs(mask, place, size)
    return {"size": [height, width], "counts": _pack_counts(counts)}


def decode_rle(rle: Mapping[str, Any]) -> Mask:
    """(height, width) of a run-length mask, compressed or not. Raises ValueError for anything else."""
    height, width = read_rle_size(rle)
    counts = read_counts(rle)
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    mask: Mask = flat.reshape(width, height).T
    return mask


def read_rle_size(rle: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width that a run-length mask states. Raises ValueError if it states none."""
    size = rle.get("size")
    if isinstance(size, Sequence) and len(size) == 2 and all(type(side) is int and 0 < side < 10**6 for side in size):
        return size[0], size[1]
    raise ValueError(f"a run-length mask of size {size!r:.40}")


def read_counts(rle: Mapping[str, Any]) -> Counts:
    """The lengths of the runs, which fill the mask. Raises ValueError where they do not."""
    height, width = read_rle_size(rle)
    counts = rle.get("counts")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    counts = _unpack_counts(counts) if isinstance(counts, str) else counts
    if not isinstance(counts, list) or not all(type(count) is int and 0 <= count < 2**40 for count in counts):
        raise ValueError("a run-length mask whose counts are not whole numbers")
    if (pixels := sum(counts)) != height * width:
        raise ValueError(f"a run-length mask of {pixels:,} pixels, not {width} x {height}")
    return np.array(counts, np.int64)


def _count_runs(mask: Mask, place: tuple[int, int], size: tuple[int, int] | None) -> tuple[Counts, int, int]:
    """The run lengths of the picture, and its height and width."""
    width, height = size or mask.shape[::-1]
    columns = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)
    columns[:, 1:-1] = mask.T
    change = np.diff(columns, axis=1)  # 1 where a run begins, -1 behind its end
    begins, ends = (
        (column + place[0]) * height + row + place[1]
        for column, row in (np.nonzero(change == step) for step in (1, -1))
    )
    apart = begins[1:] != ends[:-1]  # a run that goes on at the top of the next column is one run
    begins, ends = begins[np.r_[True, apart][: len(begins)]], ends[np.r_[apart, True][: len(ends)]]
    edges = np.stack([begins, ends], axis=1).reshape(-1)
    counts = np.diff(np.concatenate([[0], edges, [height * width]]))
    return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts, height, width


def _pack_counts(counts: Counts) -> str:
    listed = counts.tolist()
    text = []
    for place, count in enumerate(listed):
        value, more = count - (listed[place - 2] if place > 2 else 0), True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text.append(chr(48 + bits + 32 * more))
    return "".join(text)


def _unpack_counts(text: str) -> list[int] | None:
    """The counts of a compressed run-length mask; None if the text is invalid."""
    counts, value, shift = list[int](), 0, 0
    for sign in text:
        code = ord(sign) - 48
        if not 0 <= code < 64 or shift > 40:
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) and 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    return None if shift else counts
