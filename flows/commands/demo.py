"""`tessera demo`: makes, retrains and uses a bundled domain, to show all steps on any machine."""

from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from components.data.store import versioning
from components.domain.domain import Domain
from components.domain.reading import load_domain
from components.errors import DomainError
from components.files import settle_folder, write_whole
from components.records.images import Created
from components.records.maps import encode_map
from components.records.predictions import MapAnswer, Predictions
from components.synthetic import BUNDLED
from components.tasks import create_task
from components.tasks.base import PREDICTED, MapTask, by_class
from components.workspace import REPOSITORY, Workspace
from flows.progress import report

SAMPLES = 4
FOUND = "found"  # folder of masks and overlays, and name of the picture beside it


def choose_domain(task: str | None) -> str:
    """The bundled domain with this task, the first one if none is named. Raises DomainError where there is none."""
    if task is None:
        return next(iter(BUNDLED))
    kinds = {load_domain(_locate(name)).task_kind: name for name in BUNDLED}
    if task not in kinds:
        found, hint = task, "Name one of these with --task."
        raise DomainError("tessera demo", expected=f"a task among {', '.join(kinds)}", found=found, hint=hint)
    return kinds[task]


def create_domain(workspace: Workspace, name: str) -> Created:
    """Make the images of a bundled domain unless they are there, and record their version."""
    from components.synthetic.surfaces import create_surface_defects

    domain_file = workspace.domain_file(name)
    if not domain_file.exists():
        write_whole(domain_file, _locate(name).read_bytes())
    raw = workspace.raw(name)
    versioning.require_repository(workspace)
    with versioning.hold_domain(workspace, name, "tessera demo"):
        versioning.register_domain(workspace, name)
        settle_folder(raw)
        if not raw.exists():
            report("stage", title=f"make the images of {name}")
            create_surface_defects(raw)
        version = versioning.record_version(workspace, name)
    report("stage-done", title=f"made {name}", note=f"{version.files} files in {raw}")
    return Created(domain=name, raw=raw, data_version=version.md5, files=version.files)


def predict_samples(workspace: Workspace, name: str) -> Predictions:
    """What the champion says of a few test images, one per label as far as they go; masks are written as files.

    Where every pixel has a class, the images are of different groups, and show the classes other than the background in
    turn.
    """
    from flows.commands.predict import predict

    domain = load_domain(workspace.domain_file(name))
    task, test = create_task(domain), _load_test(workspace, domain)
    if not isinstance(task, MapTask):
        chosen = test.unique("label", keep="first", maintain_order=True).head(SAMPLES)
        return predict(workspace, name, [workspace.raw(name) / path for path in chosen["path"]])
    shown = by_class(test).filter(pl.col("label") != (task.painting.background if task.painting else None))
    others = shown.unique("group", keep="first", maintain_order=True)
    turns = others.with_columns(turn=pl.int_range(pl.len()).over("label")).sort("turn", maintain_order=True)
    pictures = [workspace.raw(name) / path for path in turns["path"].head(SAMPLES)]
    return predict(workspace, name, pictures, out=workspace.runs(name) / FOUND)


def draw_samples(workspace: Workspace, name: str, answers: Predictions) -> Path | None:
    """A PNG of the answers beside the truth; returns its path. None where answers are no masks."""
    from components.reports.maps import draw_found

    domain = load_domain(workspace.domain_file(name))
    task, raw = create_task(domain), workspace.raw(name)
    if not isinstance(task, MapTask):
        return None
    maps = {
        row.path: (row.label, encode_map(np.asarray(Image.open(row.mask))))
        for row in answers.predictions
        if isinstance(row, MapAnswer) and row.mask
    }
    test = _load_test(workspace, domain)
    found = [maps.get(str(raw / path), (None, None)) for path in test["path"]]
    label, data = zip(*found, strict=True)
    columns = pl.Series(PREDICTED, label, pl.String), pl.Series("answer_map", data, pl.Binary)
    frame = test.with_columns(*columns).drop_nulls("answer_map")
    title = f"{domain.title or name}: what version {answers.version} found"
    return draw_found(frame, task, domain.classes, raw, title, workspace.runs(name) / f"{FOUND}.png")


def _load_test(workspace: Workspace, domain: Domain) -> pl.DataFrame:
    from components.data.manifest import load_manifest

    manifest = load_manifest(workspace.derived(domain.name) / "manifest.parquet", domain)
    return manifest.filter(manifest["split"] == "test")


def _locate(name: str) -> Path:
    return REPOSITORY / "data" / name / "domain.yaml"
