"""Exports a manifest with its pictures to a folder that other tools can read: COCO, csv, masks, VOC or YOLO. Importing
COCO, csv or masks gives the same rows.

Class maps are exported as COCO's run-length masks, one per connected component, or as PNG with a number per class.

Files are copied byte for byte, because ids are hashes of the content: EXIF data on place and time are copied, too.
"""

import json
import posixpath
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from PIL import Image

from components.data.annotations.boxes import clip_boxes
from components.data.annotations.coco import list_further_keys
from components.data.annotations.layouts import read_layout
from components.data.annotations.tables import list_further_columns
from components.data.manifest import Wanted
from components.data.sources.images import Box
from components.data.store.exporting_boxes import describe_box, write_path, write_table, write_voc, write_yolo
from components.domain.domain import Domain
from components.domain.layouts import WITH_COLUMNS, Coco, Csv, Layout
from components.errors import DataError, DomainError
from components.files import whole_folder, write_whole
from components.records.boxes import read_objects
from components.records.images import Exported
from components.records.maps import IGNORE, ClassMap, Painting, decode_map
from components.records.objects import encode_rle, find_components
from components.tasks import create_task
from components.tasks.base import Annotation

SEPARATORS = (";", "|", "/", "\t", "\x1f")
COCO_WORDS = {"file_name", "image_id", "category_id", "bbox", "area", "segmentation", "iscrowd", "whole"}
OWN = {"id", "path", "label", "group", "split", "mask", "boxes", "crop", "width", "height", *COCO_WORDS}
BEFORE = "original_"  # prefix of a further column whose name is a column of the export

Further = pl.DataFrame  # one row per row of the manifest: the columns that the domain does not use
Written = tuple[Layout, Mapping[str, int]]  # the layout that reads an export, and what it does not hold, counted


def export_manifest(
    manifest: pl.DataFrame, domain: Domain, raw: Path, target: Path, form: str | None = None
) -> Exported:
    """Write pictures, masks, the table or annotations, and a domain.yaml that reads them, into a new folder.

    form: a name in FORMS; the first one for what is annotated by default. The folder appears whole or not at all.
    Raises DataError if it exists and is not empty, and for a form that cannot hold the annotations.
    """
    forms = FORMS[create_task(domain).annotation]
    form = form or next(iter(forms))
    if form not in forms:
        hint = "Name one of these with `--format`."
        known = any(form in others for others in FORMS.values())
        found = f"{form}, which does not hold {HELD[create_task(domain).annotation]}" if known else form
        raise DataError("export", expected=f"one of {', '.join(forms)}", found=found, hint=hint)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        found = "a folder that is not empty" if target.is_dir() else "a file"
        raise DataError(f"export to {target}", expected="a new or empty folder", found=found, hint="Name another one.")
    with whole_folder(target) as fresh:
        layout, notes = forms[form](manifest, _read_further(manifest, domain, raw), domain, fresh)
        labelled = create_task(domain).annotation in ("label", "labels")
        files = sorted({*manifest["path"], *(manifest["mask"].drop_nulls() if labelled else ())})
        for path in files:
            (fresh / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(raw / path, fresh / path)
        _save_domain(domain, layout, fresh / "domain.yaml")
    facts = {
        "domain": domain.name,
        "format": form,
        "folder": target,
        "notes": {what: n for what, n in notes.items() if n},
    }
    return Exported.model_validate(facts | {"rows": manifest.height, "files": len(files)})


def _read_further(manifest: pl.DataFrame, domain: Domain, raw: Path) -> Further:
    """The further columns of the domain's table or COCO file, as text; no columns if the file is gone."""
    names = list_further_columns(domain, raw) + list_further_keys(domain, raw)
    if not names:
        return manifest.select([])
    task = create_task(domain)
    wanted = Wanted(tuple(names), domain.classes, task.annotation, task.painting, domain.rename)
    reading = read_layout(domain.layout, raw, wanted)
    values: dict[tuple[str, Box | None], Mapping[str, str | None]] = {}
    for row in clip_boxes(reading, raw).rows:
        values.setdefault((row.path, row.crop), row.columns)
    taken = OWN | set(domain.slices)
    found = [
        values.get((path, tuple(crop) if crop else None), {})
        for path, crop in manifest.select("path", "crop").iter_rows()
    ]
    columns = {name: [each.get(name) for each in found] for name in names}
    renamed = {f"{BEFORE}{name}" if name in taken else name: column for name, column in columns.items()}
    return pl.DataFrame({name: pl.Series(name, column, dtype=pl.String) for name, column in renamed.items()})


def _save_domain(domain: Domain, layout: Layout, path: Path) -> None:
    """Write the domain with the layout of the export. One without columns keeps the splits instead of the groups."""
    changed = domain.model_copy(update={"layout": layout, "group": "group", "rename": {}})
    if layout.kind not in WITH_COLUMNS:
        given = domain.split.model_copy(update={"given": True})
        changed = changed.model_copy(update={"group": None, "slices": (), "split": given})
    facts = changed.model_dump(mode="json", exclude_defaults=True, exclude={"layout"})
    facts["layout"] = {"kind": layout.kind} | layout.model_dump(mode="json", exclude_defaults=True)
    write_whole(path, yaml.safe_dump(facts, sort_keys=False, width=120, allow_unicode=True).encode())


# csv


def _write_csv(manifest: pl.DataFrame, further: Further, domain: Domain, folder: Path) -> Written:
    """Write labels.csv. Its columns have the manifest's names, which no slice may have."""
    given = {name: name for name in ("mask", "boxes", "crop") if _has(manifest, name)}
    separator = None
    columns = [pl.col("path").map_elements(write_path, return_dtype=pl.String), pl.col("label")]
    if "labels" in manifest.columns:
        separator = _choose_separator(domain)
        columns[1] = pl.col("labels").list.join(separator).alias("label")
    columns += [_box_column(name) if name != "mask" else pl.col(name) for name in given]
    table = pl.concat([manifest.select(*columns, "group", *domain.slices, "split"), further], how="horizontal")
    write_whole(folder / "labels.csv", table.write_csv().encode())
    return Csv.model_validate({"image": "path", "separator": separator, **given}), {}


def _has(manifest: pl.DataFrame, name: str) -> bool:
    filled = manifest[name].list.len() > 0 if name != "mask" else manifest[name].is_not_null()
    return bool(filled.fill_null(False).any())


def _box_column(name: str) -> pl.Expr:
    """The boxes of a column as `x0 y0 x1 y1`, several joined by `;`."""
    numbers = pl.element().cast(pl.List(pl.String)).list.join(" ")
    if name == "crop":
        return pl.col(name).cast(pl.List(pl.String)).list.join(" ")
    return pl.col(name).list.eval(numbers).list.join("; ")


def _choose_separator(domain: Domain) -> str:
    return next(mark for mark in SEPARATORS if not any(mark in name for name in domain.classes))


# COCO


def _write_coco(manifest: pl.DataFrame, further: Further, domain: Domain, folder: Path) -> Written:
    """Write annotations.json. Values that COCO has no key for are further keys, which readers of COCO ignore."""
    if clash := COCO_WORDS & set(domain.slices):
        hint = "Rename the column, or export as csv."
        expected = "slices whose names COCO does not use itself"
        raise DomainError(f"export of {domain.name}", expected=expected, found=", ".join(sorted(clash)), hint=hint)
    numbers = {name: number for number, name in enumerate(domain.classes, 1)}
    images: dict[str, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    extras = further.to_dicts() or [{}] * manifest.height
    for row, extra in zip(manifest.iter_rows(named=True), extras, strict=True):
        first = {"id": len(images) + 1, "file_name": row["path"], "width": row["width"], "height": row["height"]}
        image = images.setdefault(row["path"], first)
        keys = {name: value for name, value in extra.items() if value is not None} | _further_keys(row, domain)
        if "labels" in manifest.columns:
            image |= keys  # a picture may have no annotation
            keys = {}
        image |= {"annotated": True} if "class_map" in manifest.columns else {}  # also where it shows background
        for label, shown in _list_objects(row, domain):
            facts = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": numbers[label]}
            annotations.append(facts | shown | keys)
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    info = {"description": domain.title or domain.name, "url": domain.source}
    licences = [{"id": 1, "name": domain.licence, "url": ""}] if domain.licence else []
    content = {"info": info, "licenses": licences, "images": list(images.values()), "categories": categories}
    text = json.dumps(content | {"annotations": annotations}, ensure_ascii=False)
    write_whole(folder / "annotations.json", text.encode())
    return Coco(images="."), {}


def _list_objects(row: dict[str, Any], domain: Domain) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and shape of every annotation of a row."""
    if "class_map" in row:
        yield from _list_regions(decode_map(row["class_map"]), domain)
        return
    if "objects" in row:
        yield from ((one.label, describe_box(one)) for one in read_objects(row["objects"]))
        return
    for label in row.get("labels", [row["label"]]):
        yield label, _bbox(row) | {"iscrowd": 0}


def _list_regions(classes: ClassMap, domain: Domain) -> Iterator[tuple[str, dict[str, Any]]]:
    """The connected components of every class but the background, which is what nothing covers; then the crowds, whose
    pixels are ignored. Without a background, what nothing covers is ignored.
    """
    painting = create_task(domain).painting or Painting()
    kept = [(number, name) for number, name in enumerate(domain.classes) if name != painting.background]
    if painting.background is not None:
        kept.append((IGNORE, kept[0][1]))
    height, width = classes.shape
    for number, name in kept:
        for found in find_components(classes, number):
            x0, y0, x1, y1 = found.box
            facts: dict[str, Any] = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": found.area}
            facts["segmentation"] = encode_rle(found.mask, (x0, y0), (width, height))
            yield name, facts | {"iscrowd": int(number == IGNORE)}


def _further_keys(row: dict[str, Any], domain: Domain) -> dict[str, Any]:
    keys = {name: row[name] for name in ("group", "split", *domain.slices)}
    if row["mask"] and not {"class_map", "objects"} & row.keys():
        keys["mask"] = row["mask"]
    if row["boxes"]:
        keys["boxes"] = "; ".join(" ".join(map(str, box)) for box in row["boxes"])
    return keys


def _bbox(row: dict[str, Any]) -> dict[str, Any]:
    box: Box = tuple(row["crop"] or (0, 0, row["width"], row["height"]))
    width, height = box[2] - box[0], box[3] - box[1]
    facts: dict[str, Any] = {"bbox": [box[0], box[1], width, height], "area": width * height}
    return facts if row["crop"] else facts | {"whole": True}


# Masks


def _write_masks(manifest: pl.DataFrame, further: Further, domain: Domain, folder: Path) -> Written:
    """Write a PNG per picture with the number of every pixel's class, and labels.csv with groups, slices and splits."""
    masks = _name_masks(manifest["path"].to_list())
    for path, data in manifest.select("path", "class_map").iter_rows():
        (folder / masks[path]).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(decode_map(data)).save(folder / masks[path])
    given = {"boxes": "boxes"} if _has(manifest, "boxes") else {}
    columns = [pl.col("path").map_elements(write_path, return_dtype=pl.String), pl.col("label")]
    columns += [pl.col("path").replace_strict(masks, return_dtype=pl.String).alias("mask"), *map(_box_column, given)]
    table = pl.concat([manifest.select(*columns, "group", *domain.slices, "split"), further], how="horizontal")
    write_whole(folder / "labels.csv", table.write_csv().encode())
    ids = {name: number for number, name in enumerate(domain.classes)}
    return Csv.model_validate({"image": "path", "mask": "mask", "ids": ids, "ignore": (IGNORE,), **given}), {}


def _name_masks(paths: list[str]) -> dict[str, str]:
    """A file for the mask of every picture: of the same name, unless pictures differ in their suffixes alone."""
    others = {path.split("/")[0] for path in paths}
    folder = next(name for name in ("masks", "class_maps", "pixels_of_classes") if name not in others)
    stems = {path: posixpath.splitext(path)[0] for path in paths}
    clash = len({stem.casefold() for stem in stems.values()}) < len(stems)
    return {path: f"{folder}/{path if clash else stem}.png" for path, stem in stems.items()}


HELD: dict[Annotation, str] = {
    "label": "labels of pictures and crops",
    "labels": "labels of whole pictures",
    "mask": "class maps",
    "boxes": "boxes",
}
Write = Callable[[pl.DataFrame, Further, Domain, Path], Written]

#: The forms that can hold what is annotated, the default first.
FORMS: dict[Annotation, dict[str, Write]] = {
    "label": {"csv": _write_csv, "coco": _write_coco},
    "labels": {"csv": _write_csv, "coco": _write_coco},
    "mask": {"masks": _write_masks, "coco": _write_coco},
    "boxes": {"coco": _write_coco, "voc": write_voc, "yolo": write_yolo, "csv": write_table},
}
