"""Bringing a folder of images into the workspace as a domain."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from components.data import guessing, layouts
from components.data.archives import unpacked
from components.data.columns import complete_table
from components.data.digests import Digests
from components.data.shards import is_sharded, pack_shards
from components.data.tables import looks_multilabel
from components.data.tree import walk_files
from components.domain import LAYOUTS, Csv, Domain, Parquet, load_domain, parse_domain, read_yaml
from components.errors import DomainError
from components.files import write_whole
from components.workspace import REPOSITORY, Workspace

DOMAIN_FILE = "domain.yaml"


def import_folder(
    workspace: Workspace,
    source: Path,
    name: str,
    layout: str | None = None,
    group: str | None = None,
    *,
    shards: bool = False,
) -> Domain:
    """Copy `source`, a folder or an archive, to data/<name>/raw in one move, with a domain.yaml unless there is one.

    The file is the one in `source`, where `tessera export` left one, or is made for it.

    shards: pack the images into tars, as they stay from then on.

    The labels are read before anything is put in place, so a wrong layout leaves the workspace as it was.
    """
    with unpacked(source, workspace.state) as folder:
        digests = Digests(folder, workspace.cache)
        domain = _import(workspace, folder, digests, name, layout, group, shards)
        if folder == source:  # and no archive's content, which goes
            digests.save(whole=True)
    return domain


def _import(
    workspace: Workspace,
    source: Path,
    digests: Digests,
    name: str,
    layout: str | None,
    group: str | None,
    shards: bool,
) -> Domain:
    domain_file = workspace.domain_file(name)
    _bring_known_domain(domain_file, name)
    if domain_file.exists():
        domain = load_domain(domain_file)
        _require_same_layout(domain, layout, domain_file)
    else:
        domain = _describe(source, name, layout, group, domain_file)
    layouts.read_rows(domain, source, digests)
    raw = workspace.raw(name)
    remove_leftovers(raw)
    paths = [path for path in walk_files(source) if path != DOMAIN_FILE]
    if shards or is_sharded(raw):
        pack_shards(source, paths, digests, workspace, name)
    else:
        _replace_folder(source, paths, digests, raw, Digests(raw, workspace.cache))
    if not domain_file.exists():
        if (source / DOMAIN_FILE).is_file():
            facts = read_yaml(source / DOMAIN_FILE) | {"name": name}
            write_whole(domain_file, yaml.safe_dump(facts, sort_keys=False, width=120, allow_unicode=True).encode())
        else:
            _write_domain(domain, domain_file)
    return domain


def _bring_known_domain(domain_file: Path, name: str) -> None:
    """A domain that ships with Tessera is copied into a workspace elsewhere when it is first used there."""
    shipped = REPOSITORY / "data" / name / "domain.yaml"
    if not domain_file.exists() and shipped.exists():
        domain_file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shipped, domain_file)


def _require_same_layout(domain: Domain, layout: str | None, domain_file: Path) -> None:
    if layout is not None and layout != domain.layout.kind:
        raise DomainError(
            f"--layout {layout}",
            expected=f"{domain.layout.kind}, as {domain_file} says",
            found=layout,
            mend="Leave --layout out, or change the file.",
        )


def _describe(source: Path, name: str, layout: str | None, group: str | None, where: Path) -> Domain:
    """The domain file that came with the folder, or the smallest one that fits it."""
    if (source / DOMAIN_FILE).is_file():
        domain = parse_domain(read_yaml(source / DOMAIN_FILE) | {"name": name}, str(source / DOMAIN_FILE))
        _require_same_layout(domain, layout, source / DOMAIN_FILE)
        return domain
    suggested = guessing.suggest_layout(source)
    if layout is None:
        chosen = suggested
    elif suggested is not None and suggested.kind == layout:
        chosen = suggested  # the kind asked for, with the names of its sub-folders found
    else:
        chosen = LAYOUTS[layout]() if layout in LAYOUTS else None
    if chosen is None:
        raise DomainError(
            f"layout of {source}",
            expected=f"one of {', '.join(LAYOUTS)}",
            found=layout or "a folder that looks like none of them",
            mend="Say which with `--layout`; data/README.md shows what each looks like.",
        )
    if isinstance(chosen, Csv | Parquet):
        chosen = complete_table(chosen, source)
    many = isinstance(chosen, Csv | Parquet) and looks_multilabel(chosen, source)
    classes = layouts.find_classes(chosen, source, many=many)
    task = "multilabel" if many else "classification"
    facts = {"name": name, "task": task, "classes": classes, "layout": chosen.model_dump()}
    return parse_domain(facts | ({"group": group} if group else {}), str(where))


def _write_domain(domain: Domain, path: Path) -> None:
    facts: dict[str, Any] = {
        "name": domain.name,
        "task": domain.task,
        "classes": list(domain.classes),
        "layout": domain.layout.model_dump(exclude_defaults=True) or domain.layout.kind,
    }
    if domain.group:
        facts["group"] = domain.group
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(facts, sort_keys=False, default_flow_style=None, width=120))


def _replace_folder(source: Path, paths: Sequence[str], wanted: Digests, target: Path, there: Digests) -> None:
    """Fill a folder beside with every file named, and rename it.

    A file that is in place already, by its hash, gets a second name instead of a copy; so an import costs what is new.
    """
    partial = target.with_name(f".{target.name}-{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process with our number, as containers give them out
    try:
        for folder in sorted({os.path.dirname(path) for path in paths}):
            (partial / folder).mkdir(parents=True, exist_ok=True)
        made = {path: _bring(path, source, wanted, target, there, partial) for path in paths}
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for path, digest in made.items():
        there.put(path, digest)
    there.save(whole=True)


def _bring(path: str, source: Path, wanted: Digests, target: Path, there: Digests, partial: Path) -> str:
    """One file into the new folder, by a second name where the old one has it, else by copying; its sha256."""
    digest = wanted[path]
    if digest and there[path] == digest:
        try:
            os.link(f"{target}/{path}", f"{partial}/{path}")
            return digest
        except OSError:  # a file system without second names
            pass
    data = Path(source, path).read_bytes()
    Path(partial, path).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def remove_leftovers(target: Path) -> None:
    """What killed imports and checkouts left beside the folder; one that is at work still has its process."""
    for left in target.parent.glob(f".{target.name}-*.partial"):
        try:
            os.kill(int(left.name.removesuffix(".partial").rpartition("-")[2]), 0)
        except (ValueError, ProcessLookupError):
            shutil.rmtree(left, ignore_errors=True)
        except PermissionError:
            pass  # somebody else's, and alive
