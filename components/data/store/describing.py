"""The domain file of a new folder: its layout, task and classes, or an error that lists the choices."""

import posixpath
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from components.data.annotations import coco, voc, yolo
from components.data.annotations.column_cells import complete_mask, read_size
from components.data.annotations.columns import complete_table, is_weakly_named, list_described, refuse_unclear_tables
from components.data.annotations.foreign import (
    CONTAINERS,
    find_foreign_pictures,
    refuse_foreign,
    refuse_foreign_pictures,
)
from components.data.annotations.guessing import hint_foreign, list_choices, suggest_by_folders, suggest_layout
from components.data.annotations.layouts import account_of, read_layout
from components.data.annotations.roles import find_roles, has_few_values
from components.data.annotations.tables import NO_OBJECT, looks_multilabel
from components.data.annotations.tree import find_split, walk_files
from components.data.manifest import Reading, Wanted
from components.data.sources.names import SUFFIXES as PICTURES
from components.data.store.archives import SUFFIXES as ARCHIVES
from components.data.store.describing_tasks import Described, describe_as, list_classes
from components.domain.domain import Domain
from components.domain.layouts import LAYOUTS, Csv, Folders, Layout, Masks, Parquet, Tree
from components.domain.reading import parse_domain, parse_layout, render_layout, write_layout
from components.errors import DataError, DomainError, TesseraError
from components.files import write_whole
from components.tasks import TASKS, Task, choose_kind, create_task, parse_task, read_task, write_task
from components.tasks.base import Annotation

MANY = 0.05  # if at least this share of masks shows several classes, the task is multilabel
DROPPED = 3  # a guess that ignores one in DROPPED pictures is refused
CHOICES = 4
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".jsonl", ".ndjson")
WITHOUT_OBJECT = frozenset((coco.EMPTY, voc.EMPTY, yolo.BACKGROUND, NO_OBJECT))
LOOKED, MASKED = 60, 0.2  # pictures that are decoded, and the share of masks among them that is not an accident
LOOKED_BOXES = 600  # pictures whose objects are measured: a class may be rare


def describe_folder(
    source: Path, name: str, layout: str | None, group: str | None, where: Path, task: str | None = None
) -> Domain:
    """The smallest domain that fits a folder, with the given layout and task or guessed ones.

    layout, task: a kind, or a mapping in YAML. where: the domain file that error messages name.

    Raises DomainError if the layout cannot be determined, does not fit the task, or a guess would leave out a third of
    the pictures; DataError if the annotations or pictures are in a format that is not read.
    """
    asked = parse_task(task) if task is not None else None
    chosen, guessed = _choose_layout(source, layout, asked)
    if isinstance(chosen, Csv | Parquet):
        chosen = chosen if chosen.runs else complete_table(chosen, source, boxes=_annotation_of(asked) == "boxes")
        chosen = complete_mask(chosen, source) if asked and asked.painting and not chosen.runs else chosen
    described = describe_as(source, chosen, asked) if asked else _describe(source, chosen)
    chosen = described.layout
    if guessed:
        _refuse_losses(source, described, asked)
        if isinstance(chosen, Folders):
            _refuse_masks_as_pictures(source, described)
    _require_classes(source, described, asked.fewest_classes if asked else 2)
    facts: dict[str, Any] = {"name": name, "task": write_task(described.task)}
    layout_facts = {"kind": chosen.kind} | chosen.model_dump(exclude_defaults=True)  # as the file will hold it
    facts |= {"classes": described.classes, "layout": layout_facts}
    parts = chosen.parts if isinstance(chosen, Tree) else ()
    group = group or ("group" if "group" in parts else None)
    slices = [part for part in parts if part not in ("class", "split", group) and _divides(part, described.reading)]
    facts |= ({"group": group} if group else {}) | {"slices": slices} | _advise(source, described)
    domain = parse_domain(facts, str(where))
    create_task(domain, str(where))
    return domain


def _advise(source: Path, described: Described) -> dict[str, Any]:
    """What the task advises for pictures of these sizes and objects, of which some are looked at."""
    rows = {row.path: row for row in described.reading.rows if row.problem is None}
    boxed = described.task.annotation == "boxes"
    paths = sorted(path for path, row in rows.items() if not boxed or row.objects is not None)
    looked = paths[:: -(-len(paths) // (LOOKED_BOXES if boxed else LOOKED)) or 1]
    sizes = {path: size for path in looked if (size := read_size(source / path))}
    return described.task.advise(len(paths), [*sizes.values()], [rows[path].objects or () for path in sizes])


def _annotation_of(asked: Task | None) -> Annotation:
    """What a folder must say of its pictures; without a task that is asked for, labels."""
    return asked.annotation if asked else "label"


def _divides(part: str, reading: Reading) -> bool:
    """Whether the names at a part of the path carry more information than the split."""
    pairs = {(row.columns.get("split"), row.columns.get(part)) for row in reading.rows}
    return len({split for split, _ in pairs}) < len(pairs)


def require_same_layout(domain: Domain, layout: str | None, domain_file: Path) -> None:
    """Raise DomainError if `layout` differs from the domain file's."""
    if layout is None:
        return
    asked = parse_layout(layout)
    if asked == domain.layout or (layout.strip() in LAYOUTS and asked.kind == domain.layout.kind):
        return
    raise DomainError(
        f"--layout {layout}",
        expected=f"{render_layout(domain.layout)}, as {domain_file} says",
        found=render_layout(asked),
        hint="Leave out --layout, or change the file.",
    )


def require_same_task(domain: Domain, task: str | None, domain_file: Path) -> None:
    """Raise DomainError if `task` differs from the domain file's."""
    if task is None:
        return
    asked, known = parse_task(task), read_task(domain.task, f"{domain_file}: task")
    if asked == known or (task.strip() in TASKS and asked.kind == known.kind):
        return
    raise DomainError(
        f"--task {task}",
        expected=f"{_render_task(known)}, as {domain_file} says",
        found=_render_task(asked),
        hint="Leave out --task, import under another name with --domain, or change the file.",
    )


def _render_task(task: Task) -> str:
    written = write_task(task)
    return (
        written if isinstance(written, str) else yaml.safe_dump(written, default_flow_style=True, width=10**6).strip()
    )


def write_domain(domain: Domain, path: Path) -> None:
    """Write a domain file with the keys that differ from their default."""
    facts: dict[str, Any] = {
        "name": domain.name,
        "task": domain.task,
        "classes": list(domain.classes),
        "layout": write_layout(domain.layout),
    }
    facts |= {"group": domain.group} if domain.group else {}
    facts |= {"slices": list(domain.slices)} if domain.slices else {}
    facts |= domain.model_dump(mode="json", exclude_defaults=True, include={"img_size", "fit", "training"})
    text = yaml.safe_dump(facts, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    write_whole(path, text.encode())


def _choose_layout(source: Path, layout: str | None, asked: Task | None) -> tuple[Layout, bool]:
    """The given layout, or else the one that the folder looks like; and whether it is a guess."""
    annotation = _annotation_of(asked)
    if layout is not None:
        named = parse_layout(layout)
        if layout.strip() not in LAYOUTS:
            return named, False
        suggested = suggest_layout(source, annotation)  # fills in the names of sub-folders if only the kind is given
        return (suggested, False) if suggested and suggested.kind == named.kind else (named, False)
    files = walk_files(source)
    refuse_foreign(
        source, files, f"annotations of {source}", " Or name the layout with `--layout`.", maps=annotation == "mask"
    )
    refuse_foreign_pictures(source, files, find_foreign_pictures(source, files))
    suggested = suggest_layout(source, annotation)
    if suggested is None:
        refuse_unclear_tables(source, files, boxes=annotation == "boxes")
        error = _refuse_choice(source, "a folder whose layout can be recognised", _explain_unknown(files), asked)
        refuse_unclear_tables(source, files, any_error="--layout '" not in error.hint)  # nothing says more
        raise error
    if isinstance(suggested, Csv | Parquet) and annotation in ("label", "labels"):
        _refuse_rivals(source, files, suggested)
    return suggested, True


def _refuse_rivals(source: Path, files: Sequence[str], table: Csv | Parquet) -> None:
    """Raise DomainError if another table, or the folders, give other classes than the table that was found."""
    said = _read_labels(table, source)
    rivals: list[Layout] = [
        found.layout for found in list_described(source, files) if found.sure and found.layout.table != table.table
    ]
    folders = suggest_by_folders(source, find_roles(source, files))
    rivals += [folders] if isinstance(folders, Folders) else []
    for rival in rivals:
        other = _read_labels(rival, source)
        both = said.keys() & other.keys()
        differ = sorted(path for path in both if said[path] != other[path])
        alike = {said[path] for path in both} & {other[path] for path in both}
        if isinstance(rival, Folders) and not alike and not is_weakly_named(table):
            continue  # these folders are lots or sites
        if differ and 2 * len(both) >= len(said):
            first = differ[0]
            found = f"{first}: {said[first]!r} in {table.table}, {other[first]!r} by {render_layout(rival)}"
            raise _refuse_choice(
                source, "one label for every picture", f"{found} (pictures of this kind: {len(differ):,})"
            )


def _read_labels(layout: Layout, source: Path) -> dict[str, str]:
    try:
        rows = read_layout(layout, source, Wanted()).rows
    except TesseraError:
        return {}
    return {row.path: row.label for row in rows if row.label and not row.crop}


def _explain_unknown(files: Sequence[str]) -> str:
    inner = [path for path in files if path.lower().endswith(ARCHIVES)]
    if inner:
        return f"one that looks like none; it holds the archive {inner[0]}, which must be unpacked"
    if tables := [path for path in files if path.lower().endswith(SPREADSHEETS)]:
        return f"one that looks like none; it holds {tables[0]}, which is not read: save it as csv"
    pictures = [path for path in files if path.lower().endswith(PICTURES)]
    if arrays := [path for path in files if path.lower().endswith(CONTAINERS)]:
        found = (
            f"one that looks like none; it holds {arrays[0]}, which is not read: save masks as PNG with a number per "
        )
        return f"{found}class and the names of their pictures"
    if pictures and len(pictures) == len(files) and len({posixpath.dirname(path) for path in files}) == 1:
        return f"{len(pictures):,} pictures in one folder, and nothing that labels them"
    return "one that looks like none"


def _describe(source: Path, layout: Layout) -> Described:
    """Without a task that is asked for: one label per picture, or several where the annotations say so."""
    many = isinstance(layout, Csv | Parquet) and looks_multilabel(layout, source)
    reading = read_layout(layout, source, Wanted(annotation="labels" if many else "label"))
    if isinstance(layout, Masks) and sum(row.several for row in reading.rows) > MANY * len(reading.rows):
        many = True
        reading = read_layout(layout, source, Wanted(annotation="labels"))
    return Described(layout, _task_of("labels" if many else "label"), reading, list_classes(layout, reading))


def _task_of(annotation: Annotation) -> Task:
    return read_task(choose_kind(annotation), "task")


def _require_classes(source: Path, described: Described, fewest: int) -> None:
    """Raise DataError if there are fewer classes, with the problem of the first unfit row."""
    if len(described.classes) >= fewest:
        return
    problem = next((f"; {row.path}: {row.problem}".rstrip(".") for row in described.reading.rows if row.problem), "")
    hint = "Add pictures of another class, or name the layout with `--layout`."
    if isinstance(described.layout, Masks):
        hint += """ Masks in colours: `--layout '{kind: masks, ids: {scratch: "#ff0000"}}'`."""
    raise DataError(
        f"{source} as layout {render_layout(described.layout)}",
        expected="at least two classes" if fewest > 1 else "at least one class",
        found=f"{', '.join(described.classes) or 'none'}{problem}",
        hint=hint + hint_foreign(source),
    )


def _refuse_losses(source: Path, described: Described, asked: Task | None) -> None:
    """Raise DomainError if a guess would ignore a third of the pictures or more.

    Masks, and pictures that are annotated as having no object, are not counted.
    """
    account = account_of(described.layout, described.reading, source)
    masks = set(find_roles(source, walk_files(source)).masks)
    lost = [path for path, why in account.ignored.items() if path not in masks and why not in WITHOUT_OBJECT]
    if _annotation_of(asked) in ("mask", "boxes"):  # further masks of a picture are no pictures, either
        masks |= {path for path in lost if has_few_values(source / path)}
        lost = [path for path in lost if path not in masks]
    shown = account.found - len(masks)
    if DROPPED * len(lost) < max(shown, 1):
        return
    found = f"{len(lost):,} of {shown:,} pictures left out by {render_layout(described.layout)}, such as {lost[0]}"
    found += f" ({account.ignored[lost[0]]})"
    raise _refuse_choice(source, "a layout that reads nearly all pictures", found, asked)


def _refuse_masks_as_pictures(source: Path, described: Described) -> None:
    """Raise DomainError if class folders contain masks among their pictures: images with few values beside others."""
    rows = [row for row in described.reading.rows if (row.label or row.objects is not None) and not row.problem]
    looked = rows[:: -(-len(rows) // LOOKED) or 1]
    masks = [row.path for row in looked if has_few_values(source / row.path)]
    if not masks or len(masks) < MASKED * len(looked) or len(masks) > (1 - MASKED) * len(looked):
        return
    other = next(row.path for row in looked if row.path not in masks)
    found = f"images with few values, like masks, among them (such as {masks[0]} beside {other})"
    raise _refuse_choice(source, "folders of pictures", found)


def _refuse_choice(source: Path, expected: str, found: str, asked: Task | None = None) -> DomainError:
    """The error that lists the layouts that would read some pictures, the one that reads most first."""
    counted = []
    for layout in list_choices(source, _annotation_of(asked)):
        try:
            described = describe_as(source, layout, asked) if asked else _describe(source, layout)
        except TesseraError:
            continue
        account = account_of(layout, described.reading, source)
        used = account.found - len(account.ignored)
        fewest = 1 if _annotation_of(asked) == "boxes" else 2
        if used and len(described.classes) >= fewest and not all(map(find_split, described.classes)):
            counted.append((used, account.found, layout, described.classes))
    counted.sort(key=lambda choice: -choice[0])
    lines = [
        f"\n    --layout {shlex.quote(_write(layout))}    {used:,} of {whole:,} pictures, {_list(classes)}"
        for used, whole, layout, classes in counted[:CHOICES]
    ]
    alone = "Sort the pictures into one folder per class, or add a csv with the columns image and label; or name the "
    alone += "layout with `--layout`."
    listed = "Name the right one:" + "".join(lines) if lines else alone
    tables = [layout for *_, layout, _ in counted if isinstance(layout, Csv | Parquet)]
    if len(tables) > 1:
        listed += (
            "\nTables that name parts of the pictures can be joined into one; a column `split` then says train, val "
        )
        listed += "or test."
    hint = f"{listed}{chr(10) if lines else ' '}data/README.md shows what each layout looks like."
    return DomainError(f"layout of {source}", expected=expected, found=found, hint=hint)


def _write(layout: Layout) -> str:
    """The layout as a mapping, even without options: a kind alone would get the options that the folder suggests."""
    written = render_layout(layout)
    return f"{{kind: {written}}}" if written in LAYOUTS else written


def _list(classes: Sequence[str]) -> str:
    more = f" and {len(classes) - 4} more" if len(classes) > 4 else ""
    return f"classes {', '.join(classes[:4])}{more}"
