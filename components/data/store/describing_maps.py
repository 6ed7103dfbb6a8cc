"""What a folder says of the class of every pixel: the names of a mask's numbers, and which class is the background."""

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from components.data.annotations.layouts import read_layout
from components.data.annotations.masks import count_values
from components.data.annotations.regions import read_mask
from components.data.annotations.tree import walk_files
from components.data.manifest import Reading, Row, Wanted
from components.data.sources.images import UNDECODABLE
from components.domain.layouts import Folders, Instances, Layout, Masks, Table
from components.domain.reading import render_layout
from components.errors import DataError
from components.records.maps import IGNORE, Painting
from components.records.reasons import Reason

NUMBERED = "class_"  # what the reader of masks calls a number without a name
OBJECT = "object"  # the only class beside the background, where nothing names it
MOST_NUMBERS = 60  # more different numbers are no classes
ODD = 0.05  # most masks of a sound class that may show something
SAMPLES = 20  # masks whose colours are listed
SOUND = frozenset(
    [
        "good",
        "ok",
        "okay",
        "none",
        "normal",
        "free",
        "background",
        "sound",
        "healthy",
        "pass",
        "passed",
        "io",
        "intact",
        "clean",
        "flawless",
        "negative",
        "no_defect",
        "nodefect",
        "defect_free",
        "defectfree",
        "defect-free",
        "undamaged",
    ]
)


def complete_masks(layout: Layout, source: Path, background: str | None) -> Layout:
    """The layout with `ids` that name every number of the masks, if it is `masks` without any.

    The only number is the class `object`; several are class_1, class_2 and so on, and 255 beside others is ignored.

    Raises DataError for masks in colours, and for more numbers than classes can have.
    """
    if not isinstance(layout, Masks) or layout.ids:
        return layout
    reading = read_layout(layout, source, Wanted(annotation="mask", painting=Painting(background)))
    _refuse_colours(layout, source, reading)
    shown = {name for row in reading.rows if row.regions for name in row.regions.shown} - {background}
    numbers = sorted(int(name.removeprefix(NUMBERED)) for name in shown)
    ignore = layout.ignore
    if IGNORE in numbers and len(numbers) > 1 and not ignore:
        ignore = (IGNORE,)
        numbers.remove(IGNORE)
    if len(numbers) > MOST_NUMBERS:
        hint = "A number per object is the layout `instances`; masks with soft edges must be saved again with the "
        hint += "numbers of the classes alone. Else name the numbers: `ids` of the layout masks."
        found = f"{len(numbers)} different numbers, {numbers[0]} to {numbers[-1]}"
        what = f"{source} as layout {render_layout(layout)}"
        raise DataError(what, expected=f"masks of at most {MOST_NUMBERS} classes", found=found, hint=hint)
    names = [OBJECT] if len(numbers) == 1 else [f"{NUMBERED}{number}" for number in numbers]
    return Masks.model_validate(
        layout.model_dump() | {"ids": dict(zip(names, numbers, strict=True)), "ignore": tuple(ignore)}
    )


def _refuse_colours(layout: Masks, source: Path, reading: Reading) -> None:
    """Raise DataError with the colours of masks that cannot be read as numbers, if no mask can be."""
    unread = [row for row in reading.rows if row.mask and row.problem]
    if not unread or any(row.regions for row in reading.rows):
        return
    colours = Counter[int]()
    for row in unread[:SAMPLES]:
        try:
            colours.update(count_values(source / (row.mask or ""), colours=True))
        except UNDECODABLE:
            continue
    others = [colour for colour, _ in colours.most_common() if colour]
    if not others or len(others) > MOST_NUMBERS:
        return
    ids = {f"{NUMBERED}{place}": f"#{colour:06x}" for place, colour in enumerate(others, 1)}
    named = Masks.model_validate(layout.model_dump() | {"ids": ids})
    raise DataError(
        f"{source} as layout {render_layout(layout)}",
        expected="masks with one number per pixel, or `ids` that name their colours",
        found=f"the colours {', '.join(ids.values())}",
        hint=f"Give the colours names: --layout {shlex.quote(render_layout(named))}.",
    )


def find_background(layout: Layout, source: Path, default: str) -> str:
    """The class that pixels without any annotation belong to, as the folder or its layout names it.

    Of class folders and tables it is the label whose masks are all empty, or that needs none by its name (good, ok).
    """
    if isinstance(layout, Masks | Instances):
        return layout.background
    if not isinstance(layout, Folders | Table):
        return default
    shows = _find_shown(read_layout(layout, source, Wanted()).rows, source)
    sound = {label: len(found) for label, found in shows.items() if _is_sound(label, found)}
    return max(sound, key=lambda label: (label == default, sound[label], label), default=default)


def _find_shown(rows: Iterable[Row], source: Path) -> dict[str, list[bool | None]]:
    """For each label, of each picture: whether its mask shows anything; None without a mask."""
    named, files = [row for row in rows if row.label and not row.problem], set(walk_files(source))

    def look(row: Row) -> bool | None:
        if row.mask not in files:
            return None
        pixels = read_mask(source, row.mask or "")
        return None if isinstance(pixels, Reason) else bool(np.any(pixels))

    found: dict[str, list[bool | None]] = {}
    with ThreadPoolExecutor() as pool:
        for row, shown in zip(named, pool.map(look, named), strict=True):
            found.setdefault(row.label or "", []).append(shown)
    return found


def _is_sound(label: str, found: Sequence[bool | None]) -> bool:
    """Whether the pictures of a label show background alone."""
    named = label.casefold().replace(" ", "_") in SOUND
    masked = [shown for shown in found if shown is not None]
    if not masked:
        return named
    return sum(masked) <= ODD * len(masked) if named else not any(masked)
