"""Data versions: raw images tracked by DVC, named by the md5 of their folder.

Everything goes through the `dvc` command in a process of its own, one writer at a time a workspace: DVC
gives up on a second writer after three seconds, we wait for our turn (platform fact, DVC 3.67).
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from components.domain import Strict
from components.errors import DataError, TesseraError, VersioningError, WorkspaceError
from components.workspace import DISK_TROUBLE, REPOSITORY, Workspace, describe_disk_trouble


class DataVersion(Strict):
    """One version of a domain's raw images; `md5` is DVC's name of the folder's content."""

    md5: str
    files: int
    size: int


def require_repository(workspace: Workspace) -> None:
    """Make the workspace a DVC repository with a local remote unless it is one already.

    A workspace outside git is a DVC repository without git; one whose DVC settings say git, as this
    repository's do, must be in git. Raises WorkspaceError where it is not.
    """
    settings = workspace.root / ".dvc" / "config"
    if not settings.exists():
        _create_repository(workspace)
    elif "no_scm" not in settings.read_text() and not _in_git(workspace.root):
        raise WorkspaceError(
            f"workspace {workspace.root}",
            expected="a git repository, as .dvc/config says",
            found="no .git folder here or above",
            mend="Clone the project with git (or run `git init` here), or work elsewhere with `--workspace DIR`.",
        )
    if not (workspace.root / "dvc.yaml").exists():
        shutil.copyfile(REPOSITORY / "dvc.yaml", workspace.root / "dvc.yaml")
        _write_domains(workspace, [])


def register_domain(workspace: Workspace, name: str) -> None:
    """Put the domain's word into dvc.yaml, keeping its comments."""
    domains = _read_domains(workspace)
    if name not in domains:
        _write_domains(workspace, [*domains, name])


def record_version(workspace: Workspace, name: str) -> DataVersion:
    """Track `data/<name>/raw` as it is now. Fast when nothing changed."""
    raw = workspace.raw(name)
    if not raw.is_dir() or not any(raw.iterdir()):
        restore_raw(workspace, name)
    _dvc(workspace, "add", "-q", str(raw.relative_to(workspace.root)))
    return read_version(workspace, name)


def push_version(workspace: Workspace, name: str) -> None:
    """Copy the version's files to the default remote; what is there already is not sent again."""
    _dvc(workspace, "push", "-q", f"data/{name}/raw.dvc")


def read_version(workspace: Workspace, name: str) -> DataVersion:
    """What raw.dvc says. Raises VersioningError when it is missing or damaged."""
    pointer = workspace.raw(name).with_suffix(".dvc")
    try:
        out = yaml.safe_load(pointer.read_text())["outs"][0]
        return DataVersion(md5=out["md5"], files=out.get("nfiles", 1), size=out["size"])
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError) as error:
        mend = f"Run `dvc add data/{name}/raw`."
        raise VersioningError(str(pointer), expected="a DVC pointer with an md5", found=str(error), mend=mend) from None


def restore_raw(workspace: Workspace, name: str) -> None:
    """Fetch the raw images that raw.dvc names. Raises DataError when there is nothing to fetch."""
    raw = workspace.raw(name)
    missing = DataError(
        f"raw images of {name}",
        expected=f"a folder {raw} with images, or raw.dvc beside it and its files in the DVC cache or remote",
        found="neither" if not raw.with_suffix(".dvc").exists() else "a raw.dvc whose files are nowhere",
        mend=f"Bring the images in with `tessera import SOURCE --domain {name}`"
        + (", or make them with `tessera demo --data-only`." if name == "surface_defects" else "."),
    )
    if not raw.with_suffix(".dvc").exists():
        raise missing
    try:
        _dvc(workspace, "pull", "-q", f"data/{name}/raw.dvc")
    except VersioningError as error:
        raise missing from error


def run_stage(workspace: Workspace, stage: str, name: str) -> None:
    """Run one stage of dvc.yaml for one domain; an error inside comes out as itself.

    Forced, because DVC cannot see that Tessera's own code changed.
    """
    _run_reproduction(workspace, "--single-item", "--force", f"{stage}@{name}")


def refresh(workspace: Workspace, name: str) -> None:
    """Run those stages whose inputs changed since they last ran."""
    _run_reproduction(workspace, f"split@{name}")


def git_commit(root: Path = REPOSITORY) -> str:
    """The commit of the code, with `+dirty` where it differs from it; `unknown` outside git."""
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return "unknown"
    return head + ("+dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")


def _run_reproduction(workspace: Workspace, *arguments: str) -> None:
    """`dvc repro`; what a stage raised in its process is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "error.json"
        try:
            _dvc(workspace, "repro", "-q", *arguments, extra_env={"TESSERA_ERROR_FILE": str(told)})
        except VersioningError:
            if told.exists():
                raise TesseraError.from_dict(json.loads(told.read_text())) from None
            raise


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _in_git(root: Path) -> bool:
    return _git(root, "rev-parse", "--git-dir") is not None


def _create_repository(workspace: Workspace) -> None:
    if _git(workspace.root, "rev-parse", "--show-toplevel") == str(workspace.root):
        _dvc(workspace, "init", "-q")
    else:
        # A folder of its own, in no repository or deep inside another one: its versions are DVC's alone.
        _dvc(workspace, "init", "-q", "--no-scm")
    _dvc(workspace, "remote", "add", "-q", "--default", "local", str(workspace.state / "dvc-remote"))
    _dvc(workspace, "config", "core.analytics", "false")
    ignore = REPOSITORY / ".dvcignore"
    shutil.copyfile(ignore, workspace.root / ".dvcignore")


def _read_domains(workspace: Workspace) -> list[str]:
    stages: dict[str, Any] = yaml.safe_load((workspace.root / "dvc.yaml").read_text())
    return list(stages["vars"][0]["domains"] or [])


def _write_domains(workspace: Workspace, domains: Sequence[str]) -> None:
    from ruamel.yaml import YAML

    editor = YAML()
    editor.width = 120
    path = workspace.root / "dvc.yaml"
    stages = editor.load(path.read_text())
    place = stages["vars"][0]["domains"]
    place[:] = sorted(domains)
    with path.open("w") as file:
        editor.dump(stages, file)


@contextmanager
def _turn(workspace: Workspace) -> Iterator[None]:
    locks = workspace.state / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / "dvc.lock"):
        yield


def _dvc(workspace: Workspace, *arguments: str, extra_env: dict[str, str] | None = None) -> None:
    """Run one dvc command in the workspace, our interpreter first in PATH so that stages find `python`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {**os.environ, "PATH": path, "TESSERA_WORKSPACE": str(workspace.root), **(extra_env or {})}
    with _turn(workspace):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=workspace.root,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise _explain(workspace, arguments, done)


def _explain(workspace: Workspace, arguments: Sequence[str], done: subprocess.CompletedProcess[str]) -> TesseraError:
    """What DVC said, without its small talk; a disk that is full or read-only is the workspace's trouble."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-3:]
    found = " ".join(errors) or f"exit code {done.returncode}"
    for number in DISK_TROUBLE:
        if os.strerror(number) in found:
            return describe_disk_trouble(workspace.root, OSError(number, os.strerror(number)))
    return VersioningError(
        f"dvc {' '.join(arguments)}",
        expected="DVC to succeed",
        found=found,
        mend=f"Try it by hand in {workspace.root}; `tessera doctor` checks the installation.",
    )
