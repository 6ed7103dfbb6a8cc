"""Labelled boxes in the checks: whether they fit their pictures, how large they are, and pictures with them drawn."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from components.data.accounts import count_objects
from components.data.annotations.boxes import EDGE
from components.data.batches.colours import draw_boxes
from components.data.batches.geometry import place
from components.data.checks.pictures import create_thumbnail
from components.domain.canvas import LARGEST
from components.domain.domain import Domain
from components.records.boxes import MOST_FOUND, LabelledBox, read_objects
from components.records.fields import Corners
from components.records.reasons import Reason
from components.tasks import choose_fit
from components.tasks.box_matches import MOST_SCORED

SMALL = 8  # pixels on the canvas of the training, of the root of an object's area, below which it is hardly found
MANY = 0.1  # share of a class's objects that are small
FEW = 30  # objects of a class
PATCH = 16  # pixels; of a usual backbone, of which the side of a canvas is a multiple
QUALITY = 85  # with colours at full resolution: an outline is one pixel wide


def unfit_objects(objects: Sequence[Mapping[str, Any]], width: int, height: int) -> Reason | None:
    """The reason if a box exceeds the decoded picture by more than EDGE pixels, or has no area inside; else None."""
    for label, (x0, y0, x1, y1), _ in read_objects(objects):
        over = min(x0, y0) < -EDGE or x1 > width + EDGE or y1 > height + EDGE
        if over or not (max(x0, 0) < min(x1, width) and max(y0, 0) < min(y1, height)):
            found = f"{label} at {_show((x0, y0, x1, y1))}"
            return Reason(f"boxes inside the picture of {width} x {height} pixels", found, "Correct the annotation.")
    return None


def compare_objects(objects: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    """What the boxes of a picture say, in whatever order: equal for copies that are annotated alike."""
    return tuple(sorted(read_objects(objects)))


def _show(box: Corners) -> str:
    return " ".join(f"{value:.6g}" for value in box)


@dataclass(frozen=True)
class Measured:
    """The objects of a domain's pictures, those to ignore left out.

    objects: one row per object, with `label`, `area` in pixels of the picture, `side`, the root of the area, and
    `canvas`, the side on the canvas of the training; null where domain.yaml names no `img_size`. each: (N,) the number
    of objects of each picture. most: (N,) that of the class of which it shows most.
    """

    objects: pl.DataFrame
    each: NDArray[np.int64]
    most: NDArray[np.int64]


def measure_objects(fit: pl.DataFrame, domain: Domain) -> Measured | None:
    """None where no boxes are annotated."""
    if "objects" not in fit.columns:
        return None
    rows, each, most = [], [], []
    for objects, width, height in fit.select("objects", "width", "height").iter_rows():
        counting = [one for one in read_objects(objects) if one.kind == "object"]
        each.append(len(counting))
        most.append(max(Counter(one.label for one in counting).values(), default=0))
        scale = _find_scale((width, height), domain)
        for label, (x0, y0, x1, y1), _ in counting:
            area = (x1 - x0) * (y1 - y0)
            rows.append((label, area, area**0.5, scale and scale * area**0.5))
    schema = {"label": pl.String, "area": pl.Float64, "side": pl.Float64, "canvas": pl.Float64}
    return Measured(pl.DataFrame(rows, schema=schema, orient="row"), np.array(each, np.int64), np.array(most, np.int64))


def _find_scale(size: tuple[int, int], domain: Domain) -> float | None:
    """By how much a picture of (width, height) shrinks on the canvas of the training; None where it is not known."""
    if domain.img_size is None:
        return None
    left, top, right, bottom = place(size, domain.img_size, choose_fit(domain)).box
    return float(((right - left) * (bottom - top) / (size[0] * size[1])) ** 0.5)


def warn_of_objects(fit: pl.DataFrame, domain: Domain) -> list[str]:
    """Warnings about classes of few objects, and of objects too small on the canvas of the training."""
    measured, counts = measure_objects(fit, domain), count_objects(fit, domain)
    if measured is None or counts is None:
        return []
    warnings = []
    if few := {name: count for name, count in counts.counts.items() if count < FEW}:
        listed = ", ".join(f"{name} {count}" for name, count in few.items())
        warnings.append(
            f"Classes of fewer than {FEW} objects: {listed}. A score of so few says little, and there is little to "
            "learn from: add images that show them, or join the class to another with `rename`."
        )
    if crowded := int((measured.most > MOST_SCORED).sum()):
        warnings.append(
            f"Images with more than {MOST_SCORED} objects of one class: {crowded}. Average precision counts the "
            f"{MOST_SCORED} most confident boxes of a class and image, as COCO does, so that it cannot reach 1 there, "
            f"and at most {MOST_FOUND} boxes are answered: cut such images into tiles."
        )
    small = {name: found for name in domain.classes if (found := _find_small(measured, name))}
    if small and domain.img_size:
        listed = ", ".join(f"{name} {share:.0%}" for name, (share, _) in small.items())
        factor = max(factor for _, factor in small.values())
        warnings.append(
            f"Objects of fewer than {SMALL} x {SMALL} pixels at img_size {domain.img_size}: {listed}. They are hardly "
            f"found: {_suggest_size(domain, factor)}"
        )
    return warnings


def _find_small(measured: Measured, label: str) -> tuple[float, float] | None:
    """The share of small objects of a class, and how much larger a canvas must be for all but MANY of them; None where
    few are small."""
    sides = measured.objects.filter((pl.col("label") == label) & pl.col("canvas").is_not_null())["canvas"].to_numpy()
    share = float((sides < SMALL).mean()) if len(sides) else 0.0
    return (share, SMALL / float(np.quantile(sides, MANY))) if share > MANY else None


def _suggest_size(domain: Domain, factor: float) -> str:
    """The sentence with the `img_size` that is larger by a factor, if there is one."""
    assert domain.img_size is not None
    height, width = (-(-int(np.ceil(side * factor)) // PATCH) * PATCH for side in domain.img_size)
    if max(height, width) > LARGEST:
        return f"more than img_size {LARGEST} would be needed, so cut the images into tiles."
    wanted = height if height == width else [height, width]
    return f"write `img_size: {wanted}`, which costs {height * width / np.prod(domain.img_size):.1f} times the time."


def choose_pictures(fit: pl.DataFrame, label: str | None, most: int) -> pl.DataFrame:
    """At most so many rows that show a class, evenly spread; `label` None: rows without any object."""
    shows = pl.col("objects").list.len() == 0 if label is None else pl.col("labels").list.contains(label)
    rows = fit.filter(shows)
    if rows.is_empty():
        return rows
    return rows[sorted({int(place) for place in np.linspace(0, rows.height - 1, most)})]


def create_drawn(raw: Path, row: Mapping[str, Any], side: int, domain: Domain) -> bytes | None:
    """A JPEG of a fit row's picture with its boxes, its longer side at most `side`; None where it cannot be decoded."""
    plain = create_thumbnail(raw / row["path"], None, side, domain.validation.max_megapixels)
    if plain is None:
        return None
    with Image.open(io.BytesIO(plain)) as image:
        pixels = np.asarray(image.convert("RGB"))
    across, down = pixels.shape[1] / row["width"], pixels.shape[0] / row["height"]
    boxes = [
        LabelledBox(label, (x0 * across, y0 * down, x1 * across, y1 * down), kind)
        for label, (x0, y0, x1, y1), kind in read_objects(row["objects"])
    ]
    drawn = io.BytesIO()
    Image.fromarray(draw_boxes(pixels, boxes, domain.classes)).save(drawn, "JPEG", quality=QUALITY, subsampling=0)
    return drawn.getvalue()
