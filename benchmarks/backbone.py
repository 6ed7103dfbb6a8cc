"""What the embedded backbone's frozen features are worth beside its teacher's and random ones.

    TESSERA_REAL_DATA=DIR python benchmarks/backbone.py random embedded TEACHER.safetensors [--json FILE]

Claim: features of the embedded backbone are no worse than those of the network it was distilled from, at 128 px.
Neither bench was seen in training: magnetic_tile (plain stratified folds; its near duplicates flatter everybody
alike) and lc25000_lung (folds by source image).
"""

import argparse
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch

from components.models.backbones import Backbone, hash_tensors, load_backbone
from components.models.pretrain.evaluate import Bench, extract_features, score_features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="+", help="`random`, or any name that load_backbone knows")
    parser.add_argument("--img-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the scores here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    benches = read_benches(Path(os.environ["TESSERA_REAL_DATA"]))
    scores: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'':28}" + "".join(f"{bench.name + ' probe / kNN':>30}" for bench in benches))
    for name in options.backbones:
        backbone = create_random(options.img_size) if name == "random" else load_backbone(name, options.img_size)
        label = Path(name).stem
        scores[label] = {bench.name: score_bench(backbone, bench) for bench in benches}
        cells = (f"{row['linear_probe']:.1f} / {row['knn']:.1f}" for row in scores[label].values())
        print(f"{label[:27]:28}" + "".join(f"{cell:>30}" for cell in cells), flush=True)
    if options.json:
        options.json.write_text(json.dumps(scores, indent=2) + "\n")


def score_bench(backbone: Backbone, bench: Bench) -> dict[str, float]:
    return asdict(score_features(extract_features(backbone, bench.paths), bench.labels, bench.groups))


def create_random(img_size: int) -> Backbone:
    """The same architecture as timm initialises it, for the level that untrained features reach."""
    import timm

    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=img_size, num_classes=0).eval()
    like = load_backbone("embedded", img_size)
    return replace(like, name="random", vit=vit, sha256=hash_tensors(vit.state_dict()), trained=False)


def read_benches(root: Path) -> tuple[Bench, Bench]:
    tiles = sorted((root / "magnetic_tile" / "images").glob("*/*.jpg"))
    magnetic = Bench("magnetic_tile", tuple(tiles), np.array([path.parent.name for path in tiles]))
    lung = pl.read_csv(root / "lc25000_lung" / "labels.csv").sort("image")
    paths = tuple(root / "lc25000_lung" / image for image in lung["image"])
    return magnetic, Bench("lc25000_lung", paths, lung["label"].to_numpy(), lung["source_image"].to_numpy())


if __name__ == "__main__":
    main()
