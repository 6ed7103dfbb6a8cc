"""Small data sets on disk, one a layout, realistic enough to go through every data stage."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from components.domain.domain import Domain
from components.domain.reading import parse_domain
from components.records.reasons import Reason

CLASSES = ("good", "cracked")


def make_domain(**changes: Any) -> Domain:
    """A small legal domain named `tiles`, with the changes given."""
    base: dict[str, Any] = {"name": "tiles", "task": "classification", "classes": list(CLASSES), "layout": "folders"}
    return parse_domain(base | changes, "tests")


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """A grey picture like no other one: soft shapes under fine grain."""
    rng = np.random.default_rng(seed)
    shapes = Image.fromarray(rng.integers(40, 215, (9, 9), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    grain = rng.integers(-20, 20, (height, width))
    return Image.fromarray(np.clip(np.asarray(shapes, dtype=np.int64) + grain, 0, 255).astype(np.uint8))


def save_picture(path: Path, seed: int, **size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, **size).save(path)
    return path


def save_mask(path: Path, width: int = 48, height: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[8:16, 8:20] = 255
    Image.fromarray(mask).save(path)
    return path


def write_folders(raw: Path, classes: Sequence[str] = CLASSES, images: int = 6, masks: bool = False) -> Path:
    """<class>/<nn>.png, and masks/<class>/<nn>.png where wanted."""
    for number, label in enumerate(classes):
        for index in range(images):
            name = f"{label}/{label}{index:02d}.png"
            save_picture(raw / name, 1000 * number + index)
            if masks:
                save_mask(raw / "masks" / name)
    return raw


def write_csv(raw: Path, classes: Sequence[str] = CLASSES, lots: int = 6, per_lot: int = 2) -> Path:
    """labels.csv with image, label, mask, boxes, lot and site; every lot holds every class."""
    rows = []
    for lot in range(lots):
        for number, label in enumerate(classes):
            for index in range(per_lot):
                name = f"lot{lot}_{label}{index}.png"
                save_picture(raw / "images" / name, 10_000 * lot + 100 * number + index)
                save_mask(raw / "masks" / name)
                site = "north" if lot % 2 else "south"
                rows.append((f"images/{name}", label, f"masks/{name}", "8 8 20 16", f"lot{lot}", site))
    write_table(raw / "labels.csv", [("image", "label", "mask", "boxes", "lot", "site"), *rows])
    return raw


def write_table(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return path


def write_voc(raw: Path, pictures: int = 6) -> Path:
    """JPEGImages and Annotations: in each picture one object of every class."""
    for index in range(pictures):
        save_picture(raw / "JPEGImages" / f"p{index}.jpg", index, width=96, height=80)
        objects = [(label, (1 + 40 * k, 11, 30 + 40 * k, 40)) for k, label in enumerate(CLASSES)]
        write_annotation(raw / "Annotations" / f"p{index}.xml", f"p{index}.jpg", objects)
    return raw


def write_annotation(path: Path, filename: str, objects: Sequence[tuple[str, tuple[int, int, int, int]]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [
        f"<object><name>{label}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>"
        for label, (x0, y0, x1, y1) in objects
    ]
    path.write_text(f"<annotation><filename>{filename}</filename>{''.join(parts)}</annotation>")
    return path


def write_instances(raw: Path, pictures: int = 4) -> Path:
    """images and 16-bit id masks: three instances a picture, one of them at the border."""
    for index in range(pictures):
        save_picture(raw / "images" / f"p{index}.png", index, width=160, height=120)
        ids = np.zeros((120, 160), dtype=np.uint16)
        ids[0:10, 0:12], ids[50:70, 60:90], ids[100:104, 20:25] = 1, 2, 700
        (raw / "instances").mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(raw / "instances" / f"p{index}.png")
    return raw


def write_parquet(raw: Path, **sizes: int) -> Path:
    """The csv data set with its table as parquet."""
    write_csv(raw, **sizes)
    pl.read_csv(raw / "labels.csv").write_parquet(raw / "labels.parquet")
    (raw / "labels.csv").unlink()
    return raw


def write_multilabel(raw: Path, pictures: int = 24) -> Path:
    """labels.csv with one column of 0 and 1 a class: none, one or both in turn."""
    rows = [("image", *CLASSES, "lot")]
    for index in range(pictures):
        save_picture(raw / f"images/p{index:02d}.png", 300 + index)
        rows.append((f"images/p{index:02d}.png", str(index % 2), str(index // 2 % 2), f"lot{index // 4}"))
    write_table(raw / "labels.csv", rows)
    return raw


def write_coco(raw: Path, pictures: int = 6) -> Path:
    """images and annotations.json: in each picture one object of every class."""
    images, annotations = [], []
    for index in range(pictures):
        save_picture(raw / "images" / f"p{index}.jpg", index, width=96, height=80)
        images.append({"id": index, "file_name": f"p{index}.jpg", "width": 96, "height": 80, "site": f"s{index % 2}"})
        for number, _ in enumerate(CLASSES):
            box = [40.0 * number, 10.2, 30.0, 29.9]
            annotations.append(
                {"id": len(annotations), "image_id": index, "category_id": number, "bbox": box, "iscrowd": 0}
            )
    categories = [{"id": number, "name": label} for number, label in enumerate(CLASSES)]
    save_coco(raw / "annotations.json", images, annotations, categories)
    return raw


def write_yolo(raw: Path, pictures: int = 6) -> Path:
    """images, labels and data.yaml: in each picture one object of every class."""
    for index in range(pictures):
        save_picture(raw / "images" / f"p{index}.jpg", index, width=100, height=80)
        lines = [f"{number} {0.15 + 0.4 * number} 0.3125 0.3 0.375" for number, _ in enumerate(CLASSES)]
        save_text(raw / "labels" / f"p{index}.txt", "\n".join(lines))
    save_text(raw / "data.yaml", f"train: images\nnames: [{', '.join(CLASSES)}]\n")
    return raw


def save_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def save_coco(path: Path, images: list[Any], annotations: list[Any], categories: list[Any]) -> None:
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content, indent=1))


def write_masks(raw: Path, pictures: int = 12) -> Path:
    """images and semantic masks: number 1 is in every other picture, the rest show background alone."""
    for index in range(pictures):
        save_picture(raw / "images" / f"p{index:02d}.png", 700 + index)
        save_ids(raw / "masks" / f"p{index:02d}.png", [1] if index % 2 else [])
    return raw


def save_ids(path: Path, ids: Sequence[int], width: int = 48, height: int = 40) -> Path:
    """A mask with a patch of every id given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((height, width), dtype=np.uint8)
    for place, value in enumerate(ids):
        mask[4:20, 2 + 9 * place : 8 + 9 * place] = value
    Image.fromarray(mask).save(path)
    return path


def explain(problem: dict[str, str] | None) -> str:
    """A cell of the column `problem` of rows.parquet as the sentence that people read; empty without one."""
    return "" if problem is None else str(Reason(**problem))
