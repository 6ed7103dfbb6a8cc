"""What it costs that the rows of a batch belong to different adapters, against one adapter in its own network.

    python benchmarks/mixed.py [--backbones tiny base] [--rounds 5] [--json FILE]

Processor time on one thread, as ratios within one run: each round measures all batches in turn, and the least of the
rounds counts, so that other work on the machine falls out. The weights are random, which changes no time; the
tolerance of logits is for logits near one. `measure` and `weigh` return rows that `benchmarks/serving.py` prints.
"""

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from fleets import write_adapter

from components.domain.canvas import ImgSize
from components.models.backbones import Backbone, hash_tensors
from components.models.tuners import create_tuners
from components.models.weights import load_adapter
from components.serving.rack import Rack, Resident, decode

BACKBONES = {"tiny": ("vit_tiny_patch16_224", 128), "base": ("vit_base_patch16_224", 224)}
TUNERS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "vpt": {"kind": "vpt"},
    "vapt": {"kind": "vapt"},
    "lora": {"kind": "lora"},
    "dora": {"kind": "dora"},
    "ssf": {"kind": "ssf"},
    "bitfit": {"kind": "bitfit"},
    "adaptformer": {"kind": "adaptformer"},
}
ADAPTERS = 4  # of each kind
#: Kinds in one batch. Each of the first two needs one pass through the backbone, all together two.
MIXTURES = {"prompted": ("linear", "vpt", "vapt"), "tuned": ("lora", "dora", "ssf", "bitfit", "adaptformer")}
MIXTURES["all"] = tuple(TUNERS)
Dtype = Literal["float32", "bfloat16"]


def create_backbone(name: str) -> Backbone:
    """A ViT of the usual size with random weights, of which none is zero."""
    import timm

    architecture, side = BACKBONES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = timm.create_model(architecture, img_size=side, num_classes=0)
    half = (0.5, 0.5, 0.5)
    vit.requires_grad_(False).eval()
    size = ImgSize(side, side)
    return Backbone(name, vit, hash_tensors(vit.state_dict()), size, half, half, trained=False, licence="CC0-1.0")


def measure(
    backbone: Backbone, folder: Path, dtype: Dtype, batches: Sequence[int] = (16, 32), rounds: int = 3
) -> list[dict[str, Any]]:
    """A row for each kind and batch size, and for the MIXTURES of kinds.

    ratio: throughput of the mixed batch by that of the same batch in one adapter's own network; of several kinds, by
    the mean time of these. difference: largest of logits. equal: share of equal answers.
    """
    rack, rows = Rack(backbone, dtype), list[dict[str, Any]]()
    fleet = {kind: [_add(rack, folder, kind, number) for number in range(ADAPTERS)] for kind in TUNERS}
    alone = {}
    for kind, residents in fleet.items():
        alone[kind] = [rack.engine.prepare(load_adapter(each.folder, backbone)[0]) for each in residents]
    for size in batches:
        pixels = np.random.default_rng(size).integers(0, 256, (size, *backbone.img_size, 3), np.uint8)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        mixtures = {kind: [residents[row % ADAPTERS] for row in range(size)] for kind, residents in fleet.items()}
        for name, kinds in MIXTURES.items():
            several = [fleet[kind][number] for number in range(ADAPTERS) for kind in kinds]
            mixtures[name] = [several[row % len(several)] for row in range(size)]
        calls: dict[str, Callable[[], Any]] = {}
        for kind, networks in alone.items():
            calls[f"alone {kind}"] = partial(rack.engine.forward, networks[0], images)
        for kind, mixture in mixtures.items():
            calls[f"mixed {kind}"] = partial(rack.forward, pixels, mixture)
        seconds = time_calls(calls, rounds)
        for kind, mixture in mixtures.items():
            members = MIXTURES.get(kind, (kind,))
            one = sum(seconds[f"alone {member}"] for member in members) / len(members)
            row = {"backbone": backbone.name, "dtype": dtype, "batch": size, "kind": kind}
            row |= {"alone_ms": one * 1000, "mixed_ms": seconds[f"mixed {kind}"] * 1000}
            rows.append(row | {"ratio": one / seconds[f"mixed {kind}"]} | _compare(rack, alone, mixture, pixels))
    return rows


def _add(rack: Rack, folder: Path, kind: str, number: int) -> Resident:
    name = f"{kind}-{number}"
    written = folder / name
    if not written.exists():
        write_adapter(written, rack.backbone, TUNERS[kind], number)
    return rack.add(name, written)


@torch.inference_mode()
def time_calls(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The least processor seconds of each over some rounds, in which all take turns."""
    least = dict.fromkeys(calls, float("inf"))
    for number in range(rounds + 1):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            if number:  # the first round warms up
                least[name] = min(least[name], time.process_time() - begin)
    return least


@torch.inference_mode()
def _compare(rack: Rack, alone: Mapping[str, Any], rows: Sequence[Resident], pixels: Any) -> dict[str, float]:
    """Logits and answers of a mixed batch beside those of the adapters' own networks."""
    found, images = rack.forward(pixels, rows), torch.from_numpy(pixels).permute(0, 3, 1, 2)
    differences, equal = [], []
    for resident in dict.fromkeys(rows):
        number = int(resident.folder.name.rpartition("-")[2])
        places = [place for place, row in enumerate(rows) if row is resident]
        wanted = rack.engine.forward(alone[resident.meta.tuner.kind][number], images[places])
        mine = torch.stack([found[place] for place in places])
        differences.append((mine - wanted).abs().max().item())
        same = decode(resident, mine).argmax(1) == decode(resident, wanted).argmax(1)
        equal += same.tolist()
    return {"difference": max(differences), "equal": sum(equal) / len(equal)}


def weigh(backbone: Backbone, folder: Path, dtype: Dtype, kind: str = "vpt", count: int = 200) -> dict[str, Any]:
    """What `count` champions take: megabytes by which the process grows, and milliseconds each to add."""
    rack = Rack(backbone, dtype)
    folders = [folder / f"weigh-{kind}-{number}" for number in range(count + 1)]
    for number, each in enumerate(folders):
        if not each.exists():
            write_adapter(each, backbone, TUNERS[kind], number)
    rack.add("first", folders[-1])  # opens the backbone in the rack's dtype
    gc.collect()
    before, begin = _read_resident_bytes(), time.process_time()
    for number, each in enumerate(folders[:-1]):
        rack.add(str(number), each)
    seconds = time.process_time() - begin
    gc.collect()
    megabytes = (_read_resident_bytes() - before) / 2**20
    row = {"backbone": backbone.name, "dtype": dtype, "kind": kind, "champions": count}
    return row | {"megabytes": megabytes, "milliseconds_each": seconds / count * 1000}


def _read_resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["measure", "weigh"])
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    create_tuners(list(TUNERS.values()))
    rows = []
    for name in options.backbones:
        backbone = create_backbone(name)
        for dtype in options.dtypes:
            with tempfile.TemporaryDirectory() as folder:
                if options.only != "weigh":
                    rows += measure(backbone, Path(folder), dtype, options.batches, options.rounds)
                if options.only != "measure":
                    rows.append(weigh(backbone, Path(folder), dtype))
    for row in rows:
        texts = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
        print("  ".join(texts))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
