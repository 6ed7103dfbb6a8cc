"""Frozen features of every sample, for the data stages: which samples are alike, and which label does not fit.

The features are always those of the embedded backbone, whichever backbone the domain trains on, so that groups depend
on the images alone. Both files cache results by the images' content, so a run computes only what is new. They are
written during the run, so a killed run continues. Torch is loaded only if a picture is new.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.data.checks.duplicates import Found, Pictures, find_near_duplicates
from components.data.checks.features import FEATURES, decode_features, load_features, load_known, save_matches
from components.data.checks.matching import read_grey
from components.data.checks.pictures import THUMBNAIL
from components.data.manifest import load_frame, save_frame
from components.data.sample_keys import content_of, sample_key
from components.data.sources.images import UNDECODABLE, Box, Upright, open_picture, pixel_limit
from components.data.store.shards import open_images
from components.domain.domain import Domain
from components.models.embedded import load_card
from components.workspace import Workspace

SIDE = 128  # pixels: the embedded backbone's own
BATCH = 32  # always full, so that a feature's last bits do not depend on its neighbours
KEEP_EVERY = 64  # batches


class View(NamedTuple):
    """A picture, or one crop of it, at the backbone's size (H, W, 3), and its thumbnail where it is the whole."""

    key: str
    pixels: NDArray[np.uint8]
    grey: bytes | None


def run_features(workspace: Workspace, domain: Domain) -> None:
    """rows.parquet and raw/ -> features.parquet, and matches.parquet: which pictures show one thing."""
    folder, raw = workspace.derived(domain.name), open_images(workspace, domain.name)
    rows = load_frame(folder / "rows.parquet")
    features = update_features(rows, raw, domain, folder / "features.parquet")
    update_matches(rows, features, raw, domain, folder / "matches.parquet")


def update_features(rows: pl.DataFrame, raw: Path, domain: Domain, file: Path) -> pl.DataFrame:
    """The features of what can be decoded of `rows`, kept in `file`: those known there, and the new ones."""
    wanted: dict[str, set[Box | None]] = {}
    keys = set[str]()
    for row in rows.filter(pl.col("id").is_not_null() & pl.col("problem").is_null()).iter_rows(named=True):
        for crop in (None, tuple(row["crop"])) if row["crop"] else (None,):
            if (key := sample_key(content_of(row["id"]), crop)) not in keys:
                keys.add(key)
                wanted.setdefault(row["path"], set()).add(crop)
    backbone = load_card().tensors_sha256
    known = load_features(file).filter(pl.col("key").is_in(list(keys)) & (pl.col("backbone") == backbone))
    contents = dict(rows.select("path", "id").drop_nulls().iter_rows())
    there = set(known["key"])
    missing = {
        path: [crop for crop in sorted(crops, key=str) if sample_key(content_of(contents[path]), crop) not in there]
        for path, crops in wanted.items()
    }
    missing = {path: crops for path, crops in missing.items() if crops}
    parts = [known]
    for number, part in enumerate(_compute(missing, contents, raw, domain) if missing else (), 1):
        parts.append(part.with_columns(backbone=pl.lit(backbone)).select(list(FEATURES)))
        if number % KEEP_EVERY == 0:
            save_frame(pl.concat(parts).sort("key"), file)
    whole = pl.concat(parts).sort("key")
    save_frame(whole, file)
    return whole


def update_matches(rows: pl.DataFrame, features: pl.DataFrame, raw: Path, domain: Domain, file: Path) -> None:
    """Look at every new pair of pictures that may show one thing, unless the domain says `off`; looks are kept."""
    pictures = features.filter(pl.col("grey").is_not_null())
    contents = pictures["key"].to_list()
    paths = {content_of(row): path for row, path in rows.select("id", "path").drop_nulls().reverse().iter_rows()}
    greys = np.stack([np.frombuffer(grey, np.uint8) for grey in pictures["grey"]]) if contents else np.zeros((0, 1))
    limit = domain.validation.max_megapixels
    looked = Pictures(
        contents,
        greys.reshape(-1, THUMBNAIL, THUMBNAIL).astype(np.float32),
        decode_features(pictures),
        lambda index: read_grey(raw / paths[contents[index]], max_megapixels=limit),
    )
    known, bits = load_known(file), domain.validation.near_duplicate_bits
    if domain.groups.near_duplicates == "off":
        # What is known is kept for the day it is wanted again.
        save_matches(Found(known.looks, answers=known.answers), file)
        return
    with pixel_limit(limit):  # once for all, and not per picture
        found = find_near_duplicates(looked, bits, known, keep=lambda so_far: save_matches(so_far, file))
    save_matches(found, file)


def _compute(
    missing: dict[str, list[Box | None]], contents: dict[str, str], raw: Path, domain: Domain
) -> Iterator[pl.DataFrame]:
    """Features of all crops asked for of every file, a batch at a time."""
    waiting = _view(missing, contents, raw, domain)
    views = list(islice(waiting, BATCH))
    if not views:
        return  # what is missing cannot be decoded

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin take the cores others work on meanwhile
    import torch

    from components.models.backbones import load_backbone
    from components.models.tokens import Needs, forward_plain

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = load_backbone("embedded", SIDE)
    vit = backbone.vit.to(device)
    mean, std = torch.tensor(backbone.mean, device=device), torch.tensor(backbone.std, device=device)
    while views:
        pixels = np.zeros((BATCH, *views[0].pixels.shape), np.uint8)
        pixels[: len(views)] = [view.pixels for view in views]
        images = (torch.from_numpy(pixels).to(device).float() / 255 - mean) / std
        with torch.inference_mode():
            tokens = forward_plain(vit, images.permute(0, 3, 1, 2), Needs(pooled=True, patches=True))
            # The class token says what it is, the mean of the patches how it looks.
            both = torch.cat([tokens.pooled, tokens.patches.mean(dim=1)], dim=1)
        stored = both.cpu().numpy().astype(np.float16)[: len(views)]
        columns = {"key": [view.key for view in views], "feature": [feature.tobytes() for feature in stored]}
        yield pl.DataFrame(
            columns | {"grey": [view.grey for view in views]},
            schema={"key": pl.String, "feature": pl.Binary, "grey": pl.Binary},
        )
        views = list(islice(waiting, BATCH))


def _view(missing: dict[str, list[Box | None]], contents: dict[str, str], raw: Path, domain: Domain) -> Iterator[View]:
    """Decoded by several threads, a few files ahead of the network."""
    waiting = iter(missing.items())
    limit = domain.validation.max_megapixels
    with ThreadPoolExecutor() as pool:
        while files := list(islice(waiting, BATCH)):
            read = pool.map(lambda item: _read(raw / item[0], content_of(contents[item[0]]), item[1], limit), files)
            yield from chain.from_iterable(read)


def _read(path: Path, content: str, crops: Sequence[Box | None], max_megapixels: float) -> list[View]:
    """The crops wanted of one file; none where it is unfit, which the next stage explains."""
    try:
        with open_picture(path, max_megapixels) as opened:
            picture = opened.decode_plain()
            return [_look(picture, content, crop) for crop in crops if crop is None or _is_inside(crop, picture)]
    except UNDECODABLE:
        return []


def _is_inside(crop: Box, picture: Upright) -> bool:
    x0, y0, x1, y1 = crop
    width, height = picture.size
    return 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height


def _look(picture: Upright, content: str, crop: Box | None) -> View:
    pixels = np.asarray(picture.shrink((SIDE, SIDE), "RGB", crop))
    grey = None if crop else picture.average(THUMBNAIL).tobytes()
    return View(sample_key(content, crop), pixels, grey)
