"""What the data stages cost as a set grows, cold and after adding 1 %.

    python benchmarks/data_scale.py 1000 10000 [50000] [--sides 64 96] [--json FILE] [--folder DIR]

Claims: validation looks at images (`look`: every check of a file) at no less than 0.7 of the speed at which Pillow
alone decodes them, CPU against CPU in the same process; the stage besides starts a process, holds the manifest to its
schema, judges labels and writes the report. Everything together, run again after 1 % of the images were added, takes
no more than 5 % of the first run plus 3 seconds.

The images are made here: JPEGs of 64 to 96 px, soft shapes under grain, no two alike, five classes in folders. Each
step is what `tessera import` and `tessera check` do: import and DVC's add as they do them, the stages in processes of
their own. Seconds are wall seconds; `cpu` adds up what this process and its children burnt, which is the number to
compare where a machine is shared. The bare decode opens and decodes a file to RGB; it and the look take turns on one
thread, and the best of each counts.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from components.data.checks.pictures import inspect_images
from components.data.store import importing, versioning
from components.domain.domain import Domain
from components.domain.settings import Validation
from components.workspace import QUIET, REPOSITORY, Workspace

NAME, CLASSES = "scale", 5
STAGES = {"manifest": "data", "features": "models", "validate": "data", "split": "data"}  # and whose they are
RERUN_SHARE, RERUN_SECONDS = 0.05, 3.0
SAMPLE, TURNS = 1000, 5  # images that are decoded and looked at by turns: a machine's speed changes within a minute


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[1000, 10_000])
    parser.add_argument("--sides", nargs=2, type=int, default=[64, 96], metavar=("LEAST", "MOST"), help="in pixels")
    parser.add_argument("--folder", type=Path, help="where to put the images and workspaces; default a temporary one")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    os.environ.update(QUIET)
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for images in options.sizes:
            results.append(measure(Path(folder) / str(images), images, options.sides))
            print(describe(results[-1]), flush=True)
            if options.json:
                options.json.write_text(json.dumps({"sizes": results}, indent=1) + "\n")


def measure(folder: Path, images: int, sides: Sequence[int]) -> dict[str, Any]:
    """Bare decode, the cold run, and the run after adding 1 %."""
    source, workspace = folder / "source", Workspace(folder / "workspace")
    more = max(images // 100, 1)
    create_images(source, range(images), sides)
    workspace.activate()
    versioning.require_repository(workspace)
    decode, look = compare_looks(source)
    cold = run_steps(workspace, source)
    create_images(source, range(images, images + more), sides)
    again = run_steps(workspace, source)
    facts = {"images": images, "sides": sides, "added": more, "decode": decode, "look": look}
    return facts | {"cold": cold, "again": again} | judge(images, decode, look, cold, again)


Seconds = dict[str, float]


def compare_looks(source: Path) -> tuple[float, float]:
    """Least CPU seconds an image of a bare decode and of a look, taking turns."""
    paths = sorted(source.rglob("*.jpg"))[:SAMPLE]
    names = {path.relative_to(source).as_posix(): () for path in paths}
    turns = [
        [time_step(lambda: decode_images(paths)), time_step(lambda: inspect_images(source, names, Validation()))]
        for _ in range(TURNS)
    ]
    decode, look = (min(step["cpu"] for step in steps) / len(paths) for steps in zip(*turns, strict=True))
    return decode, look


def judge(
    images: int, decode: float, look: float, cold: dict[str, Seconds], again: dict[str, Seconds]
) -> dict[str, Any]:
    """The two claims as numbers."""
    total = {kind: sum(step[kind] for step in cold.values()) for kind in ("wall", "cpu")}
    rerun = {kind: sum(step[kind] for step in again.values()) for kind in ("wall", "cpu")}
    allowed = {kind: RERUN_SHARE * total[kind] + RERUN_SECONDS for kind in total}
    return {
        "decode_per_cpu_second": 1 / decode,
        "validate_per_cpu_second": images / cold["validate"]["cpu"],
        "look_share": decode / look,
        "decode_share": decode * images / cold["validate"]["cpu"],
        "total": total,
        "rerun": rerun,
        "rerun_allowed": allowed,
    }


def run_steps(workspace: Workspace, source: Path) -> dict[str, Seconds]:
    """Import to split, each timed."""
    steps: dict[str, Callable[[], object]] = {
        "import": lambda: importing.import_folder(workspace, source, NAME) and write_domain(workspace),
        "add": lambda: versioning.record_version(workspace, NAME),
        **{stage: lambda stage=stage: run_stage(workspace, stage) for stage in STAGES},
    }
    return {name: time_step(step) for name, step in steps.items()}


def write_domain(workspace: Workspace) -> None:
    """Let whatever is found pass: the price is measured, not the images."""
    path = workspace.domain_file(NAME)
    facts = yaml.safe_load(path.read_text()) | {"validation": {"max_quarantined": 1.0}}
    Domain.model_validate(facts)
    path.write_text(yaml.safe_dump(facts, sort_keys=False))


def run_stage(workspace: Workspace, stage: str) -> None:
    env = os.environ | {"TESSERA_WORKSPACE": str(workspace.root), "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(
        [sys.executable, "-m", f"components.{STAGES[stage]}", stage, NAME], check=True, env=env, cwd=workspace.root
    )


def time_step(step: Callable[[], object]) -> Seconds:
    before, started = cpu_seconds(), time.perf_counter()
    step()
    return {"wall": time.perf_counter() - started, "cpu": cpu_seconds() - before}


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def decode_images(paths: Sequence[Path]) -> None:
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB")


def create_images(folder: Path, numbers: range, sides: Sequence[int]) -> None:
    for number in numbers:
        rng = np.random.default_rng(number)
        width, height = (int(side) for side in rng.integers(sides[0], sides[1] + 1, 2))
        shapes = Image.fromarray(rng.integers(40, 215, (9, 9, 3), dtype=np.uint8)).resize((width, height))
        grain = rng.integers(-20, 20, (height, width, 1))
        pixels = np.clip(np.asarray(shapes, dtype=np.int64) + grain, 0, 255).astype(np.uint8)
        path = folder / f"class{number % CLASSES}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)


def describe(result: dict[str, Any]) -> str:
    """The rows of benchmarks/README.md."""
    cold, again = result["cold"], result["again"]
    lines = [f"{result['images']:,} images   wall seconds (CPU seconds)"]
    for name, run in (("cold", cold), (f"+{result['added']}", again)):
        cells = (f"{step} {seconds['wall']:.1f} ({seconds['cpu']:.1f})" for step, seconds in run.items())
        lines.append(f"  {name:>6}: " + "  ".join(cells))
    total, rerun, allowed = result["total"], result["rerun"], result["rerun_allowed"]
    lines.append(
        f"  rerun {rerun['wall']:.1f} ({rerun['cpu']:.1f}) of {total['wall']:.1f} ({total['cpu']:.1f}); "
        f"allowed {allowed['wall']:.1f} ({allowed['cpu']:.1f})"
    )
    lines.append(
        f"  validate {result['validate_per_cpu_second']:.0f} images a CPU second, bare decode "
        f"{result['decode_per_cpu_second']:.0f}: {result['decode_share']:.2f} of it; looking alone "
        f"{result['look_share']:.2f}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
