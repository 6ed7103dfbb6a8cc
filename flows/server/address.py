"""The address and login of this workspace's `tessera up`, by which every other command finds it.

    .tessera/login           NAME:PASSWORD, created once per workspace; mode 0600
    .tessera/services.json   the process of `tessera up`, and then its addresses, login and key; mode 0600
    .tessera/locks/prefect   held while a Prefect server uses the workspace's database: shared by embedded servers,
                             exclusive for `tessera up`

Environment variables take precedence: PREFECT_API_URL and MLFLOW_TRACKING_URI each name another server.
"""

import fcntl
import json
import os
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import MutableMapping
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from components.errors import WorkspaceError
from components.files import PRIVATE, write_whole
from components.processes import lives, read_pid
from components.workspace import Workspace

#: Seconds between two heartbeats of a flow run.
HEARTBEAT_SECONDS = 30
#: Environment of every run: heartbeats as often as the automation on silent runs expects (more often than Prefect's
#: default), and retries while a server or its database restarts.
JOB_ENV = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    "PREFECT_CLIENT_MAX_RETRIES": "8",
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500,504",
}
START_SECONDS = 120
ANSWER_SECONDS = 5.0
LOOK_SECONDS = 0.3
NAME = "tessera"


@dataclass(frozen=True)
class Services:
    """A `tessera up`: its process, and the addresses of its servers ("" until they answer)."""

    process: str
    prefect: str = ""  # http://127.0.0.1:4200/api
    mlflow: str = ""
    login: str = ""
    key: str = ""  # opens the servers in a browser, from the home page
    serve: str = ""  # http://127.0.0.1:8080, the server of champions: it answers some seconds after the others

    @property
    def pid(self) -> int:
        return read_pid(self.process)


def load_login(workspace: Workspace) -> str:
    """NAME:PASSWORD of the workspace's servers, created at first use; replaced if others could have read it."""
    path = workspace.state / "login"
    with FileLock(workspace.state / "locks" / "login.lock"):
        if path.exists() and path.stat().st_mode & 0o077 == 0 and (known := path.read_text().strip()).count(":") == 1:
            return known
        login = f"{NAME}:{secrets.token_urlsafe(24)}"
        write_whole(path, f"{login}\n".encode(), mode=PRIVATE, flush=True)
        return login


def save_services(workspace: Workspace, services: Services) -> None:
    write_whole(_services_file(workspace), json.dumps(asdict(services), indent=1).encode(), mode=PRIVATE)


def remove_services(workspace: Workspace) -> None:
    _services_file(workspace).unlink(missing_ok=True)


def load_services(workspace: Workspace) -> Services | None:
    """The running `tessera up` of this workspace; None if its file is missing, outdated or damaged."""
    try:
        record = json.loads(_services_file(workspace).read_text())
        services = Services(**{key: str(value) for key, value in record.items()})
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None
    return services if lives(services.process) else None


def _services_file(workspace: Workspace) -> Path:
    return workspace.state / "services.json"


def join_services(workspace: Workspace) -> None:
    """Use the servers of this workspace's `tessera up`, if it runs, unless the environment names others.

    Waits for a `tessera up` that is starting.
    """
    for key, value in JOB_ENV.items():
        os.environ.setdefault(key, value)
    services = find_services(workspace)
    if services is None:
        return
    use_services(services, os.environ)


def find_services(workspace: Workspace) -> Services | None:
    """The servers of the running `tessera up`, as soon as they answer; None if none runs or it does not answer."""
    deadline = time.monotonic() + START_SECONDS
    while (services := load_services(workspace)) is not None and not services.prefect:
        if time.monotonic() > deadline:
            return None
        time.sleep(LOOK_SECONDS)
    if services is None or not answers(f"{services.prefect}/health") or not answers(f"{services.mlflow}/health"):
        return None
    return services


def use_services(services: Services, env: MutableMapping[str, str]) -> None:
    """Point Prefect's and MLflow's clients in `env` at these servers, unless it names others."""
    user, _, password = services.login.partition(":")
    if _same(env.get("PREFECT_API_URL") or services.prefect, services.prefect):
        env.update({"PREFECT_API_URL": services.prefect, "PREFECT_API_AUTH_STRING": services.login})
    if _same(env.get("MLFLOW_TRACKING_URI") or services.mlflow, services.mlflow):
        env.update({"MLFLOW_TRACKING_URI": services.mlflow})
        env.update({"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password})


def _same(one: str, other: str) -> bool:
    return one.rstrip("/").replace("//localhost:", "//127.0.0.1:") == other


def answers(url: str, seconds: float = ANSWER_SECONDS) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=seconds) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def hold_database(workspace: Workspace, *, alone: bool, seconds: float = 0.0) -> int:
    """Lock the workspace's Prefect database; the lock ends when the returned descriptor is closed in all processes.

    alone: exclusively, for the server of `tessera up`; else shared with other embedded servers, one per command.
    Raises WorkspaceError if the lock cannot be acquired within `seconds`.
    """
    path = workspace.state / "locks" / "prefect"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise _describe_holder(workspace, alone) from None
            time.sleep(LOOK_SECONDS)


def _describe_holder(workspace: Workspace, alone: bool) -> WorkspaceError:
    services = load_services(workspace)
    if alone:
        found, hint = "a command that uses it with its own server", "Wait for that command's end, or stop it"
    else:
        found = f"`tessera up`{'' if services is None else f' (process {services.pid})'}, which does not answer"
        hint = f"Read {workspace.state / 'logs' / 'prefect.log'}; `tessera down` stops it"
    return WorkspaceError(
        f"Prefect's database in {workspace.state / 'prefect'}",
        expected="no other server on it",
        found=found,
        hint=f"{hint}; then run this again.",
    )
