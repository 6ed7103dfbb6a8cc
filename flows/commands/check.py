"""`tessera check`: the data stages alone, and what they found."""

from contextlib import closing
from typing import Any

import polars as pl

from components.data.accounts import explain_given, load_account, summarise
from components.data.manifest import load_frame
from components.data.store.versioning import hold_domain
from components.domain.domain import Domain
from components.errors import CheckFailed
from components.tasks.base import by_class
from components.workspace import Workspace
from flows.plan import create_plan, load_checked_domain
from flows.progress import report


def check(workspace: Workspace, name: str) -> dict[str, Any]:
    """Run the stages up to the first that says no; the outcome holds every reason."""
    domain = load_checked_domain(workspace, name)
    with hold_domain(workspace, name, f"tessera check {name}"):
        return _check(workspace, domain)


def _check(workspace: Workspace, domain: Domain) -> dict[str, Any]:
    name = domain.name
    report("stage", title="record the version of the images")
    plan = create_plan(workspace, domain)
    problems: list[str] = []
    split = False
    with closing(plan.create_stages()) as stages:
        report("stage", title="read the labels")
        stages.run("manifest")
        report("stage", title="compare the images")
        stages.run("features")
        try:
            report("stage", title="look at every image")
            stages.run("validate")
            report("stage", title="split by groups")
            stages.run("split")
            split = True
        except CheckFailed as error:
            problems.append(str(error))
    summary = plan.load_validation()
    folder = workspace.derived(name)
    account, fit = load_account(folder / "account.json"), load_frame(folder / "valid.parquet")
    aside = plan.load_aside() if split else []
    manifest = plan.load_manifest() if split else None
    return {
        "domain": name,
        "ok": split and bool(summary["ok"]),
        "data_version": plan.version.md5,
        "images": summary["images"],
        "fit": summary["fit"],
        "quarantined": summary["quarantined"],
        "groups": summary["groups"],
        "near_duplicate_pairs": len(summary["near_duplicate_pairs"]),
        "suspicious_labels": summary["suspicious_labels"],
        "labels": summary["labels"],
        "aside": aside,
        "warnings": summary["warnings"],
        "classes": list(plan.domain.classes),
        "pictures": account.count_pictures(fit),
        "notes": dict(account.notes),
        "given_split": dict(account.given),
        "understood": summarise(plan.domain, fit) | {"groups": summary["groups"]},
        "hints": explain_given(account, plan.domain),
        "splits": {} if manifest is None else count_splits(manifest),
        "problems": summary["problems"] or problems,
        "manifest": str(plan.manifest) if split else None,
        "report": str(plan.validation_report),
    }


def count_splits(manifest: pl.DataFrame) -> dict[str, dict[str, dict[str, int]]]:
    """Images and groups of every class on every side: `{"train": {"images": {...}, "groups": {...}}, ...}`."""
    counted = (
        by_class(manifest)
        .group_by("split", "label")
        .agg(pl.len().alias("images"), pl.col("group").n_unique().alias("groups"))
    )
    return {
        side: {
            what: dict(counted.filter(pl.col("split") == side).sort("label").select("label", what).iter_rows())
            for what in ("images", "groups")
        }
        for side in ("train", "val", "test")
    }
