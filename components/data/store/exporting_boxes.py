"""Exports labelled boxes with their pictures: COCO holds all of them; VOC, YOLO and csv what these formats can say.

Pictures keep their paths. What a format cannot hold is left out and counted: boxes to ignore, groups and slices.
"""

import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from components.data.annotations.tree import stem_of
from components.data.annotations.written import render_voc, render_yolo, to_bbox, write_number
from components.data.manifest import SPLITS
from components.domain.domain import Domain
from components.domain.layouts import Csv, Voc, Yolo
from components.errors import DataError
from components.files import write_whole
from components.records.boxes import Kind, LabelledBox, read_objects

CORNERS = ("x0", "y0", "x1", "y1")
LISTS = "ImageSets/Main"
ALONE = "pictures whose split is not written, because lists of VOC name pictures by their stems, which are not unique"

Notes = dict[str, int]


def describe_box(one: LabelledBox) -> dict[str, Any]:
    """The keys of a COCO annotation that say what a box is. A difficult one is marked `ignore`, a crowd `iscrowd`."""
    bbox = to_bbox(one.box)
    facts = {"bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": int(one.kind == "crowd")}
    return facts | ({"ignore": 1} if one.kind == "difficult" else {})


def write_table(manifest: pl.DataFrame, further: pl.DataFrame, domain: Domain, folder: Path) -> tuple[Csv, Notes]:
    """Write labels.csv: one line per object, and one without a box for a picture without any."""
    notes = Counter[str]()
    lines: list[dict[str, Any]] = []
    extras = further.to_dicts() or [{}] * manifest.height
    for row, extra in zip(manifest.iter_rows(named=True), extras, strict=True):
        first = {"path": write_path(row["path"])}
        last = {name: row[name] for name in ("group", *domain.slices, "split")} | extra
        boxes = _leave_out(row, ("difficult", "crowd"), notes)
        cells = [(one.label, *map(write_number, one.box)) for one in boxes] or [("", "", "", "", "")]
        lines += [first | dict(zip(("label", *CORNERS), each, strict=True)) | last for each in cells]
    table = pl.DataFrame(lines, schema_overrides=dict.fromkeys(lines[0], pl.String), infer_schema_length=None)
    write_whole(folder / "labels.csv", table.write_csv().encode())
    return Csv(image="path", crop=CORNERS), dict(notes)


def write_voc(manifest: pl.DataFrame, further: pl.DataFrame, domain: Domain, folder: Path) -> tuple[Voc, Notes]:
    """Write one XML per picture into Annotations, in the folders of the pictures, and the splits as lists."""
    paths = manifest["path"].to_list()
    images = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    annotations, names = _find_free("Annotations", paths), _name_files(paths, images)
    notes = Counter(_count_columns(manifest, further, domain))
    for row in manifest.iter_rows(named=True):
        boxes = _leave_out(row, ("crowd",), notes)
        data = render_voc(posixpath.basename(row["path"]), (row["width"], row["height"]), boxes)
        write_whole(folder / annotations / f"{names[row['path']]}.xml", data)
    if len({stem_of(path) for path in paths}) == len(paths):
        for split, part in _split(manifest).items():
            write_whole(folder / LISTS / f"{split}.txt", "".join(f"{stem_of(path)}\n" for path in part).encode())
    else:
        notes[ALONE] += len(paths)
    return Voc(images=images or ".", annotations=annotations), dict(notes)


def write_yolo(manifest: pl.DataFrame, further: pl.DataFrame, domain: Domain, folder: Path) -> tuple[Yolo, Notes]:
    """Write one text file per picture, in `labels` where it lies in `images` and else beside it, lists of the splits,
    and data.yaml. Raises DataError where two pictures would share a text file."""
    notes, texts = Counter(_count_columns(manifest, further, domain)), dict[str, str]()
    for row in manifest.iter_rows(named=True):
        text = f"{_name_label(row['path'])}.txt"
        if (other := texts.setdefault(text.casefold(), row["path"])) != row["path"]:
            expected, hint = "pictures that differ in more than their suffix", "Rename one, or export as COCO."
            raise DataError(f"export of {domain.name}", expected=expected, found=f"{other}, {row['path']}", hint=hint)
        boxes = _leave_out(row, ("difficult", "crowd"), notes)
        write_whole(folder / text, render_yolo((row["width"], row["height"]), boxes, domain.classes))
    lists = {split: f"{split}.txt" for split in _split(manifest)}
    for split, part in _split(manifest).items():
        write_whole(folder / lists[split], "".join(f"./{path}\n" for path in part).encode())
    facts = {"path": ".", **lists, "nc": len(domain.classes), "names": list(domain.classes)}
    write_whole(folder / "data.yaml", yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).encode())
    return Yolo(images=".", labels=".", names="data.yaml"), dict(notes)


def write_path(path: str) -> str:
    """A path as a cell of a table, which is stripped when it is read."""
    return f"./{path}" if path != path.lstrip() else path


def _leave_out(row: Mapping[str, Any], kinds: Sequence[Kind], notes: Counter[str]) -> list[LabelledBox]:
    """The boxes of a row but for those of some kinds, which are counted."""
    boxes = read_objects(row["objects"])
    for kind in kinds:
        notes[f"{kind} objects, which the format cannot mark, left out"] += sum(one.kind == kind for one in boxes)
    return [one for one in boxes if one.kind not in kinds]


def _count_columns(manifest: pl.DataFrame, further: pl.DataFrame, domain: Domain) -> Notes:
    """Groups and columns that a format of pictures and boxes alone cannot hold."""
    lost = {f"column {name!r}, which the format does not have": manifest.height for name in domain.slices}
    lost |= {f"column {name!r}, which the format does not have": manifest.height for name in further.columns}
    several = domain.group and manifest["group"].n_unique() < manifest.height  # near duplicates are found again
    return lost | ({"groups, which the format does not have": manifest["group"].n_unique()} if several else {})


def _split(manifest: pl.DataFrame) -> dict[str, list[str]]:
    """The paths of each split that has any."""
    parts = {split: manifest.filter(pl.col("split") == split)["path"].to_list() for split in SPLITS}
    return {split: paths for split, paths in parts.items() if paths}


def _name_files(paths: Sequence[str], base: str) -> dict[str, str]:
    """The path of each picture below the folder of all, without its suffix unless another one differs in it alone."""
    stems = {path: posixpath.splitext(path)[0] for path in paths}
    alike = Counter(stem.casefold() for stem in stems.values())
    return {
        path: posixpath.relpath(path if alike[stem.casefold()] > 1 else stem, base or ".")
        for path, stem in stems.items()
    }


def _name_label(path: str) -> str:
    """Where YOLO looks for a picture's label file, without its suffix: `labels` in the place of the last `images`."""
    folders = posixpath.splitext(path)[0].split("/")
    places = [place for place, name in enumerate(folders[:-1]) if name == "images"]
    return "/".join([*folders[: places[-1]], "labels", *folders[places[-1] + 1 :]] if places else folders)


def _find_free(name: str, paths: Iterable[str]) -> str:
    """A folder of this name, or of one like it, that holds no picture."""
    taken = {path.split("/")[0] for path in paths}
    return next(each for each in (name, *(f"{name}_{number}" for number in range(2, 10**6))) if each not in taken)
