"""Many domains retrained through one Prefect server and two workers: what orchestration costs beside the training.

    python benchmarks/fleet.py [--domains 50] [--workers 2] [--candidates vpt] [--json FILE]

Claim: fleet.json beside this file. Every domain is a toy (the bundled generator's pictures, 32 px, embedded backbone),
retrained by its deployment, all of them asked for at once. Ideal: the seconds of training of all, shared by the
workers. Delay: from when a run was due to when it began, less the time in which all workers were busy with others; it
is what the scheduler adds. Memory: the largest resident set of the Prefect server, sampled every two seconds.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import yaml

from components.data.store import versioning
from components.processes import identify
from components.synthetic.surfaces import create_surface_defects
from components.workspace import Workspace
from flows.server.address import Services, load_login, use_services
from flows.server.schedules import POOL
from flows.server.services import Service, create_services

ENDED = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]
POLL_SECONDS = 2.0  # between two questions, which cost the server's time, too
CLASSES = ["none", "scratch", "pit", "crack", "inclusion", "stain"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--candidates", nargs="+", default=["vpt"])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the servers, too
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        place = Workspace(Path(folder))
        place.activate()
        names = create_domains(place, options.domains, options.candidates, options.epochs)
        found = measure(place, names, options.workers, stack)
    facts = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), **vars(options), "json": None} | found
    print(json.dumps(facts, indent=1))
    if options.json:
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


def create_domains(place: Workspace, count: int, candidates: list[str], epochs: int) -> list[str]:
    """Domains with pictures of their own, recorded by DVC, so that a retrain finds them as a user's."""
    versioning.require_repository(place)
    names = [f"part_{number:03}" for number in range(count)]
    for number, name in enumerate(names):
        create_surface_defects(place.raw(name), lots=8, images_per_lot=6, size=64, seed=number)
        record = {
            "name": name,
            "task": "classification",
            "classes": CLASSES,
            "layout": {"kind": "csv", "mask": "mask", "boxes": "boxes"},
            "group": "lot",
            "backbone": "embedded",
            "img_size": 32,
            "candidates": candidates,
            "training": {"epochs": epochs, "warmup_epochs": 0.5, "batch_size": 16},
            "gates": {"floor": 0.0},
        }
        place.domain_file(name).write_text(yaml.safe_dump(record, sort_keys=False))
        versioning.register_domain(place, name)
        versioning.record_version(place, name)
    return names


def measure(place: Workspace, names: list[str], workers: int, stack: ExitStack) -> dict[str, Any]:
    api, mlflow = f"http://127.0.0.1:{find_port()}/api", f"http://127.0.0.1:{find_port()}"
    found = Services(identify(), api, mlflow, load_login(place), "unused")
    servers, (worker, *_) = create_services(place, found, [POOL])
    for service in servers:
        start(service, stack)
    for service in servers:
        wait(service)
    use_services(found, os.environ)
    subprocess.run([sys.executable, "-m", "flows.commands.cli", "deploy", "--workspace", str(place.root)], check=True)
    for number in range(workers):  # each does one retrain at a time
        command = [*worker.command]
        command[command.index("--name") + 1], command[command.index("--limit") + 1] = f"worker {number}", "1"
        start(replace(worker, command=command), stack)
    asked = time.time()
    for name in names:
        deployment = ask(f"deployments/name/retrain/{name}")["id"]
        ask(f"deployments/{deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}})
    runs, peak = follow(servers[0], len(names))
    wall = time.time() - asked
    training = sum(read_training(place, name) for name in names)
    ended = [run for run in runs if run["state_type"] == "COMPLETED"]
    return {
        "completed": len(ended),
        "wall": round(wall, 1),
        "training": round(training, 1),
        "ideal": round(training / workers, 1),
        "seconds_a_retrain": round(median(run["total_run_time"] for run in ended), 1) if ended else None,
        "delay_median": round(median(find_delays(runs, workers)), 2),
        "delay_max": round(max(find_delays(runs, workers)), 2),
        "server_mb": round(peak / 1e6),
    }


def find_delays(runs: list[dict[str, Any]], workers: int) -> list[float]:
    """Seconds between the moment a slot was free for a run and its start, in the order in which they began."""
    begun = sorted((seconds(run["start_time"]), seconds(run["end_time"])) for run in runs if run["end_time"])
    due = min(seconds(run["expected_start_time"]) for run in runs)
    free = [due] * workers
    delays = []
    for start_time, end_time in begun:
        free.sort()
        delays.append(max(0.0, start_time - free[0]))
        free[0] = end_time
    return delays


def seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def read_training(place: Workspace, name: str) -> float:
    """Seconds that the domain's candidates trained."""
    results = place.runs(name).glob("*/*-s*/result.json")
    return sum(float(json.loads(path.read_text())["seconds"]) for path in results)


def follow(server: Service, count: int) -> tuple[list[dict[str, Any]], int]:
    """Wait until as many runs are over; returns them and the server's largest memory in bytes."""
    ours = {"flow_runs": {"deployment_id": {"is_null_": False}}}
    over = {"flow_runs": ours["flow_runs"] | {"state": {"type": {"any_": ENDED}}}}
    peak = done = told = 0
    while done < count:
        peak = max(peak, measure_memory(server))
        done = ask("flow_runs/count", over)
        if done > told:
            told = done
            print(f"{done} of {count} retrains are over", file=sys.stderr)
        time.sleep(POLL_SECONDS)
    return [run for page in range(0, count, 200) for run in ask("flow_runs/filter", ours | {"offset": page})], peak


def measure_memory(server: Service) -> int:
    """Resident bytes of the process that listens, the server's own or a child of it."""
    assert server.process is not None
    pages = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            group = int((folder / "stat").read_text().rpartition(")")[2].split()[2])
            if group == server.process.pid:
                pages += int((folder / "statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def ask(path: str, body: dict[str, Any] | None = None) -> Any:
    """A server whose database is busy says 503, and is asked again, as Prefect's own client does."""
    url = f"{os.environ['PREFECT_API_URL']}/{path}"
    name, _, password = os.environ["PREFECT_API_AUTH_STRING"].partition(":")
    while True:
        answer = httpx.request("GET" if body is None else "POST", url, json=body, timeout=60, auth=(name, password))
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            return answer.raise_for_status().json()
        time.sleep(POLL_SECONDS)


def start(service: Service, stack: ExitStack) -> None:
    service.start()
    stack.callback(service.stop)


def wait(service: Service) -> None:
    while not service.is_well():
        service.require_alive()
        time.sleep(0.5)


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
