"""Class maps as files: a mask and a drawing per picture, and all of them as one COCO file. No torch here.

    masks/<name>.png      the number of each pixel's class, with a palette, so that viewers show it in colour
    overlays/<name>.jpg   the picture with the answer over it
    predictions.json      COCO: images, categories, and one annotation per component; `score` is its mean probability

A class's number in a mask is its place in domain.yaml, from 0; in COCO categories count from 1, as in an export.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.data.batches.colours import choose_colours, draw_over
from components.data.sources.images import read_picture
from components.files import whole_file, write_whole
from components.records.maps import ClassMap
from components.records.objects import encode_rle, find_components
from components.serving.writing import FORMS, JSON, QUALITY, name_files, require_target


@dataclass(frozen=True)
class Answered:
    """One picture and what was answered for it. scores: mean probability by (class, box) of each component."""

    path: Path
    classes: ClassMap
    scores: Mapping[tuple[str, tuple[int, int, int, int]], float]


@dataclass(frozen=True)
class Written:
    """Files of one picture; None where only the COCO file was asked for."""

    mask: str | None = None
    overlay: str | None = None


def write_answers(
    target: Path, answers: Sequence[Answered], names: Sequence[str], background: str | None, *, polygons: bool = False
) -> list[Written]:
    """Write a COCO file where `target` ends in .json, else a folder with masks and overlays as well.

    polygons: outlines instead of run lengths, except for components with holes, which polygons of COCO cannot have.
    Raises DataError where the folder holds other files already.
    """
    require_target(target, FORMS["mask"])
    content = json.dumps(_render_coco(answers, names, background, polygons=polygons), ensure_ascii=False).encode()
    if target.suffix.lower() == JSON:
        write_whole(target, content)
        return [Written() for _ in answers]
    written = []
    for name, one in zip(name_files([one.path for one in answers]), answers, strict=True):
        mask, overlay = target / "masks" / f"{name}.png", target / "overlays" / f"{name}.jpg"
        with whole_file(mask) as partial:
            encode_mask(one.classes, names, background).save(partial, format="PNG")
        with whole_file(overlay) as partial:
            drawn = draw_over(np.asarray(read_picture(one.path)), one.classes, names, background)
            Image.fromarray(drawn).save(partial, format="JPEG", quality=QUALITY)
        written.append(Written(mask.as_posix(), overlay.as_posix()))
    write_whole(target / "predictions.json", content)
    return written


def encode_mask(classes: ClassMap, names: Sequence[str], background: str | None) -> Image.Image:
    """A class map as an image of numbers with a palette."""
    colours = choose_colours(names, background)
    image = Image.fromarray(classes).convert("L")
    image.putpalette([channel for name in names for channel in colours[name]])
    return image


def _render_coco(
    answers: Sequence[Answered], names: Sequence[str], background: str | None, *, polygons: bool
) -> dict[str, Any]:
    images, annotations = [], list[dict[str, Any]]()
    for image, one in enumerate(answers, 1):
        height, width = one.classes.shape
        images.append({"id": image, "file_name": one.path.as_posix(), "width": width, "height": height})
        for number, name in enumerate(names):
            if name != background:
                facts = {"image_id": image, "category_id": number + 1, "iscrowd": 0}
                for found in _list_annotations(one, number, name, polygons=polygons):
                    annotations.append({"id": len(annotations) + 1, **facts, **found})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1) if name != background]
    return {"images": images, "categories": categories, "annotations": annotations}


def _list_annotations(one: Answered, number: int, name: str, *, polygons: bool) -> list[dict[str, Any]]:
    height, width = one.classes.shape
    listed = []
    for found in find_components(one.classes, number):
        x0, y0, x1, y1 = found.box
        outlines = trace_outlines(found.mask, (x0, y0)) if polygons else None
        shape = outlines or encode_rle(found.mask, (x0, y0), (width, height))
        box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": found.area, "score": one.scores[name, found.box]}
        listed.append({**box, "segmentation": shape})
    return listed


def trace_outlines(mask: NDArray[np.bool_], place: tuple[int, int]) -> list[list[float]] | None:
    """The outlines of a component as COCO's polygons, halfway between the centres of pixels inside and outside.

    place: x and y of the mask's corner. None for a component with a hole, which such polygons cannot have.
    """
    from contourpy import contour_generator

    padded = np.pad(mask, 1).astype(np.float64)
    lines: list[Any] = contour_generator(z=padded, line_type="Separate", corner_mask=False).lines(0.5)  # type: ignore[assignment]
    inside = [line for line in lines if _turns_right(line)]
    if len(inside) != len(lines):
        return None
    return [(line[:-1] - 0.5 + place).round(2).reshape(-1).tolist() for line in lines]


def _turns_right(line: NDArray[np.float64]) -> bool:
    """Whether an outline goes round what it encloses, and not round a hole."""
    x, y = line.T
    return float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) > 0
