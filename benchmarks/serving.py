"""One server for every champion: the cost of a request, and what promotions, signals and kills do to it.

    OMP_NUM_THREADS=1 python benchmarks/serving.py [--only PART ...] [--domains 200] [--json FILE]

Parts and claims:

    mixed       a batch whose rows belong to different adapters costs what a batch of one adapter costs, and answers
                the same (benchmarks/mixed.py)
    http        200 domains asked by 32 clients cost what one domain costs; a request costs at most 0.35 of what
                `mlflow models serve` takes for it
    promotion   under load a promotion and a rollback are live within 7 s; no request fails or mixes versions
    signals     SIGTERM loses no accepted request; after SIGKILL a new server is ready within 15 s
    folder      a folder of images costs little more than to decode them and to compute them (benchmarks/folders.py)
    export      onnxruntime computes the exported model, faster, with the same answers (benchmarks/exports.py)

Costs are seconds of processor time of the server's processes, as ratios within one run. Clients run in a process of
their own. Models have random weights: what is measured is what an answer costs, and whose answer it is.
"""

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import exports
import folders
import mixed
import torch
from fleets import promote_adapter, write_adapter
from loads import Load, write_pictures

from components.models.backbones import load_backbone
from components.promotion import contest
from components.tracking.store import Store
from components.workspace import REPOSITORY, Workspace

CLIENTS, REQUESTS = 32, 2000
RATE = 60.0  # requests per second while something happens to the server
KINDS: tuple[Mapping[str, Any], ...] = ({"kind": "vpt"}, {"kind": "vapt"}, {"kind": "linear"})
READY_SECONDS, MOST_WAIT = 120.0, 60.0
ROUNDS = 3
#: Backbone, dtype, batch sizes and rounds. In float32 ViT-B is there for its logits.
MIXED: tuple[tuple[str, mixed.Dtype, tuple[int, ...], int], ...] = (
    ("tiny", "bfloat16", (16, 32), 7),
    ("tiny", "float32", (16, 32), 5),
    ("base", "bfloat16", (16, 32), 3),
    ("base", "float32", (16,), 1),
)
Record = dict[str, Any]


@dataclass(frozen=True)
class Server:
    """A running server. Its processes are those of its group."""

    process: subprocess.Popen[bytes]
    url: str

    def seconds(self) -> float:
        """Processor time of all its processes so far."""
        ticks = os.sysconf("SC_CLK_TCK")
        return sum(_read_ticks(folder, self.process.pid) for folder in Path("/proc").glob("[0-9]*")) / ticks

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.loads(answer.read())


class Fleet:
    """A workspace with so many domains d0, d1, ..., each with a champion of its own on the embedded backbone."""

    def __init__(self, folder: Path, domains: int, requests: int) -> None:
        self.folder, self.requests = folder, requests
        self.paths = [f"/predict/d{number}" for number in range(domains)]

    @cached_property
    def pictures(self) -> list[Path]:
        return write_pictures(self.folder / "pictures", 64)

    @cached_property
    def store(self) -> Store:
        return Store.open(self.workspace)

    @cached_property
    def workspace(self) -> Workspace:
        workspace = Workspace(self.folder / "workspace")
        workspace.activate()
        store, backbone = Store.open(workspace), load_backbone("embedded")
        for number in range(len(self.paths)):
            tuner = KINDS[number % len(KINDS)]
            adapter = write_adapter(self.folder / "adapters" / f"d{number}", backbone, tuner, seed=number)
            promote_adapter(workspace, store, f"d{number}", adapter)
        return workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--domains", type=int, default=200)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--json", type=Path, help="write the results here, beside those of parts that are not run")
    options = parser.parse_args()
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder), options.domains, options.requests)
        for name in options.only:
            known[name] = PARTS[name](fleet) | {"machine": platform.machine(), "cores": os.cpu_count()}
            print(json.dumps({name: known[name]}, indent=1), flush=True)
            if options.json:
                options.json.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def measure_mixed(fleet: Fleet) -> Record:
    """Batches of 16 and 32 rows of several adapters, and what 200 of them take in memory."""
    torch.set_num_threads(1)
    rows: list[Record] = []
    weights: list[Record] = []
    for name, dtype, batches, rounds in MIXED:
        backbone, folder = mixed.create_backbone(name), fleet.folder / f"mixed-{name}"
        rows += mixed.measure(backbone, folder, dtype, batches, rounds)
        if dtype == "bfloat16":
            weights.append(mixed.weigh(backbone, folder, dtype))
    return {"rows": rows, "weights": weights}


def measure_http(fleet: Fleet) -> Record:
    """Seconds per request: of all domains in turn, of one domain, and of MLflow's own server of that one."""
    asked = fleet.paths
    seconds: dict[str, list[float]] = {"one domain": [], "all domains": []}
    with start_server(fleet.workspace) as server:
        Load(server.url, asked, fleet.pictures, CLIENTS).run(2 * len(asked))  # each twice, before anything counts
        memory = _read_memory(server.process.pid)
        for _ in range(ROUNDS):
            for row, paths in (("one domain", asked[:1]), ("all domains", asked)):
                seconds[row].append(_cost(server, Load(server.url, paths, fleet.pictures, CLIENTS), fleet.requests))
    with start_mlflow(fleet.workspace, "d0") as server:
        load = Load(server.url, ["/invocations"], fleet.pictures, CLIENTS, form="mlflow")
        load.run(2 * CLIENTS)
        mlflow = _cost(server, load, fleet.requests // 4)
    best = {row: min(found) for row, found in seconds.items()}
    return {
        "domains": len(asked),
        "clients": CLIENTS,
        "requests": fleet.requests,
        "ms_per_request": {row: 1000 * value for row, value in best.items()} | {"mlflow models serve": 1000 * mlflow},
        "of_one_domain": best["one domain"] / best["all domains"],
        "of_mlflow": best["all domains"] / mlflow,
        "memory_mb": memory,
    }


def _cost(server: Server, load: Load, requests: int) -> float:
    begun = server.seconds()
    answers = load.run(requests)
    if failed := Counter(answer.status for answer in answers if answer.status != 200):
        raise SystemExit(f"requests failed: {dict(failed)}")
    return (server.seconds() - begun) / len(answers)


def measure_promotion(fleet: Fleet) -> Record:
    """What requests meet while their domain is promoted and rolled back."""
    second = write_adapter(fleet.folder / "second", load_backbone("embedded"), KINDS[0], seed=len(fleet.paths))
    found: Record = {}
    with start_server(fleet.workspace) as server:
        load = Load(server.url, ["/predict/d0"], fleet.pictures, CLIENTS, rate=RATE)
        load.run(CLIENTS)
        hashes = {1: _find_champion(server, "d0")["adapter_sha256"]}
        with load.running(fleet.requests) as answers:
            time.sleep(1)
            promote_adapter(fleet.workspace, fleet.store, "d0", second)
            found["promotion_live_s"] = _wait_for_version(server, "d0", 2)
            hashes[2] = _find_champion(server, "d0")["adapter_sha256"]
            contest.rollback(fleet.workspace, "d0", "for a trial")
            found["rollback_live_s"] = _wait_for_version(server, "d0", 1)
    good = [one for one in answers if one.status == 200]
    return found | {
        "requests": len(answers),
        "failed": dict(Counter(one.status for one in answers if one.status != 200)),
        "mixed": sum(hashes[one.body["version"]] != one.body["adapter_sha256"] for one in good),
        "by_version": dict(Counter(one.body["version"] for one in good)),
    }


def _wait_for_version(server: Server, domain: str, version: int) -> float:
    begun = time.monotonic()
    while _find_champion(server, domain)["version"] != version:
        if time.monotonic() - begun > MOST_WAIT:
            raise SystemExit(f"version {version} of {domain} is not live after {MOST_WAIT:.0f} s")
        time.sleep(0.05)
    return time.monotonic() - begun


def _find_champion(server: Server, domain: str) -> Record:
    found: Record = next(row for row in server.ask("/champions")["domains"] if row["domain"] == domain)
    return found


def measure_signals(fleet: Fleet) -> Record:
    """What SIGTERM does to requests that the server has accepted, and the seconds until a killed one is replaced."""
    with start_server(fleet.workspace) as server:
        load = Load(server.url, fleet.paths, fleet.pictures, CLIENTS, rate=2 * RATE)
        load.run(2 * CLIENTS)
        with load.running(fleet.requests // 4) as answers:
            time.sleep(1.5)
            begun = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            code = server.process.wait(MOST_WAIT)
            stopped = time.monotonic() - begun
    with start_server(fleet.workspace) as server:
        server.process.kill()
        server.process.wait()
        begun = time.monotonic()
        with start_server(fleet.workspace):
            ready = time.monotonic() - begun
    outcomes = Counter(one.outcome for one in answers)
    return {
        "domains": len(fleet.paths),
        "requests": len(answers),
        "outcomes": dict(outcomes),  # refused: before it was accepted, by a closed port or with 503
        "lost": outcomes["cut"],
        "stopped_s": stopped,
        "exit_code": code,
        "ready_after_kill_s": ready,
    }


@contextmanager
def start_server(workspace: Workspace) -> Iterator[Server]:
    """`tessera serve`, ready."""
    port = _free_port()
    command = [sys.executable, "-m", "components.serving.server", "--port", str(port)]
    with _started(command, workspace, f"http://127.0.0.1:{port}", "/v2/health/ready") as server:
        yield server


@contextmanager
def start_mlflow(workspace: Workspace, domain: str) -> Iterator[Server]:
    """`mlflow models serve` of a domain's champion, with one worker."""
    port = _free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{domain}@champion"]
    command += ["--port", str(port), "--env-manager", "local", "--workers", "1"]
    with _started(command, workspace, f"http://127.0.0.1:{port}", "/ping") as server:
        yield server


@contextmanager
def _started(command: Sequence[str], workspace: Workspace, url: str, health: str) -> Iterator[Server]:
    env = os.environ | {"MLFLOW_TRACKING_URI": workspace.tracking_uri, "TESSERA_WORKSPACE": str(workspace.root)}
    env["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    log = workspace.root / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=workspace.root,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not _answers(url + health):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server does not answer: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield Server(process, url)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _read_ticks(folder: Path, group: int) -> int:
    """Processor time of a process in ticks, if it belongs to this process group; else 0."""
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12]) if int(fields[2]) == group else 0


def _read_memory(pid: int) -> float:
    """Megabytes that a process holds in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


PARTS = {
    "mixed": measure_mixed,
    "http": measure_http,
    "promotion": measure_promotion,
    "signals": measure_signals,
    "folder": lambda _: folders.measure_folder(),
    "export": lambda _: exports.measure_export(),
}

if __name__ == "__main__":
    main()
