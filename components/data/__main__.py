"""`python -m components.data STAGE DOMAIN`: one data stage in this workspace, as dvc.yaml calls it.

The workspace is TESSERA_WORKSPACE, or the current folder. On an error of ours one paragraph goes to stderr,
and as JSON to the file named by TESSERA_ERROR_FILE, for the process that started this one.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from components.data.stages import STAGES
from components.domain import load_domain
from components.errors import TesseraError
from components.workspace import Workspace, find_workspace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stage named; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m components.data", description="Run one data stage.")
    parser.add_argument("stage", choices=[*STAGES, "table"])
    parser.add_argument("domain", nargs="?", help="folder below data/; not wanted by `table`")
    options = parser.parse_args(arguments)
    if (options.domain is None) != (options.stage == "table"):
        parser.error("name a domain after manifest, validate and split, and none after table")
    workspace = find_workspace(None if os.environ.get("TESSERA_WORKSPACE") else Path.cwd())
    try:
        _run(options.stage, options.domain, workspace)
    except TesseraError as error:
        sys.stderr.write(f"{error}\n")
        if file := os.environ.get("TESSERA_ERROR_FILE"):
            Path(file).write_text(json.dumps(error.to_dict()), encoding="utf-8")
        return error.exit_code
    return 0


def _run(stage: str, name: str | None, workspace: Workspace) -> None:
    if name is None:
        from components.data.catalogue import render_table
        from components.data.manifest import save_bytes

        save_bytes(render_table(workspace).encode(), workspace.root / "data" / "README.md")
    else:
        STAGES[stage](workspace, load_domain(workspace.domain_file(name)))


if __name__ == "__main__":
    sys.exit(main())
