"""`tessera check`: the data stages alone, and what they found."""

from contextlib import closing

import polars as pl

from components.data.accounts import explain_given, load_account, summarise
from components.data.manifest import SPLITS, load_frame
from components.data.store.versioning import hold_domain
from components.domain.domain import Domain
from components.errors import CheckFailed
from components.records.images import Checked, SplitCounts
from components.tasks.base import by_class
from components.workspace import Workspace
from flows.plan import create_plan, load_checked_domain
from flows.progress import report


def check(workspace: Workspace, name: str) -> Checked:
    """Run the stages up to the first that says no; the outcome holds every reason."""
    domain = load_checked_domain(workspace, name)
    with hold_domain(workspace, name, f"tessera check {name}"):
        return _check(workspace, domain)


def _check(workspace: Workspace, domain: Domain) -> Checked:
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
    manifest = plan.load_manifest() if split else None
    understood = summarise(plan.domain, fit)
    return Checked(
        domain=name,
        ok=split and summary.ok,
        data_version=plan.version.md5,
        images=summary.images,
        fit=summary.fit,
        quarantined=summary.quarantined,
        groups=summary.groups,
        near_duplicate_pairs=len(summary.near_duplicate_pairs),
        suspicious_labels=summary.suspicious_labels,
        labels=summary.labels,
        aside=plan.load_aside() if split else (),
        warnings=summary.warnings,
        classes=plan.domain.classes,
        pictures=account.count_pictures(fit),
        notes=dict(account.notes),
        given_split=dict(account.given),
        understood=understood.model_copy(update={"groups": summary.groups}),
        hints=tuple(explain_given(account, plan.domain)),
        splits={} if manifest is None else count_splits(manifest),
        problems=summary.problems or tuple(problems),
        manifest=plan.manifest if split else None,
        report=plan.validation_report,
    )


def count_splits(manifest: pl.DataFrame) -> dict[str, SplitCounts]:
    """Images and groups of every class in every split, by the split's name."""
    counted = (
        by_class(manifest)
        .group_by("split", "label")
        .agg(pl.len().alias("images"), pl.col("group").n_unique().alias("groups"))
        .sort("label")
    )
    parts = {name: counted.filter(pl.col("split") == name) for name in SPLITS}
    return {
        name: SplitCounts(
            images=dict(part.select("label", "images").iter_rows()),
            groups=dict(part.select("label", "groups").iter_rows()),
        )
        for name, part in parts.items()
    }
