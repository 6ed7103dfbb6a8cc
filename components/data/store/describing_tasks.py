"""The domain of a new folder for the task that is asked for, or an error where the folder cannot serve it."""

from dataclasses import dataclass, replace
from pathlib import Path

from components.data.annotations.foreign import CONTAINERS
from components.data.annotations.guessing import suggest_layout
from components.data.annotations.layouts import read_layout
from components.data.annotations.tables import looks_multilabel
from components.data.annotations.tree import walk_files
from components.data.manifest import Reading, Wanted
from components.data.store.describing_maps import complete_masks, find_background, quote_layout
from components.domain.layouts import LAYOUTS, Csv, Folders, Instances, Layout, Masks, Parquet, Table
from components.domain.reading import render_layout
from components.errors import DomainError
from components.records.maps import Painting
from components.tasks import Task
from components.tasks.base import Annotation


@dataclass(frozen=True)
class Described:
    """A layout and a task, and the reading of a folder by them."""

    layout: Layout
    task: Task
    reading: Reading
    classes: tuple[str, ...]


def list_classes(layout: Layout, reading: Reading) -> tuple[str, ...]:
    if isinstance(layout, Instances):
        return tuple(sorted((layout.background, layout.label)))
    labels = {label for row in reading.rows for label in (row.labels or ([row.label] if row.label else []))}
    return tuple(sorted(labels))


def describe_as(source: Path, layout: Layout, task: Task) -> Described:
    """The description for the task that is asked for. Raises DomainError if the layout cannot serve it."""
    _require_readable(source, layout, task)
    if task.painting is not None:
        return _describe_maps(source, layout, task, task.painting)
    if task.annotation == "boxes":
        return _describe_boxes(source, layout, task)
    if isinstance(layout, Csv | Parquet):
        layout = _fit_table(source, layout, task)
    reading = read_layout(layout, source, Wanted(annotation=task.annotation))
    return Described(layout, task, reading, list_classes(layout, reading))


def _require_readable(source: Path, layout: Layout, task: Task) -> None:
    """Raise DomainError if the layout, or its form in this folder, does not say what the task needs."""
    kinds = ", ".join(kind for kind in LAYOUTS if kind in task.reads)
    expected, hint = f"one of the layouts {kinds} for the task {task.kind}", "Name another layout or task."
    if layout.kind in task.reads:
        if _says(layout, task.annotation):
            return
        expected = "annotations that say the class of every pixel"
        if task.annotation == "boxes":
            expected = f"annotations that say where objects are ({kinds}; tables with boxes, folders with masks)"
        hint = _hint_options(source, layout, task.annotation)
    found = f"`{render_layout(layout)}`"
    raise DomainError(f"{source} for the task {task.kind}", expected=expected, found=found, hint=hint)


def _hint_options(source: Path, layout: Layout, annotation: Annotation) -> str:
    """What to write where class folders, or a table, name neither masks nor boxes."""
    guess = suggest_layout(source, annotation)
    if guess is not None and guess.kind != layout.kind and _says(guess, annotation):
        return f"This looks like {guess.kind}: `--layout {quote_layout(guess)}`."
    what, option = "masks", "mask: <column>" if isinstance(layout, Table) else "masks: <folder>"
    if annotation == "boxes" and isinstance(layout, Table):
        what, option = "boxes", "crop: [xmin, ymin, xmax, ymax]"
    hint = f"If there are {what}, name them: `{option}` in `--layout`; or choose another task."
    if arrays := [path for path in walk_files(source) if path.lower().endswith(CONTAINERS)]:
        hint += f" {arrays[0]} is not read: save such masks as PNG with a number per class."
    return hint


def _says(layout: Layout, annotation: Annotation) -> bool:
    """Whether class folders or a table name masks or boxes, where these are needed. Other layouts always do."""
    if annotation not in ("mask", "boxes"):
        return True
    if isinstance(layout, Table):
        further = (layout.crop or layout.boxes) if annotation == "boxes" else layout.runs
        return bool(layout.mask or further)
    return not isinstance(layout, Folders) or bool(layout.masks)


def _fit_table(source: Path, layout: Csv | Parquet, task: Task) -> Csv | Parquet:
    """The table as the task reads it: columns of 0 and 1 are labels of which there is one, or any number.

    Raises DomainError if the table has one label per row and the task several, or the other way round.
    """
    many = task.annotation == "labels"
    plain = layout.model_copy(update={"one_hot": False}) if many else layout
    flags = looks_multilabel(plain, source)
    if many == flags:
        return plain
    found = "several labels per row" if flags else f"one label per row, in column {layout.label!r}"
    expected = "one label per row" if flags else "columns of 0 and 1, or several labels joined by a `separator`"
    hint = "Name the columns with `--layout`, or choose another task."
    raise DomainError(f"table {layout.table} for the task {task.kind}", expected=expected, found=found, hint=hint)


def _describe_boxes(source: Path, layout: Layout, task: Task) -> Described:
    """The description for boxes, whose classes are those of the objects: nothing else is a class."""
    if isinstance(layout, Masks):
        layout = complete_masks(layout, source, layout.background, guess=True)
    reading = read_layout(layout, source, Wanted(annotation="boxes"))
    return Described(
        layout, task, reading, tuple(sorted({one.label for row in reading.rows for one in row.objects or ()}))
    )


def _describe_maps(source: Path, layout: Layout, task: Task, painting: Painting) -> Described:
    """The description for class maps: the background comes first in `classes`, the others are in the order of `ids`.

    Where the masks have no pixel without a class, there is no background.
    """
    background = painting.background
    guessed = "background" not in task.model_fields_set and background is not None
    if guessed:
        background = find_background(layout, source, str(background))
    layout = complete_masks(layout, source, background, guess=guessed)
    if guessed and isinstance(layout, Masks):
        background = layout.background
    reading = read_layout(layout, source, Wanted(annotation="mask", painting=replace(painting, background=background)))
    shown = {name for row in reading.rows if row.regions for name in row.regions.shown}
    if guessed and isinstance(layout, Masks) and shown and background not in shown:
        background = None
    task = task.model_copy(update={"background": background}) if guessed else task
    first = () if background is None else (background,)
    places = {name: place for place, name in enumerate(getattr(layout, "ids", {}))}
    others = sorted(shown - {background}, key=lambda name: (places.get(name, len(places)), name))
    return Described(layout, task, reading, (*first, *others))
