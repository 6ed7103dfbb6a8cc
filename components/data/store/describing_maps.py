"""What a folder says of the class of every pixel: the names of a mask's numbers, and which class is the background."""

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from components.data.annotations.label_maps import BACKGROUND, UNKNOWN, LabelMap, find_label_map
from components.data.annotations.layouts import read_layout
from components.data.annotations.masks import count_values
from components.data.annotations.regions import LOSSY, is_soft, read_mask
from components.data.annotations.tree import walk_files
from components.data.manifest import Row, Wanted
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


def complete_masks(layout: Layout, source: Path, background: str | None, *, guess: bool) -> Layout:
    """The layout with `ids` that name every value of the masks, if it is `masks` without any.

    The names are those of a label map in the folder. Without one, the only number is the class `object`; several are
    class_1, class_2 and so on, and 255 beside others is ignored. Masks of two values with soft edges get a `threshold`.

    guess: whether a label map may also name the background. Raises DataError for masks in JPEG, for colours that
    nothing names, and for more numbers than classes can have.
    """
    if not isinstance(layout, Masks) or layout.ids:
        return layout
    reading = read_layout(layout, source, Wanted(annotation="mask", painting=Painting(background)))
    masks = [row.mask for row in reading.rows if row.mask]
    _refuse_lossy(layout, source, masks)
    if _are_soft(source, masks):
        return _with(layout, ids={OBJECT: 255}, ignore=(), threshold=128)
    shown = {name for row in reading.rows if row.regions for name in row.regions.shown} - {background}
    numbers = {int(name.removeprefix(NUMBERED)) for name in shown}
    colours = _find_colours(source, masks)
    if names := find_label_map(source, walk_files(source), numbers, colours):
        return _name_by(layout, names, numbers, guess=guess)
    unread = [row for row in reading.rows if row.mask and row.problem]
    if unread and not any(row.regions for row in reading.rows):
        return _name_colours(layout, source, colours)
    return _number(layout, source, numbers)


def _with(layout: Masks, **options: object) -> Masks:
    return Masks.model_validate(layout.model_dump() | options)


def _number(layout: Masks, source: Path, shown: Set[int]) -> Masks:
    """The layout with numbers as names."""
    numbers, ignore = sorted(shown), layout.ignore
    if IGNORE in numbers and len(numbers) > 1 and not ignore:
        ignore = (IGNORE,)
        numbers.remove(IGNORE)
    if len(numbers) > MOST_NUMBERS:
        hint = "A number per object is the layout `instances`. Else name the numbers: `ids` of the layout masks."
        found = f"{len(numbers)} different numbers, {numbers[0]} to {numbers[-1]}"
        what = f"{source} as layout {render_layout(layout)}"
        raise DataError(what, expected=f"masks of at most {MOST_NUMBERS} classes", found=found, hint=hint)
    names = [OBJECT] if len(numbers) == 1 else [f"{NUMBERED}{number}" for number in numbers]
    return _with(layout, ids=dict(zip(names, numbers, strict=True)), ignore=tuple(ignore))


def _name_by(layout: Masks, names: LabelMap, numbers: Set[int], *, guess: bool) -> Masks:
    """The layout with the names of a label map: those of unknown pixels are ignored, black may be the background."""
    black: int | str = "#000000" if isinstance(next(iter(names)), str) else 0
    ignore = [value for value, name in names.items() if UNKNOWN.fullmatch(name)]
    if black == 0 and IGNORE in numbers and IGNORE not in names:
        ignore.append(IGNORE)
    background = layout.background
    if guess and BACKGROUND.fullmatch(names.get(black, "")):
        background = names[black]
    ids = {name: value for value, name in names.items() if value not in ignore and name != background}
    return _with(layout, ids=ids, ignore=tuple(ignore), background=background)


def _refuse_lossy(layout: Masks, source: Path, masks: Sequence[str]) -> None:
    """Raise DataError if most masks are JPEG files, with the line that reads those of two values."""
    lossy = [path for path in masks if path.lower().endswith(LOSSY)]
    if 2 * len(lossy) <= len(masks):
        return
    raise DataError(
        f"{source} as layout {render_layout(layout)}",
        expected="masks in a format that keeps their numbers (PNG, TIFF, BMP, GIF)",
        found=f"{len(lossy):,} in JPEG, whose compression changes the numbers, such as {lossy[0]}",
        hint="Export them again as PNG. Where they show two values, black and white, read them with a threshold: "
        f"--layout {quote_layout(_with(layout, ids={OBJECT: 255}, ignore=(), threshold=128))}.",
    )


def _are_soft(source: Path, masks: Sequence[str]) -> bool:
    """Whether masks have soft edges; those with hard ones, such as empty masks, do not count."""
    read = (read_mask(source, path) for path in masks[:: max(1, len(masks) // SAMPLES)])
    several = [mask for mask in read if not isinstance(mask, Reason) and len(np.unique(mask)) > 2]
    return bool(several) and 2 * sum(map(is_soft, several)) > len(several)


def _find_colours(source: Path, masks: Sequence[str]) -> Set[int]:
    """The colours of some masks, the most frequent ones first, as 0xRRGGBB."""
    colours = Counter[int]()
    for path in masks[:: max(1, len(masks) // SAMPLES)]:
        try:
            colours.update(count_values(source / path, colours=True))
        except (Image.DecompressionBombError, *UNDECODABLE):
            continue
    return dict(colours.most_common()).keys()


def _name_colours(layout: Masks, source: Path, colours: Set[int]) -> Masks:
    """The layout where one colour beside black is the class `object`. Raises DataError for several colours."""
    others = [f"#{colour:06x}" for colour in colours if colour]
    if not others or len(others) > MOST_NUMBERS:
        return layout
    if len(others) == 1:
        return _with(layout, ids={OBJECT: others[0]}, ignore=())
    named = _with(layout, ids={f"{NUMBERED}{place}": colour for place, colour in enumerate(others, 1)}, ignore=())
    raise DataError(
        f"{source} as layout {render_layout(layout)}",
        expected="masks with one number per pixel, or `ids` or a label map (class_dict.csv) that name their colours",
        found=f"the colours {', '.join(others)}",
        hint=f"Give the colours names: --layout {quote_layout(named)}.",
    )


def quote_layout(layout: Layout) -> str:
    """The layout as an argument of a shell."""
    text = render_layout(layout)
    return shlex.quote(text if '"' in text else text.replace("'", '"'))


def find_background(layout: Layout, source: Path, default: str) -> str:
    """The class that pixels without any annotation belong to, as the folder or its layout names it.

    Of class folders and tables it is the label whose masks are all empty, or that needs none by its name (good, ok).
    """
    if isinstance(layout, Masks | Instances):
        return layout.background
    if not isinstance(layout, Folders | Table) or (isinstance(layout, Table) and (layout.ids or layout.runs)):
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
