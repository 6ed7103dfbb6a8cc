"""Commands on backbones: add, list."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.app import JsonOption, WorkspaceOption, app, execute, shower

if TYPE_CHECKING:
    from components.records.backbones import Added, Backbones
    from components.workspace import Workspace

backbone_app = typer.Typer(no_args_is_help=True, help="Backbones: convert weights of others, list what is here.")
app.add_typer(backbone_app, name="backbone")

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A .bin, .pth, .pt or .safetensors file, a folder of a repository, hf-hub:owner/name, or a timm name.",
    ),
]


@backbone_app.command("add")
def add(
    source: SourceArgument,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Default: made from the source.")] = "",
    licence: Annotated[
        str, typer.Option("--licence", metavar="ID", help="Its SPDX id, such as mit, where the source does not say it.")
    ] = "",
    architecture: Annotated[
        str, typer.Option("--architecture", metavar="NAME", help="timm's name, where shapes leave a choice.")
    ] = "",
    mean: Annotated[str, typer.Option("--mean", metavar="R,G,B", help="Of pixels in [0, 1].")] = "",
    std: Annotated[str, typer.Option("--std", metavar="R,G,B", help="Of pixels in [0, 1].")] = "",
    feature: Annotated[
        str | None,
        typer.Option("--feature", help="own, or token+mean: the class token joined with the mean of the patches."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Write over another content of this name.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Convert weights once to one safetensors file in the workspace, compared with the original."""

    def act(place: "Workspace") -> "Added":
        from components.records.backbones import Addition
        from flows.commands.backbones import add_backbone, read_feature, read_numbers

        asked = Addition(
            source=source,
            target=Path(),
            architecture=architecture,
            licence=licence.lower(),
            mean=read_numbers("--mean", mean),
            std=read_numbers("--std", std),
            feature=read_feature(feature),
        )
        return add_backbone(place, asked, name, replace=replace)

    execute(act, shower("show_added", "backbone_tables"), as_json, workspace)


@backbone_app.command("list")
def list_all(as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Backbones that are here, with size, licence and the domains that use them."""

    def act(place: "Workspace") -> "Backbones":
        from flows.commands.backbones import list_backbones

        return list_backbones(place)

    execute(act, shower("show_backbones", "backbone_tables"), as_json, workspace)
