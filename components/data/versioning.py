"""Raw images tracked by DVC, named by the md5 of their folder; `versions.py` gives such states names for people.

Everything goes through DVC in a process of its own, one writer at a time a workspace: DVC gives up on a second
writer after three seconds, we wait for our turn and say for whom (platform fact, DVC 3.67).
"""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import yaml
from filelock import FileLock, Timeout

from components.data import proofs
from components.data.objects import list_missing
from components.domain import Strict
from components.errors import DataError, RemoteError, TesseraError, VersioningError, WorkspaceError
from components.workspace import DISK_TROUBLE, REPOSITORY, Workspace, describe_disk_trouble

#: A DVC process that is none of ours may hold DVC's own lock; each try waits three seconds for it.
LOCK_TRIES = 100

#: What the storage libraries below DVC say, what is wrong then, and what mends it.
REMOTE_TROUBLE = (
    (
        r"credential|Permission denied for user|Forbidden|InvalidAccessKey|SignatureDoesNot|Access ?Denied|\b40[13]\b",
        "credentials the remote accepts",
        "Give them with `dvc remote modify --local NAME ...`, which stays out of git, or in the environment.",
    ),
    (
        r"[Cc]onnect|timed out|Name or service|name resolution|NoSuchBucket|bucket does not exist|No route",
        "a remote that answers",
        "Correct its address (`dvc remote list`, `dvc remote modify NAME url URL`) or start what answers there.",
    ),
)


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
    if not settings.exists() or "remote" not in settings.read_text():
        _create_repository(workspace)
    elif uses_git(workspace) and git(workspace.root, "rev-parse", "--git-dir") is None:
        raise WorkspaceError(
            f"workspace {workspace.root}",
            expected="a git repository, as .dvc/config says",
            found="no .git folder here or above",
            mend="Clone the project with git (or run `git init` here), or work elsewhere with `--workspace DIR`.",
        )
    if not (workspace.root / "dvc.yaml").exists():
        shutil.copyfile(REPOSITORY / "dvc.yaml", workspace.root / "dvc.yaml")
        _write_domains(workspace, [])


def uses_git(workspace: Workspace) -> bool:
    """Whether the workspace's versions are git's business, as its DVC settings say."""
    return not _read_config(workspace).getboolean("core", "no_scm", fallback=False)


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
    stamp = proofs.stamp_raw(workspace, name)
    if stamp is not None and raw.with_suffix(".dvc").exists():
        version = read_version(workspace, name)
        if proofs.is_recorded(workspace, name, stamp, version.md5, locate_cache(workspace)):
            return version
    _dvc(workspace, "add", str(raw.relative_to(workspace.root)))
    version = read_version(workspace, name)
    proofs.remember_recorded(workspace, name, stamp, version.md5)
    return version


def push_version(workspace: Workspace, name: str, *outputs: str) -> None:
    """Copy the version's files, and outputs of stages, to the default remote; what is there is not sent again."""
    if not outputs and is_pushed(workspace, name):
        return
    _dvc(workspace, "push", f"data/{name}/raw.dvc", *outputs)


def is_pushed(workspace: Workspace, name: str) -> bool:
    """Whether it is proven that the version is on the default remote; only a folder of this machine can prove it."""
    config, pointer = _read_config(workspace), workspace.raw(name).with_suffix(".dvc")
    if "remote:" in pointer.read_text():  # a remote of these images alone
        return False
    remote = config.get(_section(config.get("core", "remote", fallback="")), "url", fallback="")
    return proofs.is_pushed(read_version(workspace, name).md5, locate_cache(workspace), remote)


def fetch_objects(workspace: Workspace, md5s: Iterable[str], *, whole: bool = False) -> Path:
    """Bring files, and listings of folders (`whole`: with all they list), into DVC's cache; returns its folder.

    By hash alone, with the remote that is set up today: a read at an old git revision would use the remote of
    that revision, which may have moved since. Raises RemoteError when something is neither here nor there.
    """
    wanted, cache = list(md5s), locate_cache(workspace)
    if not list_missing(cache, wanted, whole=whole):
        return cache
    arguments = ["-m", "components.data.objects", *(["--whole"] if whole else []), *wanted]
    with turn(workspace, "fetch a data version"):
        done = _run_python(workspace, arguments, {"PYTHONPATH": str(REPOSITORY)})
    if done.returncode != 0:
        raise _explain(workspace, ("fetch",), done)
    if missing := list_missing(cache, wanted, whole=whole):
        raise RemoteError(
            describe_remote(workspace),
            expected="every file of the data version there, or in the cache here",
            found=f"{len(missing)} of its files in neither",
            mend="If it has moved, say where to with `dvc remote modify NAME url URL`; or send the version again, with "
            "`tessera version` in a workspace that has it.",
        )
    return cache


def locate_cache(workspace: Workspace) -> Path:
    """Where this workspace's DVC keeps objects by their md5."""
    folder = workspace.root / ".dvc"
    return folder / _read_config(workspace).get("cache", "dir", fallback="cache") / "files" / "md5"


def describe_remote(workspace: Workspace) -> str:
    """The default remote by name and address, without the secrets an address may hold."""
    return describe_remote_of(_read_config(workspace))


def describe_remote_of(config: configparser.RawConfigParser) -> str:
    """The same for DVC settings read elsewhere."""
    name = config.get("core", "remote", fallback="")
    return f"DVC remote {name!r} ({_without_secrets(config.get(_section(name), 'url', fallback='no address'))})"


def _read_config(workspace: Workspace) -> configparser.RawConfigParser:
    config = configparser.RawConfigParser()
    config.read([workspace.root / ".dvc" / "config", workspace.root / ".dvc" / "config.local"])
    return config


def _section(remote: str) -> str:
    return f"'remote \"{remote}\"'"


def read_version(workspace: Workspace, name: str) -> DataVersion:
    """What raw.dvc says. Raises VersioningError when it is missing or damaged."""
    pointer, mend = workspace.raw(name).with_suffix(".dvc"), f"Run `dvc add data/{name}/raw`."
    try:
        return parse_pointer(pointer.read_text(), str(pointer), mend)
    except OSError as error:
        expected, found = "a DVC pointer with an md5", str(error)
        raise VersioningError(str(pointer), expected=expected, found=found, mend=mend) from None


def parse_pointer(text: str, where: str, mend: str) -> DataVersion:
    """The version in the text of a raw.dvc."""
    try:
        out = yaml.safe_load(text)["outs"][0]
        return DataVersion(md5=out["md5"], files=out.get("nfiles", 1), size=out["size"])
    except (yaml.YAMLError, KeyError, IndexError, TypeError) as error:
        expected, found = "a DVC pointer with an md5", str(error)
        raise VersioningError(where, expected=expected, found=found, mend=mend) from None


def read_output(workspace: Workspace, stage: str, name: str) -> str:
    """DVC's md5 of what a stage of dvc.yaml made when it last ran for the domain."""
    lock = yaml.safe_load((workspace.root / "dvc.lock").read_text())
    return str(lock["stages"][f"{stage}@{name}"]["outs"][0]["md5"])


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
        _dvc(workspace, "pull", f"data/{name}/raw.dvc")
    except RemoteError:
        raise
    except VersioningError as error:
        raise missing from error


def run_stage(workspace: Workspace, stage: str, name: str) -> None:
    """Run one stage of dvc.yaml for one domain; an error inside comes out as itself.

    Forced, because DVC cannot see that Tessera's own code changed.
    """
    for _ in reproduce(workspace, "--single-item", "--force", f"{stage}@{name}"):
        pass


def refresh(workspace: Workspace, name: str) -> None:
    """Run those stages whose inputs changed since they last ran."""
    for _ in reproduce(workspace, f"split@{name}"):
        pass


def git_commit(root: Path = REPOSITORY) -> str:
    """The commit of the code, with `+dirty` where it differs from it; `unknown` outside git."""
    head = git(root, "rev-parse", "HEAD")
    if head is None:
        return "unknown"
    return head + ("+dirty" if git(root, "status", "--porcelain", "--untracked-files=no") else "")


def reproduce(workspace: Workspace, *arguments: str) -> Iterator[str]:
    """`dvc repro`, line by line as it says what it does, an empty one first when it has started.

    What a stage raised in its process is raised here.
    """
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "error.json"
        try:
            yield from _follow_dvc(workspace, "repro", *arguments, extra_env={"TESSERA_ERROR_FILE": str(told)})
        except VersioningError:
            if told.exists():
                raise TesseraError.from_dict(json.loads(told.read_text())) from None
            raise


def git(root: Path, *arguments: str) -> str | None:
    """What git answers, None where it refuses or is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _create_repository(workspace: Workspace) -> None:
    """`dvc init`, and a remote on this disk; killed in between, it is done again."""
    settings, alone = workspace.root / ".dvc" / "config", ["[core]"]
    if git(workspace.root, "rev-parse", "--show-toplevel") == str(workspace.root):
        _dvc(workspace, "init", "--force")
    else:
        # A folder of its own, in no repository or deep inside another one: its versions are DVC's alone.
        _dvc(workspace, "init", "--force", "--no-scm")
        alone += ["    no_scm = True"]
    shutil.copyfile(REPOSITORY / ".dvcignore", workspace.root / ".dvcignore")
    remote = ["    remote = local", "    analytics = false", "['remote \"local\"']"]
    lines = [*alone, *remote, f"    url = {workspace.state / 'dvc-remote'}"]
    settings.write_text("\n".join(lines) + "\n")


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
def turn(workspace: Workspace, doing: str) -> Iterator[None]:
    """One writer at a time; who has to wait is told for whom. A holder may enter again."""
    locks = workspace.state / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(locks / "dvc.lock", is_singleton=True), locks / "dvc.holder"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _tell_wait(holder.read_text().strip() if holder.exists() else "another process")
        lock.acquire()
    try:
        if lock.lock_counter == 1:
            holder.write_text(f"`{doing}` of process {os.getpid()}\n")
        yield
    finally:
        lock.release()


def _tell_wait(holder: str) -> None:
    sys.stderr.write(f"tessera: DVC is busy with {holder} in this workspace; waiting for its end.\n")


def _dvc(workspace: Workspace, *arguments: str) -> None:
    for _ in _follow_dvc(workspace, *arguments):
        pass


def _follow_dvc(workspace: Workspace, *arguments: str, extra_env: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run one dvc command in the workspace; a DVC that somebody started by hand is waited for as well.

    Yields what it prints; left early, it is ended.
    """
    with turn(workspace, f"dvc {arguments[0]}"):
        for attempt in range(LOCK_TRIES):
            done = yield from _follow_python(workspace, ["-m", "dvc", *arguments], extra_env or {})
            if done.returncode == 0 or "Unable to acquire lock" not in done.stderr:
                break
            if attempt == 0:
                _tell_wait("another DVC process")
    if done.returncode != 0:
        raise _explain(workspace, arguments, done)


def _run_python(
    workspace: Workspace, arguments: Sequence[str], extra_env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    following = _follow_python(workspace, arguments, extra_env)
    while True:
        try:
            next(following)
        except StopIteration as ended:
            return cast("subprocess.CompletedProcess[str]", ended.value)


def _follow_python(
    workspace: Workspace, arguments: Sequence[str], extra_env: Mapping[str, str]
) -> Generator[str, None, subprocess.CompletedProcess[str]]:
    """Our interpreter in the workspace, first in PATH so that stages find `python`.

    Yields an empty line when it has started, and then what it prints.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    own = {"PATH": path, "TESSERA_WORKSPACE": str(workspace.root)}
    command = [sys.executable, *arguments]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            cwd=workspace.root,
            env={**os.environ, **own, **extra_env},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield ""
            yield from cast("IO[str]", process.stdout)
            process.wait()
        finally:
            process.kill()
            process.communicate()
        errors.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, "", errors.read())


def _explain(workspace: Workspace, arguments: Sequence[str], done: subprocess.CompletedProcess[str]) -> TesseraError:
    """What DVC said, without its small talk; trouble of the disk or of the remote is told as such."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:]
    found = _without_secrets(" ".join(errors)) or f"exit code {done.returncode}"
    if arguments[0] in ("push", "pull", "fetch"):
        for pattern, expected, mend in REMOTE_TROUBLE:
            if re.search(pattern, found):
                return RemoteError(describe_remote(workspace), expected=expected, found=found, mend=mend)
    for number in DISK_TROUBLE:
        if os.strerror(number) in found:
            return describe_disk_trouble(workspace.root, OSError(number, os.strerror(number)))
    return VersioningError(
        f"dvc {' '.join(arguments)}",
        expected="DVC to succeed",
        found=found,
        mend=f"Try it by hand in {workspace.root}; `tessera doctor` checks the installation.",
    )


def _without_secrets(text: str) -> str:
    """Without passwords in addresses and what looks like a key or a token."""
    text = re.sub(r"(\w+://[^/@\s:]*):[^@\s]*@", r"\1:***@", text)
    return re.sub(
        r"(?i)((?:secret|password|passphrase|token|access_?key(?:_?id)?)\w*[\"']?\s*[=:]\s*)\S+", r"\1***", text
    )
