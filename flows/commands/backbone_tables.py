"""What `tessera backbone` prints in the terminal."""

from rich.markup import escape
from rich.table import Table

from components.models.descriptions import UNKNOWN
from components.records.backbones import Added, Backbones, Compared, KnownBackbone
from flows.commands.console import OUT

COLOUR = {"added": "green", "replaced": "yellow", "unchanged": "green"}
UNKNOWN_LICENCE = (
    "unknown: the source names none. Ask its authors before you hand on what is trained on it, and record "
    "the answer with --licence; a gate `licences` refuses what stands on an unknown one."
)


def show_added(outcome: Added) -> None:
    """What was written, whether it is the original, what was left out, and the line for domain.yaml."""
    row = outcome.backbone
    OUT.print(f"[{COLOUR[outcome.status]}]{outcome.status}[/]  {escape(str(outcome.file))}", soft_wrap=True)
    lines = Table.grid(padding=(0, 1))
    lines.add_column(width=8)
    lines.add_column(overflow="fold")
    lines.add_row("Network", escape(f"{row.architecture}, {_describe_size(row)}"))
    lines.add_row("Licence", escape(UNKNOWN_LICENCE if row.licence == UNKNOWN else row.licence))
    lines.add_row("Source", escape(f"{row.source}, sha256 {row.sha256[:12]}"))
    lines.add_row("Compared", escape(_describe_comparison(outcome.compared)))
    for place, (group, count) in enumerate(outcome.left_out.items()):
        lines.add_row("" if place else "Left out", escape(f"{group}: {count} {'tensor' if count == 1 else 'tensors'}"))
    for place, text in enumerate(outcome.notes):
        lines.add_row("" if place else "Note", escape(text))
    lines.add_row("Next", escape(f"backbone: {row.name}"))
    lines.add_row("", "in domain.yaml. The file is all that another machine needs.")
    OUT.print(lines)


def show_backbones(outcome: Backbones) -> None:
    """Two or three lines for each."""
    for row in outcome.backbones:
        OUT.print(f"[bold]{escape(row.name)}[/]", soft_wrap=True)
        known = row.architecture or f"add it first: tessera backbone add {row.name}"
        OUT.print(escape(f"    {known}, {_describe_size(row)}"), soft_wrap=True)
        source = f", from {row.source}" if row.source else ""
        OUT.print(escape(f"    licence {row.licence}, sha256 {row.sha256[:12]}{source}"), soft_wrap=True)
        if row.domains or row.champions:
            champions = [f"champion of {name}" for name in row.champions]
            OUT.print(escape(f"    used by {', '.join([*row.domains, *champions])}"), soft_wrap=True)


def _describe_size(row: KnownBackbone) -> str:
    own = f", own size {row.img_size[0]} x {row.img_size[1]}" if row.img_size else ""
    return f"{row.parameters / 1e6:,.1f} M parameters, {row.size / 1e6:,.1f} MB{own}, feature {row.width:,}"


def _describe_comparison(compared: Compared) -> str:
    if compared.difference is None:
        return f"not compared with the original: {compared.reason}"
    return f"tokens of two test pictures differ by at most {compared.difference:.1g} from those of {compared.original}"
