"""Where this workspace's server of champions answers, by which other commands find it. No torch here.

`.tessera/serving.json` (mode 0600) holds its process, its address and the file of its token. The server writes it when
it answers and removes it when it ends; one whose process is gone does not count.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from components.files import PRIVATE, write_whole
from components.processes import lives
from components.workspace import Workspace


@dataclass(frozen=True)
class Address:
    """process: as `identify` writes it. url: without a slash at its end. token_file: "" where it asks for none."""

    process: str
    url: str
    token_file: str = ""

    def read_token(self) -> str:
        """The token to send; empty where none is asked for. Raises OSError where its file cannot be read."""
        return Path(self.token_file).read_text(encoding="utf-8").strip() if self.token_file else ""


def save_address(workspace: Workspace, address: Address) -> None:
    write_whole(_file(workspace), json.dumps(asdict(address), indent=1).encode(), mode=PRIVATE)


def remove_address(workspace: Workspace, process: str) -> None:
    """Remove the file if it is that process's."""
    found = load_address(workspace)
    if found is not None and found.process == process:
        _file(workspace).unlink(missing_ok=True)


def load_address(workspace: Workspace) -> Address | None:
    """The running server; None where its file is missing, damaged, or left by a process that is gone."""
    try:
        record = json.loads(_file(workspace).read_text())
        address = Address(**{key: str(value) for key, value in record.items()})
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None
    return address if lives(address.process) else None


def _file(workspace: Workspace) -> Path:
    return workspace.state / "serving.json"
