"""`tessera up` and `down`: Prefect server, MLflow server and workers on loopback, kept alive and stopped together."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from components.errors import WorkspaceError
from components.files import write_whole
from components.workspace import REPOSITORY, Workspace
from flows.gpus import count_gpus
from flows.schedules import FLOWS, JOB_ENV, POOL

START_SECONDS = 120
STOP_SECONDS = 15
CHECK_SECONDS = 10.0  # between two looks at a server's health
SICK_SECONDS = 60.0  # without an answer, after which it is started again
CRASHES, CRASH_SECONDS = 5, 120.0  # so many in so long are no accident
SERVER_ENV = {
    # Leases of slots outlive a restart of the server; in its memory they would be lost and the slots taken for ever.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # Marking fifty runs late at once locks SQLite up, and what is left of the failed statements then stops the whole
    # server for a minute: Python frees them on its only loop, while a connection waits for the lock. Doctor looks at
    # the clock instead.
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
}
RETRAINS = 4  # at once, on the pool that needs no GPU

Tell = Callable[[str], None]


@dataclass
class Service:
    """One child process, its log, and the address that says it is well."""

    name: str
    command: Sequence[str]
    log: Path
    health: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    crashes: list[float] = field(default_factory=list)
    answered: float = 0.0

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.env},
                cwd=REPOSITORY,
                start_new_session=True,
            )
        self.answered = time.monotonic()

    def stop(self) -> None:
        """Ask the whole process group to end, and make it after a while."""
        if self.process is None:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)

    def require_alive(self) -> None:
        if (trouble := self.find_crash()) is not None:
            raise self.describe_crash(trouble)

    def find_crash(self) -> str | None:
        """Why the process is not there any more; None while it is."""
        if self.process is None or self.process.poll() is None:
            return None
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"exit code {self.process.returncode}; its log ends with: {' | '.join(lines[-2:])[:400]}"

    def describe_crash(self, found: str) -> WorkspaceError:
        return WorkspaceError(
            f"service {self.name}",
            expected="a process that keeps running",
            found=found,
            mend=f"Read {self.log}, then run `tessera up` again.",
        )

    def is_well(self) -> bool:
        if self.health is None:
            return True
        try:
            with urllib.request.urlopen(self.health, timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def tend(self, tell: Tell) -> None:
        """Start it again if it crashed or stopped to answer. Raises WorkspaceError when that does not help."""
        now = time.monotonic()
        trouble = self.find_crash()
        if trouble is None and self.health is not None and now - self.answered > CHECK_SECONDS:
            if self.is_well():
                self.answered = now
            elif now - self.answered > SICK_SECONDS:
                trouble = f"no answer from {self.health} for {SICK_SECONDS:.0f} s"
        if trouble is None:
            return
        self.crashes = [*(then for then in self.crashes if now - then < CRASH_SECONDS), now]
        if len(self.crashes) >= CRASHES:
            raise self.describe_crash(f"{len(self.crashes)} crashes in {CRASH_SECONDS:.0f} s, the last one: {trouble}")
        tell(f"{self.name} is started again: {trouble}")
        self.stop()  # what is left of its process group
        self.start()


@dataclass(frozen=True)
class Ports:
    """Where the servers listen; None: the usual port if it is free, else the next one that is."""

    prefect: int | None = None
    mlflow: int | None = None


def run_services(workspace: Workspace, ports: Ports, tell: Tell) -> None:
    """Start everything, say where it is, and keep it alive until Ctrl-C or `tessera down`; then stop everything.

    Raises WorkspaceError when a port is taken, when it is up already, or when a service does not stay alive.
    """
    lock = FileLock(workspace.state / "locks" / "up.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise WorkspaceError(
            f"services of {workspace.root}",
            expected="none running",
            found=f"`tessera up` of process {(load_services(workspace) or {}).get('pid', 'unknown')}",
            mend="Stop it with `tessera down`, or use what runs.",
        ) from None
    with lock:
        _run_services(workspace, ports, tell)


def _run_services(workspace: Workspace, ports: Ports, tell: Tell) -> None:
    from flows.schedules import deploy, list_pools, load_domains

    prefect_port = _choose_port(ports.prefect, 4200, "--prefect-port")
    mlflow_port = _choose_port(ports.mlflow, 5000, "--mlflow-port")
    domains = load_domains(workspace).read  # `deploy` below reports the others
    servers, workers = create_services(workspace, prefect_port, mlflow_port, list_pools(domains))
    for sign in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us in the background
        signal.signal(sign, _interrupt)
    started: list[Service] = []
    try:
        for service in servers:
            service.start()
            started.append(service)
        for service in servers:
            _wait_until_well(service)
        os.environ["PREFECT_API_URL"] = servers[0].env["PREFECT_API_URL"]
        os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{mlflow_port}"
        deploy(workspace)
        for service in workers:
            service.env |= {key: os.environ[key] for key in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")}
            service.start()
            started.append(service)
        _announce(workspace, tell, prefect_port, mlflow_port, [domain.name for domain in domains])
        while True:
            time.sleep(1)
            for service in started:
                service.tend(tell)
    except KeyboardInterrupt:
        tell("Stopping.")
    finally:
        for service in reversed(started):
            service.stop()
        _services_file(workspace).unlink(missing_ok=True)


def stop_services(workspace: Workspace) -> bool:
    """End a `tessera up` of this workspace and wait for it; False when there is none."""
    lock, record = FileLock(workspace.state / "locks" / "up.lock"), load_services(workspace)
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        pass
    if record is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(record["pid"]), signal.SIGTERM)
    try:
        with lock.acquire(timeout=START_SECONDS):
            return True
    except Timeout:
        raise WorkspaceError(
            f"services of {workspace.root}",
            expected=f"`tessera up` to end within {START_SECONDS} s",
            found=f"process {(record or {}).get('pid', 'unknown')} alive",
            mend="End it by hand; `tessera doctor` lists what is left then.",
        ) from None


def load_services(workspace: Workspace) -> dict[str, Any] | None:
    """Process and addresses of the `tessera up` that runs here, as it wrote them."""
    path = _services_file(workspace)
    record: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return record


def _services_file(workspace: Workspace) -> Path:
    return workspace.state / "services.json"


def create_services(
    workspace: Workspace, prefect_port: int, mlflow_port: int, pools: Sequence[str]
) -> tuple[list[Service], list[Service]]:
    """The servers and the workers, not started yet."""
    binaries, logs = Path(sys.executable).parent, workspace.state / "logs"
    api = f"http://127.0.0.1:{prefect_port}/api"
    artifacts = workspace.state / "mlflow" / "artifacts"
    prefect = Service(
        "prefect",
        [str(binaries / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(prefect_port)],
        logs / "prefect.log",
        f"{api}/health",
        {"PREFECT_API_URL": api, "PREFECT_UI_API_URL": api} | SERVER_ENV,
    )
    mlflow = Service(
        "mlflow",
        [
            *(str(binaries / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(mlflow_port), "--workers", "1"),
            *("--backend-store-uri", workspace.tracking_uri, "--default-artifact-root", artifacts.as_uri()),
            *("--serve-artifacts", "--artifacts-destination", artifacts.as_uri()),
        ],
        logs / "mlflow.log",
        f"http://127.0.0.1:{mlflow_port}/health",
        {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # its five job runners serve features not used here
    )
    workers = [
        Service(
            f"worker-{pool}",
            [
                *(str(binaries / "prefect"), "worker", "start", "--pool", pool, "--type", "process"),
                *("--name", f"{pool} on {os.uname().nodename}", "--limit", str(limit)),
            ],
            logs / f"worker-{pool}.log",
            env=JOB_ENV | {"PREFECT_WORKER_QUERY_SECONDS": "2"},  # an order waits for 10 otherwise
        )
        for pool, limit in [(name, RETRAINS if name == POOL else count_gpus() or 1) for name in pools]
    ]
    return [prefect, mlflow], workers


def _announce(workspace: Workspace, tell: Tell, prefect_port: int, mlflow_port: int, domains: Sequence[str]) -> None:
    """Where everything is: in the terminal, for other commands, and as a page."""
    prefect, mlflow = f"http://127.0.0.1:{prefect_port}", f"http://127.0.0.1:{mlflow_port}"
    record = {"pid": os.getpid(), "prefect": f"{prefect}/api", "mlflow": mlflow}
    page = workspace.state / "services.html"
    write_whole(page, _render_page(workspace, prefect, f"{mlflow}/#", domains).encode())
    write_whole(_services_file(workspace), json.dumps(record, indent=1).encode())
    tell(f"Prefect  {prefect}")
    tell(f"MLflow   {mlflow}")
    tell(f"Links    {page.as_uri()}")
    tell(f"Logs     {workspace.state / 'logs'}")
    for name in domains:
        tell(f"Retrain  PREFECT_API_URL={record['prefect']} prefect deployment run retrain/{name}")
    tell("Ctrl-C or `tessera down` stops all of it.")


def _render_page(workspace: Workspace, prefect: str, mlflow: str, domains: Sequence[str]) -> str:
    """One HTML file with every address; it asks nobody for anything."""
    logs = sorted((workspace.state / "logs").glob("*.log"))
    rows = {
        "Prefect": {"runs": f"{prefect}/runs", "deployments": f"{prefect}/deployments"}
        | {name.replace("-", " "): f"{prefect}/{name}" for name in ("work-pools", "automations", "concurrency-limits")},
        "MLflow": {"experiments": f"{mlflow}/experiments", "models": f"{mlflow}/models"},
        **{name: _link_domain(workspace, prefect, mlflow, name) for name in domains},
        "logs": {path.stem: path.as_uri() for path in logs},
    }
    items = "".join(f"<tr><th>{escape(name)}</th><td>{_render_links(links)}</td></tr>" for name, links in rows.items())
    style = "<style>body{font:16px system-ui;margin:3rem}th{text-align:left;padding:.3rem 2rem .3rem 0}</style>"
    head = f"<!doctype html><meta charset=utf-8><title>Tessera</title>{style}"
    return f"{head}<h1>Tessera</h1><p>{escape(str(workspace.root))}</p><table>{items}</table>"


def _link_domain(workspace: Workspace, prefect: str, mlflow: str, name: str) -> dict[str, str]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        ids = {flow: client.read_deployment_by_name(f"{flow}/{name}").id for flow in FLOWS}
    return {flow: f"{prefect}/deployments/deployment/{deployment}" for flow, deployment in ids.items()} | {
        "model": f"{mlflow}/models/{name}",
        "images": (workspace.derived(name) / "validation.html").as_uri(),
        "reports and adapters": workspace.runs(name).as_uri(),
    }


def _render_links(links: Mapping[str, str]) -> str:
    return " · ".join(f"<a href='{escape(link, quote=True)}'>{escape(text)}</a>" for text, link in links.items())


def _wait_until_well(service: Service) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not service.is_well():
        service.require_alive()
        if time.monotonic() > deadline:
            raise WorkspaceError(
                f"service {service.name}",
                expected=f"an answer from {service.health} within {START_SECONDS} s",
                found="none",
                mend=f"Read {service.log}.",
            )
        time.sleep(0.5)


def _choose_port(given: int | None, usual: int, option: str) -> int:
    """The port named, which must be free; else the usual one or the next free one after it."""
    if given is None:
        return next(port for port in range(usual, 65536) if _is_free(port))
    if not _is_free(given):
        raise WorkspaceError(
            f"port {given}",
            expected="a free port on 127.0.0.1",
            found="another program on it",
            mend=f"Stop that program, choose another port with `{option}`, or leave the option out.",
        )
    return given


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
