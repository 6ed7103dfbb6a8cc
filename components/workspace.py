"""Where everything lives: one folder that holds domains, images and all state.

    <root>/data/<domain>/      domain.yaml, raw/, raw.dvc, splits.csv
    <root>/dvc.yaml            the data stages
    <root>/.tessera/           everything a run writes: MLflow store, Prefect home, caches, reports

The default root is the repository; `--workspace DIR` or TESSERA_WORKSPACE names another.
"""

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from components.errors import WorkspaceError

#: Below this no run can end well: a database, a server's home and a few adapters are written.
MIN_FREE_MB = 100

#: System errors that speak of the disk and not of us.
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)

REPOSITORY = Path(__file__).resolve().parent.parent

#: Telemetry and version checks that libraries switch on by themselves; a user's own setting wins.
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


#: Gigabytes that decoded pixels may take in `.tessera/cache`; TESSERA_CACHE_GB says otherwise.
CACHE_GB = "20"


@dataclass(frozen=True)
class Workspace:
    """Paths of one workspace; making one touches no disk."""

    root: Path

    @property
    def state(self) -> Path:
        return self.root / ".tessera"

    def domain_file(self, name: str) -> Path:
        return self.root / "data" / name / "domain.yaml"

    def raw(self, name: str) -> Path:
        return self.root / "data" / name / "raw"

    def splits(self, name: str) -> Path:
        """Which side every image has been on, for good; belongs into git beside raw.dvc."""
        return self.root / "data" / name / "splits.csv"

    def derived(self, name: str) -> Path:
        """What the DVC stages make of the raw images."""
        return self.state / "data" / name

    def runs(self, name: str) -> Path:
        """Adapters, checkpoints and reports of retrains, one folder a fingerprint."""
        return self.state / "runs" / name

    @property
    def cache(self) -> Path:
        """What can be made again: decoded pixels."""
        return self.state / "cache"

    @property
    def adapters(self) -> Path:
        """Adapters fetched from the registry, one folder a hash."""
        return self.cache / "adapters"

    @property
    def tracking_uri(self) -> str:
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.state / 'mlflow' / 'mlflow.db'}"

    def has_results(self) -> bool:
        """Whether anything may have been trained here: a server may know of it, a store that is not there cannot."""
        return "MLFLOW_TRACKING_URI" in os.environ or (self.state / "mlflow" / "mlflow.db").exists()

    def activate(self) -> None:
        """Point the libraries of this process and its children at the state folder, and make it.

        Raises WorkspaceError when the folder cannot be written, the libraries being pointed there all the same.
        """
        settings = QUIET | {
            "PREFECT_HOME": str(self.state / "prefect"),
            "DVC_SITE_CACHE_DIR": str(self.state / "dvc-site"),
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
            "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        }
        os.environ["TESSERA_WORKSPACE"] = str(self.root)
        for key, value in settings.items():
            os.environ.setdefault(key, value)
        require_writable(self.root)
        for name in ("mlflow", "prefect", "logs", "locks"):
            (self.state / name).mkdir(parents=True, exist_ok=True)


def find_workspace(path: Path | None = None) -> Workspace:
    """The workspace named, or TESSERA_WORKSPACE, or the repository."""
    chosen = path or os.environ.get("TESSERA_WORKSPACE") or REPOSITORY
    return Workspace(Path(chosen).expanduser().resolve())


def cache_limit() -> int:
    """Bytes that decoded pixels may take. Raises WorkspaceError when TESSERA_CACHE_GB is no such number."""
    text = os.environ.get("TESSERA_CACHE_GB", CACHE_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < float("inf"):
        mend = "Correct or unset it."
        raise WorkspaceError("TESSERA_CACHE_GB", expected="a number of gigabytes", found=repr(text), mend=mend)
    return int(gigabytes * 1e9)


def require_writable(root: Path) -> None:
    """Raise WorkspaceError unless files can be made in `root` (which is made if it is missing) and it has some room."""
    probe = root / ".tessera" / f".write-probe-{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"0" * 4096)
        probe.unlink()
        if shutil.disk_usage(root).free < MIN_FREE_MB * 1_000_000:
            raise OSError(errno.ENOSPC, f"less than {MIN_FREE_MB} MB free")
    except OSError as error:
        raise describe_disk_trouble(root, error) from None


def describe_disk_trouble(root: Path, error: OSError) -> WorkspaceError:
    """A full, read-only or forbidden disk as an error that says which place and what to do."""
    return WorkspaceError(
        f"workspace {root}",
        expected="a folder with room that may be written",
        found=f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""),
        mend="Free some space, correct the permissions, or choose another with `--workspace DIR`; then run it again.",
    )
