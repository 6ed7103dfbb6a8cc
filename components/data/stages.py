"""The data stages that dvc.yaml runs: each reads files, calls one pure function and writes files."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace

import polars as pl

from components.data.annotations.layouts import read_tree
from components.data.checks.features import load_features, load_near_duplicates, load_sisters
from components.data.manifest import load_frame, save_frame
from components.data.splits import (
    Assigned,
    assign_splits,
    count_groups,
    list_given,
    load_memory,
    require_floors,
    save_memory,
    warn_of_few_groups,
    warn_of_shares,
)
from components.data.store.digests import Digests
from components.data.store.shards import open_images
from components.domain.domain import Domain
from components.files import write_whole
from components.tasks import create_task
from components.tasks.base import by_class
from components.workspace import Workspace


def run_manifest(workspace: Workspace, domain: Domain) -> None:
    """raw/ -> rows.parquet and account.json (what became of every picture)."""
    raw = open_images(workspace, domain.name)
    digests = Digests(raw, workspace.cache)
    understood, folder = read_tree(domain, raw, digests), workspace.derived(domain.name)
    save_frame(understood.rows, folder / "rows.parquet")
    understood.account.save(folder / "account.json")
    digests.save()


def run_validate(workspace: Workspace, domain: Domain) -> None:
    """rows.parquet -> valid.parquet, validation.json and validation.html. Then raises CheckFailed if a check failed."""
    from components.data.checks.labels import review_labels
    from components.data.checks.report import render_report
    from components.data.checks.validation import check_rows, require_valid

    folder, raw = workspace.derived(domain.name), open_images(workspace, domain.name)
    near, sisters = load_near_duplicates(folder / "matches.parquet"), load_sisters(folder / "matches.parquet")
    rows, findings = load_frame(folder / "rows.parquet"), workspace.cache / "findings" / domain.name
    validated = check_rows(rows, raw, domain, near, findings, sisters)
    if validated.ok:
        features = load_features(folder / "features.parquet")
        questions = create_task(domain).questions(validated.fit, domain.classes)
        # What two pictures share does not say that they share their objects, which may be small.
        boxed = create_task(domain).annotation == "boxes"
        alike = [] if boxed else [pair for pair in near if pair not in sisters]
        judgement = review_labels(questions, features, alike)
        validated = replace(validated, judgement=judgement)
    save_frame(validated.fit, folder / "valid.parquet")
    split = _assign(workspace, domain, validated.fit).frame if validated.fit.height else None
    if split is not None:
        groups = count_groups(by_class(split), domain.classes)
        few = warn_of_few_groups(groups, create_task(domain).class_words)
        validated = replace(validated, warnings=(*validated.warnings, *warn_of_shares(split, domain.split), *few))
    write_whole(folder / "validation.html", render_report(validated, raw, split).encode())
    record = json.dumps(validated.to_record().model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_whole(folder / "validation.json", f"{record}\n".encode())
    require_valid(validated, folder / "validation.html")


def run_split(workspace: Workspace, domain: Domain) -> None:
    """valid.parquet and splits.csv -> manifest.parquet, aside.json (excluded images) and the new splits.csv.

    Raises CheckFailed if a class has no group in a split; splits.csv then stays as it is. valid.parquet is not checked
    again, because its writer has just checked it; every reader of manifest.parquet checks that file.
    """
    folder = workspace.derived(domain.name)
    assigned = _assign(workspace, domain, load_frame(folder / "valid.parquet"))
    require_floors(by_class(assigned.frame), domain)
    save_frame(assigned.frame, folder / "manifest.parquet")
    excluded = json.dumps([asdict(item) for item in assigned.excluded], indent=1, ensure_ascii=False)
    write_whole(folder / "aside.json", f"{excluded}\n".encode())
    save_memory(assigned.memory, workspace.splits(domain.name))


def _assign(workspace: Workspace, domain: Domain, frame: pl.DataFrame) -> Assigned:
    folder = workspace.derived(domain.name)
    rows = load_frame(folder / "rows.parquet")
    named = dict(rows.select("id", "group").drop_nulls("id").iter_rows())
    near = load_near_duplicates(folder / "matches.parquet") if domain.groups.near_duplicates == "join" else []
    memory = load_memory(workspace.splits(domain.name))
    given = list_given(rows) if domain.split.given else None
    return assign_splits(frame, [named[row] for row in frame["id"]], near, memory, domain.split, given)


STAGES: dict[str, Callable[[Workspace, Domain], None]] = {
    "manifest": run_manifest,
    "validate": run_validate,
    "split": run_split,
}
