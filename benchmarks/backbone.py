"""What the embedded backbone's frozen features are worth beside its teacher's and random ones.

    TESSERA_REAL_DATA=DIR python benchmarks/backbone.py random embedded TEACHER.safetensors@192 [--json FILE]

`NAME@192`: the backbone sees the 128 px images enlarged to 192 px.
Claim: at 128 px features of the embedded backbone are better than those of the network it was distilled from; they come
near to what that makes of images enlarged to 192 px, at a third of the cost, but for nearest neighbours.
Neither bench was seen in training: magnetic_tile by plain stratified folds, as the literature has it, though its
near duplicates flatter everybody, and again with near duplicates kept together; lc25000_lung by source image. Linear
probe and kNN: balanced accuracy on the class token; patches: average precision of a linear probe for defects.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from PIL import Image

from components.data.checks.duplicates import join_groups
from components.data.checks.look_alikes import find_look_alikes
from components.data.checks.pictures import THUMBNAIL
from components.domain.settings import Validation
from components.models.backbones import Backbone, hash_tensors, load_backbone
from components.models.pretrain.evaluate import Bench, extract_features, score_features, score_patches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="+", help="`random`, or what load_backbone knows, `@PIXELS` if enlarged")
    parser.add_argument("--img-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the scores here too")
    options = parser.parse_args()
    if "TESSERA_REAL_DATA" not in os.environ:
        parser.error("TESSERA_REAL_DATA names no folder with magnetic_tile and lc25000_lung")
    torch.set_num_threads(options.threads)
    benches = read_benches(Path(os.environ["TESSERA_REAL_DATA"]))
    scores: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'probe / kNN / patches':28}" + "".join(f"{bench.name:>26}" for bench in benches))
    for wanted in options.backbones:
        name, _, size = wanted.partition("@")
        pixels = int(size or options.img_size)
        backbone = create_random(pixels) if name == "random" else load_backbone(name, pixels)
        label = Path(name).name.removesuffix(".safetensors") + (f"@{size}" if size else "")
        scores[label] = score_benches(backbone, benches, options.img_size)
        cells = (" / ".join(f"{value:.1f}" for value in row.values()) for row in scores[label].values())
        print(f"{label[-27:]:28}" + "".join(f"{cell:>26}" for cell in cells), flush=True)
    if options.json:
        options.json.write_text(json.dumps(scores, indent=2) + "\n")


def score_benches(backbone: Backbone, benches: Sequence[Bench], img_size: int) -> dict[str, dict[str, float]]:
    """Benches of the same images share their features."""
    scores = {}
    features = {paths: extract_features(backbone, paths, img_size) for paths in {bench.paths for bench in benches}}
    for bench in benches:
        found = features[bench.paths]
        scores[bench.name] = asdict(score_features(found.images, bench.labels, bench.groups))
        if bench.masks:
            scores[bench.name]["patches"] = score_patches(found.patches, bench.masks, bench.groups)
    return scores


def create_random(img_size: int) -> Backbone:
    """The same architecture as timm initialises it, for the level that untrained features reach."""
    import timm

    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=img_size, num_classes=0).eval()
    like = load_backbone("embedded", img_size)
    return replace(like, name="random", vit=vit, sha256=hash_tensors(vit.state_dict()), trained=False)


def read_benches(root: Path) -> tuple[Bench, ...]:
    tiles = tuple(sorted((root / "magnetic_tile" / "images").glob("*/*.jpg")))
    labels = np.array([path.parent.name for path in tiles])
    masks = tuple(root / "magnetic_tile" / "masks" / path.parent.name / f"{path.stem}.png" for path in tiles)
    magnetic = (
        Bench("magnetic_tile", tiles, labels, masks=masks),
        Bench("magnetic_tile, grouped", tiles, labels, group(tiles), masks),
    )
    lung = pl.read_csv(root / "lc25000_lung" / "labels.csv").sort("image")
    paths = tuple(root / "lc25000_lung" / image for image in lung["image"])
    return *magnetic, Bench("lc25000_lung", paths, lung["label"].to_numpy(), lung["source_image"].to_numpy())


def group(paths: Sequence[Path]) -> NDArray[Any]:
    """Groups of pictures that look alike as they lie, by thumbnails alone."""
    greys = []
    for path in paths:
        with Image.open(path) as image:
            small = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        greys.append(np.asarray(small, np.float32))
    alike = find_look_alikes(np.stack(greys), Validation().near_duplicate_bits)
    return np.array(join_groups([str(path) for path in paths], [(i, j) for i, j, turn in alike if turn == 0]))


if __name__ == "__main__":
    main()
