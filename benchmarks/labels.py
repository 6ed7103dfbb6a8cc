"""What the list of suspicious labels is worth: planted errors found, true labels listed, and what it says of itself.

    TESSERA_REAL_DATA=DIR python benchmarks/labels.py [SET ...] [--json FILE] [--folder DIR]

Claims: with 3 or 5 % of the labels changed, image by image or a whole group at a time, at least 0.9 of what is listed
are these where features recognise the classes (lc25000_lung, bccd), and about as many as the report says; a set whose
features cannot tell (magnetic_tile, surface_defects) lists nothing on their word and says why. Near duplicates, which
need no network, are counted apart. Five draws each, on the embedded backbone's features, which the data stages use,
and on a published ViT-Ti's at the same size. --folder keeps features and matches for the next time.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from components.data.annotations.layouts import read_rows
from components.data.checks.duplicates import Pair
from components.data.checks.features import load_features, load_near_duplicates
from components.data.checks.labels import find_suspects
from components.data.checks.validation import check_rows
from components.data.sample_keys import content_of, sample_key
from components.domain.reading import load_domain
from components.models.backbones import Backbone, load_backbone
from components.models.features import SIDE, update_features, update_matches
from components.synthetic.surfaces import create_surface_defects
from components.workspace import REPOSITORY

SETS = ("surface_defects", "magnetic_tile", "lc25000_lung", "bccd")
PUBLISHED = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
DRAWS, SHARES = 5, (0.03, 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default="all", choices=[*SETS, "all"])
    parser.add_argument("--json", type=Path, help="write the results here, set by set")
    parser.add_argument("--folder", type=Path, help="keep features and matches here")
    options = parser.parse_args()
    if "TESSERA_REAL_DATA" not in os.environ:
        parser.error("TESSERA_REAL_DATA names no folder of public sets")
    torch.set_num_threads(1)
    root, results = Path(os.environ["TESSERA_REAL_DATA"]), dict[str, Any]()
    with tempfile.TemporaryDirectory() as temporary:
        for name in SETS if "all" in options.sets else options.sets:
            results[name] = measure(root, name, (options.folder or Path(temporary)) / name)
            print(name, json.dumps(results[name], indent=1), flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(root: Path, name: str, folder: Path) -> dict[str, Any]:
    """One set: what is listed as it is, and with labels changed."""
    domain, raw = load_domain(REPOSITORY / "data" / name / "domain.yaml"), root / name
    if not raw.exists() and not (raw := folder / "raw").exists():
        create_surface_defects(raw)
    rows = read_rows(domain, raw)
    embedded = update_features(rows, raw, domain, folder / "features.parquet")
    update_matches(rows, embedded, raw, domain, folder / "matches.parquet")
    near = load_near_duplicates(folder / "matches.parquet")
    frame = check_rows(rows, raw, domain, near).fit
    published = load_backbone(str(root / "backbones" / f"{PUBLISHED}.safetensors"), SIDE)
    features = {"embedded": load_features(folder / "features.parquet"), PUBLISHED: embed(frame, raw, published)}
    return {
        "labels": frame.height,
        "groups": frame["group"].n_unique(),
        **{backbone: measure_features(frame, table, near) for backbone, table in features.items()},
    }


def measure_features(frame: pl.DataFrame, features: pl.DataFrame, near: list[Pair]) -> dict[str, Any]:
    judged = find_suspects(frame, features, near)
    found: dict[str, Any] = {"listed as it is": len(judged.suspects), "says": judged.note}
    for unit in ("image", "group"):
        for share in SHARES:
            tallies = [tally(frame, features, near, *draw) for draw in plant(frame, unit, share)]
            found[f"{share:.0%} by {unit}"] = pool_draws(tallies)
    return found


def plant(frame: pl.DataFrame, unit: str, share: float) -> Iterator[tuple[pl.Series, NDArray[np.bool_]]]:
    """Labels of which a share of the images, or of the groups, has another class; and which rows these are.

    Within a unit classes are shifted, so that a picture of several classes is wrong throughout.
    """
    truth, groups = frame["label"].to_numpy(), frame["group"].to_numpy()
    units = groups if unit == "group" else np.arange(frame.height).astype(str)
    names, classes = np.unique(units), np.unique(truth)
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        labels, wrong = truth.copy(), np.zeros(len(truth), bool)
        for name in rng.choice(names, max(1, round(share * len(names))), replace=False):
            members = units == name
            wrong |= members
            places = np.searchsorted(classes, truth[members]) + rng.integers(1, len(classes))
            labels[members] = classes[places % len(classes)]
        yield pl.Series("label", labels), wrong


class Tally(NamedTuple):
    """One draw: labels planted, (listed, of these planted) by witness, and what the list says of itself."""

    planted: int
    listed: dict[str, tuple[int, int]]
    accuracy: float | None
    expected: float | None


def tally(
    frame: pl.DataFrame, features: pl.DataFrame, near: list[Pair], labels: pl.Series, wrong: NDArray[np.bool_]
) -> Tally:
    judged = find_suspects(frame.with_columns(labels), features, near)
    rows = frame.select("path", "crop").rows()
    place = {(path, tuple(crop or ())): index for index, (path, crop) in enumerate(rows)}
    hits: dict[str, list[bool]] = {"features": [], "near duplicates": []}
    for suspect in judged.suspects:
        witness = "features" if "features" in suspect.why else "near duplicates"
        hits[witness].append(bool(wrong[place[suspect.path, tuple(suspect.crop or ())]]))
    hits["all"] = [*hits["features"], *hits["near duplicates"]]
    listed = {witness: (len(seen), sum(seen)) for witness, seen in hits.items()}
    return Tally(int(wrong.sum()), listed, judged.accuracy, judged.expected)


def pool_draws(draws: Sequence[Tally]) -> dict[str, Any]:
    """Precision and recall over all draws; None where nothing is listed."""
    planted = sum(draw.planted for draw in draws)
    expected = [draw.expected for draw in draws if draw.expected is not None]
    found: dict[str, Any] = {
        "planted": planted / len(draws),
        "accuracy": round(float(np.mean([draw.accuracy for draw in draws])), 3),
        "share of wrong labels that features' list expects": round(float(np.mean(expected)), 3) if expected else None,
    }
    for witness in draws[0].listed:
        listed, right = (sum(draw.listed[witness][part] for draw in draws) for part in (0, 1))
        precision, recall = round(right / listed, 3) if listed else None, round(right / planted, 3)
        found[witness] = {"listed": listed / len(draws), "precision": precision, "recall": recall}
    return found


def embed(frame: pl.DataFrame, raw: Path, backbone: Backbone) -> pl.DataFrame:
    """Class token and mean of the patches of every row, as the features stage takes them from its own backbone."""
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    keys, features = list[str](), list[bytes]()
    for part in frame.iter_slices(32):
        pixels = []
        for identity, path, crop in part.select("id", "path", "crop").rows():
            with Image.open(raw / path) as opened:
                upright = ImageOps.exif_transpose(opened).convert("RGB")
            cut = upright.crop(tuple(crop)) if crop else upright
            pixels.append(np.asarray(cut.resize((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=3.0)))
            keys.append(sample_key(content_of(identity), tuple(crop) if crop else None))
        images = (torch.from_numpy(np.stack(pixels)).float() / 255 - mean) / std
        with torch.inference_mode():
            states = backbone.vit.forward_features(images.permute(0, 3, 1, 2))
        both = torch.cat([states[:, 0], states[:, backbone.vit.num_prefix_tokens :].mean(dim=1)], dim=1)
        features += [row.tobytes() for row in both.numpy().astype(np.float16)]
    return pl.DataFrame({"key": keys, "feature": features}).unique("key", keep="first")


if __name__ == "__main__":
    main()
