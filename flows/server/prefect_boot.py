"""The Prefect server that a command starts if none is configured: `python -m flows.server.child embedded`.

    server = EmbeddedPrefect(workspace)   first, because it takes longer to start than everything before a training
    server.use()                          before Prefect is imported, because Prefect reads the server's address then
    server.wait()                         before the flow
    find_server()                         the configured server, for callers that do not count an embedded one

The server runs as long as the pipe on its stdin is open, so a command that was killed leaves no server behind. It runs
in a session of its own, so that Ctrl-C in a terminal does not end it before it has recorded the interruption of the
run. It listens before it is ready, so that early clients wait instead of retrying. Only this command has its login. If
`tessera up` uses the database, its server is used and none is started.
"""

import atexit
import base64
import contextlib
import os
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from components.errors import WorkspaceError
from components.files import open_private
from components.workspace import REPOSITORY, Workspace
from flows.server.address import NAME, hold_database, join_services
from flows.server.child import LOGIN

START_SECONDS = 120
ANSWER_SECONDS = 5.0
OWN = "TESSERA_EMBEDDED_PREFECT"  # the address of the server that this process or its parent started
STOP_SECONDS = 5.0
LEAVE_SECONDS = 20.0  # time for the server of a `tessera up` to end


def find_server() -> str | None:
    """The API of the configured Prefect server; None if there is none, or only an embedded one."""
    url: str | None = os.environ.get("PREFECT_API_URL")
    if url is None and ("prefect.settings" in sys.modules or _may_name_server()):
        from prefect.settings import get_current_settings

        url = get_current_settings().api.url
    return None if url is None or url == os.environ.get(OWN) else str(url)


def _may_name_server() -> bool:
    """Whether a file exists from which Prefect reads settings; checked first, as importing Prefect takes a second."""
    profiles = os.environ.get("PREFECT_PROFILES_PATH") or Path(
        os.environ.get("PREFECT_HOME") or Path.home() / ".prefect", "profiles.toml"
    )
    if Path(profiles).exists() or Path(".env").exists() or Path("prefect.toml").exists():
        return True
    project = Path("pyproject.toml")
    return project.exists() and "[tool.prefect" in project.read_text(encoding="utf-8", errors="replace")


def why_silent(url: str) -> str | None:
    """Why the server does not answer; None if it does. Prefect's own client would retry for many minutes."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=ANSWER_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None  # it answers; the first real call reports what it requires, such as a login
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def require_named_server() -> None:
    """Raise WorkspaceError unless the server that the environment names, if any, answers. Does not import Prefect."""
    if (url := os.environ.get("PREFECT_API_URL")) and url != os.environ.get(OWN):
        _require_answer(url)


def require_server() -> None:
    """Raise WorkspaceError unless the configured Prefect server, if there is one, answers and accepts the login."""
    require_named_server()
    from prefect.settings import get_current_settings

    if (url := find_server()) is None:
        return
    api = get_current_settings().api
    login, key = (None if secret is None else secret.get_secret_value() for secret in (api.auth_string, api.key))
    token = f"Basic {base64.b64encode(login.encode()).decode()}" if login else f"Bearer {key}" if key else ""
    _require_answer(url, token)


def _require_answer(url: str, token: str | None = None) -> None:
    """Raise WorkspaceError unless the server answers and accepts the login. token: None to leave out the login."""
    reason, hint = why_silent(url), "Start it, or correct PREFECT_API_URL; unset it to work without a server."
    if reason is None and token is not None:
        headers = {"Authorization": token} if token else {}
        request = urllib.request.Request(f"{url.rstrip('/')}/admin/version", headers=headers)
        try:
            urllib.request.urlopen(request, timeout=ANSWER_SECONDS).close()
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                reason = f"the answer {error.code} {error.reason}"
                hint = "Set PREFECT_API_AUTH_STRING to NAME:PASSWORD of that server."
        except OSError as error:
            reason = str(getattr(error, "reason", error))
    if reason is not None:
        raise WorkspaceError(
            f"the Prefect server {url}",
            expected=f"an answer within {ANSWER_SECONDS:g} s",
            found=reason,
            hint=hint,
        )


class EmbeddedPrefect:
    """The server's process; there is none if the environment names a server."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.url = workspace, ""
        self.log = workspace.state / "logs" / "prefect-embedded.log"
        self.process: subprocess.Popen[str] | None = None
        join_services(workspace)  # a `tessera up` that was started after this command
        if os.environ.get("PREFECT_API_URL"):
            return
        self.login = f"{NAME}:{secrets.token_urlsafe(24)}"
        held = hold_database(workspace, alone=False, seconds=LEAVE_SECONDS)
        with open_private(self.log) as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.server.child", "embedded"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=REPOSITORY,
                env=os.environ | {LOGIN: self.login},
                text=True,
                pass_fds=[held],
                start_new_session=True,
            )
        os.close(held)  # the server itself holds the lock on the database as long as it runs
        atexit.register(self.stop)

    def use(self) -> None:
        """Point Prefect at this server, unless Prefect's settings name another one; then this server has ended."""
        if self.process is None or self.process.stdout is None:
            return
        port = self.process.stdout.readline().strip()
        if port.isdecimal():
            self.url = os.environ["PREFECT_API_URL"] = os.environ[OWN] = f"http://127.0.0.1:{port}/api"
            os.environ["PREFECT_API_AUTH_STRING"] = self.login
        elif self.process.wait() != 0:
            raise self._describe("none")

    def wait(self) -> None:
        """Wait until the server answers. Raises WorkspaceError if it does not."""
        if not self.url:
            return
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=START_SECONDS):
                return
        except (urllib.error.URLError, OSError) as error:
            raise self._describe(str(getattr(error, "reason", error))) from None

    def _describe(self, found: str) -> WorkspaceError:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "Error: " in line] or lines or ["nothing"]
        return WorkspaceError(
            "the embedded Prefect server",
            expected="a server that answers",
            found=f"{found}; its log, {self.log}, ends with: {errors[-1][:400]}",
            hint=f"Free some memory or disk, or remove {self.workspace.state / 'prefect'} and try again; or point"
            " PREFECT_API_URL at a running server.",
        )

    def stop(self) -> None:
        """End the server. Exit handlers run in reverse order, so Prefect has sent everything by now."""
        if self.process is None or self.process.stdin is None:
            return
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        self.process.kill()
        self.process.wait()
