"""Class maps: which class every pixel of a picture belongs to, as one run-length encoded value of a table.

A class map is an array (height, width) uint8 of numbers of classes; IGNORE marks pixels of which nothing is known. It
is stored as `height, width` (little-endian uint32), the class of every run (uint8), and the length of every run
(uint32), row by row: the same map gives the same bytes on every machine, which no compressed image format promises.

A reader of annotations does not know the numbers of the classes. It returns `Regions`, numbered by its own list of
names, which `Regions.renumber` maps to the classes of the domain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ClassMap = NDArray[np.uint8]

IGNORE = 255
MOST_CLASSES = 255  # numbers 0 to 254
HEAD = 8  # bytes of height and width


def encode_map(classes: ClassMap) -> bytes:
    """(height, width) uint8 to bytes."""
    height, width = classes.shape
    flat = np.ascontiguousarray(classes, np.uint8).reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1]) if flat.size else np.zeros(0, np.int64)
    lengths = np.diff(starts, append=flat.size)
    shape = np.array([height, width], "<u4")
    return b"".join(part.tobytes() for part in (shape, flat[starts], lengths.astype("<u4")))


def decode_map(data: bytes) -> ClassMap:
    """Bytes to (height, width) uint8."""
    height, width = _read_shape(data)
    values, lengths = _read_runs(data)
    classes: ClassMap = np.repeat(values, lengths).reshape(height, width)
    return classes


def measure_map(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, as a picture's size is given."""
    height, width = _read_shape(data)
    return width, height


def count_pixels(data: bytes, classes: int) -> list[int]:
    """The number of pixels of each of so many classes; those to ignore are not counted."""
    values, lengths = _read_runs(data)
    counts = np.bincount(values, weights=lengths, minlength=IGNORE + 1)
    return [int(count) for count in counts[:classes]]


@dataclass(frozen=True)
class Regions:
    """What an annotation says of a picture's pixels. data: a class map whose numbers are places in `names`."""

    names: tuple[str, ...]
    data: bytes

    @staticmethod
    def of(classes: ClassMap, names: Sequence[str]) -> "Regions":
        return Regions(tuple(names), encode_map(classes))

    @property
    def shown(self) -> list[str]:
        """The names that occur, sorted."""
        values, _ = _read_runs(self.data)
        return sorted({self.names[value] for value in np.unique(values).tolist() if value != IGNORE})

    def rename(self, names: Mapping[str, str]) -> "Regions":
        """With other names; a name that is not among them stays."""
        return Regions(tuple(names.get(name, name) for name in self.names), self.data)

    def renumber(self, classes: Sequence[str]) -> bytes:
        """The class map by the numbers of `classes`. Raises KeyError for a name that occurs and is no class."""
        place = {name: number for number, name in enumerate(classes)}
        table = np.full(IGNORE + 1, IGNORE, np.uint8)
        values, _ = _read_runs(self.data)
        for value in np.unique(values).tolist():
            if value != IGNORE:
                table[value] = place[self.names[value]]
        return encode_map(table[decode_map(self.data)])  # runs of names that became one class are joined


@dataclass(frozen=True)
class Painting:
    """How the annotations of a picture become a class map.

    background: the class of pixels that no annotation covers (0 in a mask); None where nothing is known of them.
    unannotated: whether a picture without any annotation shows background alone, or is left out. overlap: which of two
    shapes that cover a pixel decides: the later one of the file, or the smaller one.
    """

    background: str | None = "background"
    unannotated: Literal["leave_out", "background"] = "leave_out"
    overlap: Literal["later", "smaller"] = "later"


def _read_shape(data: bytes) -> tuple[int, int]:
    height, width = np.frombuffer(data[:HEAD], "<u4").tolist()
    return height, width


def _read_runs(data: bytes) -> tuple[ClassMap, NDArray[np.uint32]]:
    """Class and length of every run."""
    runs = (len(data) - HEAD) // 5
    values = np.frombuffer(data, np.uint8, runs, HEAD)
    return values, np.frombuffer(data, "<u4", runs, HEAD + runs)
