"""`tessera preview`: what training will see of a domain, drawn before anything is trained."""

from collections.abc import Sequence

from components.data.batches.preview import choose_rows, draw_preview
from components.data.store import versioning
from components.data.store.shards import open_images
from components.domain.canvas import ImgSize
from components.files import whole_file
from components.records.images import Previewed
from components.tasks.base import by_class
from components.workspace import Workspace
from flows.plan import create_plan, known_size, load_checked_domain
from flows.progress import report

USUAL_SIZE = ImgSize(224, 224)  # of a backbone whose size is known only to its own library


def preview(workspace: Workspace, name: str, overrides: Sequence[str], images: int) -> Previewed:
    """Draw the contact sheet; the data stages run first where the images changed since."""
    report("stage", title="read the images")
    domain = load_checked_domain(workspace, name, overrides)
    with versioning.hold_domain(workspace, name, f"tessera preview {name}"):
        plan = create_plan(workspace, domain)
        versioning.refresh(workspace, name)
        rows = choose_rows(plan.load_manifest(), images)
    img_size = known_size(plan.domain) or USUAL_SIZE
    report("stage", title="draw the sheet")
    figure = draw_preview(rows, open_images(workspace, name), plan.domain, img_size)
    path = workspace.derived(name) / "preview.png"
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=130)
    shown = by_class(rows) if "objects" in rows.columns else rows
    counts = shown["label"].value_counts(sort=True).sort("label")
    return Previewed(
        domain=name,
        data_version=plan.version.md5,
        augmentation=plan.domain.augmentation,
        img_size=img_size,
        images=dict(counts.iter_rows()),
        path=path,
    )
