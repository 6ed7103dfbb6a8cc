"""What an epoch of dtl costs, beside one of LoRA, and one picture asked of many dtl adapters.

    python benchmarks/side.py [--model vit_base_patch16_224] [--images 16] [--rounds 3] [--threads 1] [--json FILE]

Claim: on ViT-B/16 at 224 px an epoch of dtl, once the untouched blocks are computed, takes at most .5 of the processor
time of one of LoRA, and so does the mean over 20 epochs (the default budget) with computing them.

One process; weights and pictures are random, which costs the same. An epoch is what a training does: augmentation, 16
images in steps of 8, forward, loss, backward, clip, AdamW, and the validation of 8 other images. The rows take their
epochs in turn in every round, and the median of the rounds counts. `not kept` is dtl where the states of its untouched
blocks have no room. The mean over E epochs is (what computing the states takes + E epochs) / E: 4 views of each image
are computed before the first epoch. Bytes: distinct storages that autograd saves in a step, without parameters.

Of the rack: 8 adapters asked about one picture, of about 8 different ones.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from fleets import write_adapter
from step_time import count, describe

from components.data.batches.geometry import Pixels
from components.data.batches.loading import Samples
from components.data.batches.transforms import Augmentation
from components.domain.canvas import ImgSize
from components.domain.settings import Training
from components.models.backbones import Backbone
from components.models.engine import Engine, create_engine
from components.models.network import create_network
from components.models.tuners import create_tuners
from components.serving.rack import Rack, Resident
from components.training.fit import Loop
from components.training.lower import Keeper, Shelf, Views
from components.training.recipe import Recipe

CLASSES = tuple("abcdefgh")
BATCH, HELD_OUT, ADAPTERS = 8, 8, 8
EPOCHS, BUDGETS = 20, (5, 10, 20, 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the results here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vit = timm.create_model(options.model, num_classes=0).requires_grad_(False).eval()
    size, half = ImgSize.of(vit.patch_embed.img_size), (0.5, 0.5, 0.5)
    backbone = Backbone(options.model, vit, "0" * 64, size, half, half, trained=False, licence="")
    engine = create_engine(half, half)
    facts = {"device": describe(engine.device), "threads": options.threads, "torch": torch.__version__}
    facts |= {"model": options.model, "dtype": str(engine.dtype), "images": options.images, "rounds": options.rounds}
    with tempfile.TemporaryDirectory() as folder:
        results = facts | measure_epochs(backbone, engine, Path(folder), options.images, options.rounds)
        results |= measure_rack(backbone, Path(folder), options.rounds)
    text = json.dumps(results, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def measure_epochs(backbone: Backbone, engine: Engine, folder: Path, images: int, rounds: int) -> dict[str, Any]:
    """Processor seconds of an epoch of each row, ratios to LoRA, and what the states take."""
    loops, seconds = dict[str, Loop](), dict[str, list[float]]()
    states = 0.0
    for name, kind in (("lora", "lora"), ("dtl", "dtl"), ("dtl, not kept", "dtl")):
        (tuner,) = create_tuners([{"kind": kind}])
        network = create_network(backbone, tuner, len(CLASSES), 0)
        sides = (draw_samples(backbone, images, Augmentation("industrial", 0)), draw_samples(backbone, HELD_OUT, None))
        if name == "dtl":
            begin = time.process_time()
            keeper = Keeper(network, tuner, sides, EPOCHS, engine, Shelf(folder, "pixels", print))
            states, sides = time.process_time() - begin, keeper.samples
        training = Training(epochs=EPOCHS, batch_size=BATCH)
        recipe = Recipe(tuner, training, CLASSES, 0)
        loops[name] = Loop(network, *sides, recipe, engine, folder / f"{name}.safetensors", lambda: False)
        loops[name].run_epoch()  # memory is taken, threads are started
        seconds[name] = []
    for _ in range(rounds):
        for name, loop in loops.items():
            begin = time.process_time()
            loop.run_epoch()
            seconds[name].append(time.process_time() - begin)
    epoch = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "states_seconds": round(states, 2),
        "states_mb_per_view": round(count_bytes(loops["dtl"]) / 1e6, 3),
        "epoch_seconds": {name: round(value, 2) for name, value in epoch.items()},
        "of_lora": {name: round(value / epoch["lora"], 3) for name, value in epoch.items()},
        "mean_of_lora": {str(n): round((states + n * epoch["dtl"]) / n / epoch["lora"], 3) for n in BUDGETS},
        "saved_mb": {name: round(count_saved(loop) / 1e6, 1) for name, loop in loops.items()},
    }


def draw_samples(backbone: Backbone, images: int, augmentation: Augmentation | None) -> Samples:
    pixels = np.random.default_rng(images).integers(0, 256, (images, *backbone.img_size, 3), np.uint8)
    return Samples(pixels, np.arange(images), np.arange(images) % len(CLASSES), augmentation)


def count_bytes(loop: Loop) -> int:
    """Of the states of one view of one image."""
    assert isinstance(loop.train, Views)
    assert loop.train.states is not None
    return int(loop.train.states[0].nbytes)


def count_saved(loop: Loop) -> int:
    """Bytes that autograd keeps for the backward pass of a step."""
    loop.order.start = 0
    images, targets = next(iter(loop.loader))
    return count(lambda: loop.measure(images, targets).backward())[1]  # type: ignore[no-untyped-call]


def measure_rack(backbone: Backbone, folder: Path, rounds: int) -> dict[str, Any]:
    """What adapters asked about one picture take, of what they take of as many pictures."""
    found = {}
    for kind in ("lora", "dtl"):
        rack = Rack(backbone)
        folders = [write_adapter(folder / f"{kind} {n}", backbone, {"kind": kind}, n) for n in range(ADAPTERS)]
        rows = [rack.add(path.name, path) for path in folders]
        pictures = np.random.default_rng(0).integers(0, 256, (ADAPTERS, *backbone.img_size, 3), np.uint8)
        asked = {"same": np.repeat(pictures[:1], ADAPTERS, axis=0), "different": pictures}
        times = [{name: clock_answers(rack, some, rows) for name, some in asked.items()} for _ in range(rounds + 1)]
        found[kind] = {name: statistics.median(row[name] for row in times[1:]) for name in asked}
    whole = found["lora"]["different"]
    return {"rack_of_lora": {k: {n: round(v / whole, 3) for n, v in row.items()} for k, row in found.items()}}


def clock_answers(rack: Rack, pixels: Pixels, rows: list[Resident]) -> float:
    begin = time.process_time()
    rack.answer(pixels, rows)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
