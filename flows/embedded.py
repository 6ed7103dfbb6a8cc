"""The Prefect server that a command brings along where none is configured: `python -m flows.embedded`.

    server = EmbeddedPrefect(workspace)   first of all: it takes longer to come up than all else before a training
    server.use()                          before Prefect is imported here: says which server is meant
    server.wait()                         before the flow
    find_server()                         the server that is configured, for those to whom this one is none

It lives as long as the pipe on its stdin, so that a command that was killed leaves no server behind, and in a session
of its own, so that Ctrl-C in a terminal does not end it before it was told that the run was interrupted. It listens
before it is up: who asks early waits for the answer, and nobody has to ask again and again.
"""

import atexit
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

from components.errors import WorkspaceError
from components.workspace import REPOSITORY, Workspace

START_SECONDS = 120
ANSWER_SECONDS = 5.0
OWN = "TESSERA_EMBEDDED_PREFECT"  # the address of the server that this process or its parent brought along
STOP_SECONDS = 5.0
#: As Prefect itself sets them for a server of this kind.
SETTINGS = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}


def find_server() -> str | None:
    """The API of the Prefect server that is configured; None where there is none but one of our own."""
    url: str | None = os.environ.get("PREFECT_API_URL")
    if url is None and _may_name_server():
        from prefect.settings import get_current_settings

        url = get_current_settings().api.url
    return None if url is None or url == os.environ.get(OWN) else str(url)


def _may_name_server() -> bool:
    """Whether one of the files that Prefect reads its settings from is there: Prefect takes a second to import."""
    profiles = os.environ.get("PREFECT_PROFILES_PATH") or Path(
        os.environ.get("PREFECT_HOME") or Path.home() / ".prefect", "profiles.toml"
    )
    if Path(profiles).exists() or Path(".env").exists() or Path("prefect.toml").exists():
        return True
    project = Path("pyproject.toml")
    return project.exists() and "[tool.prefect" in project.read_text(encoding="utf-8", errors="replace")


def why_silent(url: str) -> str | None:
    """Why the server gives no answer; None where it does. Prefect's own client would ask for many minutes."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=ANSWER_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None  # an answer; what it wants is told by the first real call
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


class EmbeddedPrefect:
    """The server's process; none where the environment names a server."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.url = workspace, ""
        self.log = workspace.state / "logs" / "prefect-embedded.log"
        self.process: subprocess.Popen[str] | None = None
        if os.environ.get("PREFECT_API_URL"):
            return
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.embedded"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=REPOSITORY,
                env=os.environ | SETTINGS,
                text=True,
                start_new_session=True,
            )
        atexit.register(self.stop)

    def use(self) -> None:
        """Point Prefect at it, unless Prefect's own settings name a server: then it has gone again."""
        if self.process is None or self.process.stdout is None:
            return
        port = self.process.stdout.readline().strip()
        if port.isdecimal():
            self.url = os.environ["PREFECT_API_URL"] = os.environ[OWN] = f"http://127.0.0.1:{port}/api"
        elif self.process.wait() != 0:
            raise self._describe("none")

    def wait(self) -> None:
        """Until it answers. Raises WorkspaceError when it does not."""
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
            found=f"{found}; its log, {self.log}, says last: {errors[-1][:400]}",
            mend=f"Free some memory or disk, or remove {self.workspace.state / 'prefect'} and try again; or point"
            " PREFECT_API_URL at a running server.",
        )

    def stop(self) -> None:
        """Prefect has told it everything by now, for what is registered later ends earlier."""
        if self.process is None or self.process.stdin is None:
            return
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        self.process.kill()
        self.process.wait()


def main() -> None:
    """Tell the port on stdout, then serve until stdin ends; neither where Prefect's own settings name a server."""
    serves = _watch_parent()
    from prefect.settings import get_current_settings

    if get_current_settings().api.url:
        return
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen(128)
        sys.stdout.write(f"{door.getsockname()[1]}\n")
        sys.stdout.flush()
        import uvicorn
        from prefect.server.api.server import create_app

        config = uvicorn.Config(create_app, factory=True, log_level="error", lifespan="on", timeout_graceful_shutdown=2)
        serves.set()
        uvicorn.Server(config).run(sockets=[door])


def _watch_parent() -> threading.Event:
    """End this process when the pipe on stdin closes: at once, or in good order when the event returned is set."""
    serves = threading.Event()

    def watch() -> None:
        os.read(0, 1)
        if not serves.is_set():
            os._exit(0)
        os.kill(os.getpid(), signal.SIGTERM)  # uvicorn's word for an orderly end
        threading.Event().wait(STOP_SECONDS)
        os._exit(1)

    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=watch, daemon=True).start()
    return serves


if __name__ == "__main__":
    main()
