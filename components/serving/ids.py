"""Ids of pictures and classes in files of answers: those of the domain's own COCO file where it lists the pictures.

Results with these ids are scored against the user's own annotations without any renumbering
(`pycocotools.coco.COCO.loadRes`). No torch here.
"""

import filecmp
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.data.annotations.coco_files import find_files, identify, load_coco
from components.data.annotations.guessing import require_folder
from components.data.annotations.layouts import expand_layout
from components.data.annotations.tables import resolve_picture
from components.data.annotations.tree import Index, walk_files
from components.domain.domain import Domain
from components.domain.layouts import Coco
from components.errors import DataError

Id = int | str | float
MOST_REASONS = 3  # that a note gives


@dataclass(frozen=True)
class Ids:
    """images: the id and the name of each picture, in their order. categories: the id of each class.

    words: where the ids come from, as the end of a sentence.
    """

    images: tuple[tuple[Id, str], ...]
    categories: Mapping[str, Id]
    words: str


def choose_ids(pictures: Mapping[int, Path], classes: Sequence[str], domain: Domain, raw: Path) -> Ids:
    """The ids of the COCO file that lists every picture, if there is one; else places, which count from 1.

    pictures: by their places among those asked. A listed picture is recognised by its path, or by its name and content,
    so that a copy elsewhere is the same picture.
    """
    images = tuple((number, path.as_posix()) for number, path in pictures.items())
    by_place = {name: number for number, name in enumerate(classes, 1)}
    words = "numbered by the order of pictures and classes"
    if not isinstance(domain.layout, Coco) or not pictures:
        return Ids(images, by_place, words)
    try:
        files = [(each, path) for each in _list_layouts(domain.layout, raw) for path in find_files(each, raw)]
        found = [_match(*file, [*pictures.values()], classes, domain.rename, raw) for file in files]
    except DataError as error:
        found = [f"{error.what}: {error.found}"]
    fit = next((one for one in found if isinstance(one, Ids)), None)
    reasons = "; ".join(map(str, found[:MOST_REASONS])) or "no COCO file is there"
    return fit or Ids(images, by_place, f"{words} ({reasons})")


def _list_layouts(layout: Coco, raw: Path) -> list[Coco]:
    """The layout for each folder of pictures, as its parts in angle brackets match them."""
    return [each for each, _, lacks in expand_layout(layout, raw) if not lacks] if layout.parts else [layout]


def _match(
    layout: Coco, path: str, pictures: Sequence[Path], classes: Sequence[str], rename: Mapping[str, str], raw: Path
) -> Ids | str:
    """The ids of one COCO file, or why they cannot be used. layout: without parts in angle brackets."""
    content = load_coco(raw / path, path, Counter())
    categories = _list_categories(content["categories"], content["annotations"], rename)
    if wrong := next((name for name in classes if len(categories.get(name, ())) != 1), None):
        return f"{path} has {len(categories.get(wrong, ()))} categories for the class {wrong}"
    listed = _list_pictures(content["images"], path, layout, raw)
    known = list[tuple[Id, str]]()
    for picture in pictures:
        if (found := _find(picture, listed, raw)) is None:
            return f"{path} does not list {picture.name}"
        known.append(found)
    if len({key for key, _ in known}) < len(known):
        return "a picture is there twice"
    return Ids(tuple(known), {name: categories[name][0] for name in classes}, f"with the ids of {path}")


def _list_categories(
    categories: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]], rename: Mapping[str, str]
) -> dict[str, list[Id]]:
    """The ids of each class: of those that share a name, only the ones that annotations use."""
    used = {identify(entry["category_id"]) for entry in annotations}
    named: dict[str, list[Id]] = {}
    for entry in categories:
        name = str(entry.get("name") or "").strip()
        named.setdefault(rename.get(name, name), []).append(entry["id"])
    return {
        name: keys if len(keys) == 1 else [key for key in keys if identify(key) in used] for name, keys in named.items()
    }


def _list_pictures(
    entries: Sequence[Mapping[str, Any]], path: str, layout: Coco, raw: Path
) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
    """Path below `raw` and entry of every picture that a COCO file lists, by bare name."""
    index = Index(walk_files(raw), require_folder(raw, layout.images, layout))
    listed: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for number, entry in enumerate(entries):
        if isinstance(name := entry.get("file_name"), str) and name:
            place, problem = resolve_picture(name, index, f"{path}, images[{number}]")
            if problem is None:
                listed.setdefault(posixpath.basename(place), []).append((place, entry))
    return listed


def _find(
    picture: Path, listed: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]], raw: Path
) -> tuple[Id, str] | None:
    """Id and name of a picture; of several copies, those of the one whose path ends like the picture's."""
    asked = picture.absolute()

    def agree(place: str) -> int:
        pairs = zip(reversed(asked.parts), reversed((raw / place).absolute().parts), strict=False)
        return next((number for number, (one, other) in enumerate(pairs) if one != other), len(asked.parts))

    for place, entry in sorted(listed.get(picture.name, ()), key=lambda pair: -agree(pair[0])):
        if (raw / place).samefile(picture) or filecmp.cmp(raw / place, picture, shallow=False):
            return entry["id"], entry["file_name"]
    return None
