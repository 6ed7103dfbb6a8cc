"""DVC tracks the raw images and names them by the md5 of their folder; `versions.py` gives these states readable names.

DVC always runs in a process of its own, with one writer per workspace at a time: DVC 3.67 gives up on a second writer
after three seconds, so commands wait for their turn here and report whom they wait for.
"""

import configparser
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import yaml
from filelock import BaseFileLock, FileLock, Timeout
from pydantic import ValidationError

from components.data.annotations.tree import resolve_inside
from components.data.store import proofs
from components.data.store.objects import list_missing, load_listing, locate_object
from components.domain.reading import read_yaml
from components.domain.strict import NAME_PATTERN, Strict
from components.errors import DataError, DomainError, RemoteError, TesseraError, VersioningError, WorkspaceError
from components.files import settle_folder, whole_folder, write_whole
from components.sealed import DAMAGED
from components.synthetic import BUNDLED
from components.workspace import DISK_TROUBLE, REPOSITORY, Workspace, describe_disk_trouble

#: Number of tries if a DVC process that Tessera did not start holds DVC's lock; each try waits three seconds.
LOCK_TRIES = 100
#: DVC's messages in this case, about the repository or one file (a killed process's last DVC command may still run).
BUSY = ("Unable to acquire lock", "is being blocked by")
BUSY_SECONDS = 0.5

#: Seconds that a command waits for another command on the same domain.
PATIENCE = 60.0

#: Messages of the storage libraries below DVC, with what was expected and how to fix it.
REMOTE_TROUBLE = (
    (
        r"credential|Permission denied for user|Forbidden|InvalidAccessKey|SignatureDoesNot|Access ?Denied|\b40[13]\b",
        "credentials the remote accepts",
        "Give them with `dvc remote modify --local NAME ...`, which stays out of git, or in the environment.",
    ),
    (
        r"[Cc]onnect|timed out|Name or service|name resolution|NoSuchBucket|bucket does not exist|No route",
        "a remote that answers",
        "Correct its address (`dvc remote list`, `dvc remote modify NAME url URL`) or start the server there.",
    ),
)


class DataVersion(Strict):
    """One version of a domain's raw images; `md5` is DVC's name of the folder's content."""

    md5: str
    files: int
    size: int


def require_repository(workspace: Workspace) -> None:
    """Make the workspace a DVC repository with a local remote, unless it is one already.

    A workspace outside git becomes a DVC repository without git. If its DVC settings say git, as those of this
    repository do, it must be in git; otherwise raises WorkspaceError.
    """
    config = _read_config(workspace)
    if not config.get("core", "remote", fallback=""):
        if (workspace.root / ".dvc" / "cache").exists() or config.sections() not in ([], ["core"]):
            _choose_remote(workspace, config)
        else:  # no repository yet, or its creation was interrupted
            _create_repository(workspace)
    if uses_git(workspace) and git(workspace.root, "rev-parse", "--git-dir") is None:
        raise WorkspaceError(
            f"workspace {workspace.root}",
            expected="a git repository, as .dvc/config says",
            found="no .git folder here or above",
            hint="Clone the project with git (or run `git init` here), or work elsewhere with `--workspace DIR`.",
        )
    if not (workspace.root / "dvc.yaml").exists():
        _write_domains(workspace, [], REPOSITORY)


def uses_git(workspace: Workspace) -> bool:
    """Whether git holds the workspace's versions, according to its DVC settings."""
    return not _read_config(workspace).getboolean("core", "no_scm", fallback=False)


def register_domain(workspace: Workspace, name: str) -> None:
    """Add the domain's name to dvc.yaml; comments are kept."""
    if name not in _read_domains(workspace):
        with turn(workspace, f"registering {name}"):
            _write_domains(workspace, {*_read_domains(workspace), name})


def forget_domain(workspace: Workspace, name: str) -> None:
    """Remove the domain's name from dvc.yaml and its stages from dvc.lock."""
    from ruamel.yaml import YAML

    path, editor, text = workspace.root / "dvc.lock", YAML(), io.StringIO()
    with turn(workspace, f"removing {name}"):
        if name in _read_domains(workspace):
            _write_domains(workspace, set(_read_domains(workspace)) - {name})
        locked = editor.load(path.read_text()) if path.exists() else None
        stages = (locked or {}).get("stages") or {}
        if ours := [stage for stage in stages if stage.endswith(f"@{name}")]:
            for stage in ours:
                del stages[stage]
            editor.dump(locked, text)
            write_whole(path, text.getvalue().encode())


def record_version(workspace: Workspace, name: str) -> DataVersion:
    """Track `data/<name>/raw` with DVC as it is now. This is fast if nothing has changed."""
    with hold_domain(workspace, name, f"recording the images of {name}"):
        return _record(workspace, name)


def _record(workspace: Workspace, name: str) -> DataVersion:
    raw = workspace.raw(name)
    settle_folder(raw)
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
    """Copy the version's files, and outputs of stages, to the default remote, unless they are there already."""
    remote = find_remote_folder(workspace, name)
    if remote and not outputs and proofs.is_pushed(read_version(workspace, name).md5, remote):
        return
    _dvc(workspace, "push", f"data/{name}/raw.dvc", *outputs)


def find_remote_folder(workspace: Workspace, name: str) -> Path | None:
    """The remote of the domain's images, if it is a folder of this machine, else None."""
    config, pointer = _read_config(workspace), workspace.raw(name).with_suffix(".dvc")
    if "remote:" in pointer.read_text():  # a single image has a remote of its own
        return None
    remote = Path(config.get(_section(config.get("core", "remote", fallback="")), "url", fallback=""))
    return remote if remote.is_absolute() else None


def fetch_objects(workspace: Workspace, md5s: Iterable[str], *, whole: bool = False) -> Path:
    """Fetch files and listings of folders (`whole`: with all listed files) into DVC's cache; returns the cache folder.

    They are fetched by hash from the remote that is configured now: DVC's own read at an old git revision would use the
    remote of that revision, which may have moved. Raises RemoteError if something is in neither cache nor remote.
    """
    wanted, cache = list(md5s), locate_cache(workspace)
    if not list_missing(cache, wanted, whole=whole):
        return cache
    arguments = ["-m", "components.data.store.objects", *(["--whole"] if whole else []), *wanted]
    with turn(workspace, "fetch a data version"):
        done = _run_python(workspace, arguments, {"PYTHONPATH": str(REPOSITORY)})
    if done.returncode != 0:
        raise _explain(workspace, ("fetch",), done)
    if missing := list_missing(cache, wanted, whole=whole):
        raise RemoteError(
            describe_remote(workspace),
            expected="every file of the data version there, or in the cache here",
            found=f"{len(missing)} of its files in neither",
            hint="If it has moved, set its address with `dvc remote modify NAME url URL`; or send the version again, "
            "with `tessera version` in a workspace that has it.",
        )
    return cache


def lay_out(workspace: Workspace, cache: Path, md5: str, target: Path) -> None:
    """Replace a folder by the files of a version, checking every hash. If killed, the old or new folder is whole."""
    listing = load_listing(cache, md5)
    with whole_folder(target) as folder:
        for path in listing:
            resolve_inside(path, "", md5)
        for parent in {(folder / path).parent for path in listing}:  # not normalised: a name may contain a backslash
            parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(lambda item: _copy_object(cache, item[1], folder / item[0], workspace), listing.items()))


def _copy_object(cache: Path, md5: str, target: Path, workspace: Workspace) -> None:
    source = locate_object(cache, md5)
    data = source.read_bytes()
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        source.unlink()
        raise RemoteError(
            describe_remote(workspace),
            expected=f"the file {md5} whole",
            found="other content under its name; it was removed from the cache",
            hint="Run the same command again to fetch it again; if that fails, the remote's copy is damaged.",
        )
    target.write_bytes(data)


def locate_cache(workspace: Workspace) -> Path:
    """The folder in which this workspace's DVC stores objects by their md5."""
    folder = workspace.root / ".dvc"
    return folder / _read_config(workspace).get("cache", "dir", fallback="cache") / "files" / "md5"


def describe_remote(workspace: Workspace) -> str:
    """The name and address of the default remote, without secrets in the address."""
    return describe_remote_of(_read_config(workspace))


def describe_remote_of(config: configparser.RawConfigParser) -> str:
    """As `describe_remote`, for given DVC settings."""
    name = config.get("core", "remote", fallback="")
    return f"DVC remote {name!r} ({_without_secrets(config.get(_section(name), 'url', fallback='no address'))})"


def _read_config(workspace: Workspace) -> configparser.RawConfigParser:
    config = configparser.RawConfigParser()
    files = [workspace.root / ".dvc" / "config", workspace.root / ".dvc" / "config.local"]
    try:
        config.read(files, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise WorkspaceError(
            f"DVC's settings in {files[0].parent}",
            expected="`config` and `config.local` as DVC writes them",
            found=" ".join(str(error).split())[:300],
            hint="Correct that line; with git: `git diff -- .dvc/config`, `git checkout -- .dvc/config`.",
        ) from None
    return config


def _section(remote: str) -> str:
    return f"'remote \"{remote}\"'"


def read_version(workspace: Workspace, name: str) -> DataVersion:
    """The version that raw.dvc names. Raises VersioningError if the file is missing or damaged."""
    pointer, hint = workspace.raw(name).with_suffix(".dvc"), f"Run `dvc add data/{name}/raw`."
    try:
        return parse_pointer(pointer.read_text(), str(pointer), hint)
    except (OSError, UnicodeDecodeError) as error:
        expected, found = "a DVC pointer with an md5", str(error)
        raise VersioningError(str(pointer), expected=expected, found=found, hint=hint) from None


def parse_pointer(text: str, where: str, hint: str) -> DataVersion:
    """The version in the text of a raw.dvc. Raises VersioningError if it names none."""
    try:
        out = yaml.safe_load(text)["outs"][0]
        return DataVersion(md5=out["md5"], files=out.get("nfiles", 1), size=out["size"])
    except (yaml.YAMLError, ValidationError, KeyError, IndexError, TypeError) as error:
        expected, found = "a DVC pointer with an md5", " ".join(str(error).split())[:200]
        raise VersioningError(where, expected=expected, found=found, hint=hint) from None


def read_output(workspace: Workspace, stage: str, name: str, file: str) -> str:
    """DVC's md5 of an output of a stage of dvc.yaml, from the stage's last run for the domain. file: its name."""
    outs = proofs.load_locked(workspace)[f"{stage}@{name}"]["outs"]
    return next(str(out["md5"]) for out in outs if Path(out["path"]).name == file)


def restore_raw(workspace: Workspace, name: str) -> None:
    """Restore the raw images that raw.dvc names, all or none. Raises DataError if they are in no cache or remote."""
    raw = workspace.raw(name)
    replace = " --replace" if raw.with_suffix(".dvc").exists() else ""
    missing = DataError(
        f"raw images of {name}",
        expected=f"a folder {raw} with images, or raw.dvc beside it and its files in the DVC cache or remote",
        found="neither" if not raw.with_suffix(".dvc").exists() else "a raw.dvc whose files are nowhere",
        hint=f"Bring the images in with `tessera import SOURCE --domain {name}{replace}`"
        + (f", or make them with `{BUNDLED[name]}`." if name in BUNDLED else "."),
    )
    if not raw.with_suffix(".dvc").exists():
        raise missing
    md5, cache = read_version(workspace, name).md5, locate_cache(workspace)
    try:
        if list_missing(cache, [md5], whole=True):
            _dvc(workspace, "fetch", f"data/{name}/raw.dvc")
    except RemoteError:
        raise
    except VersioningError as error:
        raise missing from error
    if list_missing(cache, [md5], whole=True):
        raise missing
    lay_out(workspace, cache, md5, raw)


def run_stage(workspace: Workspace, stage: str, name: str) -> None:
    """Run one stage of dvc.yaml for one domain. Raises the stage's own error.

    The stage is forced, because DVC cannot see changes of Tessera's own code.
    """
    for _ in reproduce(workspace, "--single-item", "--force", f"{stage}@{name}"):
        pass


def refresh(workspace: Workspace, name: str) -> None:
    """Run the stages whose inputs have changed since their last run."""
    with hold_domain(workspace, name, f"the data stages of {name}"):
        for _ in reproduce(workspace, f"split@{name}"):
            pass


def git_commit(root: Path = REPOSITORY) -> str:
    """The commit of the code, with `+dirty` if there are uncommitted changes; `unknown` outside git."""
    head = git(root, "rev-parse", "HEAD")
    if head is None:
        return "unknown"
    return head + ("+dirty" if git(root, "status", "--porcelain", "--untracked-files=no") else "")


def reproduce(workspace: Workspace, *arguments: str) -> Iterator[str]:
    """Run `dvc repro`: yields an empty line when it has started, then its output line by line.

    Raises the error that a stage raised in its process.
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
    """The output of a git command; None if it fails or git is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _choose_remote(workspace: Workspace, config: configparser.RawConfigParser) -> None:
    """Add what is missing to a DVC repository that Tessera did not create; its settings and its cache are kept."""
    if named := [section for section in config.sections() if section.startswith("'remote ")]:
        raise WorkspaceError(
            f"DVC's settings in {workspace.root / '.dvc'}",
            expected="a default remote, where the images are sent",
            found=f"none; there is {', '.join(section.strip(chr(39)) for section in named)}",
            hint="Choose one with `dvc remote default NAME`.",
        )
    _dvc(workspace, "remote", "add", "--default", "local", str(workspace.state / "dvc-remote"))


def _create_repository(workspace: Workspace) -> None:
    """Run `dvc init` and add a remote on this disk; if it is killed, the next call repeats it."""
    settings, alone = workspace.root / ".dvc" / "config", ["[core]"]
    if git(workspace.root, "rev-parse", "--show-toplevel") == str(workspace.root):
        _dvc(workspace, "init", "--force")
    else:
        # The workspace is in no repository, or deep inside another one: DVC alone holds its versions.
        _dvc(workspace, "init", "--force", "--no-scm")
        alone += ["    no_scm = True"]
    write_whole(workspace.root / ".dvcignore", (REPOSITORY / ".dvcignore").read_bytes())
    remote = ["    remote = local", "    analytics = false", "['remote \"local\"']"]
    lines = [*alone, *remote, f"    url = {workspace.state / 'dvc-remote'}"]
    write_whole(settings, ("\n".join(lines) + "\n").encode())


def _read_domains(workspace: Workspace) -> list[str]:
    """The domains in dvc.yaml. Raises VersioningError for a file that is damaged or not Tessera's."""
    path, hint = workspace.root / "dvc.yaml", "Undo the damage (`git checkout -- dvc.yaml`; after a merge resolve it)."
    if not path.is_file():
        raise VersioningError(str(path), expected="a file with the data stages", found="no such file", hint=hint)
    try:
        domains = read_yaml(path, hint, VersioningError)["vars"][0]["domains"] or []
    except (KeyError, IndexError, TypeError):
        domains = None
    if not isinstance(domains, list) or not all(isinstance(name, str) for name in domains):
        expected = "`vars: [{domains: [...]}]` with the names of the domains"
        raise VersioningError(str(path), expected=expected, found="none", hint=hint)
    return domains


def _write_domains(workspace: Workspace, domains: Iterable[str], pattern: Path | None = None) -> None:
    """Write dvc.yaml with these domains, keeping its comments. pattern: the folder of a dvc.yaml to start from."""
    from ruamel.yaml import YAML

    editor = YAML()
    editor.width = 120
    path, text = workspace.root / "dvc.yaml", io.StringIO()
    stages = editor.load(((pattern or workspace.root) / "dvc.yaml").read_text())
    place = stages["vars"][0]["domains"]
    place[:] = sorted(domains)
    editor.dump(stages, text)
    write_whole(path, text.getvalue().encode())


@contextmanager
def turn(workspace: Workspace, doing: str) -> Iterator[None]:
    """Hold the workspace's DVC lock: one writer at a time. Reports whom a command waits for. Reentrant."""
    lock = FileLock(workspace.state / "locks" / "dvc.lock", is_singleton=True)
    _acquire(lock, doing, "DVC is busy with {} in this workspace")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def hold_domain(workspace: Workspace, name: str, doing: str, patience: float | None = None) -> Iterator[None]:
    """Hold the domain's lock: no other command imports, checks, restores or removes its images. Readers do not use it.

    A command that also needs `turn` must take this lock first. The lock is reentrant in all threads of the process, and
    a killed process releases it. Waits at most `patience` seconds (default PATIENCE; -1: without limit), then raises
    VersioningError that names the holder.
    """
    patience = PATIENCE if patience is None else patience
    if not re.fullmatch(NAME_PATTERN, name):  # the name becomes a file name
        hint = "Choose another one."
        expected = "small letters, digits and _, a letter first, 63 at most"
        raise DomainError("name of a domain", expected=expected, found=repr(name), hint=hint)
    lock = FileLock(workspace.state / "locks" / f"domain-{name}.lock", is_singleton=True, thread_local=False)
    try:
        _acquire(lock, doing, f"{name} is in use by {{}}", patience)
    except Timeout:
        raise VersioningError(
            f"`{doing}`",
            expected=f"no other running command on {name}",
            found=f"{_read_holder(Path(lock.lock_file))}, for more than {patience:.0f} s",
            hint="Run the command again when that one has ended; ending it with Ctrl-C or `kill` loses no image.",
        ) from None
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, doing: str, busy: str, patience: float = -1) -> None:
    """Acquire a lock that the system releases with the process. busy: the message about the holder during a wait."""
    file = Path(lock.lock_file)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _report_wait(busy.format(_read_holder(file)))
        lock.acquire(timeout=patience)
    if lock.lock_counter == 1:
        write_whole(file.with_suffix(".holder"), f"`{doing}` of process {os.getpid()}\n".encode())


def _read_holder(lock: Path) -> str:
    holder = lock.with_suffix(".holder")
    return (holder.read_text().strip() if holder.exists() else "") or "another process"


def _report_wait(trouble: str) -> None:
    sys.stderr.write(f"tessera: {trouble}; waiting for its end.\n")


def _dvc(workspace: Workspace, *arguments: str) -> None:
    for _ in _follow_dvc(workspace, *arguments):
        pass


def _follow_dvc(workspace: Workspace, *arguments: str, extra_env: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run one dvc command in the workspace, and wait for a DVC that was started by hand, too.

    Yields the lines that it prints; the command is ended if the generator is closed early.
    """
    with turn(workspace, f"dvc {arguments[0]}"):
        for attempt in range(LOCK_TRIES):
            done = yield from _follow_python(workspace, ["-m", "dvc", *arguments], extra_env or {})
            if done.returncode == 0 or not any(words in done.stderr for words in BUSY):
                break
            if attempt == 0:
                _report_wait("DVC is busy with another DVC process in this workspace")
            time.sleep(BUSY_SECONDS)
    if done.returncode != 0:
        raise _explain(workspace, arguments, done)
    for line in done.stderr.splitlines():
        if DAMAGED in line:  # a warning of a stage; the other lines are DVC's own progress
            sys.stderr.write(f"tessera: {line.strip()}\n")


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
    """Run our interpreter in the workspace, first in PATH so that stages find `python`.

    Yields an empty line when it has started, and then the lines that it prints.
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
    """The error for a failed DVC command; trouble with the disk or the remote becomes an error of its own kind."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:]
    found = _without_secrets(" ".join(errors)) or f"exit code {done.returncode}"
    if arguments[0] in ("push", "pull", "fetch"):
        for pattern, expected, hint in REMOTE_TROUBLE:
            if re.search(pattern, found):
                return RemoteError(describe_remote(workspace), expected=expected, found=found, hint=hint)
    for number in DISK_TROUBLE:
        if os.strerror(number) in found:
            return describe_disk_trouble(workspace.root, OSError(number, os.strerror(number)))
    return VersioningError(
        f"dvc {' '.join(arguments)}",
        expected="DVC to succeed",
        found=found,
        hint=f"Try it by hand in {workspace.root}; `tessera doctor` checks the installation.",
    )


def _without_secrets(text: str) -> str:
    """The text without passwords in addresses, and without words that look like keys or tokens."""
    text = re.sub(r"(\w+://[^/@\s:]*):[^@\s]*@", r"\1:***@", text)
    return re.sub(
        r"(?i)((?:secret|password|passphrase|token|access_?key(?:_?id)?)\w*[\"']?\s*[=:]\s*)\S+", r"\1***", text
    )
