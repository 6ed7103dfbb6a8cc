"""`tessera up` and `down`: Prefect, MLflow, workers and the server of champions on loopback, kept alive together.

Both servers require the workspace's login (flows/server/guard.py). Their addresses are in a file by which other
commands find them (flows/server/address.py). All processes end with `tessera up`, however it ends
(flows/server/child.py).
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout

from components.errors import WorkspaceError
from components.files import open_private
from components.processes import find_orphans, identify, lives, read_pid
from components.workspace import REPOSITORY, Workspace
from flows.server.address import (
    JOB_ENV,
    Services,
    answers,
    hold_database,
    load_login,
    load_services,
    remove_services,
    save_services,
    use_services,
)
from flows.server.child import KEY, LOGIN
from flows.server.drawer import Drawer, Page
from flows.server.gpus import count_gpus
from flows.server.schedules import POOL
from flows.server.start_page import page_path

START_SECONDS = 120
STOP_SECONDS = 15
LEAVE_SECONDS = 10.0  # time for an embedded server to end after its command
CHECK_SECONDS = 10.0  # between two health checks of a server
SICK_SECONDS = 60.0  # a server without an answer for this time is restarted
CRASHES, CRASH_SECONDS = 5, 120.0  # this number of crashes within this time ends `tessera up`
LOG_BYTES = 20_000_000  # a larger log is rotated when its service starts; one old log is kept
CHILD, SERVE = "flows.server.child", "components.serving.server"
MARKS = (CHILD, SERVE)  # on the command line of every process that is started here
SERVER_ENV = {
    # Leases of slots survive a restart of the server; in its memory they would be lost and the slots stay taken.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # Marking fifty runs as late at once locks SQLite, and the failed statements then block the whole server for a
    # minute: Python frees them on its only event loop, while a connection waits for the lock. `tessera doctor` finds
    # late runs by the clock instead.
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
}
RETRAINS = 4  # retrains at the same time, on the pool without GPUs

Report = Callable[[str], None]
CreatePage = Callable[[Workspace, Services], Page]


@dataclass
class Service:
    """One child process, its log, and the address of its health check."""

    name: str
    command: Sequence[str]
    log: Path
    health: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    held: Sequence[int] = ()  # descriptors that stay open as long as the process runs
    process: subprocess.Popen[bytes] | None = None
    crashes: list[float] = field(default_factory=list)
    answered: float = 0.0

    def start(self) -> None:
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with open_private(self.log) as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=output,
                stdin=subprocess.PIPE,  # closes when this process ends, for whatever reason
                env={**os.environ, **self.env},
                cwd=REPOSITORY,
                pass_fds=self.held,
                start_new_session=True,
            )
        self.answered = time.monotonic()

    def stop(self) -> None:
        """Send SIGTERM to the whole process group, and SIGKILL after a while."""
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
        """Why the process has ended; None while it runs."""
        if self.process is None or self.process.poll() is None:
            return None
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"exit code {self.process.returncode}; its log ends with: {' | '.join(lines[-2:])[:400]}"

    def describe_crash(self, found: str) -> WorkspaceError:
        return WorkspaceError(
            f"service {self.name}",
            expected="a process that keeps running",
            found=found,
            hint=f"Read {self.log}, then run `tessera up` again.",
        )

    def is_well(self) -> bool:
        return self.health is None or answers(self.health, seconds=2)

    def tend(self, report: Report) -> None:
        """Restart the process if it crashed or stopped answering. Raises WorkspaceError if it crashes too often."""
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
        report(f"{self.name} is restarted: {trouble}")
        self.stop()  # ends the rest of its process group
        self.start()


@dataclass(frozen=True)
class Ports:
    """The ports of the servers; None: the usual port if it is free, else the next free one."""

    prefect: int | None = None
    mlflow: int | None = None
    serve: int | None = None


def run_services(workspace: Workspace, ports: Ports, create_page: CreatePage, report: Report) -> None:
    """Start all services, print their addresses, and keep them running until Ctrl-C or `tessera down`; then stop all.

    create_page: the home page, which is kept up to date beside them.

    Raises WorkspaceError if a port is taken, if `tessera up` runs already, if a command uses the workspace's Prefect
    database, or if a service keeps crashing.
    """
    lock = FileLock(workspace.state / "locks" / "up.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        services = load_services(workspace)
        raise WorkspaceError(
            f"services of {workspace.root}",
            expected="none running",
            found=f"`tessera up` of process {services.pid if services else 'unknown'}",
            hint="Stop it with `tessera down`, or use the running one.",
        ) from None
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # also if a shell started us in the background
        if sign != signal.SIGHUP or signal.getsignal(sign) != signal.SIG_IGN:  # nohup sets SIG_IGN
            signal.signal(sign, _interrupt)
    with lock, contextlib.suppress(KeyboardInterrupt):
        if end_leftovers(workspace):
            report("Ended processes that an earlier `tessera up` left behind.")
        held = hold_database(workspace, alone=True, seconds=LEAVE_SECONDS)
        try:
            save_services(workspace, Services(identify()))
            _run_services(workspace, ports, create_page, report, held)
        finally:
            remove_services(workspace)
            os.close(held)


def _run_services(workspace: Workspace, ports: Ports, create_page: CreatePage, report: Report, held: int) -> None:
    from flows.server.schedules import deploy, list_pools, load_domains

    prefect_port = _choose_port(ports.prefect, 4200, "--prefect-port")
    mlflow_port = _choose_port(ports.mlflow, 5000, "--mlflow-port")
    serve_port = _choose_port(ports.serve, 8080, "--serve-port")
    found = Services(
        identify(),
        f"http://127.0.0.1:{prefect_port}/api",
        f"http://127.0.0.1:{mlflow_port}",
        load_login(workspace),
        secrets.token_urlsafe(24),
        f"http://127.0.0.1:{serve_port}",
    )
    for key in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):  # of other servers, which the servers started here replace
        os.environ.pop(key, None)
    domains = load_domains(workspace).read  # `deploy` below reports domains that cannot be read
    servers, clients = create_services(workspace, found, list_pools(domains))
    servers[0] = replace(servers[0], held=[held])
    started: list[Service] = []
    drawer = Drawer(create_page(workspace, found), page_path(workspace), report)
    try:
        for service in servers:
            service.start()
            started.append(service)
        for service in servers:
            _wait_until_well(service)
        use_services(found, os.environ)
        deploy(workspace)
        for service in clients:
            service.start()
            started.append(service)
        drawer.start()
        save_services(workspace, found)
        _announce(workspace, report, found, [domain.name for domain in domains])
        _keep_alive(started, report)
    except KeyboardInterrupt:
        report("Stopping.")
    finally:
        drawer.stop()
        for service in reversed(started):
            service.stop()


def _keep_alive(started: Sequence[Service], report: Report) -> None:
    while True:
        time.sleep(1)
        for service in started:
            service.tend(report)


def stop_services(workspace: Workspace) -> bool:
    """End this workspace's `tessera up`, or the processes that a killed one left; False if there are none."""
    lock, services = FileLock(workspace.state / "locks" / "up.lock"), load_services(workspace)
    try:
        with lock.acquire(timeout=0):
            return end_leftovers(workspace)
    except Timeout:
        pass
    if services is not None and lives(services.process):  # this very process, not another one with its pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(services.pid, signal.SIGTERM)
    try:
        with lock.acquire(timeout=START_SECONDS):
            return True
    except Timeout:
        raise WorkspaceError(
            f"services of {workspace.root}",
            expected=f"`tessera up` to end within {START_SECONDS} s",
            found=f"process {services.pid if services else 'unknown'} alive",
            hint="End it by hand; `tessera doctor` then lists what is left.",
        ) from None


def end_leftovers(workspace: Workspace) -> bool:
    """End the workspace's servers and workers whose `tessera up` or command is gone; False if there are none."""
    left = [identify(pid) for pid in find_orphans(workspace.root, MARKS)]
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for process in filter(lives, left):
            with contextlib.suppress(ProcessLookupError):
                os.kill(read_pid(process), sign)
        deadline = time.monotonic() + STOP_SECONDS
        while any(map(lives, left)) and time.monotonic() < deadline:
            time.sleep(0.2)
    return bool(left)


def create_services(workspace: Workspace, found: Services, pools: Sequence[str]) -> tuple[list[Service], list[Service]]:
    """The servers, and what uses them: workers and the server of champions. None is started yet.

    Secrets are in their environment, never on a command line.
    """
    logs, child = workspace.state / "logs", [sys.executable, "-m", CHILD]
    page = found.prefect.removesuffix("/api")
    guard = {LOGIN: found.login, KEY: found.key}
    prefect = Service(
        "prefect",
        [*child, "prefect", "--port", page.rpartition(":")[2]],
        logs / "prefect.log",
        f"{found.prefect}/health",
        # The page sends requests to its own server under any name or tunnel; other pages may not.
        guard
        | {"PREFECT_API_URL": found.prefect, "PREFECT_UI_API_URL": "/api"}
        | SERVER_ENV
        | {"PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": page},
    )
    mlflow = Service(
        "mlflow",
        [*child, "mlflow", "--port", found.mlflow.rpartition(":")[2]],
        logs / "mlflow.log",
        f"{found.mlflow}/health",
        # Its five job runners are for features that are not used here.
        guard | {"MLFLOW_TRACKING_URI": workspace.tracking_uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )
    clients: dict[str, str] = {}
    use_services(found, clients)
    workers = [
        Service(
            f"worker-{pool}",
            [
                *(*child, "worker", "--pool", pool, "--type", "process"),
                *("--name", f"{pool} on {os.uname().nodename}", "--limit", str(limit)),
            ],
            logs / f"worker-{pool}.log",
            env=clients | JOB_ENV | {"PREFECT_WORKER_QUERY_SECONDS": "2"},  # an order would wait for 10 by default
        )
        for pool, limit in [(name, RETRAINS if name == POOL else count_gpus() or 1) for name in pools]
    ]
    serve = Service(
        "serve",
        [sys.executable, "-m", SERVE, "--port", found.serve.rpartition(":")[2]],
        logs / "serve.log",
        f"{found.serve}/v2/health/live",
        clients,
    )
    return [prefect, mlflow], [*workers, serve]


def _announce(workspace: Workspace, report: Report, found: Services, domains: Sequence[str]) -> None:
    """Report the addresses; nothing secret."""
    report(f"Prefect  {found.prefect.removesuffix('/api')}")
    report(f"MLflow   {found.mlflow}")
    report(f"Serve    {found.serve}  answers with every champion")
    report(f"Home     {page_path(workspace).as_uri()}  every domain at a glance; opens both without a login")
    report(f"Login    {workspace.state / 'login'}  name and password, for programs and other browsers")
    report(f"Logs     {workspace.state / 'logs'}")
    for name in domains:
        report(f"Retrain  tessera retrain {name}")
    report("Ctrl-C or `tessera down` stops all of it.")


def _wait_until_well(service: Service) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not service.is_well():
        service.require_alive()
        if time.monotonic() > deadline:
            raise WorkspaceError(
                f"service {service.name}",
                expected=f"an answer from {service.health} within {START_SECONDS} s",
                found="none",
                hint=f"Read {service.log}.",
            )
        time.sleep(0.5)


def _choose_port(given: int | None, usual: int, option: str) -> int:
    """The given port, which must be free; else the usual port or the next free one."""
    if given is None:
        return next(port for port in range(usual, 65536) if _is_free(port))
    if not _is_free(given):
        raise WorkspaceError(
            f"port {given}",
            expected="a free port on 127.0.0.1",
            found="another program on it",
            hint=f"Stop that program, choose another port with `{option}`, or leave out the option.",
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
