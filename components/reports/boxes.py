"""Answered boxes as people look at them: a picture with its truth, with the answers that are shown, and with what
differs, one row per picture.

The drawing is the explanation; there is no saliency.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from components.data.batches.colours import Colour, choose_colours, to_matplotlib
from components.files import whole_file
from components.records.boxes import LabelledBox, read_objects, to_found, to_targets
from components.records.fields import Corners
from components.reports.panels import (
    DIFFERENCES,
    MOST,
    PANEL,
    Box,
    Mark,
    View,
    add_legends,
    centre_window,
    create_sheet,
    draw_marks,
    head_row,
    rank_rows,
    shorten,
    write_head,
)
from components.reports.tiles import load_upright
from components.tasks.base import BoxTask
from components.tasks.box_outcomes import Shown, match_shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TINY = 12  # pixels of a panel: objects of shorter sides are enlarged
CLEAR = 36  # pixels of a panel that the side of such an object takes then
MOST_TEXTS = 25  # boxes of a panel; beyond it their confidences cover the picture
SMALLEST = 48  # pixels of the side of a part that is enlarged
IGNORED = "ignored"
#: What a shown box or an annotated object is beside the other, and its colour.
KINDS = DIFFERENCES | {"misplaced": (255, 255, 255), "duplicate": (110, 130, 255)}
FINE = ("found", IGNORED)  # what is no mistake
GREY = (200, 200, 200)  # of regions to ignore


@dataclass(frozen=True)
class _Row:
    """One picture: its annotated objects, the boxes that are shown with their confidences, and how the two match."""

    view: View
    objects: list[LabelledBox]
    answers: list[LabelledBox]
    confidences: list[float]
    match: Shown


def draw_worst(
    frame: pl.DataFrame, task: BoxTask, classes: Sequence[str], raw: Path, title: str, most: int = MOST
) -> "Figure":
    """A sheet of the pictures with the worst answers, the worst first, and below them the median and the best one."""
    rows = choose_rows(frame, task, classes, most)
    heads = [head_row(row["rank"], row["path"]) for row in rows.iter_rows(named=True)]
    return _draw_sheet(rows, heads, classes, raw, title, differences=True)


def draw_found(frame: pl.DataFrame, task: BoxTask, classes: Sequence[str], raw: Path, title: str, path: Path) -> Path:
    """Write a PNG of what was found, one row per picture: its truth and the answer; returns its path.

    frame: rows of a manifest with the columns `found` and `shown`.
    """
    heads = [shorten(name) for name in frame["path"]]
    with whole_file(path) as partial:
        figure = _draw_sheet(frame, heads, classes, raw, title, differences=False)
        figure.savefig(partial, format="png", dpi=110)
    return path


def choose_rows(frame: pl.DataFrame, task: BoxTask, classes: Sequence[str], most: int) -> pl.DataFrame:
    """At most so many rows with a column `rank`: the worst first, then the median and the best where not all fit.

    Of pictures that are equally bad, such as those whose objects were all missed, that with the most mistakes.
    """
    wrong = [_count_wrong(match_row(row, classes)) for row in frame.iter_rows(named=True)]
    rated = frame.with_columns(pl.Series("wrong", wrong, pl.Int64), task.ease(frame).alias("ease"))
    return rank_rows(rated.sort("ease", "wrong", "id", descending=[False, True, False], nulls_last=True), most)


def match_row(facts: dict[str, Any], classes: Sequence[str]) -> Shown:
    """The boxes of a row of predictions that are shown, in their order, beside its objects."""
    found = to_found(facts["found"], classes)[np.array(facts["shown"], bool)]
    return match_shown(found, to_targets(read_objects(facts["objects"]), classes))


def _count_wrong(shown: Shown) -> int:
    """Objects that are not found, and shown boxes that are right for none."""
    false = sum(kind in ("false", "duplicate") for kind in shown.boxes)
    return false + sum(fate not in FINE for fate in shown.objects)


def choose_window(boxes: Sequence[Corners], size: tuple[int, int]) -> Box | None:
    """The part to enlarge where boxes are small: the one that holds the most of them.

    None where the whole picture shows them well enough, and without boxes. size: width and height of the picture.
    """
    sides = [max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes]
    scale = PANEL / max(size)
    if not sides or scale * np.median(sides) >= TINY:
        return None
    side = max(SMALLEST, math.ceil(PANEL * float(np.median(sides)) / CLEAR))
    centres = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes]
    windows = [window for x, y in centres if (window := centre_window(x, y, side, size))]

    def count_inside(window: Box) -> int:
        x0, y0, x1, y1 = window
        return sum(x0 <= x < x1 and y0 <= y < y1 for x, y in centres)

    return max(windows, key=count_inside, default=None)


def _draw_sheet(
    rows: pl.DataFrame, heads: Sequence[str], classes: Sequence[str], raw: Path, title: str, *, differences: bool
) -> "Figure":
    """heads: the text above each row's first panel."""
    drawn = list(_read_rows(rows, classes, raw))
    figure, grid = create_sheet([row.view for row in drawn], 2 + differences, title)
    colours = choose_colours(classes, None)
    for panels, row, head in zip(grid, drawn, heads, strict=True):
        draw_marks(panels[0], row.view, mark_objects(row.objects, colours))
        write_head(panels[0], f"{head}\ntruth: {count_boxes(row.objects)}")
        draw_marks(panels[1], row.view, _mark_answers(row, colours))
        write_head(panels[1], f"answer: {count_boxes(row.answers)}")
        if differences:
            draw_marks(panels[2], row.view, _mark_differences(row), grey=True)
            write_head(panels[2], _describe_differences(row.match))
    _draw_legend(figure, drawn, colours, differences=differences)
    return figure


def _read_rows(rows: pl.DataFrame, classes: Sequence[str], raw: Path) -> Iterator[_Row]:
    for facts in rows.iter_rows(named=True):
        image = load_upright(raw / facts["path"], facts.get("crop"))
        objects, match = read_objects(facts["objects"]), match_row(facts, classes)
        kept = [each for each, shown in zip(facts["found"], facts["shown"], strict=True) if shown]
        answers = read_objects([each | {"kind": "object"} for each in kept])
        every = zip([*objects, *answers], [*match.objects, *match.boxes], strict=True)
        wrong = [one.box for one, kind in every if kind not in FINE]
        window = choose_window(wrong or [one.box for one in (*objects, *answers)], image.size)
        yield _Row(View(image, window), objects, answers, [each["confidence"] for each in kept], match)


def mark_objects(objects: Sequence[LabelledBox], colours: Mapping[str, Colour]) -> list[Mark]:
    """Annotated boxes in the colours of their classes; those to ignore are hatched."""
    return [Mark(one.box, colours[one.label], style="solid" if one.kind == "object" else "hatched") for one in objects]


def _mark_answers(row: _Row, colours: Mapping[str, Colour]) -> list[Mark]:
    """With their confidences, unless these would cover the picture."""
    x0, y0, x1, y1 = row.view.box
    inside = sum(x0 <= one.box[0] <= x1 and y0 <= one.box[1] <= y1 for one in row.answers)
    texts = [format_confidence(each) if inside <= MOST_TEXTS else "" for each in row.confidences]
    return [Mark(one.box, colours[one.label], text) for one, text in zip(row.answers, texts, strict=True)]


def _mark_differences(row: _Row) -> list[Mark]:
    """Shown boxes by what they are, objects that no box has found, and regions to ignore."""
    objects = zip(row.objects, row.match.objects, strict=True)
    answers = zip(row.answers, row.match.boxes, strict=True)
    return [
        *(Mark(one.box, GREY, style="hatched") for one in row.objects if one.kind != "object"),
        *(Mark(one.box, KINDS[fate], style="dashed") for one, fate in objects if fate not in FINE),
        *(Mark(one.box, KINDS[kind]) for one, kind in answers if kind != IGNORED),
    ]


def _describe_differences(match: Shown) -> str:
    """`difference: 2 missed, 1 false`"""
    counts = Counter[str](kind for kind in match.boxes if kind not in FINE)
    counts["missed"] = sum(fate == "missed" for fate in match.objects)
    return "difference: " + (", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]) or "none")


def count_boxes(boxes: Sequence[LabelledBox]) -> str:
    """`3 crack, 1 rust, 2 ignored`, or `none`"""
    counts = Counter(one.label for one in boxes if one.kind == "object")
    hidden = sum(one.kind != "object" for one in boxes)
    named = [f"{number} {name}" for name, number in sorted(counts.items())]
    return ", ".join([*named, *([f"{hidden} {IGNORED}"] if hidden else [])]) or "none"


def format_confidence(confidence: float) -> str:
    """`.87`; `.99` is not rounded to 1."""
    return f"{min(confidence, 0.99):.2f}".lstrip("0")


def _draw_legend(figure: "Figure", rows: Sequence[_Row], colours: Mapping[str, Colour], *, differences: bool) -> None:
    """Colours of the classes that occur, and of the differences."""
    from matplotlib.patches import Patch

    boxes = [one for row in rows for one in (*row.objects, *row.answers)]
    occur = {one.label for one in boxes}
    classes = [Patch(color=to_matplotlib(colour), label=name) for name, colour in colours.items() if name in occur]
    kinds = KINDS if differences else {}
    marks = [Patch(facecolor=to_matplotlib(colour), edgecolor="#59636e", label=name) for name, colour in kinds.items()]
    marks += [Patch(fill=False, hatch="////", label=IGNORED)] if any(one.kind != "object" for one in boxes) else []
    add_legends(figure, classes, marks, "difference (dashed: the annotated box)" if differences else "")
