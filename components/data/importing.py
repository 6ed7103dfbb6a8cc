"""Bringing a folder of images into the workspace as a domain."""

import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from components.data import guessing, layouts
from components.data.archives import unpacked
from components.data.manifest import save_bytes
from components.data.tables import looks_multilabel
from components.data.tree import walk_files
from components.domain import LAYOUTS, Csv, Domain, Parquet, load_domain, parse_domain, read_yaml
from components.errors import DomainError
from components.workspace import REPOSITORY, Workspace

DOMAIN_FILE = "domain.yaml"


def import_folder(
    workspace: Workspace, source: Path, name: str, layout: str | None = None, group: str | None = None
) -> Domain:
    """Copy `source`, a folder or an archive, to data/<name>/raw in one move, with a domain.yaml unless there is one.

    The file is the one in `source`, where `tessera export` left one, or is made for it.

    The labels are read before anything is put in place, so a wrong layout leaves the workspace as it was.
    """
    with unpacked(source, workspace.state) as folder:
        return _import(workspace, folder, name, layout, group)


def _import(workspace: Workspace, source: Path, name: str, layout: str | None, group: str | None) -> Domain:
    domain_file = workspace.domain_file(name)
    _bring_known_domain(domain_file, name)
    if domain_file.exists():
        domain = load_domain(domain_file)
        _require_same_layout(domain, layout, domain_file)
    else:
        domain = _describe(source, name, layout, group, domain_file)
    layouts.read_rows(domain, source)
    _replace_folder(source, workspace.raw(name))
    if not domain_file.exists():
        if (source / DOMAIN_FILE).is_file():
            facts = read_yaml(source / DOMAIN_FILE) | {"name": name}
            save_bytes(yaml.safe_dump(facts, sort_keys=False, width=120, allow_unicode=True).encode(), domain_file)
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


def _replace_folder(source: Path, target: Path) -> None:
    """Copy beside and rename: every file that `walk_files` lists, which follows links to files inside the source."""
    partial = target.with_name(f".{target.name}-{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for path in walk_files(source):
            if path == DOMAIN_FILE:
                continue
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, partial / path)
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
