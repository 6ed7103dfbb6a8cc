"""Labels under suspicion as people look at them: the part of the picture around each, by why it is suspicious."""

import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from components.data.batches.colours import choose_colours
from components.records.boxes import LabelledBox
from components.records.outcomes import Suspicion
from components.reports.boxes import KINDS, format_confidence, mark_objects
from components.reports.panels import Mark, View, centre_window, draw_marks, shorten, write_head
from components.reports.shell import embed_figure
from components.reports.tiles import load_upright
from components.reports.words import format_share
from components.tasks.suspects import FEWEST_MODELS, KNOWN, WHYS, Suspect, Why

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 24  # that are drawn
TABLE = "suspects.csv"  # beside the report
COLUMNS = 6
AROUND, SMALLEST = 3.0, 64  # sides of the box, and pixels at least, of the part that is drawn
INCHES, LONGEST = 1.75, 24  # width of a part, and characters of a line above it
#: What the box would be beside a truth that is right, for its colour.
OUTCOMES: dict[Why, str] = {"missing": "false", "other class": "other class", "unconfirmed": "missed"}
TITLES: dict[Why, str] = {
    "missing": "Perhaps objects without annotation",
    "other class": "Perhaps of another class",
    "unconfirmed": "Perhaps no objects, or misplaced boxes",
}
WORDS: dict[Why, str] = {
    "missing": "perhaps not annotated",
    "other class": "perhaps of another class",
    "unconfirmed": "perhaps no objects, or misplaced",
}
NOTES: dict[Why, str] = {
    "missing": "Every model finds these boxes with a confidence of at least .5 where nothing is annotated.",
    "other class": "Every model finds the same other class here, and none the annotated one.",
    "unconfirmed": (
        f"No model finds anything here at any confidence. Asked are classes of which some model finds at least "
        f"{KNOWN:.0%} of the objects; the share stands behind each."
    ),
}


@dataclass(frozen=True)
class Questioned:
    """Labels that were questioned: in numbers, and box by box. objects: what is annotated in each image, by its id."""

    suspicion: Suspicion
    suspects: tuple[Suspect, ...]
    objects: Mapping[str, Sequence[LabelledBox]]


def count_suspects(models: int, images: int, suspects: Sequence[Suspect]) -> Suspicion:
    """Of so many models, compared with the annotation of so many images."""
    counts = Counter(one.why for one in suspects)
    return Suspicion(
        models=models,
        images=images,
        missing=counts["missing"],
        other_class=counts["other class"],
        unconfirmed=counts["unconfirmed"],
        text=_describe_counts(models, images, counts),
    )


def _describe_counts(models: int, images: int, counts: Mapping[Why, int]) -> str:
    if models < FEWEST_MODELS:
        return (
            f"Not questioned: that takes {FEWEST_MODELS} candidates besides the control, or a candidate with "
            f"{FEWEST_MODELS} seeds, and there is {models or 'none'}."
        )
    of = f"{images:,} val and test images, from which no candidate has learned"
    found = ", ".join(f"{counts[why]:,} {WORDS[why]}" for why in WHYS if counts[why])
    if not found:
        return f"None under suspicion: {models} models were compared with the annotation of {of}."
    return f"{found}: where {models} models agree against the annotation of {of}."


def choose_drawn(suspects: Sequence[Suspect], most: int = MOST) -> list[Suspect]:
    """At most so many, in their order, of every kind as equal a number as there are."""
    kinds = [[one for one in suspects if one.why == why] for why in WHYS]
    rounds = [one for turn in range(len(suspects)) for kind in kinds for one in kind[turn : turn + 1]]
    chosen = {id(one) for one in rounds[:most]}
    return [one for one in suspects if id(one) in chosen]


def render_suspects(questioned: Questioned, classes: Sequence[str], raw: Path) -> str:
    """The sentence, and by kind those that are drawn, as HTML."""
    counts, parts = Counter(one.why for one in questioned.suspects), []
    for why, group in groupby(choose_drawn(questioned.suspects), key=lambda one: one.why):
        some = list(group)
        rest = f" {len(some)} of {counts[why]:,} are drawn; {TABLE} has all." if len(some) < counts[why] else ""
        sheet = embed_figure(draw_suspects(some, questioned.objects, classes, raw), f"{TITLES[why]}: parts of images")
        parts.append(f"<h3>{TITLES[why]}: {counts[why]:,}</h3><p>{NOTES[why]}{rest}</p>{sheet}")
    text = html.escape(questioned.suspicion.text)
    return f"<h2>Labels under suspicion</h2><p>{text}</p>{''.join(parts)}"


def draw_suspects(
    suspects: Sequence[Suspect], objects: Mapping[str, Sequence[LabelledBox]], classes: Sequence[str], raw: Path
) -> "Figure":
    """The part of the picture around each, whose box is solid; annotated boxes beside it are dashed."""
    from matplotlib.figure import Figure

    lines = max(1, math.ceil(len(suspects) / COLUMNS))
    figure = Figure(figsize=(INCHES * COLUMNS, (INCHES + 0.55) * lines), layout="constrained")
    grid = figure.subplots(lines, COLUMNS, squeeze=False)
    colours = choose_colours(classes, None)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, one in zip(grid.flat, suspects, strict=False):
        others = [each for each in objects[one.id] if each.box != one.box]
        marks = [replace(mark, style="dashed") for mark in mark_objects(others, colours)]
        draw_marks(axes, _cut(one, raw), [*marks, Mark(one.box, KINDS[OUTCOMES[one.why]])])
        write_head(axes, f"{_describe(one)}\n{shorten(one.path, LONGEST)}", LONGEST)
    return figure


def _cut(one: Suspect, raw: Path) -> View:
    image = load_upright(raw / one.path, None)
    x0, y0, x1, y1 = one.box
    side = max(SMALLEST, math.ceil(AROUND * max(x1 - x0, y1 - y0)))
    return View(image, centre_window((x0 + x1) / 2, (y0 + y1) / 2, side, image.size))


def _describe(one: Suspect) -> str:
    """`platelet .83`; `rust, found: crack .91`; `crack (97 % found)`"""
    if one.why == "missing":
        return f"{one.label} {format_confidence(one.confidence)}"
    if one.why == "other class":
        return f"{one.label}, found: {one.answered} {format_confidence(one.confidence)}"
    return f"{one.label} ({format_share(one.known)} found)"
