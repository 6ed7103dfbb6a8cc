"""Raw trees to rows: one reader per layout, and the dict READERS that names them.

A reader only reports what the tree contains; validation checks later whether files can be decoded. A fault of one
file becomes the `problem` of its row, which ends in quarantine. A fault of the whole tree (no images, an unknown
class, a path that leads out of raw/) raises DataError. A reader opens only files that it found by walking raw/, so
nothing outside raw/ is ever read.
"""

import difflib
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from components.data.accounts import Account
from components.data.annotations.boxes import clip_boxes
from components.data.annotations.coco import read_coco
from components.data.annotations.cvat import read_cvat
from components.data.annotations.foreign import find_foreign_pictures, refuse_foreign, refuse_foreign_pictures
from components.data.annotations.guessing import hint_layout, refuse_layout, require_folder
from components.data.annotations.labelme import read_labelme
from components.data.annotations.mask_boxes import box_classes
from components.data.annotations.masks import read_instances, read_masks
from components.data.annotations.names import rename_labels
from components.data.annotations.objects import settle_objects
from components.data.annotations.regions import paint_classes, settle
from components.data.annotations.tables import read_table
from components.data.annotations.tree import (
    bare_stem,
    fill_parts,
    find_masks_beside,
    find_split,
    list_folders,
    match_parts,
    name_columns,
    stem_of,
    walk_files,
)
from components.data.annotations.voc import read_voc
from components.data.annotations.yolo import read_yolo
from components.data.manifest import Reading, Row, SupportsDigest, Wanted, create_rows
from components.data.sources.images import not_an_image
from components.data.sources.names import SUFFIXES
from components.domain.domain import Domain
from components.domain.layouts import PART, WITH_COLUMNS, Folders, Instances, Labelme, Layout, Masks, Tree, Voc
from components.domain.reading import render_layout
from components.errors import DataError
from components.records.images import Pictures
from components.records.reasons import Reason
from components.tasks import create_task
from components.tasks.base import BoxTask

Reader = Callable[[Any, Path, Wanted], Reading]


@dataclass(frozen=True)
class Understood:
    """A raw folder as its domain's layout reads it.

    rows: the frame of rows.parquet. account: what became of every picture. pictures: the counts of the account, where
    all rows without a problem count as used.
    """

    rows: pl.DataFrame
    account: Account
    pictures: Pictures


def read_rows(domain: Domain, raw: Path, digests: SupportsDigest | None = None) -> pl.DataFrame:
    """All samples of the raw folder, as rows.parquet holds them; see `read_tree`."""
    return read_tree(domain, raw, digests).rows


def read_tree(domain: Domain, raw: Path, digests: SupportsDigest | None = None) -> Understood:
    """All samples of the raw folder, not yet validated, and the account of its pictures.

    digests: the hashes of unchanged files (`Digests`); without it every file is hashed.

    Raises DataError if the tree does not fit the layout, or contains a label that is no class of the domain.
    """
    require_raw(raw)
    columns = tuple(dict.fromkeys([*([domain.group] if domain.group else []), *domain.slices]))
    _require_columns(domain, columns)
    task = create_task(domain)
    wanted = Wanted(columns, domain.classes, task.annotation, task.painting, domain.rename, digests)
    files = walk_files(raw)
    foreign = find_foreign_pictures(raw, files)
    reading = rename_labels(clip_boxes(read_layout(domain.layout, raw, wanted), raw), domain.rename)
    if task.painting is not None:
        reading = settle(reading, raw, task.painting)
    if isinstance(task, BoxTask):
        reading = settle_objects(reading, task.unannotated)
    if all(row.problem for row in reading.rows):
        _refuse_unread(raw, files, foreign)
    if not reading.rows:
        refuse_layout(raw, domain.layout, "at least one image", "none")
    _require_known_labels(reading.rows, domain, raw)
    account = _account(domain.layout, reading, files, foreign)
    rows = _without_shared_masks([_name_foreign(row, foreign) for row in reading.rows])
    if domain.split.given:
        rows = _hold_to_given(rows, account, raw)
    frame, there = create_rows(rows, domain, raw, digests), set(files)
    fit = frame.filter(pl.col("problem").is_null() & pl.col("id").is_not_null())
    masks = [mask if mask in there else None for mask in fit["mask"]]
    pictures = account.count_pictures(fit.with_columns(pl.Series("mask", masks, dtype=pl.String)))
    return Understood(frame, account, pictures)


def find_classes(layout: Layout, raw: Path, *, many: bool = False) -> list[str]:
    """The labels that a raw folder contains, sorted: the classes of a new domain. many: several labels per picture."""
    require_raw(raw)
    if isinstance(layout, Instances):
        return sorted((layout.background, layout.label))
    rows = read_layout(layout, raw, Wanted(annotation="labels" if many else "label")).rows
    return sorted({label for row in rows for label in _labels(row)})


def require_raw(raw: Path) -> None:
    """Raise DataError unless the raw folder exists and is not empty."""
    if raw.is_dir() and any(raw.iterdir()):
        return
    found = "an empty folder" if raw.is_dir() else "no such folder"
    hint = "Bring images in with `tessera import`, or fetch a recorded version with `dvc pull`."
    raise DataError(f"raw images {raw}", expected="a folder of images", found=found, hint=hint)


def read_layout(layout: Layout, raw: Path, wanted: Wanted) -> Reading:
    """Read a raw folder by a layout; a layout with parts in angle brackets is read once per folder that matches.

    The names at these parts become columns of the rows. Raises DataError if nothing fits the layout.
    """
    if isinstance(layout, Folders) or not isinstance(layout, Tree) or not layout.parts:
        reading = READERS[layout.kind](layout, raw, wanted)
        if isinstance(layout, Masks | Instances) and (wanted.boxed or wanted.painting is not None):
            return _with_published_lists(reading, raw, MASK_LIST)
        return _with_published_lists(reading, raw, VOC_LIST) if isinstance(layout, Voc) else reading
    rows, ignored, notes = list[Row](), dict[str, str](), Counter[str]()
    orphans: dict[str, list[Row]] = {}
    readings = 0
    for concrete, parts, lacks in expand_layout(layout, raw):
        if lacks:
            why = Reason(f"annotations for {concrete.images}", f"no {lacks}", "Add them, or remove these pictures.")
            ignored |= dict.fromkeys((path for path in walk_files(raw, concrete.images) if _is_picture(path)), str(why))
            continue
        reading, readings = READERS[layout.kind](concrete, raw, wanted), readings + 1
        shared = isinstance(layout, Labelme | Voc) and concrete.annotations == layout.annotations
        for row in reading.rows:
            if shared and row.problem and not _is_picture(row.path):
                orphans.setdefault(row.path, []).append(row)
            else:
                rows.append(replace(row, columns={**row.columns, **name_columns(parts)}))
        ignored |= reading.ignored
        notes.update(reading.notes)
    rows += [found[0] for found in orphans.values() if len(found) == readings]  # files without a picture in any folder
    if not rows:
        refuse_layout(raw, layout, f"annotated images in folders like {layout.images!r}", "none")
    return Reading(rows, ignored, notes)


def expand_layout(layout: Tree, raw: Path) -> Iterator[tuple[Any, dict[str, str], str | None]]:
    """For each folder that `images` matches: its layout, the names of its parts, and a further path that is missing."""
    files = walk_files(raw)
    folders = list_folders(files)
    masks = getattr(layout, "masks", layout.images)
    taken = match_parts(masks, folders) if masks != layout.images and PART.search(masks) else {}
    templates = {name: getattr(layout, name, None) for name in ("annotations", "instances", "masks")}
    matched = {
        name: _match_columns(template, [*folders, *files])
        for name, template in templates.items()
        if isinstance(template, str) and PART.search(template)
    }
    for base, parts in match_parts(layout.images, folders).items():
        if base in taken:  # `<split>` also matches `train_labels`
            continue
        changes, columns = {"images": base}, name_columns(parts)
        missing: str | None = None
        for name, paths in matched.items():
            template = str(templates[name])
            filled = paths.get(tuple(columns[part] for part in PART.findall(template)))
            missing = template if filled is None else missing
            changes[name] = filled or template
        yield layout.model_copy(update=changes), parts, missing


def _match_columns(template: str, paths: Sequence[str]) -> dict[tuple[str, ...], str]:
    """The first path that matches a template with each set of names at its parts (`valid` equals `val`)."""
    found: dict[tuple[str, ...], str] = {}
    for path, parts in match_parts(template, paths).items():
        columns = name_columns(parts)
        found.setdefault(tuple(columns[part] for part in PART.findall(template)), path)
    return found


def read_folders(layout: Folders, raw: Path, wanted: Wanted) -> Reading:
    """One row per image below a class folder. If a class has a folder of masks, each of its images needs a mask.

    With regions or boxes wanted, all pixels of a mask that are not 0 are of the folder's class.
    """
    if wanted.boxed and not layout.masks:
        refuse_layout(raw, layout, "a folder of masks, which show where objects are", "no option `masks`")
    files = walk_files(raw)
    folders = list_folders(files)
    bases = match_parts(layout.images, folders) if layout.parts else {require_folder(raw, layout.images, layout): {}}
    known: dict[str, _Masks] = {}
    rows = list[Row]()
    for base, parts in bases.items():
        masks = None
        if layout.masks:
            where = fill_parts(layout.masks, parts, folders)
            if where is not None:  # a split without masks needs no folder for them
                folder = require_folder(raw, where, layout)
                masks = known.setdefault(folder, _Masks(raw, folder, beside=layout.masks == layout.images))
        rows += _read_class_folders(raw, base, parts, masks)
    if not any(row.label for row in rows):
        refuse_layout(raw, layout, f"one folder per class with images in {layout.images!r}", "no such folders")
    if wanted.painting is None and not wanted.boxed:
        return Reading(rows)
    one = [_with_one_mask(row, known.values()) for row in rows]
    rows, notes = box_classes(one, raw) if wanted.boxed else paint_classes(one, raw, wanted)
    return Reading(rows + [row for masks in known.values() for row in masks.list_unused(rows)], notes=notes)


def _with_one_mask(row: Row, known: Iterable["_Masks"]) -> Row:
    """The row without a mask that does not exist, and with a problem where several masks have the picture's name.

    Numbered ones (`a_mask.png`, `a_mask_1.png`) show one object each.
    """
    found = [path for masks in known for path in masks.find_all(row)]
    if len(found) > 1 and len({NUMBERED.sub("", stem_of(path)) for path in found}) == 1:
        return replace(row, mask=found[0], further=found[1:])
    if len(found) > 1:
        hint = "Join them into one mask, or remove the others."
        problem = Reason("one mask of the same name", ", ".join(found[:4]), hint)
        return replace(row, mask=found[0], problem=row.problem or problem)
    return replace(row, mask=found[0] if found else None)


def _read_class_folders(raw: Path, base: str, parts: Mapping[str, str], masks: "_Masks | None") -> list[Row]:
    """The rows of one folder; the class is the name of the folder below it, or the part `<class>` of its path.

    A folder without pictures is not a class.
    """
    rows, columns, files = [], name_columns(parts), walk_files(raw, base)
    depth = base.count("/") + 1 if base else 0
    shown = {path.split("/")[depth] for path in files if _is_picture(path)}
    for path in files:
        if path.split("/")[depth] not in shown:
            continue
        inner = posixpath.relpath(path, base or ".")
        label, _, rest = ("", "", inner) if "class" in parts else inner.partition("/")
        if masks and masks.holds(path):
            continue
        if not rest:
            if _is_picture(path):
                hint = "Move it into the folder of its class."
                beside = Reason("an image inside a class folder", "one beside them", hint)
                rows.append(Row(path=path, columns=columns, problem=beside))
            continue
        problem = not_an_image(path)
        label = parts.get("class", label)
        mask = masks.find(path, label, rest) if masks and not problem else None
        rows.append(Row(path=path, label=label, mask=mask, columns=columns, problem=problem))
    return rows


def _is_picture(path: str) -> bool:
    return path.lower().endswith(SUFFIXES)


VOC_ORDER = ("trainval", "train", "val", "test")  # later lists take precedence
VOC_LIST = re.compile(r"(^|/)ImageSets/(Main/)?(trainval|train|val|test)\.txt$", re.IGNORECASE)
MASK_LIST = re.compile(r"(^|(?<!ImageSets/Main)/)(trainval|train|val|test)\.txt$", re.IGNORECASE)
NUMBERED = re.compile(r"(?<=[A-Za-z])[-_ ]?\d{1,2}$")
LISTED = 0.8  # share of the names in a list of masked pictures that must be pictures

READERS: dict[str, Reader] = {
    "folders": read_folders,
    "csv": read_table,
    "parquet": read_table,
    "voc": read_voc,
    "coco": read_coco,
    "yolo": read_yolo,
    "labelme": read_labelme,
    "cvat": read_cvat,
    "instances": read_instances,
    "masks": read_masks,
}


# Masks


class _Masks:
    """Finds masks by class and stem, `<base>/<class>/<same stem>.*` or `..._mask.*`, or beside their pictures."""

    def __init__(self, raw: Path, base: str, *, beside: bool) -> None:
        self.base, self.beside = base, beside
        files = walk_files(raw, base)
        if beside:
            found = find_masks_beside(filter(_is_picture, files))
            self.files = {picture: mask for mask, picture in reversed(found.items())}  # `a_mask` before `a_mask_1`
            self.masks = set(found)
            return
        bare = {posixpath.join(posixpath.dirname(path), bare_stem(path)): path for path in files}
        self.files = bare | {posixpath.splitext(path)[0]: path for path in files}
        self.labels = {posixpath.relpath(stem, base or ".").split("/")[0] for stem in self.files}
        self.masks = set(filter(_is_picture, files))

    def holds(self, path: str) -> bool:
        """Whether a file is a mask, or lies in the folder of masks."""
        return path in self.masks if self.beside else path.startswith(f"{self.base}/")

    def find_all(self, row: Row) -> list[str]:
        """All masks of the row's picture: those with its stem, else those called `<stem>_mask` or similar."""
        if row.mask is None:
            return []
        folder, stem = posixpath.split(posixpath.splitext(row.mask)[0])
        names = self._stems.get(folder, {}).get(stem, []) if stem == stem_of(row.path) else []
        return names or self._bare.get(folder, {}).get(stem_of(row.path), [])

    @cached_property
    def _stems(self) -> dict[str, dict[str, list[str]]]:
        return _by_name(self.masks, stem_of)

    @cached_property
    def _bare(self) -> dict[str, dict[str, list[str]]]:
        return _by_name((path for path in self.masks if bare_stem(path) != stem_of(path)), bare_stem)

    def list_unused(self, rows: Iterable[Row]) -> list[Row]:
        """A row with a problem for every mask that belongs to no picture."""
        named = {path for row in rows for path in self.find_all(row)}
        problem = Reason("a picture of the same name as the mask", "none", "Add the picture, or remove the mask.")
        return [Row(path=path, problem=problem) for path in sorted(self.masks - named)]

    def find(self, path: str, label: str, rest: str) -> str | None:
        """The mask of an image. If it is missing, the name it should have, so that validation reports it."""
        if self.beside:
            return self.files.get(path)
        stem = posixpath.join(self.base, label, posixpath.splitext(rest)[0])
        return self.files.get(stem, f"{stem}.png") if label in self.labels else None


def _by_name(paths: Iterable[str], name: Callable[[str], str]) -> dict[str, dict[str, list[str]]]:
    """Paths by folder and by name."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted(paths):
        found.setdefault(posixpath.dirname(path), {}).setdefault(name(path), []).append(path)
    return found


def _without_shared_masks(rows: list[Row]) -> list[Row]:
    """Give a problem to pictures that share one mask, such as `a.jpg` and `a.png` in one folder."""
    claims: dict[str, set[str]] = {}
    for row in rows:
        if row.mask and not row.crop:
            claims.setdefault(row.mask, set()).add(row.path)
    hint = "Rename one image and give it its own mask."
    return [
        replace(row, mask=None, regions=None, objects=None, boxes=(), problem=Reason("its own mask", found, hint))
        if len(others := claims.get(row.mask or "", set())) > 1
        and (found := f"the mask {row.mask} shared by {', '.join(sorted(others))}")
        else row
        for row in rows
    ]


# Splits that the tree or a table names


def _with_published_lists(reading: Reading, raw: Path, which: re.Pattern[str]) -> Reading:
    """The reading with the column `split` for every picture that a list (`train.txt`) names, one name per line."""
    sets, stems = dict[str, str](), {stem_of(row.path) for row in reading.rows}
    lists = [path for path in walk_files(raw) if which.search(path)]
    for path in sorted(lists, key=lambda path: VOC_ORDER.index(stem_of(path).casefold())):
        split = stem_of(path).casefold().removesuffix("val") or "val"  # trainval: what is not in val is train
        lines = (raw / path).read_text(encoding="utf-8-sig", errors="replace").splitlines()
        names = [name for line in lines if (name := _listed_name(line, stems))]
        if which is VOC_LIST or sum(name in stems for name in names) >= LISTED * len(names):
            sets |= dict.fromkeys(names, split)
    if not sets:
        return reading
    placed = [
        replace(row, columns={**row.columns, "split": sets[stem_of(row.path)]}) if stem_of(row.path) in sets else row
        for row in reading.rows
    ]
    return replace(reading, rows=placed)


def _listed_name(line: str, stems: Set[str]) -> str:
    """The stem that a line of a list names: `p1`, `p1 -1`, `p 1.jpg`, `JPEGImages/p1.jpg` or `p1.jpg masks/p1.png`."""
    name = re.sub(r"\s+-?[01]$", "", line.strip()).replace("\\", "/")
    first = (name.split() or [""])[0]
    short = stem_of(first) if _is_picture(first) else posixpath.basename(first)
    whole = stem_of(name) if _is_picture(name) else posixpath.basename(name)
    return short if whole not in stems and short in stems else whole


def _count_given(rows: list[Row]) -> dict[str, int]:
    """The number of pictures per split; empty if the column `split` contains a name that is not one of a split."""
    given = {row.path: row.columns["split"] for row in rows if row.columns.get("split")}
    found = [find_split(name or "") for name in given.values()]
    return {} if None in found else dict(Counter(name for name in found if name))


def _hold_to_given(rows: list[Row], account: Account, raw: Path) -> list[Row]:
    """Rows with the plain name of their given split, or with a problem if they have none.

    Raises DataError unless the tree assigns pictures to train and to test.
    """
    found = ", ".join(f"{name} {count:,}" for name, count in account.given.items()) or "no split"
    if not {"train", "test"} <= set(account.given):
        hint = "Add the missing split, or remove `split: given` from domain.yaml: then Tessera splits by groups."
        where = f"split: given of {raw}"
        raise DataError(where, expected="pictures for train and for test (val may be missing)", found=found, hint=hint)
    problem = Reason("a split that the tree or table names (train, val or test)", "none", "Name it, or remove the row.")
    held = []
    for row in rows:
        split = find_split(row.columns.get("split") or "")
        changes: dict[str, Any] = {"columns": {**row.columns, "split": split}}
        held.append(replace(row, **changes, problem=row.problem or (None if split else problem)))
    return held


# Pictures


def account_of(layout: Layout, reading: Reading, raw: Path) -> Account:
    """The account of a reading. A picture that no row names is ignored, for the reader's reason or for its place."""
    files = walk_files(raw)
    return _account(layout, reading, files, find_foreign_pictures(raw, files))


def _account(layout: Layout, reading: Reading, files: list[str], foreign: Mapping[str, Reason]) -> Account:
    pictures = [path for path in files if path in foreign or _is_picture(path)]
    further = {mask: row.path for row in reading.rows for mask in row.further}
    named = {row.path for row in reading.rows} | {row.mask for row in reading.rows} | further.keys()
    elsewhere = f"It lies outside of what `layout: {render_layout(layout)}` reads, or no annotation names it."
    ignored = {
        path: reading.ignored.get(path) or str(foreign.get(path) or elsewhere) for path in pictures if path not in named
    }
    return Account(len(pictures), ignored, dict(reading.notes), _count_given(reading.rows), further)


def _name_foreign(row: Row, foreign: Mapping[str, Reason]) -> Row:
    return replace(row, problem=foreign[row.path]) if row.problem and row.path in foreign else row


def _refuse_unread(raw: Path, files: list[str], foreign: Mapping[str, Reason]) -> None:
    """Raise DataError if annotations or pictures are in a known format that is not read."""
    refuse_foreign(raw, files, f"annotations in {raw}")
    refuse_foreign_pictures(raw, files, foreign)


def _require_columns(domain: Domain, columns: Sequence[str]) -> None:
    """Raise DataError if `group` or `slices` name columns that the layout cannot have."""
    parts = domain.layout.parts if isinstance(domain.layout, Tree) else ()
    if set(columns) <= set(parts) or domain.layout.kind in WITH_COLUMNS:
        return
    raise DataError(
        f"layout {domain.layout.kind}",
        expected=f"no columns for `group` and `slices`, which only the layouts {', '.join(WITH_COLUMNS)} have",
        found=", ".join(name for name in columns if name not in parts),
        hint="Describe the images in a table with the layout csv, name the folder with a part in angle brackets "
        "(`images: <lot>`), or remove these keys.",
    )


# Labels


def _labels(row: Row) -> list[str]:
    if row.regions is not None:
        return row.regions.shown
    if row.objects is not None:
        return [each.label for each in row.objects]
    return list(row.labels) if row.labels is not None else [row.label] if row.label else []


def _require_known_labels(rows: list[Row], domain: Domain, raw: Path) -> None:
    unknown = [(label, row.path) for row in rows for label in _labels(row) if label not in domain.classes]
    if not unknown:
        return
    counts = Counter(label for label, _ in unknown)
    label, count = counts.most_common(1)[0]
    first = next(path for name, path in unknown if name == label)
    close = difflib.get_close_matches(label, domain.classes, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    hint += hint_layout(raw, domain.layout, same_kind=False)
    more = f" and {len(counts) - 10} more" if len(counts) > 10 else ""
    raise DataError(
        f"label {label!r} ({count} times, first at {first})",
        expected=f"one of the classes {', '.join(domain.classes)}",
        found=", ".join(sorted(map(repr, counts))[:10]) + more,
        hint=f"Add it to `classes` in domain.yaml, or rename or remove it.{hint}",
    )
