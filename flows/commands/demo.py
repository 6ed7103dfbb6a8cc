"""`tessera demo`: makes, retrains and uses the bundled domain, to show all steps on any machine."""

from components.data.store import versioning
from components.domain.reading import load_domain
from components.files import settle_folder, write_whole
from components.records.images import Created
from components.records.predictions import Predictions
from components.workspace import REPOSITORY, Workspace
from flows.progress import report

DOMAIN = "surface_defects"
SAMPLES = 4


def create_domain(workspace: Workspace) -> Created:
    """Make the images of the bundled domain unless they are there, and record their version."""
    from components.synthetic.surfaces import create_surface_defects

    domain_file = workspace.domain_file(DOMAIN)
    if not domain_file.exists():
        write_whole(domain_file, (REPOSITORY / "data" / DOMAIN / "domain.yaml").read_bytes())
    raw = workspace.raw(DOMAIN)
    versioning.require_repository(workspace)
    with versioning.hold_domain(workspace, DOMAIN, "tessera demo"):
        versioning.register_domain(workspace, DOMAIN)
        settle_folder(raw)
        if not raw.exists():
            report("stage", title="make the images of surface_defects")
            create_surface_defects(raw)
        version = versioning.record_version(workspace, DOMAIN)
    report("stage-done", title="made surface_defects", note=f"{version.files} files in {raw}")
    return Created(domain=DOMAIN, raw=raw, data_version=version.md5, files=version.files)


def predict_samples(workspace: Workspace) -> Predictions:
    """What the champion says of a few test images, one a class as far as they go."""
    from components.data.manifest import load_manifest
    from flows.commands.predict import predict

    domain = load_domain(workspace.domain_file(DOMAIN))
    manifest = load_manifest(workspace.derived(DOMAIN) / "manifest.parquet", domain)
    test = manifest.filter(manifest["split"] == "test").unique("label", keep="first", maintain_order=True)
    raw = workspace.raw(DOMAIN)
    return predict(workspace, DOMAIN, [raw / path for path in test["path"].head(SAMPLES)])
