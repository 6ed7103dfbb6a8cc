"""Colours of classes, which pictures, masks and drawings share, and class maps drawn over their pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.records.maps import IGNORE, ClassMap

#: Okabe and Ito's colours, which people with any colour vision tell apart.
PALETTE = ("#D55E00", "#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#009E73", "#F0E442")
BLACK, GREY = (0, 0, 0), (128, 128, 128)
STRENGTH = 0.45  # of a class's colour over the picture
STEPS = (1.0, 0.65, 0.4)  # of brightness, for classes beyond the palette

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
