"""`tessera up`: Prefect server, MLflow server and a worker on loopback, watched together and stopped together."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from components.errors import WorkspaceError
from components.workspace import REPOSITORY, Workspace

DEFAULT_POOL = "gpu"
START_SECONDS = 120
STOP_SECONDS = 15


@dataclass
class Service:
    """One child process, its log, and the address that says it is well."""

    name: str
    command: Sequence[str]
    log: Path
    health: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

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
        if self.process is not None and self.process.poll() is not None:
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            raise WorkspaceError(
                f"service {self.name}",
                expected="a process that keeps running",
                found=f"exit code {self.process.returncode}; its log ends with: {' | '.join(lines[-2:])[:400]}",
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


def run_services(
    workspace: Workspace,
    prefect_port: int,
    mlflow_port: int,
    tell: Callable[[str], None],
    pools: Sequence[str] = ("gpu",),
) -> None:
    """Start everything, say where it is, and watch until Ctrl-C or until a service dies; then stop everything.

    Raises WorkspaceError when a port is taken or a service ends by itself.
    """
    from flows.schedules import deploy, load_domains

    pools = sorted({domain.work_pool for domain in load_domains(workspace)} or {DEFAULT_POOL})
    servers, workers = create_services(workspace, prefect_port, mlflow_port, pools)
    for port, option in ((prefect_port, "--prefect-port"), (mlflow_port, "--mlflow-port")):
        _require_free(port, option)
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
        deployed = deploy(workspace)
        for service in workers:
            service.env = {key: os.environ[key] for key in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")}
            service.start()
            started.append(service)
        _announce(tell, prefect_port, mlflow_port, deployed)
        while True:
            time.sleep(1)
            for service in started:
                service.require_alive()
    except KeyboardInterrupt:
        tell("Stopping.")
    finally:
        for service in reversed(started):
            service.stop()


def start_embedded_prefect(workspace: Workspace) -> None:
    """Start the server that Prefect embeds where none is configured, deaf to Ctrl-C.

    A terminal sends Ctrl-C to every process of ours; the server has to live on for the moment in which it is told
    that the run was interrupted. A blocked signal is inherited, and Prefect ends the server itself at our exit.
    """
    from prefect.client.orchestration import get_client

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with get_client(sync_client=True) as client:
            client.api_healthcheck()
    except RuntimeError as error:
        raise WorkspaceError(
            "the embedded Prefect server",
            expected="a server that answers",
            found=str(error),
            mend=f"Free some memory or disk, or remove {workspace.state / 'prefect'} and try again; or point"
            " PREFECT_API_URL at a running server.",
        ) from None
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


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
        {"PREFECT_API_URL": api, "PREFECT_UI_API_URL": api},
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
            [str(binaries / "prefect"), "worker", "start", "--pool", pool, "--type", "process", "--limit", "1"],
            logs / f"worker-{pool}.log",
        )
        for pool in pools
    ]
    return [prefect, mlflow], workers


def _announce(tell: Callable[[str], None], prefect_port: int, mlflow_port: int, deployed: Sequence[str]) -> None:
    tell(f"Prefect  http://127.0.0.1:{prefect_port}")
    tell(f"MLflow   http://127.0.0.1:{mlflow_port}/?workflowType=machine_learning")
    for name in deployed:
        tell(f"Retrain  PREFECT_API_URL=http://127.0.0.1:{prefect_port}/api prefect deployment run {name}")
    tell("Ctrl-C stops all of it.")


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


def _require_free(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise WorkspaceError(
                f"port {port}",
                expected="a free port on 127.0.0.1",
                found="another program on it, perhaps an earlier `tessera up`",
                mend=f"Stop that program or choose another port with `{option}`.",
            ) from None


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
