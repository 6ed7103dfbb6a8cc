"""Exported models: onnxruntime beside torch in float32, their answers and the processor time of an image.

    OMP_NUM_THREADS=1 python benchmarks/exports.py [--only tiny] [--json FILE]

Claim: an exported model answers what Tessera answers in float32, with probabilities within 1e-4, in at most two thirds
of the processor time, on one thread. Weights are random, except those of the embedded backbone: what is measured is
what an answer costs, and whether it is the same. Torch is the faster one of Tessera's own forward and of the exported
graph in torch, whose attention is one fused call.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fleets import write_adapter

from components.domain.canvas import ImgSize
from components.models.backbones import Backbone, hash_tensors, load_backbone
from components.records.exports import ExportJob
from components.serving.export import export
from components.serving.graph import load_graph
from components.serving.prepare import Model
from components.serving.rack import Rack

BATCHES = (1, 16)
ROUNDS = 7
#: By model: images that are compared and timed at most, and tuners.
MODELS: Mapping[str, tuple[int, Sequence[Mapping[str, Any]]]] = {
    "tiny": (64, ({"kind": "vpt"}, {"kind": "vapt"}, {"kind": "linear"}, {"kind": "lora"})),
    "base": (16, ({"kind": "vpt"},)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--json", type=Path, help="write the table here too")
    options = parser.parse_args()
    found = measure_export(options.only)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def measure_export(models: Sequence[str] = tuple(MODELS)) -> dict[str, Any]:
    """One row per model and tuner, printed as they come: milliseconds of an image by batch size, ratios of torch over
    onnxruntime, the largest difference of a probability, and the share of equal answers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_measure(name, tuner) for name in models for tuner in MODELS[name][1]]
    finally:
        torch.set_num_threads(threads)
    ratios = [ratio for row in rows for ratio in row["ratio"].values()]
    return {
        "rows": rows,
        "least_ratio": min(ratios),
        "largest_difference": max(row["difference"] for row in rows),
        "equal": min(row["equal"] for row in rows),
    }


def _create_backbone(name: str) -> Backbone:
    if name == "tiny":
        return load_backbone("embedded", 128)
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)
    half = (0.5, 0.5, 0.5)
    vit = vit.requires_grad_(False).eval()
    sha256 = hash_tensors(vit.state_dict())
    return Backbone("random", vit, sha256, ImgSize(224, 224), half, half, trained=False, licence="none")


def _measure(name: str, tuner: Mapping[str, Any]) -> dict[str, Any]:
    backbone, images = _create_backbone(name), MODELS[name][0]
    with tempfile.TemporaryDirectory() as place:
        adapter, folder = write_adapter(Path(place) / "adapter", backbone, tuner), Path(place) / "export"
        folder.mkdir()
        card = export(ExportJob(adapter=adapter, folder=folder, domain="benchmark", version=1), backbone)
        model, rack = Model(folder, threads=1), Rack(backbone, "float32")
        resident, graph = rack.add("", adapter), load_graph(adapter, backbone)
        dice = np.random.default_rng(0)
        pixels = dice.integers(0, 256, (images, *backbone.img_size, 3), dtype=np.uint8)
        expected = np.stack([rack.answer(pixels[k : k + 1], [resident])[0] for k in range(images)])
        found = np.concatenate([model.run(pixels[k : k + 16]) for k in range(0, images, 16)])
        ways = {
            "tessera": lambda batch: rack.answer(batch, [resident] * len(batch)),
            "torch": lambda batch: _compute(graph, batch),
            "onnxruntime": model.run,
        }
        times = {size: _clock(ways, pixels[:size]) for size in BATCHES}
        row: dict[str, Any] = {
            "model": f"{name}, {backbone.img_size} px",
            "tuner": tuner["kind"],
            "megabytes": round((folder / "model.onnx").stat().st_size / 1e6, 1),
            "milliseconds": {size: {way: round(ms, 2) for way, ms in by.items()} for size, by in times.items()},
            "ratio": {s: round(min(by["tessera"], by["torch"]) / by["onnxruntime"], 2) for s, by in times.items()},
            "difference": float(np.abs(found - expected).max()),
            "equal": float((found.argmax(axis=1) == expected.argmax(axis=1)).mean()),
            "images": images,
            "proofs": None if card.verified is None else card.verified.equal,
        }
    print(json.dumps(row), flush=True)
    return row


@torch.inference_mode()
def _compute(graph: torch.nn.Module, batch: Any) -> Any:
    return graph(torch.from_numpy(batch))


def _clock(ways: Mapping[str, Callable[[Any], Any]], batch: Any) -> dict[str, float]:
    """The least milliseconds of processor time per image; the ways take turns, so that all see the same machine."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for way, run in ways.items():
            begin = time.process_time()
            for _ in range(max(1, 16 // len(batch) // 2)):
                run(batch)
            best[way] = min(
                best[way], (time.process_time() - begin) * 1000 / max(1, 16 // len(batch) // 2) / len(batch)
            )
    return best


if __name__ == "__main__":
    main()
