"""How long a training step waits for its batch, and what a batch costs.

    python benchmarks/loading.py [--steps 60] [--rounds 3] [--threads N] [--json FILE]

Claim: on the bundled domain (128 px, batch 32, ViT-Ti, vpt-deep) the step waits for less than a tenth of its time with
the default loader, which has no workers and makes batches on a thread; and images come from the cache at more than a
thousand a second and core for `industrial`.

Share: time in which the loop waits for the next batch over all of its time, start of the workers included, median of
the rounds, every way in turn in each round. `inline` is the plain DataLoader without workers. Images a second and core:
over CPU seconds of this process, one thread, cache warm. Cold: decoding and writing all images.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from step_time import describe
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader

from components.data.annotations.layouts import read_rows
from components.data.batches.loading import Samples, StepOrder, create_loader
from components.data.batches.pixels import Pixels, load_pixels
from components.data.batches.transforms import Augmentation
from components.domain.canvas import ImgSize
from components.domain.domain import PRESETS
from components.domain.reading import load_domain
from components.models.backbones import load_backbone
from components.models.engine import create_engine
from components.models.network import create_network
from components.models.tuners import create_tuners
from components.synthetic.surfaces import create_surface_defects
from components.workspace import REPOSITORY

BATCH = 32
WAYS: dict[str, int] = {"inline": 0, "thread (default)": 0, "1 worker": 1, "2 workers": 2}


@dataclass(frozen=True)
class Wait:
    """share: of the loop's time spent waiting; milliseconds: of a step, waiting included."""

    way: str
    share: float
    milliseconds: float
    cpu_milliseconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the table here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        manifest, pixels, cold = decode(Path(folder))
        cores = {preset: measure_preset(pixels, preset) for preset in PRESETS}
        waits = measure_waits(pixels, manifest, options.steps, options.rounds)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts: dict[str, Any] = {"device": describe(device), "cores": os.cpu_count(), "threads": options.threads}
    facts |= {"torch": torch.__version__, "load": round(os.getloadavg()[0], 1)}
    record = facts | {"cold_images_per_second": cold, "images_per_cpu_second": cores, "waits": list(map(asdict, waits))}
    print(json.dumps(facts))
    print(f"cold decode: {cold['wall']:.0f} images a second, {cold['cpu']:.0f} a CPU second")
    for preset, rate in cores.items():
        print(f"{preset:12}{rate:8.0f} images a CPU second")
    print(f"\n{'':18}{'waits':>8}{'ms a step':>11}{'CPU ms':>8}")
    for wait in waits:
        print(f"{wait.way:18}{wait.share:8.1%}{wait.milliseconds:11.0f}{wait.cpu_milliseconds:8.0f}")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def decode(folder: Path) -> tuple[pl.DataFrame, Pixels, dict[str, float]]:
    """The bundled domain's images, decoded for the first time."""
    create_surface_defects(folder / "raw")
    domain = load_domain(REPOSITORY / "data" / "surface_defects" / "domain.yaml")
    rows = read_rows(domain, folder / "raw")
    cpu, wall = time.process_time(), time.perf_counter()
    pixels = load_pixels(rows, folder / "raw", ImgSize(128, 128), folder / "cache", 100)
    spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    return rows, pixels, {clock: round(len(pixels) / seconds) for clock, seconds in spent.items()}


def measure_preset(pixels: Pixels, preset: str) -> float:
    """Images a CPU second out of the warm cache, collated."""
    samples = Samples(pixels, np.arange(len(pixels)), np.zeros(len(pixels), np.int64), Augmentation(preset, 0))
    samples[0]
    begin = time.process_time()
    for _ in DataLoader(samples, BATCH):
        pass
    return round(len(pixels) / (time.process_time() - begin))


def measure_waits(pixels: Pixels, rows: pl.DataFrame, steps: int, rounds: int) -> list[Wait]:
    """Every way in turn, `rounds` times; the median of each figure."""
    classes = rows["label"].unique().sort().to_list()
    targets = np.array([classes.index(label) for label in rows["label"]], np.int64)
    samples = Samples(pixels, np.arange(len(pixels)), targets, Augmentation("industrial", 0))
    step = create_step(len(classes))
    found: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, workers in WAYS.items():
            found[way].append(walk(batches(samples, way, workers), step, steps))
    medians = {way: [statistics.median(column) for column in zip(*runs, strict=True)] for way, runs in found.items()}
    return [Wait(way, *(round(figure, 4) for figure in figures)) for way, figures in medians.items()]


def create_step(classes: int) -> Any:
    backbone = load_backbone("embedded", 128)
    network = create_network(backbone, create_tuners([{"kind": "vpt"}])[0], classes, 0)
    engine = create_engine(backbone.mean, backbone.std)
    engine.prepare(network).train()
    optimizer = torch.optim.AdamW(list(network.trainable_parameters().values()), lr=1e-3)

    def step(images: torch.Tensor, targets: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(engine.forward(network, images), targets.to(engine.device)).backward()
        optimizer.step()
        if engine.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def batches(samples: Samples, way: str, workers: int) -> Iterator[Any]:
    """Epoch after epoch without an end."""
    loader = create_loader(samples, BATCH, workers=workers, order=StepOrder(samples, BATCH, 0))
    while True:
        yield from DataLoader.__iter__(loader) if way == "inline" else loader
        samples.epoch += 1


def walk(source: Iterator[Any], step: Any, steps: int) -> tuple[float, float, float]:
    """Share of the time spent waiting, milliseconds and CPU milliseconds (workers apart) of a step."""
    waited, begin, cpu = 0.0, time.perf_counter(), time.process_time()
    for _ in range(steps):
        asked = time.perf_counter()
        images, targets = next(source)
        waited += time.perf_counter() - asked
        step(images, targets)
    spent = time.perf_counter() - begin
    return waited / spent, 1000 * spent / steps, 1000 * (time.process_time() - cpu) / steps


if __name__ == "__main__":
    main()
