"""The canvas that every training image is put on: its size, and how a picture of another shape gets onto it.

img_size: 256            a square
img_size: [192, 448]     height and width
fit: letterbox           the picture keeps its aspect, and grey fills the rest
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

Fit = Literal["squash", "letterbox"]

SMALLEST, LARGEST = 16, 2048  # pixels of a side


class ImgSize(NamedTuple):
    """Height and width in pixels, in the order of an array's axes."""

    height: int
    width: int

    @staticmethod
    def of(size: int | Sequence[int]) -> "ImgSize":
        """One number is the side of a square. Raises ValueError for anything but one or two numbers."""
        if isinstance(size, int):
            return ImgSize(size, size)
        height, width = size
        return ImgSize(height, width)

    @property
    def is_square(self) -> bool:
        return self.height == self.width

    @property
    def plain(self) -> int | list[int]:
        """As it is written in YAML and JSON: one number where square."""
        return self.height if self.is_square else [self.height, self.width]

    def __str__(self) -> str:
        return str(self.height) if self.is_square else f"{self.height} x {self.width}"


def _read(value: Any) -> ImgSize:
    sides = [value] if not isinstance(value, list | tuple) else list(value)
    if len(sides) > 2 or not sides or any(type(side) is not int or side < 1 for side in sides):
        raise ValueError("a number of pixels, or [height, width]")
    return ImgSize(sides[0], sides[-1])


def _read_canvas(value: Any) -> ImgSize:
    size = _read(value)
    if not SMALLEST <= min(size) <= max(size) <= LARGEST:
        raise ValueError(f"sides of {SMALLEST} to {LARGEST} pixels")
    return size


def _describe(side: dict[str, int]) -> WithJsonSchema:
    number = {"type": "integer", **side}
    return WithJsonSchema({"anyOf": [number, {"type": "array", "items": number, "minItems": 2, "maxItems": 2}]})


_WRITTEN = PlainSerializer(lambda size: size.plain, when_used="json-unless-none")

#: An ImgSize in a record: one number in JSON where it is square, else [height, width].
Size = Annotated[ImgSize, PlainValidator(_read), _WRITTEN, _describe({"minimum": 1})]
#: An ImgSize that a domain may ask for.
CanvasSize = Annotated[
    ImgSize, PlainValidator(_read_canvas), _WRITTEN, _describe({"minimum": SMALLEST, "maximum": LARGEST})
]
