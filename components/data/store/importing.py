"""Imports a folder of images into the workspace as a domain."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl
import yaml

from components.data.annotations import layouts
from components.data.annotations.tree import walk_files
from components.data.store import versioning
from components.data.store.archives import unpacked
from components.data.store.describing import describe_folder, require_same_layout, require_same_task, write_domain
from components.data.store.digests import Digests
from components.data.store.merging import Change, Standing, compare, find_standing, require_labels_kept
from components.data.store.shards import is_sharded, list_packed, pack_shards
from components.domain.domain import Domain
from components.domain.reading import load_domain, parse_domain, read_yaml
from components.errors import TesseraError
from components.files import whole_folder, write_whole
from components.workspace import REPOSITORY, Workspace

DOMAIN_FILE = "domain.yaml"


@dataclass(frozen=True)
class Imported:
    """The result of an import: the domain, whose images are in place, and counts of files.

    understood: the rows and the account of the imported folder. files: files now in place. changed: files with the same
    path and other content than before. kept: unchanged files.
    """

    domain: Domain
    understood: layouts.Understood
    files: int
    added: int
    removed: int
    changed: int

    @property
    def kept(self) -> int:
        return self.files - self.added - self.changed


def import_folder(
    workspace: Workspace,
    source: Path,
    name: str,
    layout: str | None = None,
    group: str | None = None,
    *,
    task: str | None = None,
    shards: bool = False,
    replace: bool = False,
    force: bool = False,
) -> Imported:
    """Add `source`, a folder or an archive, to data/<name>/raw in one step, with a domain.yaml unless there is one.

    domain.yaml is the one in `source`, if `tessera export` wrote one, or is created.

    task: a kind, or a mapping in YAML; what the annotations say when left out. shards: pack the images into tar files,
    also in later imports. replace: make raw/ identical to `source` instead of adding to it. force: allow to drop or
    overwrite pictures that no named version holds.

    The labels are read before anything is put in place, so a wrong layout leaves the workspace unchanged.
    """
    scratch = _scratch(workspace, name)
    with versioning.hold_domain(workspace, name, f"tessera import of {name}"):
        shutil.rmtree(scratch, ignore_errors=True)  # left by an import that was killed
        try:
            with unpacked(source, scratch) as folder:
                digests = Digests(folder, workspace.cache)
                try:
                    imported = _import(workspace, folder, digests, name, layout, group, task, shards, replace, force)
                except TesseraError as error:
                    raise _speak_of(source, folder, error) from None
                if folder == source:  # not the content of an archive, which is deleted afterwards
                    digests.save(whole=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return imported


def _speak_of(source: Path, folder: Path, error: TesseraError) -> TesseraError:
    """The error about an archive's content, with the archive's name instead of the folder where it was unpacked."""
    parts = {name: text.replace(str(folder), str(source)) for name, text in error.to_dict().items()}
    return TesseraError.from_dict(parts)


def _scratch(workspace: Workspace, name: str) -> Path:
    """The folder in which an import unpacks and prepares images before they are put in place."""
    return workspace.state / f"import-{name}"


def _import(
    workspace: Workspace,
    source: Path,
    digests: Digests,
    name: str,
    layout: str | None,
    group: str | None,
    task: str | None,
    shards: bool,
    replace: bool,
    force: bool,
) -> Imported:
    domain_file = workspace.domain_file(name)
    _bring_known_domain(domain_file, name)
    if domain_file.exists():
        domain = load_domain(domain_file)
        require_same_layout(domain, layout, domain_file)
        require_same_task(domain, task, domain_file)
    else:
        domain = _describe(source, name, layout, group, domain_file, task)
    understood = layouts.read_tree(domain, source, digests)
    there = find_standing(workspace, name, replace=replace, force=force)
    paths = [path for path in walk_files(source) if path != DOMAIN_FILE]
    change = compare(there, source, paths, digests, domain.layout, replace=replace, force=force)
    check = None if replace or not there.files else partial(require_labels_kept, there, domain, change, understood.rows)
    place = _place_shards if shards or is_sharded(workspace.raw(name)) else _place_folder
    place(workspace, domain, there, change, check)
    if not domain_file.exists():
        if (source / DOMAIN_FILE).is_file():
            facts = read_yaml(source / DOMAIN_FILE) | {"name": name}
            write_whole(domain_file, yaml.safe_dump(facts, sort_keys=False, width=120, allow_unicode=True).encode())
        else:
            write_domain(domain, domain_file)
    return Imported(domain, understood, len(change.files), change.added, change.removed, change.changed)


def _bring_known_domain(domain_file: Path, name: str) -> None:
    """Copy a domain file that ships with Tessera into another workspace when it is first used there."""
    shipped = REPOSITORY / "data" / name / "domain.yaml"
    if not domain_file.exists() and shipped.exists():
        write_whole(domain_file, shipped.read_bytes())


def _describe(source: Path, name: str, layout: str | None, group: str | None, where: Path, task: str | None) -> Domain:
    """The domain file in the folder, or the smallest one that fits the folder."""
    if not (source / DOMAIN_FILE).is_file():
        return describe_folder(source, name, layout, group, where, task)
    domain = parse_domain(read_yaml(source / DOMAIN_FILE) | {"name": name}, str(source / DOMAIN_FILE))
    require_same_layout(domain, layout, source / DOMAIN_FILE)
    require_same_task(domain, task, source / DOMAIN_FILE)
    return domain


# Files in their places

Check = Callable[[pl.DataFrame], None]


def _place_folder(workspace: Workspace, domain: Domain, there: Standing, change: Change, check: Check | None) -> None:
    """Replace raw/ by a folder with the files of the change, after checking its labels."""
    raw = workspace.raw(domain.name)
    with whole_folder(raw) as fresh:
        made = _fill(fresh, there, change)
        if check:
            check(layouts.read_rows(domain, fresh, made))
    known = Digests(raw, workspace.cache)
    for path, digest in made.items():
        known.put(path, digest)
    known.save(whole=True)


def _place_shards(workspace: Workspace, domain: Domain, there: Standing, change: Change, check: Check | None) -> None:
    """As `_place_folder`, for shards; new and old files are in one folder while their labels are read."""
    raw, packed = workspace.raw(domain.name), list_packed(workspace, domain.name)
    files = change.files
    if check:
        both = _scratch(workspace, domain.name) / "both"
        both.mkdir(parents=True)
        check(layouts.read_rows(domain, both, _fill(both, there, change)))
        files = {path: both / path for path in files}
    pack_shards(files, change.same, raw, packed)


class _Made(dict[str, str]):
    """The sha256 of the files just written, by path."""

    def __missing__(self, path: str) -> None:
        return None


def _fill(folder: Path, there: Standing, change: Change) -> _Made:
    """Write the files of a change below an empty folder.

    A file that is in place already is hard-linked instead of copied, so an import costs only what is new.
    """
    for parent in sorted({os.path.dirname(path) for path in change.files}):
        (folder / parent).mkdir(parents=True, exist_ok=True)
    made = _Made()
    for path, file in change.files.items():
        if path in change.same and (digest := there.digests[path]) and _link(file, folder / path):
            made[path] = digest
            continue
        data = change.merged[path] if path in change.merged else file.read_bytes()
        Path(folder, path).write_bytes(data)
        made[path] = hashlib.sha256(data).hexdigest()
    return made


def _link(source: Path, target: Path) -> bool:
    """Hard-link a file; False on a file system without hard links."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True
