"""Class maps in the validation report: what they cover, and pictures with their classes drawn over them."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from components.data.batches.colours import Colour, choose_colours, draw_over
from components.data.checks.pictures import create_thumbnail
from components.domain.domain import Domain
from components.records.maps import decode_map, measure_map
from components.tasks import create_task

DRAWN = 448  # pixels of the longer side at which classes are drawn, before a picture is shrunk: outlines stay thin
QUALITY = 85


@dataclass(frozen=True)
class Coverage:
    """What the class maps of a domain cover. shares: of all labelled pixels, by class. unlabelled: share of all pixels.
    empty: pictures that show the background alone."""

    shares: dict[str, float]
    unlabelled: float
    background: str | None
    empty: int

    def describe(self) -> str:
        """In a sentence or two, for the report."""
        told = "An image counts for every class that it shows; pixels are shares of all that are labelled."
        if self.empty:
            told += f" {self.empty:,} images show nothing but {self.background}."
        if self.unlabelled:
            told += f" {format_share(self.unlabelled)} of the pixels are not labelled and count for nothing."
        return told


def measure_coverage(fit: pl.DataFrame, domain: Domain) -> Coverage | None:
    """None where the rows have no class maps."""
    if "class_map" not in fit.columns:
        return None
    background = find_background(domain)
    counts = np.array(fit["pixels"].to_list(), np.int64).reshape(-1, len(domain.classes)).sum(axis=0)
    labelled = int(counts.sum())
    everything = sum(width * height for width, height in map(measure_map, fit["class_map"]))
    shares = {name: int(count) / max(labelled, 1) for name, count in zip(domain.classes, counts, strict=True)}
    empty = fit.filter(pl.col("labels") == [background]).height if background else 0
    return Coverage(shares, 1 - labelled / everything if everything else 0.0, background, empty)


def find_background(domain: Domain) -> str | None:
    return create_task(domain).background_class


def choose_colour(label: str, domain: Domain) -> Colour:
    """That of a class, as in every drawing."""
    return choose_colours(domain.classes, find_background(domain))[label]


def create_overlay(path: Path, data: bytes, side: int, domain: Domain) -> bytes | None:
    """A small JPEG of a picture with its class map over it; None where the file cannot be decoded."""
    plain = create_thumbnail(path, None, DRAWN, domain.validation.max_megapixels)
    if plain is None:
        return None
    with Image.open(io.BytesIO(plain)) as image:
        size, pixels = image.size, np.asarray(image.convert("RGB"))
    classes = np.asarray(Image.fromarray(decode_map(data)).resize(size, Image.Resampling.NEAREST))
    drawn = Image.fromarray(draw_over(pixels, classes, domain.classes, find_background(domain)))
    drawn.thumbnail((side, side), Image.Resampling.BOX)
    small = io.BytesIO()
    drawn.save(small, "JPEG", quality=QUALITY)
    return small.getvalue()


def choose_shown(fit: pl.DataFrame, label: str, domain: Domain) -> pl.DataFrame:
    """The rows that show a class; of the background those that show nothing else."""
    if label == find_background(domain):
        return fit.filter(pl.col("labels") == [label])
    return fit.filter(pl.col("labels").list.contains(label))


def format_share(share: float) -> str:
    """Two digits below ten per cent: a crack covers a fraction of one."""
    return f"{100 * share:.2f} %" if share < 0.1 else f"{100 * share:.1f} %"
