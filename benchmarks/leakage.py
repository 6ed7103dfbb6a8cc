"""What the leakage firewall finds, and what it costs.

    TESSERA_REAL_DATA=DIR python benchmarks/leakage.py [SET ...] [--json FILE]

Claims: without being told, near duplicates are grouped as the published source images say (lc25000_lung: pairwise
precision at least 0.98, recall at least 0.90); a ridge on 16 x 16 raw pixels, which knows nothing but pictures it saw,
falls from about 89 % to under 60 % balanced accuracy on magnetic_tile when the groups found stay together; sets without
augmented copies (bccd, dsb2018_stained) are hardly joined; copies planted into dsb2018_stained are found whatever was
done to them. Where one design is repeated, different parts stay apart: of solar_mono (60 pictures of solar cells from
ELPV, in two folders) at most two pairs are joined, and copies planted among them are found; of deeppcb every template
is joined with its photograph, and no two boards are. One per cent of new images is to cost a few
per cent, which README.md says where it does not. Seconds are of a processor, in one thread.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import torch
from PIL import Image, ImageEnhance, ImageOps

from components.data.annotations.layouts import read_rows
from components.data.checks.duplicates import join_groups
from components.data.checks.features import load_near_duplicates, load_sisters
from components.data.manifest import load_frame, save_frame
from components.data.sample_keys import content_of
from components.domain.domain import Domain
from components.domain.reading import load_domain
from components.models.features import update_features, update_matches
from components.workspace import REPOSITORY

SETS = ("magnetic_tile", "lc25000_lung", "bccd", "dsb2018_stained", "planted", "solar_mono", "deeppcb")

Change = Callable[[Image.Image], Image.Image]
CHANGES: dict[str, Change] = {
    "darker by half, half the contrast": lambda image: ImageEnhance.Contrast(
        ImageEnhance.Brightness(image).enhance(0.5)
    ).enhance(0.5),
    "mirrored": ImageOps.mirror,
    "a quarter turn": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "20 degrees, corners cut": lambda image: _cut(image.rotate(20, Image.Resampling.BICUBIC), 0.35),
    "half of its area": lambda image: _cut(image, 0.5),
    "a quarter of the pixels, JPEG 40": lambda image: image.resize((image.width // 2, image.height // 2)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default="all", choices=[*SETS, "all"])
    parser.add_argument("--json", type=Path, help="write the results here, set by set")
    options = parser.parse_args()
    if "TESSERA_REAL_DATA" not in os.environ:
        parser.error("TESSERA_REAL_DATA names no folder of public sets")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    root = Path(os.environ["TESSERA_REAL_DATA"])
    results: dict[str, Any] = {}
    for name in SETS if "all" in options.sets else options.sets:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = MEASURES.get(name, measure)(root, name, Path(folder))
        print(name, json.dumps(results[name], indent=1), flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=2) + "\n")


def measure(root: Path, name: str, folder: Path) -> dict[str, Any]:
    """One public set through the search, the last per cent of its files added later."""
    domain = load_domain(REPOSITORY / "data" / name / "domain.yaml").model_copy(update={"group": None})
    raw = root / name
    rows = read_rows(domain, raw).unique("id", keep="first", maintain_order=True)
    files = rows["path"].unique(maintain_order=True)
    later = set(files[:: max(len(files) // max(len(files) // 100, 1), 1)][: max(len(files) // 100, 1)])
    cold = search(rows.filter(~pl.col("path").is_in(list(later))), raw, domain, folder)
    warm = search(rows, raw, domain, folder)
    groups = find_groups(rows, folder)
    sizes = Counter(dict(zip(rows["path"], groups, strict=True)).values())
    found = {
        "files": len(files),
        "samples": rows.height,
        "groups": len(sizes),
        "largest group": max(sizes.values()),
        "files in groups of several": sum(size for size in sizes.values() if size > 1),
        "pairs looked at": load_frame(folder / "matches.parquet")["strangers"].null_count(),
        "near duplicates": len(load_near_duplicates(folder / "matches.parquet")),
        "seconds of features": round(cold[0], 1),
        "seconds of search": round(cold[1], 1),
        "files a second": round((len(files) - len(later)) / sum(cold), 1),
        f"seconds after adding {len(later)}": round(sum(warm), 1),
    }
    if name == "lc25000_lung":
        table = dict(pl.read_csv(raw / "labels.csv").select("image", "source_image").iter_rows())
        found |= score_groups(groups, [table[path] for path in rows["path"]])
    if name == "magnetic_tile":
        found |= read_raw_pixels(rows, raw, groups)
    return found


def measure_planted(root: Path, name: str, folder: Path) -> dict[str, Any]:
    """A changed copy of every picture of dsb2018_stained."""
    return plant(sorted((root / "dsb2018_stained" / "images").iterdir()), folder)


def measure_solar(root: Path, name: str, folder: Path) -> dict[str, Any]:
    """Cells of one design, all different: as they are, and with a changed copy of every one."""
    raw = root / name
    (folder / "plain").mkdir()
    return describe(as_folders(name, raw), raw, folder / "plain") | plant(sorted(raw.glob("*/*")), folder)


def measure_boards(root: Path, name: str, folder: Path) -> dict[str, Any]:
    """Photographs of circuit boards and their templates; the first five digits of a name are the board's."""
    raw = folder / "raw"
    for kind in ("images", "templates"):
        shutil.copytree(root / name / kind, raw / kind)
    found = describe(as_folders(name, raw), raw, folder)
    rows = load_frame(folder / "rows.parquet")
    names = {content_of(row): Path(path).stem for row, path in rows.select("id", "path").iter_rows()}
    groups = dict(zip(rows["path"], find_groups(rows, folder), strict=True))
    twins = [(path, path.replace("templates", "images")) for path in groups if path.startswith("templates")]
    near = [(names[a], names[b]) for a, b in load_near_duplicates(folder / "matches.parquet")]
    return found | {
        "templates grouped with their photograph": f"{sum(groups[a] == groups[b] for a, b in twins)} of {len(twins)}",
        "other pairs of one board": sum(a != b and a[:5] == b[:5] for a, b in near),
        "pairs of two boards": sum(a[:5] != b[:5] for a, b in near),
    }


def as_folders(name: str, raw: Path) -> Domain:
    """A set without a domain of its own, one folder per class."""
    classes = sorted(path.name for path in raw.iterdir() if path.is_dir())
    return Domain.model_validate({"name": name, "task": "classification", "classes": classes, "layout": "folders"})


def describe(domain: Domain, raw: Path, folder: Path) -> dict[str, Any]:
    """The search of a whole set from the start."""
    rows = read_rows(domain, raw)
    seconds = search(rows, raw, domain, folder)
    sizes = Counter(find_groups(rows, folder)).values()
    return {
        "files": rows.height,
        "groups": len(sizes),
        "largest group": max(sizes),
        "near duplicates": len(load_near_duplicates(folder / "matches.parquet")),
        "of these, share a picture": len(load_sisters(folder / "matches.parquet")),
        "seconds of search": round(seconds[1], 1),
    }


def plant(pictures: Sequence[Path], folder: Path) -> dict[str, Any]:
    """A changed copy of every picture, the kinds of change taking turns: which are found."""
    raw, kinds = folder / "raw", list(CHANGES)
    for number, path in enumerate(pictures):
        label = raw / "ab"[number % 2]
        label.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            picture = image.convert("RGB")
        kind = kinds[number % len(kinds)]
        picture.save(label / f"{number:03}_a.png")
        copy, jpeg = CHANGES[kind](picture), "JPEG" in kind
        copy.save(label / f"{number:03}_b.{'jpg' if jpeg else 'png'}", **({"quality": 40} if jpeg else {}))
    domain = Domain.model_validate(
        {"name": "planted", "task": "classification", "classes": ["a", "b"], "layout": "folders"}
    )
    rows = read_rows(domain, raw)
    search(rows, raw, domain, folder)
    groups = dict(zip(rows["path"].str.slice(0, 7), find_groups(rows, folder), strict=True))
    hits = {kind: [0, 0] for kind in kinds}
    for number in range(len(pictures)):
        name, tally = f"{'ab'[number % 2]}/{number:03}_", hits[kinds[number % len(kinds)]]
        tally[0] += groups[f"{name}a"] == groups[f"{name}b"]
        tally[1] += 1
    return {kind: f"{hit} of {count}" for kind, (hit, count) in hits.items()} | {
        "false joins": len(pictures) - len(set(groups.values())) + sum(count - hit for hit, count in hits.values())
    }


def search(rows: pl.DataFrame, raw: Path, domain: Domain, folder: Path) -> tuple[float, float]:
    """The features stage; processor seconds of features and of the search."""
    started = time.process_time()
    features = update_features(rows, raw, domain, folder / "features.parquet")
    between = time.process_time()
    update_matches(rows, features, raw, domain, folder / "matches.parquet")
    save_frame(rows, folder / "rows.parquet")
    return between - started, time.process_time() - between


def find_groups(rows: pl.DataFrame, folder: Path) -> list[str]:
    contents = [content_of(identity) for identity in rows["id"]]
    first = {content: index for index, content in reversed(list(enumerate(contents)))}
    near = load_near_duplicates(folder / "matches.parquet")
    return join_groups(contents, [(first[a], first[b]) for a, b in near])


def score_groups(found: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
    """Of the pairs put together the share that belongs together, and of those that belong together the share found."""
    both, mine, theirs = (
        sum(count * (count - 1) for count in Counter(names).values())
        for names in (list(zip(found, truth, strict=True)), found, truth)
    )
    return {"pairwise precision": round(both / mine, 4), "pairwise recall": round(both / theirs, 4)}


def read_raw_pixels(rows: pl.DataFrame, raw: Path, groups: Sequence[str]) -> dict[str, float]:
    """Balanced accuracy of a ridge on tiny grey pictures, five folds: at random, and by the groups found."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pixels = []
    for path in rows["path"]:
        with Image.open(raw / path) as image:
            pixels.append(np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BOX), np.float32).ravel())
    inputs, labels = np.stack(pixels), rows["label"].to_numpy()
    ridge = make_pipeline(StandardScaler(), RidgeClassifier(class_weight="balanced"))
    scores = {}
    for title, kind in (("random", StratifiedKFold), ("grouped", StratifiedGroupKFold)):
        folds = list(kind(5, shuffle=True, random_state=0).split(inputs, labels, groups))
        guessed = cross_val_predict(ridge, inputs, labels, cv=folds)
        scores[f"raw pixels, {title} folds"] = round(float(balanced_accuracy_score(labels, guessed)), 4)
    return scores


MEASURES: dict[str, Callable[[Path, str, Path], dict[str, Any]]] = {
    "planted": measure_planted,
    "solar_mono": measure_solar,
    "deeppcb": measure_boards,
}


def _cut(image: Image.Image, share: float) -> Image.Image:
    """The middle of a picture, by its share of the area."""
    width, height = image.width * share**0.5 / 2, image.height * share**0.5 / 2
    x, y = image.width / 2, image.height / 2
    return image.crop((round(x - width), round(y - height), round(x + width), round(y + height)))


if __name__ == "__main__":
    main()
