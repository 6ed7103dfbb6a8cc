"""`tessera embed`: the features of every sample of a domain, by its backbone or another one."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from components.data.store.shards import open_images
from components.domain.licences import normalise
from components.errors import CheckFailed, DataError
from components.files import hash_file
from components.records.embedding import Embedded, EmbedJob
from components.records.images import Checked, LeftOut
from components.workspace import Workspace
from flows.commands.app import watched
from flows.commands.check import check
from flows.commands.counting import Counter
from flows.plan import create_plan, load_checked_domain
from flows.processes.embedding import embed_manifest


def embed(
    workspace: Workspace, name: str, out: Path, backbone: str | None, size: str | None, *, as_json: bool
) -> Embedded:
    """Write `out`, whole or not at all. backbone: as in domain.yaml; size: 224, or 224x448 (height x width).

    Raises DomainError for a size that no domain may have, CheckFailed where the images are not fit, BackboneError for a
    name that cannot be loaded, and DataError.
    """
    _require_parquet(out)
    started = time.monotonic()
    domain = load_checked_domain(workspace, name, _list_overrides(backbone, size))
    with watched(as_json):
        checked = check(workspace, name)
        if checked.manifest is None:
            hint = f"See {checked.report}."
            raise CheckFailed(f"images of {name}", expected="fit images", found="; ".join(checked.problems), hint=hint)
        plan = create_plan(workspace, domain)
    job = EmbedJob(
        domain=plan.domain,
        manifest=checked.manifest,
        raw=open_images(workspace, name),
        cache=workspace.cache,
        out=out.absolute(),
        facts={
            "domain": name,
            "data_version": checked.data_version,
            "data_licence": normalise(domain.licence),
            "manifest_sha256": hash_file(checked.manifest) or "",
        },
    )
    with Counter(0) as counter:
        features = embed_manifest(job, partial(_count, counter))
    return Embedded(
        domain=name,
        out=out,
        data_version=checked.data_version,
        features=features,
        left_out=_list_left_out(checked),
        seconds=round(time.monotonic() - started, 3),
    )


def _count(counter: Counter, said: Mapping[str, int]) -> None:
    counter.total = said.get("total", counter.total)
    counter.count(said.get("known", 0), 0, known=True)
    counter.count(said.get("done", 0), 0)


def _list_overrides(backbone: str | None, size: str | None) -> Sequence[str]:
    sides = "" if size is None else size.lower().replace("x", ", ")
    named = [] if backbone is None else [f"backbone={backbone}"]
    return [*named, *([] if size is None else [f"img_size=[{sides}]" if "," in sides else f"img_size={sides}"])]


def _require_parquet(out: Path) -> None:
    if out.suffix != ".parquet" or out.is_dir():
        found = "a folder" if out.is_dir() else f"a name that ends in {out.suffix or 'nothing'}"
        hint = "Name one: `--out features.parquet`."
        raise DataError(f"--out {out}", expected="a .parquet file to write", found=found, hint=hint)


def _list_left_out(checked: Checked) -> tuple[LeftOut, ...]:
    """Files without a row: unfit ones, and those that are excluded from all splits."""
    unfit = [LeftOut(path=row.path, reason=row.reason) for row in checked.quarantined]
    return (*unfit, *checked.aside)
