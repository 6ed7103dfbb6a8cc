"""What `tessera retrain` costs besides training: cold in a new workspace, warm in one that was used.

    python benchmarks/overhead.py [--epochs 2] [--candidates linear vpt] [--json FILE]

Aim, not met (README.md says what bounds it): at most 12 s cold, and warm at most 5 % of a five-minute training, 15 s,
with the embedded Prefect server and the embedded backbone.

Overhead: wall time of the command less the seconds its candidates trained (`seconds` of their rows). The images of the
bundled domain are there and recorded before the clock starts. Cold is the first retrain, warm the second one, with
another seed. CPU: seconds of the command and everything it started, training included. The stages are the command's own
events with their times; the data stages begin before their events, beside Prefect's start. On a busy machine the wall
times say more of the machine than of us: then run two versions side by side, and compare.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from components.workspace import REPOSITORY

DOMAIN = "surface_defects"
COLD, WARM = 12.0, 15.0
#: The command line with a listener that writes every event and its time to stderr.
TOLD = """
import json, sys, time
from flows import progress
from flows.commands import cli
started = float(sys.argv.pop(1))
def tell(event):
    print("event", json.dumps([time.time() - started, event["event"], event.get("title", event.get("name", ""))]),
          file=sys.stderr, flush=True)
progress._listeners.append(tell)
tell({"event": "stage", "title": "interpreter and command line"})
cli.main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--candidates", nargs="+", default=["linear", "vpt"])
    parser.add_argument("--json", type=Path, help="write the table here too")
    options = parser.parse_args()
    settings = [f"candidates=[{', '.join(options.candidates)}]", f"training.epochs={options.epochs}"]
    with tempfile.TemporaryDirectory() as folder:
        tessera(Path(folder), "demo", "--data-only")
        cold = measure(Path(folder), settings)
        warm = measure(Path(folder), [*settings, "training.seeds=[1]"])
    facts = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "candidates": options.candidates}
    print(json.dumps(facts))
    for name, limit, found in (("cold", COLD, cold), ("warm", WARM, warm)):
        print(f"\n{name}: overhead {found['overhead']:.1f} s (aim {limit:.0f}), {found['wall']:.1f} s wall of which")
        print(f"{found['training']:.1f} s training, {found['cpu']:.1f} CPU s")
        for seconds, title in found["stages"]:
            print(f"{seconds:8.1f}  {title}")
    if options.json:
        options.json.write_text(json.dumps(facts | {"cold": cold, "warm": warm}, indent=1) + "\n")


def measure(workspace: Path, settings: list[str]) -> dict[str, Any]:
    """One retrain: seconds by the wall and by the CPU, and where they went."""
    arguments = [word for setting in settings for word in ("--set", setting)]
    before, started = os.times(), time.time()
    done = tessera(workspace, "retrain", DOMAIN, *arguments)
    wall, after = time.time() - started, os.times()
    outcome = json.loads(done.stdout)
    training = sum(row["seconds"] for row in outcome["candidates"])
    events = [json.loads(line[6:]) for line in done.stderr.splitlines() if line.startswith("event ")]
    stages = [(at, f"{kind}: {title}") for at, kind, title in events if kind != "training-epoch"]
    ends = [*(at for at, _ in stages[1:]), wall]
    return {
        "wall": round(wall, 2),
        "training": round(training, 2),
        "overhead": round(wall - training, 2),
        "cpu": round(sum(after[2:4]) - sum(before[2:4]), 2),
        "stages": [(round(end - at, 2), title) for (at, title), end in zip(stages, ends, strict=True)],
    }


def tessera(workspace: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", TOLD, str(time.time()), *arguments, "--workspace", str(workspace), "--json"]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_", "TESSERA_"))}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=env, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"tessera {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done


if __name__ == "__main__":
    main()
