"""`tessera serve`: become the process that serves the champions."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from components.workspace import Workspace


def serve(
    workspace: Workspace,
    domains: Sequence[str],
    host: str,
    port: int | None,
    token_file: Path | None,
    full_mb: int | None = None,
) -> NoReturn:
    """Replace this process, so that a signal reaches the server itself, and its exit code is this command's."""
    options = [f"--host={host}", *(f"--domain={name}" for name in domains)]
    options += [] if port is None else [f"--port={port}"]
    options += [] if token_file is None else [f"--token-file={token_file}"]
    options += [] if full_mb is None else [f"--full-mb={full_mb}"]
    env = os.environ | {"TESSERA_WORKSPACE": str(workspace.root)}
    os.execve(sys.executable, [sys.executable, "-m", "components.serving.server", *options], env)
