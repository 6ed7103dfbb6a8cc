"""Guesses the layout of a raw folder, and raises the error for a folder that does not fit its declared layout."""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from components.data.annotations.column_cells import complete_mask
from components.data.annotations.columns import Found, list_described, suggest_runs, suggest_table
from components.data.annotations.foreign import LARGE, find_foreign, find_foreign_pictures, refuse_foreign_pictures
from components.data.annotations.mask_pairs import suggest_masks
from components.data.annotations.roles import VALUES, Roles, find_roles, find_values, is_instances
from components.data.annotations.tree import (
    SPLIT_WORDS,
    are_groups,
    are_named_groups,
    find_split,
    require_inside,
    resolve_inside,
    stem_of,
    walk_files,
)
from components.data.annotations.yolo_files import suggest_yolo
from components.data.sources.names import SUFFIXES
from components.domain.layouts import PART, Coco, Cvat, Folders, Instances, Labelme, Layout, Masks, Voc
from components.domain.reading import render_layout
from components.errors import DataError
from components.tasks.base import Annotation

COCO_KEYS = (b'"images"', b'"annotations"', b'"categories"')
LABELME_KEYS = (b'"imagePath"', b'"imageHeight"', b'"imageData"')
SPLIT_TOKEN = re.compile(rf"(?<![a-z])(?:{'|'.join(SPLIT_WORDS)})(?:\d{{4}})?(?![a-z])", re.IGNORECASE)
_ROLES = "images image imgs img jpegimages pictures data labels annotations masks raw"
ROLES = frozenset(_ROLES.split())  # folder names that are never class names
_LABELS = """
    good bad ok nok ng io nio normal abnormal anomaly anomalous defect defective defects defect_free pass fail passed
    failed positive negative pos neg benign malignant healthy diseased sick tumor tumour no_tumor yes no true false 0 1
"""
LABELS = frozenset(_LABELS.split())  # names that are class names at any level
Folder = tuple[str, ...]  # the parts of a folder's path


def guess_layout(raw: Path) -> str | None:
    """The kind of layout that a folder looks like; None if it looks like none."""
    suggested = suggest_layout(raw)
    return suggested.kind if suggested else None


def suggest_layout(raw: Path, annotation: Annotation = "label") -> Layout | None:
    """The layout that a folder looks like, with the names of its sub-folders or its table filled in.

    Annotation files are tried first, because they say most; then tables; then the folders themselves. annotation: with
    `mask` and `boxes` a layout that says these, if there is one.
    """
    maps = annotation == "mask"
    files = walk_files(raw) if raw.is_dir() else []
    roles = find_roles(raw, files)
    if not roles.pictures:
        return None
    for suggest in (_suggest_voc, _suggest_coco, _suggest_labelme, _suggest_cvat):
        if not (maps and suggest is _suggest_voc) and (annotated := suggest(raw, files, roles)):
            return annotated
    if annotated := suggest_yolo(raw, files):
        return annotated
    boxes = annotation == "boxes"
    table, folders = suggest_table(raw, files, boxes=boxes), suggest_by_folders(raw, roles)
    if boxes:
        return table.layout if table else _choose_masks(raw, files, None, folders, roles)
    if maps:
        return _choose_masks(raw, files, table, folders, roles)
    if table and (folders is None or (table.sure and 2 * len(table.pictures) >= _count_pictures(files, table))):
        return table.layout
    return folders


def _choose_masks(
    raw: Path, files: Sequence[str], table: Found | None, folders: Layout | None, roles: Roles
) -> Layout | None:
    """The table or the folders, whichever names masks."""
    listed = complete_mask(table.layout, raw) if table else None
    if listed is not None and listed.mask:
        return listed
    if isinstance(folders, Folders) and folders.masks and not _are_items(folders, roles):
        several = _without_class_folders(raw, folders, roles)
        return folders if several is None else suggest_masks(raw, files) or several
    return suggest_masks(raw, files) or suggest_runs(raw, files) or folders or listed


def _are_items(layout: Folders, roles: Roles) -> bool:
    """Whether the folders are no classes: roles (`images`, `mask`), or numbered items with pictures of equal names."""
    folders = {tuple(path.split("/")[:-1]) for path in roles.pictures}
    names, stems = {folder[-1] for folder in folders if folder}, Counter(map(stem_of, roles.pictures))
    if {name.casefold() for name in names} & ROLES:
        return True
    recurring = sum(count > 1 for count in stems.values())
    return not layout.parts and len(names) > 2 and are_groups(names) and 2 * recurring >= len(stems)


def _without_class_folders(raw: Path, layout: Folders, roles: Roles) -> Masks | None:
    """The layout masks, where the folders below `images` are groups by their names, or a mask shows several classes."""
    base = "" if layout.images == "." else layout.images
    depth = base.count("/") + 1 if base else 0
    names = {path.split("/")[depth] for path in roles.pictures if path.count("/") > depth}
    numbers = find_values(raw, roles.masks) - {0, 255}
    if layout.masks is None or "class" in layout.parts or not (are_named_groups(names) or 1 < len(numbers) <= VALUES):
        return None
    part = "<group>" if are_named_groups(names) and "group" not in layout.parts and len(names) > 2 else "<folder>"
    if part.strip("<>") in layout.parts:
        return None
    images, masks = (posixpath.join(*([] if path == "." else [path]), part) for path in (layout.images, layout.masks))
    return Masks(images=images, masks=masks, ignore=(255,) if 255 in find_values(raw, roles.masks) and numbers else ())


def _count_pictures(files: list[str], table: Found) -> int:
    """The number of pictures in folders of which the table names some; it does not describe masks and other folders."""
    folders = {posixpath.dirname(path) for path in table.pictures}
    return sum(path.lower().endswith(SUFFIXES) and posixpath.dirname(path) in folders for path in files)


# Annotation files


def _suggest_voc(raw: Path, files: Sequence[str], roles: Roles) -> Layout | None:
    annotations = defaultdict[str, list[str]](list)
    for path in files:
        if path.lower().endswith(".xml"):
            annotations[posixpath.dirname(path)].append(path)
    found = {folder: paths for folder, paths in annotations.items() if _is_voc(raw / paths[0])}
    if not found:
        return None
    pair = _pair_folders(found, roles)
    return Voc(images=pair[0], annotations=pair[1]) if pair else None


def _suggest_labelme(raw: Path, files: Sequence[str], roles: Roles) -> Layout | None:
    """LabelMe, where one of the first files of a folder is one; further JSON files may lie beside them."""
    annotations = defaultdict[str, list[str]](list)
    for path in files:
        if path.lower().endswith(".json"):
            annotations[posixpath.dirname(path)].append(path)
    found = {folder: paths for folder, paths in annotations.items() if any(_is_labelme(raw / one) for one in paths[:3])}
    pair = _pair_folders(found, roles) if found else None
    return Labelme(images=pair[0], annotations=pair[1]) if pair else None


def _is_labelme(path: Path) -> bool:
    if path.stat().st_size > LARGE:
        return False
    data = path.read_bytes()
    return b'"shapes"' in data and any(key in data for key in LABELME_KEYS)


def _suggest_cvat(raw: Path, files: Sequence[str], roles: Roles) -> Layout | None:
    found = [path for path in files if path.lower().endswith(".xml") and _is_cvat(raw / path)]
    if not found:
        return None
    folders = {posixpath.dirname(path) for path in roles.pictures}
    images = posixpath.commonpath(list(folders)) if len(folders) > 1 else next(iter(folders))
    above = {posixpath.dirname(path) for path in found}
    if len(found) == 1:
        return Cvat(images=images or ".", annotations=found[0])
    return Cvat(images=images or ".", annotations=posixpath.commonpath(list(above)) or ".") if above else None


def _is_cvat(path: Path) -> bool:
    with path.open("rb") as file:
        return re.search(rb"<annotations[\s>]", file.read(4096)) is not None


def _pair_folders(found: Mapping[str, Sequence[str]], roles: Roles) -> tuple[str, str] | None:
    """The folders of the pictures and of their annotation files, which have the same stems; parts stand for several.

    found: annotation files by folder.
    """
    where = _largest({folder: len(paths) for folder, paths in found.items()})
    stems = {stem_of(path) for paths in found.values() for path in paths}
    shown = Counter(posixpath.dirname(path) for path in roles.pictures if stem_of(path) in stems)
    images = _largest(shown or Counter(map(posixpath.dirname, roles.pictures)))
    if PART.search(where) and not PART.search(images):
        return None
    if not PART.search(images) and (both := _generalise_pair(shown, found)):
        images, where = both
    return images or ".", where or "."


def _generalise_pair(images: Iterable[str], annotations: Iterable[str]) -> tuple[str, str] | None:
    """Both paths with the part `<folder>`, if each is a set of folders that differ only by one name, equal in both."""
    pieces = [[folder.split("/") for folder in folders] for folders in (images, annotations)]
    if min(map(len, pieces)) < 2 or any(len({*map(len, folders)}) > 1 for folders in pieces):
        return None
    templates, names = [], []
    for folders in pieces:
        differ = [place for place, found in enumerate(zip(*folders, strict=True)) if len(set(found)) > 1]
        if len(differ) != 1:
            return None
        names.append({folder[differ[0]] for folder in folders})
        templates.append("/".join([*folders[0][: differ[0]], "<folder>", *folders[0][differ[0] + 1 :]]))
    return (templates[0], templates[1]) if names[0] == names[1] else None


def _is_voc(path: Path) -> bool:
    with path.open("rb") as file:
        return re.search(rb"<annotation[\s>]", file.read(4096)) is not None


def _suggest_coco(raw: Path, files: Sequence[str], roles: Roles) -> Layout | None:
    found = [path for path in files if path.lower().endswith(".json") and _is_coco(raw / path)]
    if not found:
        return None
    by_template = defaultdict[str, list[str]](list)
    for path in found:
        by_template[SPLIT_TOKEN.sub("<split>", path, count=1)].append(path)
    several = {t: paths for t, paths in by_template.items() if len({_split_in(path) for path in paths}) > 1}
    folders = Counter(map(posixpath.dirname, roles.pictures))
    if several:
        annotations = max(several, key=lambda template: ("instances" in template, len(several[template]), template))
    else:
        beside = {posixpath.dirname(path) for path in found}
        others = [path for path in files if path.lower().endswith(".json") and path not in found]
        alone = len(beside) > 1 or any(posixpath.dirname(path) in beside for path in others)
        one = max(found, key=lambda path: ("instances" in path, (raw / path).stat().st_size))
        annotations = one if len(found) == 1 or alone else beside.pop() or "."
    images = _largest(folders)
    if not (several and PART.search(images)):
        images = posixpath.commonpath(list(folders)) if len(folders) > 1 else next(iter(folders))
    return Coco(images=images or ".", annotations=annotations)


def _split_in(path: str) -> str | None:
    match = SPLIT_TOKEN.search(path)
    return find_split(match[0]) if match else None


def _is_coco(path: Path) -> bool:
    data = path.read_bytes()
    return all(key in data for key in COCO_KEYS)


def _largest(folders: dict[str, int] | Counter[str]) -> str:
    """The folder with the most files. Folders that differ only by a split's name are one, with the part `<split>`."""
    together = defaultdict[str, list[str]](list)
    for folder in folders:
        together[_generalise(folder)].append(folder)
    sizes = {
        template if len(members) > 1 else members[0]: sum(folders[member] for member in members)
        for template, members in together.items()
    }
    return max(sizes, key=lambda folder: (sizes[folder], folder))


def _generalise(folder: str) -> str:
    pieces = folder.split("/")
    place = next((place for place, piece in enumerate(pieces) if find_split(piece)), None)
    return folder if place is None else "/".join([*pieces[:place], "<split>", *pieces[place + 1 :]])


# Folders


def suggest_by_folders(raw: Path, roles: Roles) -> Layout | None:
    """Class folders (with masks, if there are any), or pictures with masks; None if neither fits."""
    folders = {tuple(path.split("/")[:-1]) for path in roles.pictures}
    template = find_template(folders)
    if template is not None:
        images = posixpath.join(*template) if template else "."
        return Folders(images=images, masks=_find_masks_base(images, template, folders, roles))
    if not roles.masks:
        return None
    images = _largest(Counter(map(posixpath.dirname, roles.pictures))) or "."
    masks = images if roles.beside else _largest(Counter(map(posixpath.dirname, roles.masks))) or "."
    if "<split>" in masks and "<split>" not in images:
        return None
    if is_instances(masks):
        return Instances(images=images, instances=masks)
    values = find_values(raw, roles.masks)
    return Masks(images=images, masks=masks, ignore=(255,) if 255 in values and values & set(range(1, 255)) else ())


def find_template(folders: Iterable[Folder]) -> Folder | None:
    """The path above the class folders, with parts in angle brackets for splits, groups and others.

    None if there are no class folders.
    """
    known = set(folders)
    if len(known) < 2:
        return None
    shared = _common(known)
    below = {folder[len(shared) :] for folder in known if len(folder) > len(shared)}
    firsts = {folder[0] for folder in below}
    splits = {name for name in firsts if find_split(name)}
    if len({find_split(name) for name in splits}) > 1 and all(len(f) > 1 for f in below if f[0] in splits):
        return _below_splits(shared, {folder for folder in below if folder[0] in splits})
    if splits == firsts or {name.casefold() for name in firsts} <= ROLES or len(firsts) < 2:
        return None
    if any(len(folder) == 1 for folder in below):
        return shared
    return _prefix(shared, _find_class_level(below, firsts))


def _below_splits(shared: Folder, below: set[Folder]) -> Folder | None:
    """The template of folders that begin with a split; None if one split has a single folder that no other has."""
    seconds = {first: {folder[1] for folder in below if folder[0] == first} for first, *_ in below}
    doubled = all(len(names) == 1 and find_split(min(names)) == find_split(first) for first, names in seconds.items())
    if doubled and all(len(folder) > 2 for folder in below):  # `seg_train/seg_train/sea`
        return _prefix((*shared, "<split>", "<folder>"), _inside({folder[2:] for folder in below}))
    inner = _inside({folder[1:] for folder in below})
    if inner == () and all(len(folder) == 2 for folder in below):
        for first, names in seconds.items():
            others = set().union(*(seconds[other] for other in seconds if other != first))
            if len(names) == 1 and not names & others:  # `test/unknown`, `test/images`: no class
                return None
    return _prefix((*shared, "<split>"), inner)


def _inside(folders: set[Folder]) -> Folder | None:
    """As `find_template`, but a single class folder is enough: another split may have the other classes."""
    if len(folders) == 1:
        only = next(iter(folders))
        return None if only[-1].casefold() in ROLES else only[:-1]
    return find_template(folders)


def _find_class_level(below: set[Folder], firsts: set[str]) -> Folder | None:
    """Which of the first two levels is the class, if no picture lies directly below the first level."""
    pairs = {folder[:2] for folder in below}
    seconds = Counter(second for _, second in pairs)
    numbered = are_groups(firsts), are_groups(seconds)
    named = are_named_groups(firsts), are_named_groups(seconds)
    numbered = named if named[0] != named[1] else numbered
    part = "<group>" if numbered[0] and len(firsts) > 2 else "<folder>"  # two groups cannot fill three splits
    if all(map(find_split, seconds)):
        deeper = {folder[2:] for folder in below}
        return ("<class>", "<split>") if () in deeper else _prefix((part, "<split>"), _inside(deeper))
    if len(seconds) == 1:  # a folder that lies below each of the first distinguishes nothing
        without = {(folder[0], *folder[2:]) for folder in below}
        level = _find_class_level(without, firsts) if all(len(folder) > 1 for folder in without) else ()
        return (level[0], *seconds, *level[1:]) if level else level
    recurring = 2 * sum(count > 1 for count in seconds.values()) >= len(seconds)
    if not recurring:
        return ("<class>", "<group>") if numbered == (False, True) else ()
    if {name.casefold() for name in seconds} <= LABELS or numbered == (True, False):
        return _prefix((part,), _inside({folder[1:] for folder in below}))
    if {name.casefold() for name in firsts} <= LABELS or numbered == (False, True):
        return ("<class>", "<group>") if numbered[1] else ()
    return None


def _prefix(shared: Folder, rest: Folder | None) -> Folder | None:
    """Both paths joined; None if a part would occur twice."""
    return None if rest is None or set(shared) & set(rest) & {"<split>", "<group>", "<folder>"} else (*shared, *rest)


def _common(folders: set[Folder]) -> Folder:
    first, last = min(folders), max(folders)
    same = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:same]


def _find_masks_base(images: str, template: Folder, folders: set[Folder], roles: Roles) -> str | None:
    """The folder above the masks of the classes, with the parts of `images`; None if there is none or more than one."""
    if not roles.masks:
        return None
    if roles.beside:
        return images
    classes = {folder[len(template)] for folder in folders if len(folder) > len(template)}
    bases = set[Folder]()
    for folder in {tuple(path.split("/")[:-1]) for path in roles.masks}:
        place = next((place for place, name in enumerate(folder) if name in classes), len(folder))
        bases.add(folder[:place])
    if len(bases) > 1:
        named = [{folder[n] for folder in folders if len(folder) > n} for n in range(len(template))]
        bases = {
            tuple(
                template[n] if n < len(template) and PART.fullmatch(template[n]) and name in named[n] else name
                for n, name in enumerate(base)
            )
            for base in bases
        }
    base = bases.pop() if len(bases) == 1 and all(bases) else ()
    return posixpath.join(*base) if base and "<class>" not in base else None  # masks below each class have no base


def list_choices(raw: Path, annotation: Annotation = "label") -> list[Layout]:
    """Layouts that may describe the folder, for a person to choose from."""
    files = walk_files(raw)
    roles = find_roles(raw, files)
    found: list[Layout | None] = [suggest_layout(raw, annotation), suggest_by_folders(raw, roles)]
    tables = list_described(raw, files, boxes=annotation == "boxes")
    found += [table.layout for table in sorted(tables, key=lambda each: -len(each.pictures))]
    folders = {tuple(path.split("/")[:-1]) for path in roles.pictures}
    shared = _common(folders) if folders else ()
    depth = min((len(folder) - len(shared) for folder in folders if len(folder) > len(shared)), default=0)
    split = any(find_split(folder[len(shared)]) for folder in folders if len(folder) > len(shared))
    above: list[Folder] = [(), ("<split>",)] if split else [(), ("<group>",), ("<class>", "<group>")]
    tops = [(*shared, *parts) for parts in (above if depth > 1 else above[:1])] + sorted(
        {folder[: len(shared) + 1] for folder in folders}
    )
    found += [Folders(images=posixpath.join(*top) if top else ".") for top in tops]
    return list({render_layout(layout): layout for layout in found if layout}.values())


# Errors


def require_folder(raw: Path, text: str, layout: Layout) -> str:
    """The path, relative to raw/, of a folder that the layout names. Raises DataError if it does not exist."""
    path = resolve_inside(text, "", f"layout {layout.kind}")
    if not (raw / path).is_dir():
        refuse_layout(raw, layout, f"a folder {text!r}", "no such folder")
    require_inside(raw, raw / path)
    return path


def refuse_layout(raw: Path, layout: Layout, expected: str, found: str) -> NoReturn:
    """Raise the DataError for a tree that does not fit its layout, with the layout that it looks like."""
    files = walk_files(raw) if raw.is_dir() else []
    refuse_foreign_pictures(raw, files, find_foreign_pictures(raw, files))
    hint = f"Correct the layout (`--layout`, or `layout` in domain.yaml) or the folder.{hint_layout(raw, layout)}"
    raise DataError(f"{raw} as layout {layout.kind}", expected=expected, found=found, hint=hint)


def hint_layout(raw: Path, layout: Layout, *, same_kind: bool = True) -> str:
    """A sentence with the layout that the folder looks like, if that is another one; else an empty text.

    same_kind: whether a layout of the same kind with other options counts as another one.
    """
    if foreign := hint_foreign(raw):
        return foreign
    guess = suggest_layout(raw)
    if guess is None or guess == layout or (guess.kind == layout.kind and not same_kind):
        return ""
    return f" This looks like {guess.kind}: write `layout: {render_layout(guess)}`."


def hint_foreign(raw: Path) -> str:
    """A sentence with what to do, if the folder has annotations in a format that is not read; else an empty text."""
    foreign = find_foreign(raw, walk_files(raw) if raw.is_dir() else [])
    if foreign is None:
        return ""
    return f" There is {foreign.name} (as in {foreign.example}), which is not read yet. {foreign.hint}"
