"""YOLO: one text file per picture, one crop per line: `class cx cy width height`, in shares of the picture's size.

Where regions are wanted, each line is a polygon instead. Where boxes are wanted, the lines of a picture are the boxes
of one row.
"""

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.data.annotations.column_cells import read_size
from components.data.annotations.guessing import refuse_layout, require_folder
from components.data.annotations.objects import EXTENTS, BoxMark, place_boxes
from components.data.annotations.painting import Drawn, paint_all, paint_row
from components.data.annotations.tree import Index, require_inside, resolve_inside, walk_files
from components.data.annotations.yolo_files import find_names_files, load_facts, pair_labels, refuse_bad_names
from components.data.annotations.yolo_labels import FORMS, KEYPOINTS, OUTLINE, Labels, holds_outline, read_labels
from components.data.annotations.yolo_shapes import BOX, holds_boxes, read_polygons
from components.data.manifest import Reading, Row, Wanted
from components.data.sources.images import Box
from components.data.sources.names import SUFFIXES
from components.domain.layouts import Yolo
from components.errors import DataError
from components.records.maps import Painting
from components.records.reasons import Reason

BACKGROUND = "annotated as background: its label file is empty"
UNLISTED = "pictures without a label file, which YOLO counts as background"
LISTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_yolo(layout: Yolo, raw: Path, wanted: Wanted) -> Reading:
    """One row per line of every label file, cropped by its box. A picture with an empty label file is background
    and is ignored.

    With regions wanted, one row per picture: each line is a polygon. With boxes wanted, one row per picture, where each
    line is a box or a polygon; a picture without a label file shows no object.

    The column `split` is train, val or test where data.yaml, a list or a folder names it.
    Raises DataError if no file names the classes, or if the labels are not boxes.
    """
    images, labels = require_folder(raw, layout.images, layout), require_folder(raw, layout.labels, layout)
    pictures = [path for path in walk_files(raw, images) if path.lower().endswith(SUFFIXES)]
    texts = [path for path in walk_files(raw, labels) if path.lower().endswith(".txt")]
    if not pictures or not texts:
        refuse_layout(raw, layout, f"images in {layout.images!r} and .txt files in {layout.labels!r}", "none")
    source, facts = _load_names(layout, raw)
    if facts.get("kpt_shape"):
        raise _refuse_form(raw, KEYPOINTS, f"`kpt_shape` in {source}")
    pairs = pair_labels(pictures, set(texts), images, labels)
    claims: dict[str, list[str]] = {}
    for picture, path in pairs.items():
        claims.setdefault(path, []).append(picture)
    splits = _find_splits(raw, facts, pictures)
    unread, notes = _find_orphans(raw, [path for path in texts if path not in claims], source, facts["names"])
    if wanted.painting is not None:
        rows, counts = _paint(pictures, pairs, claims, splits, raw, facts["names"], wanted.painting)
        return Reading(rows + unread, notes=dict(Counter(notes) + counts))
    outlines = wanted.boxed and any(holds_outline(raw / path) for path in claims)
    read = {path: read_labels(raw / path, facts["names"], outlines=outlines) for path in claims}
    _refuse_other_forms(raw, read)
    if wanted.boxed:
        return _place(pictures, pairs, claims, splits, read, raw, wanted, Reading(unread, notes=notes))
    rows, ignored = list[Row](), dict[str, str]()
    for picture in pictures:
        if picture not in pairs:
            ignored[picture] = f"no label file {posixpath.splitext(posixpath.basename(picture))[0]}.txt"
            continue
        path = pairs[picture]
        found = _rows_of(picture, path, read[path], claims[path], raw, splits.get(picture))
        rows += found
        ignored |= {} if found else {picture: BACKGROUND}
    if empty := sum(why == BACKGROUND for why in ignored.values()):
        notes["pictures annotated as background (an empty label file), left out"] = empty
    return Reading(rows + unread, ignored, notes)


# Names


def _load_names(layout: Yolo, raw: Path) -> tuple[str, dict[str, Any]]:
    """The file that names the classes, and its content with `names` as {number: name}. Raises DataError."""
    if layout.names is not None:
        path = resolve_inside(layout.names, "", "layout.names")
        if not (raw / path).is_file():
            refuse_layout(raw, layout, f"the file of class names {layout.names!r}", "no such file")
        require_inside(raw, raw / path)
        return path, load_facts(raw / path, path)
    found = find_names_files(raw, walk_files(raw))
    if len({tuple(sorted(names.items())) for names in found.values()}) > 1:
        lists = " and ".join(f"{path} ({', '.join(names.values())})" for path, names in list(found.items())[:3])
        hint = f"Name the right one: `--layout '{{kind: yolo, names: {next(iter(found))}}}'`."
        raise DataError(f"class names in {raw}", expected="one list of names", found=lists, hint=hint)
    if not found:
        refuse_bad_names(raw, walk_files(raw))
        hint = "Add data.yaml with `names: [first, second]`, or classes.txt with one name per line, in order."
        raise DataError(f"layout yolo of {raw}", expected="a file that names the classes", found="none", hint=hint)
    path = next(iter(found))
    return path, load_facts(raw / path, path)


# Label files


def _refuse_other_forms(raw: Path, read: Mapping[str, Labels]) -> None:
    """Raise DataError if most label files hold something other than boxes."""
    filled = [(path, labels) for path, labels in read.items() if labels.objects or labels.problem]
    other = [(path, labels.form) for path, labels in filled if labels.form]
    if other and 2 * len(other) > len(filled):
        raise _refuse_form(raw, str(other[0][1]), f"first in {other[0][0]}")


def _refuse_form(raw: Path, form: str, where: str) -> DataError:
    hint = "Export the annotations as boxes (YOLO detection: `class cx cy width height` per line), VOC or COCO."
    hint += " Outlines are read with `--task segmentation`." if form in (OUTLINE, FORMS[9]) else ""
    return DataError(
        f"layout yolo of {raw}", expected="boxes", found=f"{form}, which is not read as boxes ({where})", hint=hint
    )


def _rows_of(picture: str, path: str, labels: Labels, claimed: list[str], raw: Path, split: str | None) -> list[Row]:
    columns = {"split": split} if split else {}
    if problem := _find_problem(path, labels, claimed):
        return [Row(path=picture, columns=columns, problem=problem)]
    size = read_size(raw / picture) if labels.objects else None
    if size is None and labels.objects:  # validation reports why the picture has no size
        return [Row(path=picture, label=labels.objects[0].name, columns=columns)]
    boxes = [(line.name, _to_pixels(line.shares, *size)) for line in labels.objects] if size else []
    return [Row(path=picture, label=name, crop=box, stated_size=size, columns=columns) for name, box in boxes]


def _find_problem(path: str, labels: Labels, claimed: Sequence[str]) -> Reason | None:
    if len(claimed) > 1:
        return _claimed_twice(path, claimed)
    why = labels.problem
    return why and Reason(why.expected, f"{why.found} of {path}", why.hint)


def _place(
    pictures: Sequence[str],
    pairs: Mapping[str, str],
    claims: Mapping[str, Sequence[str]],
    splits: Mapping[str, str],
    read: Mapping[str, Labels],
    raw: Path,
    wanted: Wanted,
    unread: Reading,
) -> Reading:
    """One row per picture with its objects, beside the rows and notes of `unread`."""
    rows, notes = list[Row](), Counter(unread.notes)
    for picture in pictures:
        row = Row(path=picture, columns={"split": splits[picture]} if picture in splits else {})
        path = pairs.get(picture)
        notes[UNLISTED] += path is None
        if path is None:
            rows.append(replace(row, objects=()))
            continue
        row = replace(row, problem=_find_problem(path, read[path], claims[path]))
        placed, counts = place_boxes(row, _mark(row, path, read[path], raw), raw, wanted)
        rows.append(placed)
        notes.update(counts)
        notes[EXTENTS] += 0 if placed.problem else sum(line.outline for line in read[path].objects)
    return Reading(rows + list(unread.rows), notes=dict(+notes))


def _mark(row: Row, path: str, labels: Labels, raw: Path) -> list[BoxMark]:
    """The boxes of a picture in pixels; as shares where it has no size, which validation reports."""
    width, height = read_size(raw / row.path) or (1, 1)
    marks = []
    for name, (x, y, w, h), number, _ in labels.objects:
        box = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
        marks.append(BoxMark(name, box, f"{path}, line {number}"))
    return marks


def _claimed_twice(path: str, pictures: Sequence[str]) -> Reason:
    hint = "Rename the pictures, and give each its own label file."
    return Reason("a label file of its own", f"{path} shared by {' and '.join(pictures[:4])}", hint)


def _paint(
    pictures: Sequence[str],
    pairs: Mapping[str, str],
    claims: Mapping[str, Sequence[str]],
    splits: Mapping[str, str],
    raw: Path,
    names: Mapping[int, str],
    painting: Painting,
) -> tuple[list[Row], Counter[str]]:
    """One row per picture; without regions where it has no label file. Raises DataError if most files hold boxes."""
    filled = [path for path in claims if (raw / path).stat().st_size]
    boxes = [path for path in filled if holds_boxes(raw / path)]
    if 2 * len(boxes) > len(filled):
        hint = "Export the annotations as polygons (YOLO segmentation), or choose the task classification."
        found = f"{BOX} (first in {boxes[0]})"
        raise DataError(f"layout yolo of {raw}", expected="polygons for the task segmentation", found=found, hint=hint)

    def draw(picture: str) -> Drawn:
        row = Row(path=picture, columns={"split": splits[picture]} if picture in splits else {})
        if (path := pairs.get(picture)) is None:
            return row, {}
        if len(claims[path]) > 1:
            return replace(row, problem=_claimed_twice(path, claims[path])), {}
        return paint_row(row, lambda size: read_polygons(raw / path, names, size), raw, painting, path)

    return paint_all(draw, pictures)


def _to_pixels(shares: tuple[float, float, float, float], width: int, height: int) -> Box:
    """Convert centre and size in shares of the picture to corners in whole pixels, ends exclusive."""
    x, y, w, h = shares
    left, right = (x - w / 2) * width, (x + w / 2) * width
    top, bottom = (y - h / 2) * height, (y + h / 2) * height
    return round(left), round(top), round(right), round(bottom)


def _find_orphans(
    raw: Path, texts: Sequence[str], source: str, names: Mapping[int, str]
) -> tuple[list[Row], dict[str, int]]:
    """A row with a problem for each label file without a picture, and a note with the number of other text files."""
    rows, others = [], 0
    for path in texts:
        if path == source or posixpath.basename(path).lower() in ("classes.txt", "labels.txt", "names.txt"):
            continue
        labels = read_labels(raw / path, names)
        if labels.objects or labels.form or ((raw / path).stat().st_size == 0):
            hint = "Add the picture, or remove the label file."
            rows.append(Row(path=path, problem=Reason("a picture of the same name as the label file", "none", hint)))
        elif posixpath.splitext(posixpath.basename(path))[0].lower() not in LISTS:
            others += 1
    return rows, {"text files that hold no labels, passed over": others} if others else {}


# Splits


def _find_splits(raw: Path, facts: Mapping[str, Any], pictures: Sequence[str]) -> dict[str, str]:
    """The split of every picture for which data.yaml, a list of files or a folder's name gives one."""
    index, found = Index(pictures, ""), dict[str, str]()
    for picture in pictures:
        parts = [LISTS[part] for part in picture.lower().split("/")[:-1] if part in LISTS]
        found |= {picture: parts[-1]} if parts else {}
    lists = [path for path in walk_files(raw) if posixpath.basename(path).lower() in {f"{name}.txt" for name in LISTS}]
    for path in lists:
        split = LISTS[posixpath.splitext(posixpath.basename(path))[0].lower()]
        lines = (raw / path).read_text(encoding="utf-8", errors="replace").splitlines()
        named = [index.find_by_tail(line.strip()) for line in lines if line.strip().lower().endswith(SUFFIXES)]
        found |= {each[0]: split for each in named if len(each) == 1}
    folders = {posixpath.dirname(picture) for picture in pictures}
    for key, split in LISTS.items():
        places = facts.get(key)
        for place in places if isinstance(places, list) else [places]:
            base = _find_folder(str(place or ""), folders)
            found |= {picture: split for picture in pictures if base and f"{picture}/".startswith(f"{base}/")}
    return found


def _find_folder(text: str, folders: set[str]) -> str | None:
    """The folder whose path ends like a path from elsewhere: `../train/images`, `/content/set/images/train`."""
    parts = [part for part in posixpath.normpath(text.replace("\\", "/")).split("/") if part not in ("", ".", "..")]
    above = {"/".join(folder.split("/")[:depth]) for folder in folders for depth in range(1, folder.count("/") + 2)}
    return next((tail for start in range(len(parts)) if (tail := "/".join(parts[start:])) in above), None)
