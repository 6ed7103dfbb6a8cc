"""The public sets of dense.py as domains: their keys, and what of a published folder is imported."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import Options, Record
from PIL import Image

from components.domain.reading import read_yaml
from components.files import write_whole
from components.synthetic.surfaces import create_surface_defects
from components.workspace import REPOSITORY

CONTROL, FROZEN = "pixels", "linear"
TUNERS: dict[str, Options] = {
    name: {"kind": name} for name in (CONTROL, FROZEN, "vpt", "vapt", "lora", "bitfit", "full")
}
PLACE = re.compile(r"\d+_\d+_crop_\d+$")  # how a name of bsdata ends: position, angle and crop


@dataclass(frozen=True, eq=False)
class Set:
    """A public set as a domain. domain: its keys beside name and candidates, and a backbone where it is not that of the
    command line. source: the published folder, where it is not called like the set. arrange: what is imported, out of
    the published folder, into a new one. tuners: those it is trained with. long: how many times the epochs of its
    `long` rows; none where 0. same_steps: whether it has rows with the epochs of `linear`."""

    name: str
    domain: Record
    arrange: Callable[[Path, Path], None] | None = None
    tuners: tuple[str, ...] = tuple(TUNERS)
    source: str = ""
    long: int = 0
    same_steps: bool = False


def arrange_places(source: Path, target: Path) -> None:
    """The pictures of bsdata in one folder per place, so that the place is a column."""
    shutil.copytree(source / "labelme", target / "labelme")
    for path in (source / "images").iterdir():
        found = PLACE.search(path.stem)
        if found is None:
            raise ValueError(f"{path} does not end in position, angle and crop")
        (target / "images" / found[0]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / "images" / found[0])


def compose(transforms: Mapping[str, Record]) -> Record:
    """A pipeline of albumentations as domain.yaml has it."""
    nodes = [{"__class_fullname__": name, **options} for name, options in transforms.items()]
    return {"transform": {"__class_fullname__": "Compose", "p": 1.0, "transforms": nodes}}


def arrange_boards(source: Path, target: Path) -> None:
    """deeppcb as COCO: a label file says `x0 y0 x1 y1 kind`, and a name begins with the number of its board."""
    shutil.copytree(source / "images", target / "images")
    images, annotations = [], []
    for number, path in enumerate(sorted((target / "images").iterdir())):
        with Image.open(path) as picture:
            width, height = picture.size
        images.append({"id": number, "file_name": path.name, "width": width, "height": height, "board": path.name[:5]})
        for line in (source / "boxes" / f"{path.stem}.txt").read_text().splitlines():
            x0, y0, x1, y1, kind = map(int, line.split())
            box = [x0, y0, x1 - x0, y1 - y0]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": kind,
                    "bbox": box,
                    "area": box[2] * box[3],
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(FAULTS, 1)]
    record = {"images": images, "annotations": annotations, "categories": categories}
    write_whole(target / "annotations.json", json.dumps(record).encode())


def make_surfaces(source: Path, target: Path) -> None:
    """The bundled photographs, which are made instead of published."""
    create_surface_defects(target)


def read_shipped(name: str) -> Record:
    """The keys of a bundled domain's file that a set has."""
    record = read_yaml(REPOSITORY / "data" / name / "domain.yaml")
    return {key: value for key, value in record.items() if key not in ("name", "candidates", "backbone")}


FAULTS = ("open", "short", "mousebite", "spur", "copper", "pinhole")
#: Turns, flips and light alone: smears are stained in another way than the preset for tissue assumes.
TURNS = {"RandomRotate90": {"p": 0.5}, "HorizontalFlip": {"p": 0.5}, "VerticalFlip": {"p": 0.5}}
LIGHT = {"RandomBrightnessContrast": {"brightness_limit": [-0.15, 0.15], "contrast_limit": [-0.2, 0.2], "p": 0.7}}
CELLS = {
    "task": "detection",
    "classes": ["RBC", "WBC", "Platelets"],
    "layout": "voc",
    "fit": "squash",
    "augmentation": compose(TURNS | LIGHT),
}
BOARDS = {
    "task": "detection",
    "classes": list(FAULTS),
    "layout": "coco",
    "augmentation": compose(TURNS),
    "img_size": 320,
    "training": {"epochs": 20, "batch_size": 4, "warmup_epochs": 0.5},
}
DEFECTS = ("blowhole", "break", "crack", "fray", "uneven")
SETS = {
    chosen.name: chosen
    for chosen in (
        Set(
            "dsb2018_stained",
            {
                "task": "segmentation",
                "classes": ["background", "nucleus"],
                "layout": {"kind": "instances", "label": "nucleus"},
                "augmentation": "pathology",
                "img_size": 256,
                "training": {"epochs": 120, "batch_size": 8, "warmup_epochs": 5},
            },
        ),
        Set(
            "magnetic_tile",
            {
                "task": "segmentation",
                "classes": ["background", "defect"],
                "rename": dict.fromkeys(DEFECTS, "defect") | {"free": "background"},
                "layout": {"kind": "folders", "images": "images", "masks": "masks"},
                "img_size": 384,
                "training": {"epochs": 3, "batch_size": 8, "warmup_epochs": 0.2},
            },
            long=6,
        ),
        Set(
            "bsdata",
            {
                "task": {"kind": "segmentation", "unannotated": "background"},
                "classes": ["background", "Pitting"],
                "layout": {"kind": "labelme", "images": "images/<place>", "annotations": "labelme"},
                "group": "place",
                "groups": {"near_duplicates": "report"},
                "img_size": [192, 448],
                "training": {"epochs": 24, "batch_size": 8, "warmup_epochs": 1},
            },
            arrange_places,
        ),
        Set(
            "bccd",
            CELLS | {"img_size": 320, "training": {"epochs": 16, "batch_size": 4, "warmup_epochs": 0.5}},
            tuners=(CONTROL, FROZEN),
        ),
        Set(
            "bccd_small",
            CELLS | {"img_size": 160, "training": {"epochs": 20, "batch_size": 4, "warmup_epochs": 1}},
            source="bccd",
            same_steps=True,
        ),
        Set("deeppcb", BOARDS | {"group": "board"}, arrange_boards, tuners=(CONTROL, FROZEN)),
        Set(
            "deeppcb_random",
            BOARDS | {"groups": {"near_duplicates": "off"}},
            arrange_boards,
            tuners=(FROZEN,),
            source="deeppcb",
        ),
        Set(
            "surface_boxes",
            read_shipped("surface_boxes") | {"img_size": 224, "training": {"epochs": 40, "batch_size": 4}},
            make_surfaces,
            tuners=(CONTROL, FROZEN),
        ),
    )
}
