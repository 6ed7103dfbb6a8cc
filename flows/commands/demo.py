"""`tessera demo`: makes, retrains and uses a bundled domain, to show all steps on any machine."""

from pathlib import Path

from components.data.store import versioning
from components.domain.reading import load_domain
from components.errors import DomainError
from components.files import settle_folder, write_whole
from components.records.images import Created
from components.records.predictions import Predictions
from components.synthetic import BUNDLED
from components.tasks import create_task
from components.workspace import REPOSITORY, Workspace
from flows.progress import report

SAMPLES = 4


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
    """What the champion says of a few test images, one per label as far as they go; masks are written as files."""
    from components.data.manifest import load_manifest
    from flows.commands.predict import predict

    domain = load_domain(workspace.domain_file(name))
    manifest = load_manifest(workspace.derived(name) / "manifest.parquet", domain)
    test = manifest.filter(manifest["split"] == "test").unique("label", keep="first", maintain_order=True)
    pictures = [workspace.raw(name) / path for path in test["path"].head(SAMPLES)]
    out = workspace.runs(name) / "found" if create_task(domain).annotation == "mask" else None
    return predict(workspace, name, pictures, out=out)


def _locate(name: str) -> Path:
    return REPOSITORY / "data" / name / "domain.yaml"
