"""The data stages, as dvc.yaml runs them: thin shells that read files, call one pure function, write files."""

import json
from collections.abc import Callable

from components.data.digests import Digests
from components.data.layouts import read_rows
from components.data.manifest import load_frame, load_manifest, save_bytes, save_frame
from components.data.splits import assign_splits, require_floors
from components.domain import Domain
from components.workspace import Workspace


def run_manifest(workspace: Workspace, domain: Domain) -> None:
    """raw/ -> rows.parquet."""
    raw = workspace.raw(domain.name)
    digests = Digests(raw, workspace.cache)
    save_frame(read_rows(domain, raw, digests), workspace.derived(domain.name) / "rows.parquet")
    digests.save()


def run_validate(workspace: Workspace, domain: Domain) -> None:
    """rows.parquet -> valid.parquet, validation.json, validation.html; then CheckFailed if a check said no."""
    from components.data.report import render_report
    from components.data.validation import check_rows, require_valid

    folder, raw = workspace.derived(domain.name), workspace.raw(domain.name)
    rows = load_frame(folder / "rows.parquet")
    validated = check_rows(rows, raw, domain, workspace.cache / "findings" / domain.name)
    save_frame(validated.fit, folder / "valid.parquet")
    save_bytes(render_report(validated, raw).encode(), folder / "validation.html")
    record = json.dumps(validated.to_record(), indent=1, ensure_ascii=False)
    save_bytes(f"{record}\n".encode(), folder / "validation.json")
    require_valid(validated, folder / "validation.html")


def run_split(workspace: Workspace, domain: Domain) -> None:
    """valid.parquet -> manifest.parquet; CheckFailed when a class misses a split."""
    folder = workspace.derived(domain.name)
    frame = assign_splits(load_manifest(folder / "valid.parquet", domain, split=False), domain.split)
    require_floors(frame, domain)
    save_frame(frame, folder / "manifest.parquet")


STAGES: dict[str, Callable[[Workspace, Domain], None]] = {
    "manifest": run_manifest,
    "validate": run_validate,
    "split": run_split,
}
