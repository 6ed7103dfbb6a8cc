"""What the drift of `tessera status` says without drift, and of which changes it tells.

    TESSERA_REAL_DATA=DIR python benchmarks/drift.py [SET ...] [--json FILE]

Claims: without drift about one new image in twenty is unlike all that was seen, and rarely more than a fifth; a class
or surface that was never seen shows, and so do changes that the embedded backbone's features mind; others do not. Of
each set some 600 images in whole groups; twenty draws of 70 % of the groups as seen and 30 % as new.
"""

import argparse
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from components.data.annotations.layouts import read_rows
from components.data.checks.features import decode_features
from components.data.sample_keys import content_of
from components.domain.domain import Domain
from components.domain.reading import load_domain
from components.models.features import update_features
from components.monitoring.drift import find_unlike
from components.synthetic.surfaces import create_surface_defects
from components.workspace import REPOSITORY

SETS = ("surface_defects", "magnetic_tile", "lc25000_lung")
IMAGES, DRAWS, SEEN = 600, 20, 0.7
Change = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Vectors = NDArray[np.float32]

#: Of pictures (H, W, 3) from 0 to 1.
CHANGES: dict[str, Change] = {
    "as they are": lambda x: x,
    "darker, gamma 1.2": lambda x: x**1.2,
    "darker, gamma 2": lambda x: x**2,
    "brighter, gamma 0.5": lambda x: x**0.5,
    "warm lamp": lambda x: x * [1.1, 0.95, 0.7],
    "light from the side": lambda x: x * np.linspace(0.3, 1.3, x.shape[1])[None, :, None],
    "blur, 2 px": lambda x: _blur(x, 2),
}


def _blur(picture: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    whole = Image.fromarray((255 * picture).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(whole) / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default="all", choices=[*SETS, "all"])
    parser.add_argument("--json", type=Path, help="write the results here, set by set")
    options = parser.parse_args()
    if "TESSERA_REAL_DATA" not in os.environ:
        parser.error("TESSERA_REAL_DATA names no folder of public sets")
    torch.set_num_threads(1)
    results = dict[str, Any]()
    for name in SETS if "all" in options.sets else options.sets:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(Path(os.environ["TESSERA_REAL_DATA"]), name, Path(folder))
        print(name, json.dumps(results[name], indent=1), flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(root: Path, name: str, folder: Path) -> dict[str, Any]:
    """Shares over the draws: mean, median and 95 % quantile, for every change and for what was never seen."""
    domain, raw = load_domain(REPOSITORY / "data" / name / "domain.yaml"), root / name
    if not raw.exists():
        create_surface_defects(raw := folder / "raw")
    rows = choose(read_rows(domain, raw))
    vectors = {
        what: embed(rows, raw, domain, folder / f"{number}", change)
        for number, (what, change) in enumerate(CHANGES.items())
    }
    groups = rows["group"].to_numpy().astype(str)
    kinds = rows["surface" if "surface" in rows.columns else "label"].to_numpy()
    shares: dict[str, list[float]] = {}
    own = vectors["as they are"]
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        names = rng.permutation(np.unique(groups))
        new = np.isin(groups, names[int(SEEN * len(names)) :])
        for what, changed in vectors.items():
            shares.setdefault(what, []).append(find_unlike(own[~new], groups[~new], changed[new]).mean())
        unseen = kinds == rng.choice(np.unique(kinds))
        known = ~new & ~unseen
        shares.setdefault("never seen", []).append(find_unlike(own[known], groups[known], own[unseen]).mean())
    told = {
        what: {"mean": np.mean(found), "median": np.median(found), "95 %": np.quantile(found, 0.95)}
        for what, found in shares.items()
    }
    return {"images": rows.height, "groups": len(np.unique(groups))} | {
        what: {key: round(float(value), 3) for key, value in numbers.items()} for what, numbers in told.items()
    }


def choose(rows: pl.DataFrame) -> pl.DataFrame:
    """Whole groups; magnetic_tile names none, and the number in its file names turned out to be an image's own."""
    tile = pl.col("path").map_elements(
        lambda path: (re.findall(r"num_(\d+)", path) or [path])[0], return_dtype=pl.String
    )
    rows = (
        rows.filter(pl.col("problem").is_null())
        .with_columns(group=pl.coalesce("group", tile))
        .unique("id", maintain_order=True)
    )
    order = np.random.default_rng(0).permutation(rows["group"].unique().sort().to_numpy())
    sizes = dict(rows["group"].value_counts().iter_rows())
    ends = np.cumsum([sizes[group] for group in order])
    return rows.filter(pl.col("group").is_in(order[: int((ends <= IMAGES).sum())].tolist()))


def embed(rows: pl.DataFrame, raw: Path, domain: Domain, folder: Path, change: Change) -> Vectors:
    """Features of the rows' changed pictures, as the features stage computes them."""
    for path in rows["path"]:
        with Image.open(raw / path) as picture:
            changed = change(np.asarray(picture.convert("RGB")) / 255).clip(0, 1)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * changed).round().astype(np.uint8)).save(folder / path, format="PNG")
    table = update_features(rows, folder, domain, folder / "features.parquet")
    known = dict(zip(table["key"], decode_features(table), strict=True))
    return np.stack([known[content_of(identity)] for identity in rows["id"]])


if __name__ == "__main__":
    main()
