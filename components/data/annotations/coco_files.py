"""Files of COCO: their pictures, categories and annotations, and what contradicts itself in them."""

import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from components.data.annotations.column_cells import is_outside
from components.data.annotations.guessing import refuse_layout
from components.data.annotations.tables import ELSEWHERE, parse_boxes, resolve_picture
from components.data.annotations.tree import (
    Index,
    match_parts,
    name_columns,
    require_inside,
    resolve_inside,
    walk_files,
)
from components.data.manifest import Row, Wanted
from components.data.sources.images import brief
from components.domain.layouts import PART, Coco, Cvat
from components.errors import DataError
from components.records.reasons import Reason

Entry = Mapping[str, Any]  # one object of a COCO file

Id = int | str

#: Keys of an annotation that are read, or that only repeat what is read.
KNOWN = {
    *("id", "image_id", "category_id", "bbox", "area", "iscrowd", "whole", "mask", "boxes", "group", "split"),
    *("category_name", "ignore", "image", "annotated"),
}

IMAGE_KEYS = {"file_name", "width", "height", "license", "licence", "flickr_url", "coco_url"}

DIFFICULT = ("difficult", "ignore")
MARKS = (*DIFFICULT, "truncated", "occluded")

EXPORT_AGAIN = "Export the file again."


@dataclass(frozen=True)
class CocoFile:
    """One COCO file; its ids are unique only within the file."""

    path: str
    wanted: Wanted
    index: Index
    names: Mapping[Id, str]
    notes: Counter[str]
    pictures: dict[Id, Row] = field(default_factory=dict)
    annotated: set[str] = field(default_factory=set)  # pictures whose entry says `annotated: true`


def open_file(
    path: str, raw: Path, index: Index, wanted: Wanted, notes: Counter[str]
) -> tuple[CocoFile, list[tuple[int, Entry]]]:
    """A file with its pictures and categories, and its annotations with their places in the list.

    Raises DataError for a file that is not COCO, or whose ids contradict one another.
    """
    content = load_coco(raw / path, path, notes)
    annotations = list(enumerate(content["annotations"]))
    read = [(number, entry) for number, entry in annotations if wanted.painting or wanted.boxed or not is_crowd(entry)]
    used = {identify(entry["category_id"]) for _, entry in read}
    file = CocoFile(path, wanted, index, _name_categories(content["categories"], used, path), notes)
    for number, entry in enumerate(content["images"]):
        _add_picture(file, entry, f"{path}, images[{number}]")
    _refuse_two_ids(file, {identify(entry["image_id"]) for _, entry in read})
    _count_annotation_ids(file, read)
    return file, annotations


def find_files(layout: Coco | Cvat, raw: Path, suffix: str = ".json") -> dict[str, dict[str, str]]:
    """The files that `annotations` names, each with the split that its name contains."""
    if PART.search(layout.annotations):
        if matched := match_parts(layout.annotations, walk_files(raw)):
            return {path: name_columns(parts) for path, parts in matched.items()}
        refuse_layout(raw, layout, f"files like {layout.annotations!r}", "none")
    named = resolve_inside(layout.annotations, "", f"layout {layout.kind}")
    if (raw / named).is_dir():
        if found := [path for path in walk_files(raw, named) if path.lower().endswith(suffix)]:
            return {path: {} for path in found}
        refuse_layout(raw, layout, f"{suffix} files in {layout.annotations!r}", "none")
    if not (raw / named).is_file():
        refuse_layout(raw, layout, f"the annotations {layout.annotations!r}", "no such file")
    require_inside(raw, raw / named)
    return {named: {}}


def load_coco(file: Path, path: str, notes: Counter[str]) -> dict[str, list[Entry]]:
    """The three lists of a COCO file. Raises DataError if a list is missing, or an id is not a number or a text."""
    expected, hint = "a COCO file with the lists images, annotations and categories", "Export the file again."
    try:
        data = file.read_bytes()
        content = json.loads(data)
        if re.search(rb"\\u[dD][89abAB]", data):  # lone surrogates, which no table can hold
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DataError(path, expected=expected, found=f"invalid JSON: {brief(error)}", hint=hint) from None
    _leave_out_captions(content, notes)
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DataError(path, expected=expected, found=f"no list {key!r}", hint=hint)
        ids = ("image_id", "category_id") if key == "annotations" else ("id",)
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or not all(_is_id(entry.get(name)) for name in ids):
                found = repr(entry)[:100]
                wanted = f"an entry with {' and '.join(ids)}"
                raise DataError(f"{path}, {key}[{number}]", expected=wanted, found=found, hint=hint)
    return content  # type: ignore[no-any-return]


def _leave_out_captions(content: Any, notes: Counter[str]) -> None:
    """Remove captions, which COCO stores in files of the same form as boxes, and note their number."""
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if isinstance(annotations, list):
        kept = [
            entry
            for entry in annotations
            if not (isinstance(entry, dict) and "caption" in entry and "category_id" not in entry)
        ]
        if len(kept) < len(annotations):
            notes["captions left out"] += len(annotations) - len(kept)
            content.setdefault("categories", [])
            content["annotations"] = kept


def identify(value: object) -> Id:
    """An id in the form in which it is looked up: 3, 3.0 and "3" are the same id within one file."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"0|-?[1-9]\d{0,17}", value.strip()):
        return int(value)
    return value.strip() if isinstance(value, str) else value  # type: ignore[return-value]


def _is_id(value: object) -> bool:
    return not isinstance(value, bool) and (isinstance(value, int | str) or _is_whole(value))


def _is_whole(value: object) -> bool:
    return isinstance(value, float) and value.is_integer()


def _contradict(path: str, what: str, first: object, second: object, hint: str) -> DataError:
    return DataError(f"{path}, {what}", expected="one meaning", found=f"{first} and {second}", hint=hint)


def _name_categories(categories: Iterable[Entry], used: set[Id], path: str) -> dict[Id, str]:
    """The name of every category id.

    Raises DataError for an id with two names, and for a name with two ids that are both used.
    """
    names: dict[Id, str] = {}
    for entry in categories:
        key, name = identify(entry["id"]), str(entry.get("name") or "").strip()
        hint = "Give every category its own id, and export the annotations again."
        if names.get(key, name) != name:
            raise _contradict(path, f"category id {entry['id']!r}", repr(names[key]), repr(name), hint)
        names[key] = name
    holders: dict[str, Id] = {}
    for key, name in names.items():
        if key in used and name and holders.setdefault(name, key) != key:
            hint = "Join the two in the file, or rename one."
            raise _contradict(path, f"category {name!r}", f"id {holders[name]!r}", f"id {key!r}", hint)
    return names


def _add_picture(file: CocoFile, entry: Entry, where: str) -> None:
    """Register the picture of an entry under its id. Raises DataError if the id belongs to another picture."""
    if not isinstance(name := entry.get("file_name"), str) or not name:
        raise DataError(where, expected="an id and a file_name", found=repr(dict(entry))[:100], hint=EXPORT_AGAIN)
    picture, problem = resolve_picture(name, file.index, where)
    file.notes[ELSEWHERE] += is_outside(name) or not (problem or _is_end(name, picture))
    key, many = identify(entry["id"]), file.wanted.many
    before = file.pictures.get(key)
    if entry.get("annotated") is True:
        file.annotated.add(picture)
    if before and before.path != picture:
        hint = "Give the images and their annotations new ids, and export the file again."
        raise _contradict(file.path, f"image id {entry['id']!r}", before.path, picture, hint)
    file.notes["images listed twice under one id"] += before is not None
    file.pictures[key] = Row(
        path=picture,
        labels=[] if many else None,
        mask=find_mask_of(entry, where),
        boxes=parse_boxes(as_text(entry.get("boxes")))[0],
        stated_size=_coco_size(entry),
        columns=find_columns(entry, file.wanted),
        problem=problem,
    )


def _is_end(name: str, picture: str) -> bool:
    """Whether a name is a bare file name, or the end of its picture's path."""
    plain = posixpath.normpath(name.replace("\\", "/"))
    return "/" not in plain or f"/{picture}".endswith(f"/{plain}")


def _refuse_two_ids(file: CocoFile, annotated: set[Id]) -> None:
    """Give a problem to pictures that are listed under several ids, if several of these have annotations."""
    ids: dict[str, list[Id]] = {}
    for key, picture in file.pictures.items():
        ids.setdefault(picture.path, []).append(key)
    for path, keys in ids.items():
        if len(keys) == 1:
            continue
        if len(both := [key for key in keys if key in annotated]) < 2:
            file.notes["images listed twice, annotated under one id alone"] += 1
            continue
        found = f"the ids {' and '.join(map(repr, both[:4]))} of {path} in {file.path}"
        problem = Reason("one id per picture", found, "Keep one id, and use it in all annotations of the picture.")
        for key in keys:
            file.pictures[key] = replace(file.pictures[key], problem=problem)


def _count_annotation_ids(file: CocoFile, numbered: Iterable[tuple[int, Entry]]) -> None:
    """Note annotation ids that occur twice. Both annotations are read, because nothing is looked up by these ids."""
    first: dict[Id, Entry] = {}
    twice = []
    for _, entry in numbered:
        if _is_id(entry.get("id")) and first.setdefault(identify(entry["id"]), entry) is not entry:
            twice.append(entry)
    if twice:
        places = [
            file.pictures.get(identify(entry["image_id"])) for entry in (first[identify(twice[0]["id"])], twice[0])
        ]
        named = " and ".join(row.path if row else "an unknown image" for row in places)
        file.notes[f"annotation ids given twice, both read (first: {twice[0]['id']!r} in {named})"] += len(twice)


def is_crowd(annotation: Entry) -> bool:
    return str(annotation.get("iscrowd")).lower() in ("1", "1.0", "true")


def is_marked(annotation: Entry, mark: str) -> bool:
    """Whether an annotation, or its `attributes`, has a mark such as `difficult`."""
    attributes = annotation.get("attributes")
    marks = {**attributes, **annotation} if isinstance(attributes, dict) else annotation
    return str(marks.get(mark)).lower() in ("1", "1.0", "true")


def name_unread(annotation: Entry, wanted: Wanted) -> Iterator[str]:
    """A note for everything in an annotation that no row holds."""
    for mark in MARKS:
        if is_marked(annotation, mark) and not (wanted.boxed and mark in DIFFICULT):
            yield f"annotations marked {mark}, read as any other"
    for key in sorted(set(annotation) - KNOWN - set(MARKS) - set(wanted.columns)):
        if annotation[key] not in (None, "", 0, [], {}) and not (
            key == "segmentation" and (wanted.painting or "bbox" not in annotation)
        ):
            yield f"annotations with {key[:40]}, which is not kept"


def find_mask_of(entry: Entry, where: str) -> str | None:
    mask = as_text(entry.get("mask"))
    return resolve_inside(mask, "", where) if mask else None


def _coco_size(entry: Entry) -> tuple[int, int] | None:
    width, height = entry.get("width"), entry.get("height")
    stated = all(isinstance(side, int) and 0 < side < 10**6 for side in (width, height))
    return (int(width), int(height)) if stated else None  # type: ignore[arg-type]


def find_columns(entry: Entry, wanted: Wanted, above: Mapping[str, str | None] | None = None) -> dict[str, str | None]:
    """The values of the columns wanted, and the split if one is named.

    above: the columns of the annotation's picture, which fill in what the annotation lacks.
    """
    found = {name: as_text(entry.get(name)) or (above or {}).get(name) for name in (*wanted.columns, "split")}
    return {name: value for name, value in found.items() if value is not None or name in wanted.columns}


def as_text(value: object) -> str | None:
    """The value of a further key as text; None for a list or an object."""
    return str(value).strip() or None if isinstance(value, str | int | float) and not isinstance(value, bool) else None
