"""`tessera import`: a folder of images in the workspace, versioned, and what was understood of it."""

from pathlib import Path

from components.data.accounts import explain_given, summarise
from components.data.annotations.names import warn_of_alike
from components.data.store import importing, versioning
from components.records.images import Imported
from components.tasks import choose_kind, create_task
from components.workspace import Workspace


def import_images(
    workspace: Workspace,
    source: Path,
    name: str,
    layout: str | None,
    group: str | None,
    *,
    task: str | None,
    shards: bool,
    replace: bool,
    force: bool,
) -> Imported:
    """Import a folder or an archive into the domain `name`, and record and push the version that comes of it.

    layout, group, task, shards, replace, force: as `importing.import_folder` takes them, whose errors this raises.
    """
    versioning.require_repository(workspace)
    with versioning.hold_domain(workspace, name, f"tessera import of {name}"):
        imported = importing.import_folder(
            workspace, source, name, layout, group, task=task, shards=shards, replace=replace, force=force
        )
        versioning.register_domain(workspace, name)
        version = versioning.record_version(workspace, name)
        versioning.push_version(workspace, name)
    known, read = imported.domain, imported.understood
    understood = summarise(known, read.rows)
    return Imported(
        domain=name,
        layout=known.layout.kind,
        classes=known.classes,
        data_version=version.md5,
        files=version.files,
        raw=workspace.raw(name),
        added=imported.added,
        removed=imported.removed,
        changed=imported.changed,
        kept=imported.kept,
        pictures=read.pictures,
        notes=dict(read.account.notes),
        given_split=dict(read.account.given),
        masks_unread=choose_kind("mask") if read.pictures.masks and create_task(known).painting is None else None,
        boxes_unread=choose_kind("boxes") if understood.cut else None,
        understood=understood,
        hints=tuple(explain_given(read.account, known)),
        warnings=tuple(warn_of_alike(understood.classes)),
    )
