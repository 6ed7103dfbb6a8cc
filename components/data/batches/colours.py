"""Colours of classes, which pictures, masks and drawings share, and class maps and boxes drawn over their pictures."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from components.records.boxes import LabelledBox
from components.records.maps import IGNORE, ClassMap

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

#: Okabe and Ito's colours, which people with any colour vision tell apart.
PALETTE = ("#D55E00", "#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#009E73", "#F0E442")
BLACK, GREY = (0, 0, 0), (128, 128, 128)
STRENGTH = 0.45  # of a class's colour over the picture
STEPS = (1.0, 0.65, 0.4)  # of brightness, for classes beyond the palette
HALO = 0.35  # of the picture's brightness on both sides of a box's outline, which is then visible on any picture
SIDE_PER_LINE = 400  # an outline is a pixel wide per so many pixels of the picture's longer side
DASHES = 8  # colour and gap of a dashed outline, in its widths
SMALLEST_TEXT = 11  # pixels

Colour = tuple[int, int, int]


def choose_colours(names: Sequence[str], background: str | None) -> dict[str, Colour]:
    """A colour per class: the background is black, the others take the palette's in their order."""
    others = [name for name in names if name != background]
    return {name: BLACK for name in names if name == background} | {
        name: _colour(place) for place, name in enumerate(others)
    }


def paint_map(classes: ClassMap, names: Sequence[str], background: str | None) -> NDArray[np.uint8]:
    """A class map (H, W) in colours (H, W, 3); pixels to ignore are grey."""
    colours = choose_colours(names, background)
    table = np.full((IGNORE + 1, 3), GREY, np.uint8)
    table[: len(names)] = [colours[name] for name in names]
    painted: NDArray[np.uint8] = table[classes]
    return painted


def draw_over(
    image: NDArray[np.uint8], classes: ClassMap, names: Sequence[str], background: str | None
) -> NDArray[np.uint8]:
    """The picture (H, W, 3) with each class in its colour over it, outlined; the background stays as it is.

    Pixels to ignore are hatched, light on dark and dark on light: a grey would vanish in a grey picture.
    """
    drawn = image.astype(np.float32)
    colours = paint_map(classes, names, background).astype(np.float32)
    diagonals = np.add.outer(np.arange(classes.shape[0]), np.arange(classes.shape[1]))
    covered = np.isin(classes, [k for k, name in enumerate(names) if name != background])
    hatched = (classes == IGNORE) & (diagonals // 3 % 3 == 0)
    colours[hatched] = np.where(image[hatched].mean(axis=-1, keepdims=True) <= GREY[0], 255, 0)
    for where, strength in ((covered, STRENGTH), (hatched, STRENGTH), (covered & _is_edge(classes), 1.0)):
        drawn[where] += strength * (colours[where] - drawn[where])
    return drawn.round().astype(np.uint8)


def draw_boxes(
    image: NDArray[np.uint8], boxes: Sequence[LabelledBox], names: Sequence[str], texts: Sequence[str] = ()
) -> NDArray[np.uint8]:
    """The picture (H, W, 3) with the outlines of boxes, each in the colour of its label, between two darker lines.

    The outlines of boxes that are ignored (difficult ones and crowds) are dashed. The largest box is drawn first, so
    that small ones stay visible.

    names: the classes, in the order of their colours. texts: one per box, written above it; none where left out.

    Raises KeyError for a label that is not in `names`.
    """
    if not boxes:
        return image
    colours, width = choose_colours(names, None), max(1, round(max(image.shape[:2]) / SIDE_PER_LINE))
    order = sorted(range(len(boxes)), key=lambda place: -_measure(boxes[place]))
    picture = Image.fromarray(_darken(image, boxes, width))
    draw = ImageDraw.Draw(picture)
    for place in order:
        _draw_outline(draw, boxes[place], colours[boxes[place].label], width)
    for place in order if texts else ():
        if texts[place]:
            _write_text(draw, boxes[place], texts[place], colours[boxes[place].label], width)
    return np.asarray(picture)


def _darken(image: NDArray[np.uint8], boxes: Sequence[LabelledBox], width: int) -> NDArray[np.uint8]:
    """The picture, darker along the outlines of all boxes."""
    along, halo = Image.new("1", (image.shape[1], image.shape[0])), max(1, width // 2)
    draw = ImageDraw.Draw(along)
    for x0, y0, x1, y1 in map(_to_pixels, boxes):
        around = (x0 - halo, y0 - halo, x1 + halo, y1 + halo)
        draw.rectangle(around, outline=1, width=min(width + 2 * halo, _half(around)))
    darker: NDArray[np.uint8] = np.where(np.asarray(along)[..., None], image * HALO, image).astype(np.uint8)
    return darker


def _draw_outline(draw: ImageDraw.ImageDraw, one: LabelledBox, colour: Colour, width: int) -> None:
    """One box, whose line of `width` pixels ends at the box's own edge."""
    x0, y0, x1, y1 = _to_pixels(one)
    thin = min(width, _half((x0, y0, x1, y1)))
    if one.kind == "object":
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=thin)
        return
    step = DASHES * width
    for start in range(x0, x1 + 1, step):
        for top in (y0, y1 - thin + 1):
            draw.rectangle((start, top, min(start + step // 2, x1 + 1) - 1, top + thin - 1), fill=colour)
    for start in range(y0, y1 + 1, step):
        for left in (x0, x1 - thin + 1):
            draw.rectangle((left, start, left + thin - 1, min(start + step // 2, y1 + 1) - 1), fill=colour)


def _write_text(draw: ImageDraw.ImageDraw, one: LabelledBox, text: str, colour: Colour, width: int) -> None:
    """A line of text above a box, or inside it where the picture ends, on the box's colour."""
    font = _load_font(max(SMALLEST_TEXT, 6 * width))
    x0, y0, _, _ = _to_pixels(one)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    wide, high = round(right - left) + 4, round(bottom - top) + 4
    wholly = draw.im.size[0] - wide  # the last column from which the whole text is visible
    x, y = max(0, min(x0, wholly)), y0 - high if y0 >= high else y0
    draw.rectangle((x, y, x + wide - 1, y + high - 1), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > GREY[0]
    draw.text((x + 2 - left, y + 2 - top), text, fill=BLACK if bright else (255, 255, 255), font=font)


@lru_cache(maxsize=8)
def _load_font(size: int) -> "FreeTypeFont":
    """The font of the figures, which has the letters of more scripts than Pillow's own."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _to_pixels(one: LabelledBox) -> tuple[int, int, int, int]:
    """The first and last column and row of a box, at least one pixel."""
    x0, y0, x1, y1 = (round(value) for value in one.box)
    return x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)


def _half(corners: tuple[int, int, int, int]) -> int:
    """The widest line that a rectangle has room for."""
    x0, y0, x1, y1 = corners
    return max(1, (min(x1 - x0, y1 - y0) + 1) // 2)


def _measure(one: LabelledBox) -> float:
    x0, y0, x1, y1 = one.box
    return (x1 - x0) * (y1 - y0)


def _is_edge(classes: ClassMap) -> NDArray[np.bool_]:
    """(H, W) pixels with a neighbour of another class."""
    edge = np.zeros(classes.shape, np.bool_)
    down, right = classes[1:] != classes[:-1], classes[:, 1:] != classes[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def _colour(place: int) -> Colour:
    text, step = PALETTE[place % len(PALETTE)], STEPS[place // len(PALETTE) % len(STEPS)]
    red, green, blue = (round(step * int(text[k : k + 2], 16)) for k in (1, 3, 5))
    return red, green, blue


def to_matplotlib(colour: Colour) -> tuple[Any, ...]:
    """A colour as matplotlib wants it, from 0 to 1."""
    return tuple(channel / 255 for channel in colour)
