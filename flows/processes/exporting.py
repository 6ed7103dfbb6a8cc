"""Export an adapter from a process that has no torch: a child loads it and fills a folder."""

import json
import subprocess
import sys
from importlib.util import find_spec

from components.errors import AdapterError, TesseraError
from components.records.exports import Card, ExportJob

LIBRARIES = ("onnx", "onnxruntime", "onnxscript")


def require_libraries() -> None:
    """Raise AdapterError where the optional dependencies of an export are missing."""
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        raise AdapterError(
            "export to ONNX",
            expected=f"the libraries {', '.join(LIBRARIES)}",
            found=f"no {', '.join(missing)}",
            hint="Install them: `pip install 'tessera[export]'`.",
        )


def export_adapter(job: ExportJob) -> Card:
    """Fill the job's folder. Raises the TesseraError that the child met, AdapterError where it died without a reply."""
    command = [sys.executable, "-m", "components.serving.export"]
    done = subprocess.run(command, input=job.model_dump_json(), stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout:
        raise AdapterError(
            f"adapter {job.adapter}",
            expected="an export by the process that loads it",
            found=f"its end with exit code {done.returncode}",
            hint="Its own messages are above; where it was killed, free some memory.",
        )
    reply = json.loads(done.stdout)
    if "error" in reply:
        raise TesseraError.from_dict(reply["error"])
    return Card.model_validate(reply["card"])
