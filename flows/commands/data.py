"""Commands on a domain's images: import, check, preview, export, versions."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.app import (
    DomainArgument,
    JsonOption,
    OverridesOption,
    WorkspaceOption,
    app,
    execute,
    shower,
    watched,
)

if TYPE_CHECKING:
    from components.records.embedding import Embedded
    from components.records.images import Checked, Exported, Imported, Previewed, Removed
    from components.records.versions import CheckedOut, Named, Versions
    from components.workspace import Workspace


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="The folder, or the .zip or .tar archive, that holds the images.")],
    domain: Annotated[str, typer.Option("--domain", help="Name of the domain; a new one gets a domain.yaml.")],
    layout: Annotated[
        str | None,
        typer.Option("--layout", metavar="KIND", help="A kind, or '{kind: csv, image: file}'; guessed when left out."),
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", help="The column that names the group (lot, patient, part).")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", metavar="KIND", help="A kind, or '{kind: segmentation, background: ok}'; guessed when left out."
        ),
    ] = None,
    shards: Annotated[
        bool, typer.Option("--shards", help="Keep the images in tars, for sets past 100,000; it stays so.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Make the domain's images the same as SOURCE, instead of adding to them.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite images, or with --replace drop those that no version holds.")
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Add a folder of images to a domain, or make it one, versioned by DVC."""

    def act(place: "Workspace") -> "Imported":
        from flows.commands.importing import import_images

        return import_images(
            place, source, domain, layout, group, task=task, shards=shards, replace=replace, force=force
        )

    execute(act, shower("show_import"), as_json, workspace)


@app.command()
def check(domain: DomainArgument, as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Read, validate and split the images; say what is wrong with them."""

    def act(place: "Workspace") -> "Checked":
        from flows.commands.check import check as run

        with watched(as_json):
            return run(place, domain)

    execute(act, shower("show_check"), as_json, workspace, failed=lambda checked: not checked.ok)


@app.command()
def embed(
    domain: DomainArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .parquet file to write.")],
    backbone: Annotated[
        str | None, typer.Option("--backbone", metavar="NAME", help="Another than the domain's, as in domain.yaml.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="N", help="Size of the images, 224 or 224x448 (height x width).")
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write the backbone's features of every image, with label, group and split; known ones are not computed again."""

    def act(place: "Workspace") -> "Embedded":
        from flows.commands.embed import embed as run

        return run(place, domain, out, backbone, size, as_json=as_json)

    execute(act, shower("show_embed"), as_json, workspace)


@app.command()
def remove(
    domain: DomainArgument,
    force: Annotated[bool, typer.Option("--force", help="Even if no named version holds the images.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Remove a domain's images and what was made of them; its ledger, models and named versions stay."""

    def act(place: "Workspace") -> "Removed":
        from components.data.store.removing import remove_domain

        return remove_domain(place, domain, force=force)

    execute(act, shower("show_removal"), as_json, workspace)


@app.command()
def schema(as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Every key of domain.yaml with its default and meaning; --json is the JSON schema, for editors."""
    if as_json:
        from flows.commands.schema import create_schema

        typer.echo(json.dumps(create_schema(), indent=1))
        return
    from flows.commands.console import show_schema
    from flows.commands.schema import describe_keys

    show_schema(describe_keys())


@app.command()
def preview(
    domain: DomainArgument,
    images: Annotated[int, typer.Option("--images", min=1, max=200, help="How many, of all classes together.")] = 12,
    overrides: OverridesOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Draw a sheet of training images as augmentation will show them, with masks and boxes."""

    def act(place: "Workspace") -> "Previewed":
        from flows.commands.preview import preview as run

        with watched(as_json):
            return run(place, domain, overrides or [], images)

    execute(act, shower("show_preview"), as_json, workspace)


@app.command()
def export(
    domain: DomainArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="csv|coco|masks|voc|yolo",
            help="How annotations are written; by default csv, masks for class maps, coco for boxes.",
        ),
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write the fit images with annotations, groups and splits, for other tools or another workspace."""

    def act(place: "Workspace") -> "Exported":
        from components.data.manifest import load_manifest
        from components.data.store import exporting, versioning
        from components.data.store.shards import open_images
        from components.domain.reading import load_domain

        known = load_domain(place.domain_file(domain))
        versioning.require_repository(place)
        with versioning.hold_domain(place, domain, f"tessera export {domain}"):
            versioning.register_domain(place, domain)
            versioning.refresh(place, domain)
            manifest = load_manifest(place.derived(domain) / "manifest.parquet", known)
            return exporting.export_manifest(manifest, known, open_images(place, domain), folder, form)

    execute(act, shower("show_export"), as_json, workspace)


@app.command()
def version(
    domain: DomainArgument,
    message: Annotated[str, typer.Option("--message", "-m", help="What is new, for those who read the list.")] = "",
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Record the images as they are, push them to the remote and name them DOMAIN@v1, v2, ..."""

    def act(place: "Workspace") -> "Named":
        from components.data.store.versioning import uses_git
        from components.data.store.versions import name_version
        from components.domain.reading import load_domain
        from components.records.versions import Named

        named, new = name_version(place, load_domain(place.domain_file(domain)), message)
        if new:
            from flows.server.events import emit_versioned

            emit_versioned(domain, named.model_dump(mode="json"))
        return Named(domain=domain, status="named" if new else "unchanged", git=uses_git(place), version=named)

    execute(act, shower("show_version"), as_json, workspace)


@app.command()
def versions(domain: DomainArgument, as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """List the named versions of the images, with counts and what changed between them."""

    def act(place: "Workspace") -> "Versions":
        from components.data.store import versioning
        from components.data.store.versions import list_versions
        from components.domain.reading import load_domain
        from components.records.versions import Versions

        load_domain(place.domain_file(domain))
        versioning.require_repository(place)
        return Versions(domain=domain, versions=tuple(list_versions(place, domain)))

    execute(act, shower("show_versions"), as_json, workspace)


@app.command()
def checkout(
    name: Annotated[str, typer.Argument(metavar="DOMAIN@vN", help="A name that `tessera versions` lists.")],
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Bring back the images of a named version, from the remote where they are not here."""

    def act(place: "Workspace") -> "CheckedOut":
        from components.data.store.versions import checkout_version
        from components.domain.reading import load_domain
        from components.records.versions import CheckedOut

        domain = load_domain(place.domain_file(name.partition("@")[0]))
        named = checkout_version(place, domain, name)
        return CheckedOut(domain=domain.name, raw=place.raw(domain.name), version=named)

    execute(act, shower("show_checkout"), as_json, workspace)
