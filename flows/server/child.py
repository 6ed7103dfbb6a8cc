"""A child process of `tessera`: a Prefect server, an MLflow server or a worker. It ends with its parent.

    python -m flows.server.child embedded               a Prefect server for one command; prints its port on stdout
    python -m flows.server.child prefect --port 4200    the Prefect server of `tessera up`
    python -m flows.server.child mlflow --port 5000     the MLflow server of `tessera up`
    python -m flows.server.child worker --pool ...      a worker; further options as for `prefect worker start`

Its stdin is a pipe from its parent. When the pipe closes, however the parent ended, this process and its children get
SIGTERM, and later SIGKILL. Servers listen before they are ready, so that early clients wait for the answer. Files are
written for their owner alone. The login comes from the environment, which `ps` does not show to other users.
"""

import argparse
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from components.processes import watch_starter
from components.workspace import Workspace, find_workspace
from flows.server.guard import Guard

LOGIN, KEY = "TESSERA_LOGIN", "TESSERA_KEY"  # environment variables of a server
STOP_SECONDS = {"worker": 15.0, "embedded": 5.0}  # from SIGTERM to SIGKILL
#: Settings that Prefect itself uses for a server that one process starts for itself.
EMBEDDED = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}


def main() -> None:
    role, *rest = sys.argv[1:]
    serves = watch_starter(STOP_SECONDS.get(role, 5.0))
    os.umask(0o077)
    if role == "worker":
        serves.set()
        return _work(rest)
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    port = parser.parse_args(rest).port
    if role == "embedded":
        from prefect.settings import get_current_settings

        if get_current_settings().api.url:  # Prefect's own settings name a server
            return None
        os.environ.update(EMBEDDED)
    return serve(create_mlflow if role == "mlflow" else create_prefect, port, serves)


def serve(create: Callable[[Workspace], Any], port: int, serves: threading.Event) -> None:
    """Serve on loopback behind the guard. Prints the port on stdout if it was chosen automatically (port 0)."""
    login, key = os.environ.pop(LOGIN), os.environ.pop(KEY, "")
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("127.0.0.1", port))
        door.listen(128)
        if not port:
            sys.stdout.write(f"{door.getsockname()[1]}\n")
            sys.stdout.flush()
        import uvicorn

        app = Guard(create(find_workspace()), login, key)
        # No access log: it would contain the key of the home page, and grow with every request.
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=2)
        serves.set()
        uvicorn.Server(config).run(sockets=[door])


def create_prefect(_: Workspace) -> Any:
    from prefect.server.api.server import create_app

    return create_app(final=True)


def create_mlflow(workspace: Workspace) -> Any:
    """MLflow's application on the workspace's own store, configured as `mlflow server` does for its workers."""
    from mlflow.server import (
        ARTIFACT_ROOT_ENV_VAR,
        ARTIFACTS_DESTINATION_ENV_VAR,
        BACKEND_STORE_URI_ENV_VAR,
        REGISTRY_STORE_URI_ENV_VAR,
        SERVE_ARTIFACTS_ENV_VAR,
    )
    from mlflow.server.handlers import initialize_backend_stores

    store, artifacts = workspace.tracking_uri, (workspace.state / "mlflow" / "artifacts").as_uri()
    os.environ.update(
        {
            BACKEND_STORE_URI_ENV_VAR: store,
            REGISTRY_STORE_URI_ENV_VAR: store,
            ARTIFACT_ROOT_ENV_VAR: artifacts,
            ARTIFACTS_DESTINATION_ENV_VAR: artifacts,
            SERVE_ARTIFACTS_ENV_VAR: "true",
        }
    )
    initialize_backend_stores(store, store, artifacts)
    from mlflow.server.fastapi_app import app

    return app


def _work(options: list[str]) -> None:
    from prefect.cli import app

    sys.argv = ["prefect", "worker", "start", *options]
    app()


if __name__ == "__main__":
    main()
