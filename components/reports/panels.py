"""Sheets of pictures: one row per picture, several panels per row, all of which show the same part of the picture.

Where what matters in a picture is small, its panels enlarge a part, and a first panel frames it in the whole picture.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from components.data.batches.colours import Colour, to_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]

MOST = 8  # rows of a sheet
PANEL = 360  # pixels of the longer side of a panel
INCHES = 2.9  # width of a panel
LARGEST = 1600  # pixels of the longer side at which a huge picture is drawn, before it is shrunk to a panel
TALLEST, FLATTEST = 1.5, 0.4  # height of a row, by its width
LONGEST = 34  # characters of a line above a panel
MOST_NAMED = 12  # classes in a legend

#: What an answer is beside the truth, and its colour: told apart with any colour vision, and no class's.
DIFFERENCES = {
    "found": (60, 190, 80),
    "missed": (214, 30, 150),
    "false": (0, 240, 255),
    "other class": (255, 235, 60),
}


@dataclass(frozen=True)
class Mark:
    """A box to draw, in pixels of the picture. text: stands above it."""

    box: tuple[float, float, float, float]
    colour: Colour
    text: str = ""
    style: Literal["solid", "dashed", "hatched"] = "solid"


@dataclass(frozen=True)
class View:
    """A picture at full size. window: the part that its panels show; None where they show the whole."""

    image: Image.Image
    window: Box | None

    @property
    def box(self) -> Box:
        """What its panels show."""
        return self.window or (0, 0, *self.image.size)

    @property
    def shape(self) -> float:
        """Height by width of its panels, within what a row may be."""
        x0, y0, x1, y1 = self.box
        return min(max((y1 - y0) / (x1 - x0), FLATTEST), TALLEST)

    @property
    def scale(self) -> float:
        """Drawn pixels per pixel of the picture: small parts are enlarged by a whole number, huge ones shrunk."""
        x0, y0, x1, y1 = self.box
        longest = max(x1 - x0, y1 - y0)
        return max(1, PANEL // longest) if longest <= LARGEST else LARGEST / longest

    def cut(self) -> Pixels:
        """(H, W, 3) what its panels show, at `scale`."""
        x0, y0, x1, y1 = self.box
        size = max(1, round(self.scale * (x1 - x0))), max(1, round(self.scale * (y1 - y0)))
        kind = Image.Resampling.NEAREST if self.scale >= 1 else Image.Resampling.BOX
        return np.asarray(self.image.crop(self.box).resize(size, kind))


def rank_rows(ranked: pl.DataFrame, most: int) -> pl.DataFrame:
    """At most so many rows with a column `rank`: the first ones, then the median and the last where not all fit.

    The last two say what is usual: a sheet of the worst alone looks alike for a good and for a bad model.
    ranked: the worst first.
    """
    count = ranked.height
    places = list(range(count)) if count <= most else [*range(most - 2), max(count // 2, most - 2), count - 1]
    names = [f"{place + 1} of {count}" for place in places]
    if count > most:
        names[-2:] = ["median", "best"]
    if names:
        names[0] = "worst" if count > 1 else names[0]
    return ranked[places].with_columns(rank=pl.Series(names, dtype=pl.String))


def centre_window(x: float, y: float, side: int, size: tuple[int, int]) -> Box | None:
    """A square around a place, moved and cut to lie within the picture; None where it would show more than half of it.

    size: width and height of the picture.
    """
    width, height = size
    wide, high = min(side, width), min(side, height)
    if wide * high > 0.5 * width * height:
        return None
    left = min(max(math.floor(x - wide / 2), 0), width - wide)
    top = min(max(math.floor(y - high / 2), 0), height - high)
    return left, top, left + wide, top + high


def create_sheet(views: Sequence[View], columns: int, title: str) -> "tuple[Figure, list[list[Axes]]]":
    """A figure with so many panels per picture; the first column, for `draw_place`, is added where any is enlarged.

    Returns the panels of each row, without the first column, which is drawn.
    """
    from matplotlib.figure import Figure

    located = any(view.window for view in views)
    heights = [INCHES * view.shape + 0.5 for view in views] or [1.0]
    figure = Figure(figsize=(INCHES * (columns + located), sum(heights) + 1.1), layout="constrained")
    figure.suptitle(title, fontsize=11, parse_math=False)
    grid = figure.subplots(len(heights), columns + located, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.set_axis_off()
    if located:
        for line, view in zip(grid, views, strict=False):
            _draw_place(line[0], view)
    return figure, [list(line[int(located) :]) for line in grid[: len(views)]]


def _draw_place(axes: "Axes", view: View) -> None:
    """The whole picture with a frame around what is enlarged; nothing where the panels show the whole."""
    from matplotlib.patches import Rectangle

    if view.window is None:
        return
    x0, y0, x1, y1 = view.window
    picture = view.image.copy()
    picture.thumbnail((PANEL, PANEL))
    width, height = view.image.size
    axes.imshow(np.asarray(picture), extent=(0, width, height, 0))
    for colour, line in (("black", 3.0), ("white", 1.2)):
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=line))
    axes.set_title(f"enlarged: {x1 - x0} x {y1 - y0} of {width} x {height} px", fontsize=8, loc="left")


def draw_marks(axes: "Axes", view: View, marks: Sequence[Mark], *, grey: bool = False) -> None:
    """A panel of boxes over the picture, which is in colour or in grey; the large ones are drawn first.

    Lines and texts are as thick and as large whatever part of the picture the panel shows.
    """
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, withStroke

    x0, y0, x1, y1 = view.box
    picture = shrink(view.cut())
    if grey:
        picture = np.repeat((48 + 0.75 * picture.mean(axis=2, keepdims=True)).astype(np.uint8), 3, axis=2)
    axes.imshow(picture, extent=(x0, x1, y1, y0), interpolation="nearest")
    for mark in sorted(marks, key=lambda mark: -(mark.box[2] - mark.box[0]) * (mark.box[3] - mark.box[1])):
        left, top, right, bottom = mark.box
        colour, halo = to_matplotlib(mark.colour), [withStroke(linewidth=2.8, foreground="black", alpha=0.55), Normal()]
        style: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": 1.4, "clip_on": True}
        if mark.style == "hatched":
            style |= {"hatch": "////", "linewidth": 0.6}
        elif mark.style == "dashed":
            style |= {"linestyle": (0, (3, 1.5))}
        patch = Rectangle((left, top), right - left, bottom - top, **style)
        patch.set_path_effects(halo if mark.style != "hatched" else [])
        axes.add_patch(patch)
        if mark.text and x0 <= left <= x1 and y0 <= top <= y1:
            words: dict[str, Any] = {"fontsize": 6.5, "color": "white", "parse_math": False, "clip_on": True}
            words["va"] = "bottom" if top - y0 > 0.06 * (y1 - y0) else "top"
            axes.text(left, top, mark.text, path_effects=halo[:1], **words)
    axes.set(xlim=(x0, x1), ylim=(y1, y0))


def write_head(axes: "Axes", text: str, longest: int = LONGEST) -> None:
    """The text above a panel, in lines of so many characters at most."""
    lines = "\n".join(textwrap.fill(line, longest) for line in text.splitlines())
    axes.set_title(lines, fontsize=8, loc="left", parse_math=False)


def add_legends(figure: "Figure", classes: "Sequence[Patch]", marks: "Sequence[Patch]", title: str) -> None:
    """Below a sheet: classes at the left, and at the right marks, under `title`. Too many classes are counted."""
    from matplotlib.patches import Patch

    more = len(classes) - MOST_NAMED
    shown = [*classes[:MOST_NAMED], *([Patch(alpha=0, label=f"and {more} more")] if more > 0 else [])]
    for place, name, patches in (("outside lower left", "classes", shown), ("outside lower right", title, marks)):
        if patches:
            style: dict[str, Any] = {"loc": place, "title": name, "ncols": min(4, len(patches)), "fontsize": 8}
            for text in figure.legend(handles=patches, **style).get_texts():
                text.set_parse_math(False)


def shrink(pixels: Pixels) -> Pixels:
    """At most PANEL pixels on the longer side."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((PANEL, PANEL), Image.Resampling.BOX)
    return np.asarray(picture)


def head_row(rank: str, path: str) -> str:
    """`worst: a/b.png`, on one line."""
    return f"{rank}: {shorten(path, LONGEST - len(rank) - 2)}"


def shorten(path: str, longest: int = LONGEST) -> str:
    """The end of a path, which tells pictures apart."""
    return path if len(path) <= longest else f"…{path[-longest + 1 :]}"
