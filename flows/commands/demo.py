"""`tessera demo`: makes, retrains and uses a bundled domain, to show all steps on any machine."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from components.data.store import versioning
from components.domain.domain import Domain
from components.domain.reading import load_domain
from components.errors import DomainError
from components.files import settle_folder, write_whole
from components.records.boxes import FOUND as FOUND_BOXES
from components.records.images import Created
from components.records.maps import encode_map
from components.records.predictions import BoxesAnswer, MapAnswer, Predictions
from components.synthetic import BUNDLED
from components.tasks import create_task
from components.tasks.base import PREDICTED, BoxTask, DenseTask, MapTask, by_class
from components.workspace import REPOSITORY, Workspace
from flows.progress import report

SAMPLES = 4
FOUND = "found"  # folder of masks and drawings, and name of the picture beside it


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
    """What the champion says of a few test images, one per label as far as they go; masks and drawings are written.

    Where objects are to be found, the images are of different groups, and show the classes in turn.
    """
    from flows.commands.predict import predict

    domain = load_domain(workspace.domain_file(name))
    task, test = create_task(domain), _load_test(workspace, domain)
    if not isinstance(task, DenseTask):
        chosen = test.unique("label", keep="first", maintain_order=True).head(SAMPLES)
        return predict(workspace, name, [workspace.raw(name) / path for path in chosen["path"]])
    shown = by_class(test).filter(pl.col("label") != (task.background_class or ""))
    others = shown.unique("group", keep="first", maintain_order=True)
    turns = others.with_columns(turn=pl.int_range(pl.len()).over("label")).sort("turn", maintain_order=True)
    pictures = [workspace.raw(name) / path for path in turns["path"].head(SAMPLES)]
    return predict(workspace, name, pictures, out=workspace.runs(name) / FOUND)


def draw_samples(workspace: Workspace, name: str, answers: Predictions) -> Path | None:
    """A PNG of the answers beside the truth; returns its path. None where answers are labels."""
    from components.reports import boxes, maps

    domain = load_domain(workspace.domain_file(name))
    task, raw = create_task(domain), workspace.raw(name)
    if not isinstance(task, DenseTask):
        return None
    test = _load_test(workspace, domain).with_columns(asked=pl.lit(f"{raw}/") + pl.col("path"))
    facts = {row.path: row for row in answers.predictions if row.error is None}
    frame = test.filter(pl.col("asked").is_in(list(facts)))
    title = f"{domain.title or name}: what version {answers.version} found"
    sheet = domain.classes, raw, title, workspace.runs(name) / f"{FOUND}.png"
    rows = [facts[path] for path in frame["asked"]]
    if isinstance(task, MapTask):
        columns = _read_maps([row for row in rows if isinstance(row, MapAnswer)])
        return maps.draw_found(frame.with_columns(columns), task, *sheet)
    if isinstance(task, BoxTask):
        columns = _read_boxes([row for row in rows if isinstance(row, BoxesAnswer)])
        return boxes.draw_found(frame.with_columns(columns), task, *sheet)
    raise TypeError(f"nobody draws the answers of the task {task.kind}")


def _read_maps(rows: Sequence[MapAnswer]) -> list[pl.Series]:
    """The columns of predictions that a drawing needs, out of the masks that were written."""
    data = [encode_map(np.asarray(Image.open(row.mask))) if row.mask else None for row in rows]
    return [pl.Series(PREDICTED, [row.label for row in rows], pl.String), pl.Series("answer_map", data, pl.Binary)]


def _read_boxes(rows: Sequence[BoxesAnswer]) -> list[pl.Series]:
    """The same of boxes."""
    found = [[one.model_dump() for one in row.objects] for row in rows]
    shown = [[True] * len(row.objects) for row in rows]
    return [
        pl.Series(PREDICTED, [row.label for row in rows], pl.String),
        pl.Series("found", found, FOUND_BOXES),
        pl.Series("shown", shown, pl.List(pl.Boolean)),
    ]


def _load_test(workspace: Workspace, domain: Domain) -> pl.DataFrame:
    from components.data.manifest import load_manifest

    manifest = load_manifest(workspace.derived(domain.name) / "manifest.parquet", domain)
    return manifest.filter(manifest["split"] == "test")


def _locate(name: str) -> Path:
    return REPOSITORY / "data" / name / "domain.yaml"
