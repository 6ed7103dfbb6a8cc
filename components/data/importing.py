"""Bringing a folder of images into the workspace as a domain."""

import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from components.data import layouts
from components.domain import LAYOUTS, Domain, load_domain, parse_domain
from components.errors import DataError, DomainError
from components.workspace import REPOSITORY, Workspace


def import_folder(
    workspace: Workspace, source: Path, name: str, layout: str | None = None, group: str | None = None
) -> Domain:
    """Copy `source` to data/<name>/raw in one move, with a domain.yaml made for it unless there is one.

    The labels are read before anything is put in place, so a wrong layout leaves the workspace as it was.
    """
    if not source.is_dir():
        found = "a file" if source.is_file() else "nothing there"
        mend = "Name the folder that holds the images."
        raise DataError(f"import of {source}", expected="a folder", found=found, mend=mend)
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
    """The smallest domain file that fits the folder."""
    suggested = layouts.suggest_layout(source)
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
    facts = {"name": name, "task": "classification", "classes": layouts.find_classes(chosen, source), "layout": chosen}
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
    """Copy beside and rename; symbolic links are followed only inside the source."""
    partial = target.with_name(f".{target.name}-{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    root = source.resolve()
    for path in source.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            mend = "Copy the file into the folder or remove the link."
            raise DataError(str(path), expected="files inside the folder", found="a link out of it", mend=mend)
    try:
        shutil.copytree(source, partial)
        for folder in [partial, *(p for p in partial.rglob("*") if p.is_dir())]:
            folder.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
