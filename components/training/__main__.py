"""`python -m components.training JOB.json`: train or score one candidate in a process of its own.

Torch lives and dies here; the parent gets JSON lines on stdout (`start`, `epoch`, `done`, `error`) and finds
adapter/, predictions.parquet and result.json in the job's folder.
"""

import json
import os
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

from components.errors import TesseraError
from components.training.job import Job


def main(path: Path) -> int:
    # stdout belongs to the events; whatever a library prints goes to the log on stderr.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def tell(event: str, **facts: Any) -> None:
        events.write(json.dumps({"event": event, **facts}) + "\n")

    _die_with_parent()
    job = Job.model_validate_json(path.read_text())
    started = time.monotonic()
    try:
        from components.training.run import run_job  # torch starts here

        run_job(job, tell, started)
    except TesseraError as error:
        tell("error", error=error.to_dict())
        return error.exit_code
    tell("done", seconds=round(time.monotonic() - started, 3))
    return 0


def _die_with_parent() -> None:
    """End this process when the pipe on stdin closes: a parent that was killed cannot say so itself."""
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
