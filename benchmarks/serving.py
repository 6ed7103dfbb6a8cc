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
from pathlib import Path
from typing import Any

import exports
import folders
import mixed
from fleets import promote_adapter, write_adapter
from loads import Load, write_pictures

from components.models.backbones import load_backbone
from components.promotion import contest
from components.tracking.store import Store
from components.workspace import REPOSITORY, Workspace

CLIENTS, REQUESTS = 32, 2000
KINDS: tuple[Mapping[str, Any], ...] = ({"kind": "vpt"}, {"kind": "vapt"}, {"kind": "linear"})
READY_SECONDS = 120
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--domains", type=int, default=200)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--json", type=Path, help="write the results here, beside those of parts that are not run")
    options = parser.parse_args()
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    for name in options.only:
        known[name] = PARTS[name](options) | {"machine": platform.machine(), "cores": os.cpu_count()}
        print(json.dumps({name: known[name]}, indent=1), flush=True)
        if options.json:
            options.json.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def measure_http(options: argparse.Namespace) -> Record:
    """Seconds per request: of all domains in turn, of one domain, and of MLflow's own server of that one."""
    with tempfile.TemporaryDirectory() as folder:
        workspace, _ = create_fleet(Path(folder), options.domains)
        pictures = write_pictures(Path(folder) / "pictures", 64)
        names = [f"d{number}" for number in range(options.domains)]
        asked = [f"/predict/{name}" for name in names]
        seconds: dict[str, list[float]] = {"one domain": [], "all domains": []}
        with start_server(workspace) as server:
            Load(server.url, asked, pictures, CLIENTS).run(2 * options.domains)  # each once, before anything counts
            memory = _read_memory(server.process.pid)
            for _ in range(3):
                for row, paths in (("one domain", asked[:1]), ("all domains", asked)):
                    seconds[row].append(_cost(server, Load(server.url, paths, pictures, CLIENTS), options.requests))
        with start_mlflow(workspace, names[0]) as server:
            load = Load(server.url, ["/invocations"], pictures, CLIENTS, form="mlflow")
            load.run(2 * CLIENTS)
            mlflow = _cost(server, load, options.requests // 4)
    best = {row: min(found) for row, found in seconds.items()}
    return {
        "domains": options.domains,
        "clients": CLIENTS,
        "requests": options.requests,
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


def measure_promotion(options: argparse.Namespace) -> Record:
    """What 2,000 requests meet while their domain is promoted and rolled back."""
    with tempfile.TemporaryDirectory() as folder:
        workspace, store = create_fleet(Path(folder), 3)
        pictures = write_pictures(Path(folder) / "pictures", 16)
        second = write_adapter(Path(folder) / "second", load_backbone("embedded"), KINDS[0], seed=77)
        found: Record = {}
        with start_server(workspace) as server:
            load = Load(server.url, ["/predict/d0"], pictures, CLIENTS)
            load.run(CLIENTS)
            hashes = {1: server.ask("/champions")["domains"][0]["adapter_sha256"]}
            with load.running(options.requests) as answers:
                time.sleep(1)
                promote_adapter(workspace, store, "d0", second)
                found["promotion_live_s"] = _wait_for_version(server, "d0", 2)
                hashes[2] = server.ask("/champions")["domains"][0]["adapter_sha256"]
                contest.rollback(workspace, "d0", "for a trial")
                found["rollback_live_s"] = _wait_for_version(server, "d0", 1)
    mixed_up = [
        one for one in answers if one.status == 200 and hashes[one.body["version"]] != one.body["adapter_sha256"]
    ]
    served = Counter(one.body["version"] for one in answers if one.status == 200)
    failed = Counter(one.status for one in answers if one.status != 200)
    return found | {
        "requests": len(answers),
        "failed": dict(failed),
        "mixed": len(mixed_up),
        "by_version": dict(served),
    }


def _wait_for_version(server: Server, domain: str, version: int) -> float:
    begun = time.monotonic()
    while {row["domain"]: row["version"] for row in server.ask("/champions")["domains"]}[domain] != version:
        if time.monotonic() - begun > 60:
            raise SystemExit(f"version {version} of {domain} is not live after a minute")
        time.sleep(0.05)
    return time.monotonic() - begun


def measure_signals(options: argparse.Namespace) -> Record:
    """Requests that SIGTERM meets in the server, and the seconds until a killed one is replaced."""
    with tempfile.TemporaryDirectory() as folder:
        workspace, _ = create_fleet(Path(folder), min(options.domains, 20))
        pictures = write_pictures(Path(folder) / "pictures", 16)
        asked = [f"/predict/d{number}" for number in range(min(options.domains, 20))]
        with start_server(workspace) as server:
            load = Load(server.url, asked, pictures, CLIENTS)
            load.run(2 * CLIENTS)
            with load.running(options.requests) as answers:
                time.sleep(1.5)
                begun = time.monotonic()
                server.process.send_signal(signal.SIGTERM)
                code = server.process.wait(60)
                stopped = time.monotonic() - begun
        with start_server(workspace) as server:
            server.process.kill()
            server.process.wait()
            begun = time.monotonic()
            with start_server(workspace):
                ready = time.monotonic() - begun
    outcomes = Counter(one.outcome for one in answers)
    return {
        "requests": len(answers),
        "outcomes": dict(outcomes),  # refused: before it was accepted, by a closed port or with 503
        "lost": outcomes["cut"],
        "stopped_s": stopped,
        "exit_code": code,
        "ready_after_kill_s": ready,
    }


def create_fleet(folder: Path, domains: int) -> tuple[Workspace, Store]:
    """A workspace with so many domains d0, d1, ..., each with a champion of its own on the embedded backbone."""
    workspace = Workspace(folder / "workspace")
    workspace.activate()
    store, backbone = Store.open(workspace), load_backbone("embedded")
    for number in range(domains):
        tuner = KINDS[number % len(KINDS)]
        adapter = write_adapter(folder / "adapters" / f"d{number}", backbone, tuner, seed=number)
        promote_adapter(workspace, store, f"d{number}", adapter)
    return workspace, store


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
    "mixed": lambda options: mixed.measure(),
    "http": measure_http,
    "promotion": measure_promotion,
    "signals": measure_signals,
    "folder": lambda options: folders.measure_folder(),
    "export": lambda options: exports.measure_export(),
}

if __name__ == "__main__":
    main()
