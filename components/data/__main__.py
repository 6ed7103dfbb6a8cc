"""`python -m components.data STAGE DOMAIN`: runs one data stage in this workspace, as dvc.yaml calls it.

The workspace is TESSERA_WORKSPACE, or the current folder. A TesseraError is written as one paragraph to stderr, and as
JSON to the file that TESSERA_ERROR_FILE names, for the process that started this one.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from components.data.stages import STAGES
from components.domain.domain import Domain
from components.domain.reading import load_domain
from components.errors import TesseraError
from components.files import write_whole
from components.workspace import Workspace, find_workspace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stage that the arguments name; return the exit code."""
    return run_stages("python -m components.data", STAGES, arguments, table=True)


def run_stages(
    program: str,
    stages: Mapping[str, Callable[[Workspace, Domain], None]],
    arguments: Sequence[str] | None,
    table: bool = False,
) -> int:
    """The command line for a dict of stages. table: offer the command `table`, which takes no domain."""
    parser = argparse.ArgumentParser(prog=program, description="Run one data stage.")
    parser.add_argument("stage", choices=[*stages, "table"] if table else list(stages))
    parser.add_argument("domain", nargs="?", help="folder below data/" + ("; none for `table`" if table else ""))
    options = parser.parse_args(arguments)
    if (options.domain is None) != (options.stage == "table"):
        parser.error(f"name a domain after {', '.join(stages)}" + (", and none after table" if table else ""))
    workspace = find_workspace(None if os.environ.get("TESSERA_WORKSPACE") else Path.cwd())
    try:
        if options.domain is None:
            _write_table(workspace)
        else:
            stages[options.stage](workspace, load_domain(workspace.domain_file(options.domain)))
    except TesseraError as error:
        sys.stderr.write(f"{error}\n")
        if file := os.environ.get("TESSERA_ERROR_FILE"):
            write_whole(Path(file), json.dumps(error.to_dict()).encode())
        return error.exit_code
    return 0


def _write_table(workspace: Workspace) -> None:
    from components.data.catalogue import render_table
    from components.files import write_whole

    write_whole(workspace.root / "data" / "README.md", render_table(workspace).encode())


if __name__ == "__main__":
    sys.exit(main())
