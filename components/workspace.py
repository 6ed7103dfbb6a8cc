"""The workspace: one folder that holds domains, images and all state.

    <root>/data/<domain>/      domain.yaml, raw/, raw.dvc, splits.csv
    <root>/dvc.yaml            the data stages
    <root>/.tessera/           everything a run writes: MLflow store, Prefect home, caches, reports

The default root is the repository; `--workspace DIR` or TESSERA_WORKSPACE names another.
"""

import errno
import os
import shutil
import stat
from collections.abc import MutableMapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from components.errors import WorkspaceError
from components.files import PRIVATE, write_whole
from components.processes import STARTER, identify

#: Megabytes of free space that a run needs at least: for a database, a server's home and a few adapters.
MIN_FREE_MB = 100

#: System errors that are about the disk, and not a defect of Tessera.
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)

REPOSITORY = Path(__file__).resolve().parent.parent

#: Switches off telemetry and version checks of libraries; a user's own setting takes precedence.
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


#: Names of this machine, which must not be reached through a proxy.
LOOPBACK = ("127.0.0.1", "localhost", "::1")

#: Folders of the state in which others must not write, because libraries unpickle or execute their content.
STATE_FOLDERS = ("mlflow", "prefect", "logs", "locks", "dvc-site", "dvc-site/repo")

#: Gigabytes that decoded pixels and features may take in `.tessera/cache`; TESSERA_CACHE_GB overrides it.
CACHE_GB = "20"


@dataclass(frozen=True)
class Workspace:
    """The paths of one workspace. Creating the object does not touch the disk."""

    root: Path

    @property
    def state(self) -> Path:
        return self.root / ".tessera"

    def domain_file(self, name: str) -> Path:
        return self.root / "data" / name / "domain.yaml"

    def raw(self, name: str) -> Path:
        return self.root / "data" / name / "raw"

    def splits(self, name: str) -> Path:
        """The file that remembers the split of every image; it belongs in git beside raw.dvc."""
        return self.root / "data" / name / "splits.csv"

    def derived(self, name: str) -> Path:
        """The folder of the DVC stages' outputs."""
        return self.state / "data" / name

    def runs(self, name: str) -> Path:
        """Adapters, checkpoints and reports of retrains, one folder per key."""
        return self.state / "runs" / name

    @property
    def backbones(self) -> Path:
        """Weight files that `tessera backbone add` wrote, one for each name."""
        return self.state / "backbones"

    @property
    def cache(self) -> Path:
        """The folder of caches, which can be rebuilt: decoded pixels, findings, hashes."""
        return self.state / "cache"

    @property
    def adapters(self) -> Path:
        """Adapters fetched from the registry, one folder a hash."""
        return self.cache / "adapters"

    @property
    def tracking_uri(self) -> str:
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.state / 'mlflow' / 'mlflow.db'}"

    def has_results(self) -> bool:
        """Whether there may be results: a tracking server may have some, a missing local store cannot."""
        return "MLFLOW_TRACKING_URI" in os.environ or (self.state / "mlflow" / "mlflow.db").exists()

    def activate(self) -> list[str]:
        """Point the libraries of this process and its children at the state folder; create it for its owner alone.

        Returns sentences that a person should read. Raises WorkspaceError if the folder cannot be written; the
        libraries point there all the same.
        """
        settings = QUIET | {
            "PREFECT_HOME": str(self.state / "prefect"),
            "DVC_SITE_CACHE_DIR": str(self.state / "dvc-site"),
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
            "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        }
        os.environ["TESSERA_WORKSPACE"] = str(self.root)
        os.environ[STARTER] = identify()
        for key, value in settings.items():
            os.environ.setdefault(key, value)
        notes = set_proxies_right(os.environ)
        try:
            notes += close_state(self.state)
        except OSError as error:
            raise describe_disk_trouble(self.root, error) from None
        require_writable(self.root)
        if not (ignore := self.state / ".gitignore").exists():  # for any git repository around the workspace
            write_whole(ignore, b"*\n")
        return notes


def set_proxies_right(env: MutableMapping[str, str]) -> list[str]:
    """Exclude this machine's addresses from proxies, and remove proxies of an unsupported scheme from `env`.

    Returns a sentence for each removed proxy. Libraries read the variables in lower or upper case, or both, so both get
    the same value.
    """
    known = [part.strip() for key in ("no_proxy", "NO_PROXY") for part in env.get(key, "").split(",") if part.strip()]
    if "*" not in known:
        env["no_proxy"] = env["NO_PROXY"] = ",".join(dict.fromkeys([*known, *LOOPBACK]))
    schemes = {"http", "https"} | ({"socks5", "socks5h"} if find_spec("socksio") else set())
    notes = []
    for key in ("all_proxy", "ALL_PROXY", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        scheme, mark, _ = env.get(key, "").partition("://")
        if mark and scheme.lower() not in schemes:
            del env[key]
            how = "`pip install socksio` adds them" if scheme.lower().startswith("socks5") else "name an http:// proxy"
            notes.append(f"{key} is not used, because {scheme} proxies are not supported; {how}.")
    return notes


def close_state(state: Path) -> list[str]:
    """Create the state folder and the libraries' folders in it, accessible to their owner alone.

    Returns a sentence if other users could have read a database there, or written files that are executed or unpickled.
    """
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (facts := state.stat()).st_uid != os.geteuid():
        return [f"{state} belongs to another user, who can change what is run and loaded from it; use your own folder."]
    notes = []
    if (mode := stat.S_IMODE(facts.st_mode)) & 0o077:
        state.chmod(0o700)
        if mode & 0o022 or any((state / name).exists() for name in STATE_FOLDERS):
            notes.append(f"{state} was open to other users (mode {mode:o}); now only its owner has access (700).")
    for name in STATE_FOLDERS:
        folder = state / name
        folder.mkdir(mode=0o700, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:
            folder.chmod(0o700)
    for pattern in ("logs/*.log*", "mlflow/*.db*", "prefect/*.db*"):
        for file in state.glob(pattern):
            if stat.S_IMODE(file.stat().st_mode) & 0o077:
                file.chmod(PRIVATE)
    return notes


def find_workspace(path: Path | None = None) -> Workspace:
    """The workspace at `path`, or at TESSERA_WORKSPACE, or else the repository."""
    chosen = path or os.environ.get("TESSERA_WORKSPACE") or REPOSITORY
    return Workspace(Path(chosen).expanduser().resolve())


def cache_limit() -> int:
    """Bytes that decoded pixels and features may take.

    Raises WorkspaceError if TESSERA_CACHE_GB is not a positive number.
    """
    text = os.environ.get("TESSERA_CACHE_GB", CACHE_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < float("inf"):
        hint = "Correct or unset it."
        raise WorkspaceError("TESSERA_CACHE_GB", expected="a number of gigabytes", found=repr(text), hint=hint)
    return int(gigabytes * 1e9)


def require_writable(root: Path) -> None:
    """Raise WorkspaceError unless files can be written in `root` (created if missing) and it has some free space."""
    probe = root / ".tessera" / f".write-probe-{os.getpid()}"
    try:
        probe.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe.write_bytes(b"0" * 4096)
        probe.unlink()
        if shutil.disk_usage(root).free < MIN_FREE_MB * 1_000_000:
            raise OSError(errno.ENOSPC, f"less than {MIN_FREE_MB} MB free")
    except OSError as error:
        raise describe_disk_trouble(root, error) from None


def describe_disk_trouble(root: Path, error: OSError) -> WorkspaceError:
    """The error for a full, read-only or forbidden disk, with the path and what to do."""
    return WorkspaceError(
        f"workspace {root}",
        expected="a writable folder with free space",
        found=f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""),
        hint="Free some space, correct the permissions, or choose another with `--workspace DIR`; then run it again.",
    )
