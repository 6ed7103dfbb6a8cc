"""Proofs from files that DVC would change nothing, so that it need not run.

DVC takes a second to start, and a retrain of known images would start it seven times. Each proof is at least as strong
as DVC's own check. If anything is missing, differs or is too young to decide, the answer is no, and DVC runs.

    raw images recorded   size, times and inode of every file are as before the last `dvc add` (DVC itself does not use
                          ctime, which no tool can set back), and every object is in the cache
    version pushed        every object is in the remote, if that is a folder of this machine
    stages fresh          dvc.lock has the hash of every dependency and output, and code, libraries and dvc.yaml are
                          those that made them
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from components.data.store.digests import YOUNG, read_stamp
from components.data.store.objects import list_missing
from components.domain.reading import read_yaml
from components.errors import VersioningError
from components.sealed import load_known, save_known
from components.workspace import Workspace

#: The data stages of dvc.yaml, in the order in which they run.
STAGES = ("manifest", "features", "validate", "split")
#: Libraries on which the results of the stages may depend.
LIBRARIES = (
    "cleanlab",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "polars",
    "scikit-learn",
    "scipy",
    "timm",
    "torch",
)


def stamp_raw(workspace: Workspace, name: str) -> str | None:
    """A name of the raw tree by the stamps of its files; None if a change could go unnoticed."""
    digest, youngest = hashlib.sha256(), time.time_ns() - YOUNG
    for rule in (workspace.root / ".dvcignore", workspace.root / ".dvc" / "config"):
        digest.update(rule.read_bytes() if rule.exists() else b"")
    raw = workspace.raw(name)
    for path in _walk(os.fspath(raw)):
        stamp = None if os.path.islink(path) else read_stamp(path)
        if stamp is None or stamp[2] >= youngest:
            return None
        digest.update(f"{path}\0{stamp}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _walk(folder: str) -> Iterator[str]:
    """Every folder and file below `folder`, also hidden ones."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        yield entry.path
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)


def is_recorded(workspace: Workspace, name: str, stamp: str | None, md5: str, cache: Path) -> bool:
    """Whether the tree with this stamp is the version `md5` that raw.dvc names, and the cache has all its objects."""
    known = _load(workspace, name, "recorded")
    return stamp is not None and known == [stamp, md5] and not list_missing(cache, [md5], whole=True)


def remember_recorded(workspace: Workspace, name: str, stamp: str | None, md5: str) -> None:
    """Remember that a tree is recorded. stamp: the stamp of the tree before DVC read it."""
    _save(workspace, name, "recorded", [stamp, md5])


def is_pushed(md5: str, remote: Path) -> bool:
    """Whether the remote, a folder of this machine, has every object of the version."""
    return not list_missing(remote / "files" / "md5", [md5], whole=True)


def are_fresh(workspace: Workspace, name: str, md5: str, code: str) -> bool:
    """Whether the stages would produce from the version `md5` exactly the files that exist."""
    entries = _load_entries(workspace, name)
    if not entries or _load(workspace, name, "stages") != _name_run(workspace, entries, code):
        return False
    found = {f"data/{name}/raw": md5}
    for each in (item for entry in entries for item in (*entry["deps"], *entry["outs"])):
        path = each["path"]
        if path not in found:
            found[path] = hash_md5(workspace.root / path)
        if found[path] != each["md5"]:
            return False
    return True


def remember_stages(workspace: Workspace, name: str, code: str) -> None:
    """Remember that all stages have run with this code, as dvc.lock records."""
    _save(workspace, name, "stages", _name_run(workspace, _load_entries(workspace, name), code))


def forget_stages(workspace: Workspace, name: str) -> None:
    """Remove the proof before the first stage runs: an interrupted run proves nothing."""
    _path(workspace, name, "stages").unlink(missing_ok=True)


def find_manifest(locked: Mapping[str, Any], name: str, md5: str) -> str | None:
    """DVC's hash of the domain's manifest if it was made from the version `md5`, else None. locked: `load_locked`."""
    entries = [locked.get(f"{stage}@{name}") for stage in ("manifest", "split")]
    if None in entries:
        return None
    (raw, rows), (read, made) = (
        [{item["path"]: item["md5"] for item in entry[side]} for side in ("deps", "outs")] for entry in entries if entry
    )
    table = f".tessera/data/{name}/rows.parquet"
    current = raw.get(f"data/{name}/raw") == md5 and rows.get(table, "") == read.get(table)
    return str(made[f".tessera/data/{name}/manifest.parquet"]) if current else None


def load_locked(workspace: Workspace) -> dict[str, Any]:
    """The entries of dvc.lock for every stage that has run, by `stage@domain`."""
    return read_lock(workspace.root / "dvc.lock")


def read_lock(path: Path) -> dict[str, Any]:
    """The stages of a dvc.lock; empty if there is no such file. Raises VersioningError for a damaged file."""
    if not path.exists():
        return {}
    hint = "Undo the damage (`git checkout -- dvc.lock`; after a merge resolve it), or remove it: all stages run again."
    stages = read_yaml(path, hint, VersioningError).get("stages", {})
    damaged = not isinstance(stages, dict) or next((name for name in stages if not _is_stage(stages[name])), None)
    if damaged:
        found = "not a mapping" if damaged is True else f"a stage {damaged!r} without paths and md5s"
        raise VersioningError(str(path), expected="`stages` as DVC writes them", found=found, hint=hint)
    return dict(stages)


def _is_stage(stage: Any) -> bool:
    if not isinstance(stage, dict):
        return False
    items = [*(stage.get("deps") or []), *(stage.get("outs") or [])]
    return all(isinstance(item, dict) and {"path", "md5"} <= item.keys() for item in items)


def _load_entries(workspace: Workspace, name: str) -> list[dict[str, Any]]:
    """The entries of dvc.lock for the domain's stages; empty unless all stages have one."""
    stages, names = load_locked(workspace), [f"{stage}@{name}" for stage in STAGES]
    return [stages[each] for each in names] if stages.keys() >= set(names) else []


def _name_run(workspace: Workspace, entries: list[dict[str, Any]], code: str) -> str:
    facts = [entries, code, [version(name) for name in LIBRARIES], (workspace.root / "dvc.yaml").read_text()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def hash_md5(path: Path) -> str:
    """The md5 of a file, as DVC computes it; empty if there is no file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _path(workspace: Workspace, name: str, proof: str) -> Path:
    return workspace.cache / "proofs" / f"{name}-{proof}.json"


def _load(workspace: Workspace, name: str, proof: str) -> Any:
    """Read a proof; None if there is none that can be read, so that DVC runs."""
    return load_known(_path(workspace, name, proof))


def _save(workspace: Workspace, name: str, proof: str, fact: Any) -> None:
    save_known(_path(workspace, name, proof), fact)
