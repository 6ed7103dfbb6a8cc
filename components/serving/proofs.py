"""Pictures with known answers, by which an export proves itself: of the test split, or drawn. No torch here."""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from components.data.sources.images import Box
from components.files import hash_file
from components.models.adapter import AdapterMeta
from components.records.exports import Proof
from components.synthetic.surfaces import create_lot, lot_labels, render

MANY = 8
MOST_BYTES = 10_000_000  # of a picture that is copied into an export
SIDES = ((1.0, 0.75), (0.75, 1.0), (1.0, 0.4), (1.0, 1.0))  # width and height of drawn pictures, in parts of their side
SIDE = 320  # pixels, or four times the least side that the adapter accepts, since crops are parts of it


def find_tests(frame: pl.DataFrame, raw: Path) -> pl.DataFrame:
    """The rows of a frame of predictions whose files are still those that were predicted, with the column `file`.

    An id begins with the sha256 of its file.
    """
    digests = {path: hash_file(raw / path) for path in frame["path"].unique().to_list()}
    here = [digests[path] == name.partition("#")[0] for name, path in frame.select("id", "path").iter_rows()]
    return frame.with_columns(file=pl.Series([str(raw / path) for path in frame["path"]], dtype=pl.String)).filter(
        pl.Series(here, dtype=pl.Boolean)
    )


def choose_proofs(frame: pl.DataFrame, raw: Path, meta: AdapterMeta) -> tuple[Proof, ...]:
    """Up to eight pictures of a frame of test predictions, of every label in turn; large files are left out."""
    square = meta.input is not None and meta.input.cut == "square"
    chosen: list[Proof] = []
    for row in _take_turns(frame):
        file = raw / row["path"]
        if len(chosen) == MANY:
            break
        if not file.is_file() or file.stat().st_size > MOST_BYTES or hash_file(file) != row["id"].partition("#")[0]:
            continue
        crop = row["crop"]
        box: Box | None = None if crop is None else (crop[0], crop[1], crop[2], crop[3])
        chosen.append(Proof(image=file, box=_shrink(box) if box and square else box))
    return tuple(chosen)


def _take_turns(frame: pl.DataFrame) -> Iterator[dict[str, Any]]:
    ordered = frame.sort("id")
    by_label = [part.select("id", "path", "crop").to_dicts() for part in ordered.partition_by("label")]
    return (row for turn in zip_longest(*by_label) for row in turn if row is not None)


def _shrink(crop: Box) -> Box:
    """A box around which the layout `instances` cuts about this square: it is half as large again as its object."""
    x0, y0, x1, y1 = crop
    across, down = (x1 - x0) // 6, (y1 - y0) // 6
    return x0 + across, y0 + down, x1 - across, y1 - down


def draw_proofs(folder: Path, meta: AdapterMeta) -> tuple[Proof, ...]:
    """Eight simulated photographs of surfaces, in several shapes, written into the folder."""
    side = SIDE if meta.input is None else max(SIDE, 4 * meta.input.min_side)
    lots = [create_lot(0, number) for number in range(MANY)]
    proofs = []
    for number, lot in enumerate(lots):
        pixels, _ = render(lot, lot_labels(0, number, MANY)[number], side, np.random.default_rng(number))
        width, height = (round(side * part) for part in SIDES[number % len(SIDES)])
        least = max(min(width, height), side // 2)
        width, height = max(width, least), max(height, least)
        image = folder / f"drawn-{number + 1}.png"
        Image.fromarray(pixels[:height, :width]).save(image)
        crops = meta.input is not None and meta.input.kind == "crop"
        proofs.append(Proof(image=image, box=(width // 4, height // 4, width, height) if crops else None))
    return tuple(proofs)
