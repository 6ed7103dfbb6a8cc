"""Labelled boxes as files. No torch here.

    NAME.json             a COCO results list: all boxes, as `pycocotools.coco.COCO.loadRes` takes them
    NAME.csv              one line per box, of all boxes
    FOLDER/
      drawn/<image>.jpg   the picture with the boxes shown
      predictions.json    COCO: images, categories, and all boxes as annotations with `score` and `shown`
      predictions.csv     as above
      voc/<image>.xml     Pascal VOC, of the boxes shown
      yolo/<image>.txt    YOLO, of the boxes shown; yolo/data.yaml names the classes

All boxes are what the model answers of any confidence, as average precision needs them; those shown reach the threshold
of their class. Boxes are in pixels of the upright picture.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from PIL import Image

from components.data.annotations.written import render_voc, render_yolo, to_bbox
from components.data.batches.colours import draw_boxes
from components.data.sources.images import read_picture
from components.files import whole_file, write_whole
from components.records.boxes import FoundBox, LabelledBox
from components.serving.ids import Ids
from components.serving.writing import CSV, FORMS, JSON, QUALITY, name_files, require_target

NUMBERS = ("x0", "y0", "x1", "y1", "confidence")
TABLE = {"path": pl.String(), "label": pl.String(), **dict.fromkeys(NUMBERS, pl.Float64()), "shown": pl.Boolean()}


@dataclass(frozen=True)
class Answered:
    """One picture and the boxes that were answered for it, the most confident first."""

    path: Path
    found: Sequence[FoundBox]

    @property
    def shown(self) -> list[FoundBox]:
        return [one for one in self.found if one.shown]


def write_boxes(target: Path, answers: Sequence[Answered], names: Sequence[str], ids: Ids) -> list[str | None]:
    """Write one file where `target` ends in .json or .csv, else a folder with all of them.

    ids: of the pictures of `answers`, in their order. Returns the path of each picture's drawing; None where only one
    file was asked for. Raises DataError where the folder holds other files already.
    """
    require_target(target, FORMS["boxes"])
    if target.suffix.lower() == JSON:
        write_whole(target, _dump(_list_results(answers, ids)))
        return [None for _ in answers]
    if target.suffix.lower() == CSV:
        write_whole(target, _render_table(answers))
        return [None for _ in answers]
    drawn, sizes = [], []
    for name, one in zip(name_files([one.path for one in answers]), answers, strict=True):
        picture = np.asarray(read_picture(one.path))
        sizes.append((picture.shape[1], picture.shape[0]))
        drawn.append(_draw(target / "drawn" / f"{name}.jpg", picture, one, names))
        boxes = [LabelledBox(each.label, each.box) for each in one.shown]
        write_whole(target / "voc" / f"{name}.xml", render_voc(one.path.name, sizes[-1], boxes))
        write_whole(target / "yolo" / f"{name}.txt", render_yolo(sizes[-1], boxes, names))
    write_whole(target / "yolo" / "data.yaml", yaml.safe_dump({"names": list(names)}, allow_unicode=True).encode())
    write_whole(target / "predictions.csv", _render_table(answers))
    write_whole(target / "predictions.json", _dump(_render_coco(answers, sizes, ids)))
    return [path.as_posix() for path in drawn]


def _draw(path: Path, picture: Any, one: Answered, names: Sequence[str]) -> Path:
    boxes = [LabelledBox(each.label, each.box) for each in one.shown]
    texts = [f"{each.label} {each.confidence:.2f}" for each in one.shown]
    with whole_file(path) as partial:
        Image.fromarray(draw_boxes(picture, boxes, names, texts)).save(partial, format="JPEG", quality=QUALITY)
    return path


def _dump(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


def _list_results(answers: Sequence[Answered], ids: Ids) -> list[dict[str, Any]]:
    """One entry per box, which says the names of its picture and class beside their ids."""
    return [
        {
            "image_id": image,
            "category_id": ids.categories[found.label],
            "bbox": to_bbox(found.box),
            "score": found.confidence,
            "file_name": name,
            "category": found.label,
        }
        for one, (image, name) in zip(answers, ids.images, strict=True)
        for found in one.found
    ]


def _render_coco(answers: Sequence[Answered], sizes: Sequence[tuple[int, int]], ids: Ids) -> dict[str, Any]:
    images = [
        {"id": image, "file_name": name, "width": width, "height": height}
        for (image, name), (width, height) in zip(ids.images, sizes, strict=True)
    ]
    boxes = [(image, found) for one, (image, _) in zip(answers, ids.images, strict=True) for found in one.found]
    annotations = []
    for number, (image, found) in enumerate(boxes, 1):
        facts = {"id": number, "image_id": image, "category_id": ids.categories[found.label], "iscrowd": 0}
        bbox = to_bbox(found.box)
        annotations.append(
            {**facts, "bbox": bbox, "area": bbox[2] * bbox[3], "score": found.confidence, "shown": found.shown}
        )
    categories = [{"id": key, "name": name} for name, key in ids.categories.items()]
    return {"images": images, "categories": categories, "annotations": annotations}


def _render_table(answers: Sequence[Answered]) -> bytes:
    rows = [
        (one.path.as_posix(), found.label, *found.box, found.confidence, found.shown)
        for one in answers
        for found in one.found
    ]
    return pl.DataFrame(rows, schema=TABLE, orient="row").write_csv().encode()
