"""Class maps as people look at them: picture, truth, answer and where these differ, side by side, one row per picture.

For a class of every pixel the drawing of truth and answer is the explanation; there is no saliency.
"""

import math
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
from components.reports.panels import (
    DIFFERENCES,
    MOST,
    Box,
    Pixels,
    View,
    add_legends,
    centre_window,
    create_sheet,
    head_row,
    rank_rows,
    shorten,
    shrink,
    write_head,
)
from components.reports.tiles import load_upright
from components.tasks.base import PREDICTED, MapTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure


TINY = 0.02  # share of the picture under which its objects are enlarged
AROUND = 2.5  # sides of the object in a part that is enlarged
SMALLEST = 48  # pixels of the side of such a part
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
        return Legend(tuple(classes), task.background_class)

    @property
    def number(self) -> int | None:
        """The background's."""
        return self.classes.index(self.background) if self.background in self.classes else None


def draw_worst(
    frame: pl.DataFrame, task: MapTask, classes: Sequence[str], raw: Path, title: str, most: int = MOST
) -> "Figure":
    """A sheet of the pictures with the worst answers, the worst first, and below them the median and the best one."""
    rows = choose_rows(frame, task, most)
    heads = [head_row(row["rank"], row["path"]) for row in rows.iter_rows(named=True)]
    return _draw_sheet(rows, heads, Legend.of(task, classes), raw, title, differences=True)


def draw_found(frame: pl.DataFrame, task: MapTask, classes: Sequence[str], raw: Path, title: str, path: Path) -> Path:
    """Write a PNG of what was found, one row per picture: the picture, its truth and the answer; returns its path.

    frame: rows of a manifest with the columns `predicted` and `answer_map`.
    """
    heads = [shorten(name) for name in frame["path"]]
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
    return rank_rows(rated.sort("ease", "wrong", "id", descending=[False, True, False], nulls_last=True), most)


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
    return centre_window((x0 + x1) / 2, (y0 + y1) / 2, side, (width, height))


@dataclass(frozen=True)
class _Row:
    """One picture, and both maps at its full size."""

    view: View
    truth: ClassMap
    answer: ClassMap


def _draw_sheet(
    rows: pl.DataFrame, heads: Sequence[str], legend: Legend, raw: Path, title: str, *, differences: bool
) -> "Figure":
    """heads: the text above each row's picture."""
    drawn = list(_read_rows(rows, legend, raw))
    figure, grid = create_sheet([row.view for row in drawn], 3 + differences, title)
    for panels, row, facts, head in zip(grid, drawn, rows.iter_rows(named=True), heads, strict=True):
        words = [head, f"truth: {facts['label']}", f"answer: {facts[PREDICTED]}"]
        words += [f"difference, {describe_dice(facts['dice'])}"] if differences else []
        for axes, picture, text in zip(panels, _draw_panels(row, legend, differences), words, strict=True):
            axes.imshow(picture, interpolation="nearest")
            write_head(axes, text)
    shown = set().union(*({*np.unique(row.truth), *np.unique(row.answer)} for row in drawn))
    _draw_legend(figure, legend, shown, differences)
    return figure


def _read_rows(rows: pl.DataFrame, legend: Legend, raw: Path) -> Iterator[_Row]:
    for facts in rows.iter_rows(named=True):
        truth, answer = decode_map(facts["class_map"]), decode_map(facts["answer_map"])
        window = choose_window(compare_maps(truth, answer, legend.number))
        yield _Row(View(load_upright(raw / facts["path"], facts.get("crop")), window), truth, answer)


def _draw_panels(row: _Row, legend: Legend, differences: bool) -> Iterator[Pixels]:
    """Image, truth, answer, and differences where they are asked for; each at most PANEL pixels.

    Small parts are enlarged before outlines are drawn, which would cover their objects otherwise.
    """
    image = row.view.cut()
    x0, y0, x1, y1 = row.view.box
    parts = (Image.fromarray(classes[y0:y1, x0:x1]) for classes in (row.truth, row.answer))
    size = image.shape[1], image.shape[0]
    truth, answer = (np.asarray(part.resize(size, Image.Resampling.NEAREST)) for part in parts)
    yield shrink(image)
    for classes in (truth, answer):
        yield shrink(draw_over(image, classes, legend.classes, legend.background))
    if differences:
        yield shrink(draw_differences(image, compare_maps(truth, answer, legend.number)))


def _draw_legend(figure: "Figure", legend: Legend, shown: Iterable[int], differences: bool) -> None:
    """Colours of the classes that occur, and of the differences."""
    from matplotlib.patches import Patch

    colours = choose_colours(legend.classes, legend.background)
    numbers = {int(number) for number in shown}
    names = [name for k, name in enumerate(legend.classes) if k in numbers and name != legend.background]
    handles = [Patch(color=to_matplotlib(colours[name]), label=name) for name in names]
    kinds = DIFFERENCES if differences else {}
    marks = [Patch(color=to_matplotlib(colour), label=name) for name, colour in kinds.items()]
    marks += [Patch(facecolor="#b0b0b0", hatch="////", label=UNLABELLED)] if IGNORE in numbers else []
    add_legends(figure, handles, marks, "difference" if differences else "")


def describe_dice(dice: float | None) -> str:
    """`Dice 0.87`; a picture in which nothing is labelled has none."""
    return "Dice not known" if dice is None or math.isnan(dice) else f"Dice {dice:.2f}"
