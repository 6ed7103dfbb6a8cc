"""What a training step costs in our form and in the textbook's.

    python benchmarks/step_time.py [--models base tiny] [--rounds 7] [--threads 2] [--json FILE]

Claim: the keys-and-values form with frozen weights in bfloat16 takes a VPT-deep step at least 1.3 times and a VAPT step
at least 1.4 times faster than concatenating, running and stripping under bfloat16 autocast, and 4.5 times faster than
that in float32, and keeps less than 0.45 of the bytes for the backward pass.

One process, all rows in turn in every round, the median of the rounds. A step is forward, loss, backward, clip and
AdamW. The textbook's rows take the faster of torch's fused attention and plain products. Bytes: distinct storages that
autograd saves, without parameters. Share of peak: the form's own matmul operations, over its time and over the best
rate of a plain product measured in the same run and dtype.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

from components.domain.canvas import ImgSize
from components.models.backbones import Backbone
from components.models.encoders import set_attention
from components.models.fast import choose_attention
from components.models.network import Network, create_network
from components.models.tuners import create_tuners

MODELS = {"base": ("vit_base_patch16_224", 16, 50), "tiny": ("vit_tiny_patch16_224", 32, 50)}
CLASSES = 100
FP32, BF16 = torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Row:
    """ratio: the textbook's bfloat16 step of the same tuner over this one; None where there is none."""

    model: str
    name: str
    milliseconds: float
    ratio: float | None
    share_of_peak: float
    saved_mb: float


@dataclass
class Runner:
    """A way to take one step, and what a step takes."""

    name: str
    dtype: torch.dtype
    step: Callable[[], None]
    operations: int = 0
    saved: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the table here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peaks = {dtype: measure_peak(device, dtype) for dtype in (FP32, BF16)}
    facts = {
        "device": describe(device),
        "threads": options.threads,
        "torch": torch.__version__,
        "peak_gflops": {str(dtype).removeprefix("torch."): round(peak / 1e9) for dtype, peak in peaks.items()},
    }
    print(json.dumps(facts))
    rows = [row for model in options.models for row in measure(model, device, options.rounds, peaks)]
    if options.json:
        options.json.write_text(json.dumps(facts | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def measure(model: str, device: torch.device, rounds: int, peaks: dict[torch.dtype, float]) -> list[Row]:
    """One model's rows, printed as they come."""
    name, batch, prompts = MODELS[model]
    images = torch.randn(batch, 3, 224, 224, device=device)
    targets = torch.randint(CLASSES, (batch,), device=device)
    runners = create_runners(name, prompts, images, targets)
    for runner in runners:
        runner.operations, runner.saved = count(runner.step)
        runner.step()
    times: dict[str, list[float]] = {runner.name: [] for runner in runners}
    for _ in range(rounds):
        for runner in runners:
            times[runner.name].append(clock(runner.step, device))
    medians = keep_faster_attention({name: statistics.median(values) for name, values in times.items()})
    print(f"\n{name}, batch {batch}, N = {prompts}\n{'':44}{'ms':>8}{'ratio':>8}{'of peak':>9}{'saved MB':>10}")
    rows = []
    for runner in runners:
        if runner.name not in medians:
            continue
        seconds, label = medians[runner.name], runner.name.split(", attention")[0]
        baseline = next((v for k, v in medians.items() if k.startswith(f"{label.split(':')[0]}: textbook bf16")), None)
        share = runner.operations / seconds / peaks[runner.dtype]
        ratio = baseline / seconds if baseline else None
        rows.append(Row(model, runner.name, 1000 * seconds, ratio, share, runner.saved / 1e6))
        print(
            f"{runner.name:44}{1000 * seconds:8.0f}{ratio or float('nan'):8.2f}{share:9.2f}{runner.saved / 1e6:10.0f}"
        )
    return rows


def create_runners(model: str, prompts: int, images: Tensor, targets: Tensor) -> list[Runner]:
    """Every row; the textbook's twice, once for each attention."""
    runners = []
    vit = timm.create_model(model, num_classes=0).to(images.device).requires_grad_(False).eval()
    backbone = Backbone(model, vit, "", ImgSize(224, 224), (0.5,) * 3, (0.5,) * 3, trained=False, licence="")
    for kind in ("vpt", "vapt"):
        (tuner,) = create_tuners([{"kind": kind, "num_prompts": prompts}])
        for fused in (True, False):
            suffix = f", attention {'fused' if fused else 'plain'}"
            for dtype in (FP32, BF16):
                network = create_network(backbone, tuner, CLASSES, 0).to(images.device)
                network.encoder.form = "textbook"
                name = f"{tuner.label}: textbook {'bf16' if dtype == BF16 else 'fp32'}{suffix}"
                runners.append(Runner(name, dtype, create_step(network, images, targets, dtype, fused)))
        for dtype in (FP32, BF16):
            network = create_network(backbone, tuner, CLASSES, 0).to(images.device)
            fused = choose_attention(images.device, dtype)
            network.prepare(dtype, images.device, fused)
            name = f"{tuner.label}: ours {'bf16' if dtype == BF16 else 'fp32'}"
            runners.append(Runner(name, dtype, create_step(network, images, targets, dtype, fused)))
    fused = choose_attention(images.device, BF16)
    full = create_network(backbone, create_tuners([{"kind": "full"}])[0], CLASSES, 0).to(images.device)
    runners.append(Runner("full: textbook bf16", BF16, create_step(full, images, targets, BF16, fused)))
    linear = create_network(backbone, create_tuners([{"kind": "linear"}])[0], CLASSES, 0).to(images.device).eval()
    linear.prepare(BF16, images.device, fused)
    runners.append(Runner("plain forward bf16", BF16, lambda: predict(linear, images)))
    return runners


def create_step(
    network: Network, images: Tensor, targets: Tensor, dtype: torch.dtype, fused: bool
) -> Callable[[], None]:
    parameters = list(network.train().trainable_parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        set_attention(network.encoder.vit, fused)  # the textbook's rows stand on one backbone
        with torch.autocast(images.device.type, dtype, enabled=dtype != FP32):
            logits = network(images)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits.float(), targets).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


@torch.inference_mode()
def predict(network: Network, images: Tensor) -> None:
    with torch.autocast(images.device.type, BF16):
        network(images)


def keep_faster_attention(medians: dict[str, float]) -> dict[str, float]:
    """Of two rows that differ in the attention kernel alone, the faster."""
    best: dict[str, str] = {}
    for name in sorted(medians, key=medians.__getitem__):
        best.setdefault(name.split(", attention")[0], name)
    return {name: value for name, value in medians.items() if name in best.values()}


def count(step: Callable[[], None]) -> tuple[int, int]:
    """Matmul operations of a step, and the bytes that autograd keeps for its backward pass."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and not isinstance(tensor._base, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter:
        step()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return counter.get_total_flops(), sum(storages.values())


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of the fastest plain product among a few shapes."""
    best = 0.0
    for rows, inner, columns in ((3152, 768, 3072), (4096, 4096, 4096)):
        a = torch.randn(rows, inner, device=device, dtype=dtype)
        b = torch.randn(columns, inner, device=device, dtype=dtype)
        seconds = min(clock(lambda a=a, b=b: F.linear(a, b), device) for _ in range(8))  # type: ignore[misc]
        best = max(best, 2 * rows * inner * columns / seconds)
    return best


def clock(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
