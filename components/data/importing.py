"""Bringing a folder of images into the workspace as a domain."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from components.data import layouts
from components.data.digests import Digests
from components.data.splits import find_seed
from components.domain import LAYOUTS, Domain, Split, load_domain, parse_domain
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
    digests = Digests(source, workspace.cache)
    rows = layouts.read_rows(domain, source, digests)
    _replace_folder(source, digests, workspace.raw(name), Digests(workspace.raw(name), workspace.cache))
    if not domain_file.exists():
        domain = _choose_seed(domain, rows)
        _write_domain(domain, domain_file)
    return domain


def _choose_seed(domain: Domain, rows: pl.DataFrame) -> Domain:
    """A split seed that gives every class a group on every side, written down while no image has a side yet.

    Later it would move images; and a seed that serves now still does when groups are added.
    """
    group = pl.coalesce("group", "id")
    groups = {name: set(rows.filter(pl.col("label") == name).select(group).to_series()) for name in domain.classes}
    seed = find_seed(groups, domain.split)
    return domain if seed is None else domain.model_copy(update={"split": Split(seed=seed)})


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
    if domain.split.seed:
        facts["split"] = {"seed": domain.split.seed}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(facts, sort_keys=False, default_flow_style=None, width=120))


def _replace_folder(source: Path, wanted: Digests, target: Path, there: Digests) -> None:
    """Fill a folder beside and rename it; symbolic links are followed only inside the source.

    A file that is in place already, by its hash, gets a second name instead of a copy; so an import costs what is new.
    """
    partial = target.with_name(f".{target.name}-{os.getpid()}.partial")
    paths = list(_walk(source))
    remove_leftovers(target)
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
    wanted.save(whole=True)


def _walk(source: Path) -> Iterator[str]:
    """Every file below the source, relative to it; DataError for a link that leads out."""
    root = source.resolve()
    for folder, folders, files in os.walk(source, followlinks=True):
        inner = os.path.relpath(folder, source)
        for name in (*folders, *files):
            path = Path(folder, name)
            if os.path.islink(path) and (
                not path.resolve().is_relative_to(root) or Path(folder).is_relative_to(path.resolve())
            ):
                mend = "Copy the file into the folder or remove the link."
                raise DataError(str(path), expected="files inside the folder", found="a link out of it", mend=mend)
        yield from (name if inner == "." else f"{inner}/{name}" for name in files)


def _is_below(end: Path, root: Path, folder: Path) -> bool:
    """Whether a link in `folder` ends inside the source, and not above itself, where it would be walked for ever."""
    return end.is_relative_to(root) and not folder.is_relative_to(end)


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
