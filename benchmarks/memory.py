"""What memory a training takes: computed from networks without weights, and measured where one fits here.

    python benchmarks/memory.py [--only vpt] [--json FILE]

Claim: what is computed before a training is within 10 % of what the training keeps for the backward pass, and of its
peak where the allocator gives back what is freed; and one GPU of 80 GB holds ViT-g (1.1 billion parameters) with VPT or
LoRA at batch 32.

Measured: ViT-L/16 with random weights on a CPU, each row in a process of its own. Kept: distinct storages that autograd
saves, without parameters. Peak: the high-water mark of the process's resident memory over two steps (forward, loss,
backward, clip, AdamW), a copy of what learned, and a validation of twice the batch, less what was resident before the
network was made. Computed for a GPU: bfloat16 and fused attention, which keeps queries, keys, values, its output and
one number per query; without the CUDA context, what kernels allocate inside, and what the allocator wastes.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from bench import save_json
from step_time import describe

from components.domain.canvas import ImgSize
from components.domain.settings import Training
from components.models.backbones import Backbone
from components.models.engine import Engine
from components.models.network import Network, create_network
from components.models.tuners import create_tuners
from components.tasks import CLASSIFICATION
from components.training.fit import CLIP_NORM, create_optimizer
from components.training.memory import Rehearsal
from components.training.usage import resident_memory

MODELS = {
    "ViT-B/16": "vit_base_patch16_224",
    "ViT-L/16": "vit_large_patch16_224",
    "ViT-H/14": "vit_huge_patch14_224",
    "ViT-g/14": "vit_giant_patch14_reg4_dinov2",
}
CLASSES, SIDE, LARGE = 10, ImgSize(224, 224), "ViT-L/16"
FP32, BF16 = "float32", "bfloat16"
MEASURED = [(kind, FP32, 2, saves) for kind in ("vpt", "lora") for saves in (False, True)]
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072"}  # glibc otherwise keeps some of what was freed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="of the measured rows, those of this tuner")
    parser.add_argument("--json", type=Path, help="write the results here too")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*json.loads(options.measure))))
        return
    facts = {"device": describe(torch.device("cpu")), "torch": torch.__version__, "timm": timm.__version__}
    computed = list(compute_all())
    rows = [compare(*row) for row in MEASURED if options.only in (None, row[0])]
    if options.json:
        save_json(facts | {"measured": rows, "computed": computed}, options.json)


def compute_all() -> Iterator[dict[str, Any]]:
    """What every network takes on a GPU, tuner by tuner, printed as it comes."""
    for model in MODELS:
        for kind in ("vpt", "lora", "full"):
            rehearsal = rehearse(model, kind, create_engine("cuda", BF16, fused=True))
            for batch in (32, 64):
                for saves in (False, True):
                    memory = rehearsal.measure(Training(batch_size=batch, gradient_checkpointing=saves))
                    row = {"model": model, "tuner": kind, "batch": batch, "gradient_checkpointing": saves}
                    row |= {"gb": round(memory.device / 1e9, 2), **memory.model_dump()}
                    print(f"{model} {kind:5} batch {batch}{' checkpointing' if saves else '':14} {row['gb']:7.1f} GB")
                    yield row


def compare(kind: str, dtype: str, batch: int, saves: bool) -> dict[str, Any]:
    """One row of ViT-L: measured in a process of its own, and computed."""
    found, given = (measure_apart(kind, dtype, batch, saves, env) for env in ({}, GIVES_BACK))
    # Not validated, for no domain may ask for a batch of one image.
    training = Training.model_construct(batch_size=batch, accumulate=1, gradient_checkpointing=saves)
    memory = rehearse(LARGE, kind, create_engine("cpu", dtype, fused=False)).measure(training)
    row = {"tuner": kind, "dtype": dtype, "batch": batch, "gradient_checkpointing": saves}
    row |= {"kept_mb": round(memory.kept / 1e6, 1), "kept_measured_mb": round(found["kept"] / 1e6, 1)}
    row |= {"peak_mb": round(memory.device / 1e6), "peak_measured_mb": round(found["peak"] / 1e6)}
    row |= {"peak_measured_given_back_mb": round(given["peak"] / 1e6)}
    print(json.dumps(row), flush=True)
    return row


def measure_apart(kind: str, dtype: str, batch: int, saves: bool, env: dict[str, str]) -> dict[str, int]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", json.dumps([kind, dtype, batch, saves])]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | env)
    found: dict[str, int] = json.loads(run.stdout.splitlines()[-1])
    return found


def rehearse(model: str, kind: str, engine: Engine) -> Rehearsal:
    with torch.device("meta"):
        network = build(model, kind)
    return Rehearsal(network, engine, CLASSIFICATION, CLASSES, SIDE)


def create_engine(device: str, dtype: str, fused: bool) -> Engine:
    return Engine(torch.device(device), getattr(torch, dtype), (0.5,) * 3, (0.5,) * 3, fused)


def build(model: str, kind: str) -> Network:
    return create_network(create_backbone(MODELS[model]), create_tuners([{"kind": kind}])[0], CLASSES, 0)


def create_backbone(name: str) -> Backbone:
    vit = timm.create_model(name, num_classes=0, img_size=tuple(SIDE)).eval()
    return Backbone(name, vit, "", SIDE, (0.5,) * 3, (0.5,) * 3, trained=False, licence="")


def measure(kind: str, dtype: str, batch: int, saves: bool) -> dict[str, int]:
    """Bytes kept for the backward pass, and the peak."""
    engine = create_engine("cpu", dtype, fused=False)
    (tuner,) = create_tuners([{"kind": kind}])
    images = torch.randint(0, 256, (2 * batch, 3, *SIDE), dtype=torch.uint8)
    targets = torch.randint(0, CLASSES, (batch,))
    take_step(
        engine.prepare(create_network(create_backbone("vit_tiny_patch16_224"), tuner, CLASSES, 0)),
        engine,
        images[:1],
        targets[:1],
    )
    before = resident_memory()  # with the libraries that a first step loads
    network = engine.prepare(build(LARGE, kind))
    network.encoder.vit.set_grad_checkpointing(saves)
    optimizer, learned = create_optimizer(network, tuner), network.trainable_parameters()
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
    best: list[torch.Tensor] = []
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        kept = take_step(network.train(), engine, images[:batch], targets)
        torch.nn.utils.clip_grad_norm_(learned.values(), CLIP_NORM)
        optimizer.step()
        best = best or [tensor.detach().clone() for tensor in learned.values()]
    network.eval()
    with torch.no_grad():
        engine.forward(network, images)
    marks = [line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return {"kept": kept, "peak": int(marks[0][1]) * 1024 - before}


def take_step(network: Network, engine: Engine, images: torch.Tensor, targets: torch.Tensor) -> int:
    """Forward and backward; returns the bytes that autograd keeps, without parameters and what came from outside."""
    known = {each.untyped_storage().data_ptr() for each in (*network.parameters(), *network.buffers(), images, targets)}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network.head.loss(engine.forward(network, images), targets, torch.ones(CLASSES))
    loss.backward()  # type: ignore[no-untyped-call]
    return sum(kept.values())


if __name__ == "__main__":
    main()
