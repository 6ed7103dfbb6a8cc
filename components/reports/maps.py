"""Class maps as people look at them: picture, truth, answer and where these differ, side by side, one row per picture.

For a class of every pixel the drawing of truth and answer is the explanation; there is no saliency.
"""

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from components.data.batches.colours import choose_colours, draw_over, to_matplotlib
from components.files import whole_file
from components.records.maps import IGNORE, ClassMap, decode_map
from components.records.objects import find_components
from components.reports.tiles import load_upright
from components.tasks.base import PREDICTED, MapTask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]

MOST = 8  # rows of a sheet
PANEL = 360  # pixels of the longer side of a panel
INCHES = 2.9  # width of a panel
LARGEST = 1600  # pixels of the longer side at which a huge picture is drawn, before it is shrunk to a panel
TALLEST, FLATTEST = 1.5, 0.4  # height of a row, by its width
TINY = 0.02  # share of the picture under which its objects are enlarged
AROUND = 2.5  # sides of the object in a part that is enlarged
SMALLEST = 48  # pixels of the side of such a part
LONGEST = 34  # characters of a line above a panel
MOST_NAMED = 12  # classes in a legend

#: What an answered pixel is beside the truth, and its colour: told apart with any colour vision, and no class's.
DIFFERENCES = {
    "found": (60, 190, 80),
    "missed": (214, 30, 150),
    "false": (0, 240, 255),
    "other class": (255, 235, 60),
}
UNLABELLED = "not labelled"
HATCH = (40, 40, 40)  # of pixels that are not labelled, over a picture in grey
NOTHING, FOUND, MISSED, FALSE, CONFUSED, IGNORED = range(6)
STRENGTH = 0.75  # of a difference's colour over the picture


@dataclass(frozen=True)
class Legend:
    """Names and colours of the classes. background: the class that is no object; None where every class is one."""

    classes: tuple[str, ...]
    background: str | None

    @staticmethod
    def of(task: MapTask, classes: Sequence[str]) -> "Legend":
        return Legend(tuple(classes), task.painting.background if task.painting else None)

    @property
    def number(self) -> int | None:
        """The background's."""
        return self.classes.index(self.background) if self.background in self.classes else None


def draw_worst(
    frame: pl.DataFrame, task: MapTask, classes: Sequence[str], raw: Path, title: str, most: int = MOST
) -> "Figure":
    """A sheet of the pictures with the worst answers, the worst first, and below them the median and the best one.

    The last two say what is usual: a sheet of the worst alone looks alike for a good and for a bad model.
    """
    rows = choose_rows(frame, task, most)
    heads = [f"{row['rank']}: {_shorten(row['path'])}" for row in rows.iter_rows(named=True)]
    return _draw_sheet(rows, heads, Legend.of(task, classes), raw, title, differences=True)


def draw_found(frame: pl.DataFrame, task: MapTask, classes: Sequence[str], raw: Path, title: str, path: Path) -> Path:
    """Write a PNG of what was found, one row per picture: the picture, its truth and the answer; returns its path.

    frame: rows of a manifest with the columns `predicted` and `answer_map`.
    """
    heads = [_shorten(name) for name in frame["path"]]
    with whole_file(path) as partial:
        figure = _draw_sheet(frame, heads, Legend.of(task, classes), raw, title, differences=False)
        figure.savefig(partial, format="png", dpi=110)
    return path


def choose_rows(frame: pl.DataFrame, task: MapTask, most: int) -> pl.DataFrame:
    """At most so many rows with a column `rank`: the worst first, then the median and the best where not all fit.

    Of pictures that are equally bad, such as those whose objects were all missed, that with the most wrong pixels.
    """
    wrong = pl.Series("wrong", [_count_wrong(numbers) for numbers in frame["confusion"]], dtype=pl.Int64)
    rated = frame.with_columns(wrong, task.ease(frame).alias("ease"))
    ranked = rated.sort("ease", "wrong", "id", descending=[False, True, False], nulls_last=True)
    count = ranked.height
    places = list(range(count)) if count <= most else [*range(most - 2), max(count // 2, most - 2), count - 1]
    names = [f"{place + 1} of {count}" for place in places]
    if count > most:
        names[-2:] = ["median", "best"]
    if names:
        names[0] = "worst" if count > 1 else names[0]
    return ranked[places].with_columns(rank=pl.Series(names, dtype=pl.String))


def _count_wrong(confusion: Sequence[int]) -> int:
    """confusion: pixels by true and answered class, row by row."""
    return sum(confusion) - sum(confusion[:: math.isqrt(len(confusion)) + 1])


def compare_maps(truth: ClassMap, answer: ClassMap, background: int | None) -> NDArray[np.uint8]:
    """(H, W) NOTHING, FOUND, MISSED, FALSE, CONFUSED or IGNORED: what each answered pixel is beside the truth."""
    there, answered = truth != (IGNORE if background is None else background), np.ones(answer.shape, np.bool_)
    if background is not None:
        answered = answer != background
    kinds = np.full(truth.shape, NOTHING, np.uint8)
    kinds[there & (truth == answer)] = FOUND
    kinds[there & ~answered] = MISSED
    kinds[~there & answered] = FALSE
    kinds[there & answered & (truth != answer)] = CONFUSED
    kinds[truth == IGNORE] = IGNORED
    return kinds


def draw_differences(image: Pixels, kinds: NDArray[np.uint8]) -> Pixels:
    """The picture (H, W, 3) in grey with every kind of `compare_maps` in its colour; pixels to ignore are hatched."""
    grey = 48 + 0.75 * image.astype(np.float32).mean(axis=2, keepdims=True)
    drawn = np.repeat(grey, 3, axis=2)
    for kind, colour in enumerate(DIFFERENCES.values(), FOUND):
        where = kinds == kind
        drawn[where] += STRENGTH * (np.array(colour, np.float32) - drawn[where])
    diagonals = np.add.outer(np.arange(kinds.shape[0]), np.arange(kinds.shape[1]))
    drawn[(kinds == IGNORED) & (diagonals // 3 % 3 == 0)] = HATCH
    return drawn.round().astype(np.uint8)


def choose_window(kinds: NDArray[np.uint8]) -> Box | None:
    """The part to enlarge: around the object with the most wrong pixels, where objects are under TINY of the picture.

    None where the whole picture shows them well enough. kinds: of `compare_maps`.
    """
    objects = np.isin(kinds, (FOUND, MISSED, FALSE, CONFUSED))
    if not objects.any() or objects.mean() >= TINY:
        return None
    height, width = kinds.shape

    def count_wrong(box: Box) -> int:
        x0, y0, x1, y1 = box
        return int((kinds[y0:y1, x0:x1] > FOUND).sum() - (kinds[y0:y1, x0:x1] == IGNORED).sum())

    found = find_components(objects.astype(np.uint8), 1)
    x0, y0, x1, y1 = max(found, key=lambda one: (count_wrong(one.box), one.area)).box
    side = max(SMALLEST, math.ceil(AROUND * max(x1 - x0, y1 - y0)))
    wide, high = min(side, width), min(side, height)
    if wide * high > 0.5 * width * height:
        return None
    left = min(max((x0 + x1 - wide) // 2, 0), width - wide)
    top = min(max((y0 + y1 - high) // 2, 0), height - high)
    return left, top, left + wide, top + high


@dataclass(frozen=True)
class _Row:
    """One picture at full size: its pixels, and both maps; window: the part that is enlarged."""

    image: Image.Image
    truth: ClassMap
    answer: ClassMap
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


def _draw_sheet(
    rows: pl.DataFrame, heads: Sequence[str], legend: Legend, raw: Path, title: str, *, differences: bool
) -> "Figure":
    """heads: the text above each row's picture. A first column shows where an enlarged part lies, if any is."""
    from matplotlib.figure import Figure

    drawn = list(_read_rows(rows, legend, raw))
    located = any(row.window for row in drawn)
    columns = located + 3 + differences
    heights = [INCHES * row.shape + 0.5 for row in drawn] or [1.0]
    figure = Figure(figsize=(INCHES * columns, sum(heights) + 1.1), layout="constrained")
    figure.suptitle(title, fontsize=11, parse_math=False)
    grid = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, row, facts, head in zip(grid, drawn, rows.iter_rows(named=True), heads, strict=False):
        panels = list(line)
        if located:
            _draw_place(panels.pop(0), row)
        words = [head, f"truth: {facts['label']}", f"answer: {facts[PREDICTED]}"]
        words += [f"difference, {describe_dice(facts['dice'])}"] if differences else []
        for axes, picture, text in zip(panels, _draw_panels(row, legend, differences), words, strict=False):
            axes.imshow(picture, interpolation="nearest")
            axes.set_title(textwrap.fill(text, LONGEST), fontsize=8, loc="left", parse_math=False)
    shown = set().union(*({*np.unique(row.truth), *np.unique(row.answer)} for row in drawn))
    _draw_legend(figure, legend, shown, differences)
    return figure


def _read_rows(rows: pl.DataFrame, legend: Legend, raw: Path) -> Iterator[_Row]:
    for facts in rows.iter_rows(named=True):
        truth, answer = decode_map(facts["class_map"]), decode_map(facts["answer_map"])
        window = choose_window(compare_maps(truth, answer, legend.number))
        yield _Row(load_upright(raw / facts["path"], facts.get("crop")), truth, answer, window)


def _draw_panels(row: _Row, legend: Legend, differences: bool) -> Iterator[Pixels]:
    """Image, truth, answer, and differences where they are asked for; each at most PANEL pixels."""
    image, truth, answer = _cut(row)
    yield _shrink(image)
    for classes in (truth, answer):
        yield _shrink(draw_over(image, classes, legend.classes, legend.background))
    if differences:
        yield _shrink(draw_differences(image, compare_maps(truth, answer, legend.number)))


def _cut(row: _Row) -> tuple[Pixels, ClassMap, ClassMap]:
    """Picture and maps inside the row's box at the size to draw at: huge ones shrunk, small ones enlarged.

    Small ones are enlarged before outlines are drawn, which would cover their objects otherwise.
    """
    x0, y0, x1, y1 = row.box
    longest = max(x1 - x0, y1 - y0)
    scale = max(1, PANEL // longest) if longest <= LARGEST else LARGEST / longest
    size = max(1, round(scale * (x1 - x0))), max(1, round(scale * (y1 - y0)))
    kind = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    image = np.asarray(row.image.crop(row.box).resize(size, kind))
    parts = (Image.fromarray(classes[y0:y1, x0:x1]) for classes in (row.truth, row.answer))
    truth, answer = (np.asarray(part.resize(size, Image.Resampling.NEAREST)) for part in parts)
    return image, truth, answer


def _shrink(pixels: Pixels) -> Pixels:
    picture = Image.fromarray(pixels)
    picture.thumbnail((PANEL, PANEL), Image.Resampling.BOX)
    return np.asarray(picture)


def _draw_place(axes: "Axes", row: _Row) -> None:
    """The whole picture with a frame around what is enlarged; nothing where the panels show the whole."""
    from matplotlib.patches import Rectangle

    if row.window is None:
        return
    x0, y0, x1, y1 = row.window
    picture = row.image.copy()
    picture.thumbnail((PANEL, PANEL))
    width, height = row.image.size
    axes.imshow(np.asarray(picture), extent=(0, width, height, 0))
    for colour, line in (("black", 3.0), ("white", 1.2)):
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=line))
    axes.set_title(f"enlarged: {x1 - x0} x {y1 - y0} of {width} x {height} px", fontsize=8, loc="left")


def _draw_legend(figure: "Figure", legend: Legend, shown: Iterable[int], differences: bool) -> None:
    """Colours of the classes that occur, and of the differences."""
    from matplotlib.patches import Patch

    colours = choose_colours(legend.classes, legend.background)
    numbers = {int(number) for number in shown}
    names = [name for k, name in enumerate(legend.classes) if k in numbers and name != legend.background]
    more = len(names) - MOST_NAMED
    handles = [Patch(color=to_matplotlib(colours[name]), label=name) for name in names[:MOST_NAMED]]
    handles += [Patch(alpha=0, label=f"and {more} more")] if more > 0 else []
    kinds = DIFFERENCES if differences else {}
    marks = [Patch(color=to_matplotlib(colour), label=name) for name, colour in kinds.items()]
    marks += [Patch(facecolor="#b0b0b0", hatch="////", label=UNLABELLED)] if IGNORE in numbers else []
    for place, title, patches in (("outside lower left", "classes", handles), ("outside lower right", "", marks)):
        if patches:
            title = title or ("difference" if differences else "")
            box = figure.legend(handles=patches, loc=place, title=title, ncols=min(4, len(patches)), fontsize=8)
            for text in box.get_texts():
                text.set_parse_math(False)


def describe_dice(dice: float | None) -> str:
    """`Dice 0.87`; a picture in which nothing is labelled has none."""
    return "Dice not known" if dice is None or math.isnan(dice) else f"Dice {dice:.2f}"


def _shorten(path: str) -> str:
    """The end of a path, which tells pictures apart."""
    return path if len(path) <= LONGEST else f"…{path[-LONGEST + 1 :]}"
