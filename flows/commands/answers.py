"""What `tessera predict` shows in the terminal. Nothing heavy is imported here."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from components.records.predictions import UNDECIDED, Answer, BoxesAnswer, LabelsAnswer, MapAnswer, Predictions

OUT = Console(highlight=False)


def show_predictions(outcome: Predictions) -> None:
    """One row per image or box; below the table why some have no answer, and what was passed over.

    Of rows that are in a file, how many there are, and in how many of them each class is answered.
    """
    title = f"{outcome.domain} version {outcome.version}"
    if outcome.table is None:
        OUT.print(draw_answers(title, outcome.predictions))
    else:
        OUT.print(f"{escape(title)}: {count_words(outcome.answered + outcome.failed, 'row')} in {outcome.table}")
        table = Table(header_style="bold")
        for head in ("class", "rows"):
            table.add_column(head, justify="right" if head == "rows" else "left")
        for name, count in (outcome.shown or {}).items():
            table.add_row(escape(name), f"{count:,}")
        OUT.print(table)
    for text in _list_unanswered(outcome.predictions):
        OUT.print(f"[red]no answer[/] {escape(text)}", soft_wrap=True)
    if outcome.failed:
        OUT.print(f"Answered {outcome.answered:,} of {outcome.answered + outcome.failed:,}")
    for note, count in outcome.notes.items():
        OUT.print(f"[yellow]note[/] {count} {escape(note)}")
    if ignored := outcome.ignored:
        named = ", ".join(escape(shorten_path(item.path)) for item in ignored[:3])
        more = f" and {len(ignored) - 3} more" if len(ignored) > 3 else ""
        OUT.print(
            f"[yellow]ignored[/] {count_words(len(ignored), 'file')}: {named}{more} ({escape(ignored[0].reason)})"
        )


#: Columns of a table of answers beside the image, where they are neither of one label nor of several.
COLUMNS: dict[type[Answer], tuple[str, ...]] = {
    MapAnswer: ("shows", "found", "share of the pixels"),
    BoxesAnswer: ("found", "most confident"),
}


def draw_answers(title: str, rows: Sequence[Answer]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    boxed = any(row.box for row in rows)
    kind = next((kind for kind in COLUMNS if any(isinstance(row, kind) for row in rows)), Answer)
    for head in ("image", *(["box"] if boxed else []), *COLUMNS.get(kind, ("class", "probability"))):
        table.add_column(head)
    for row in rows:
        cells = [escape(shorten_path(row.path)), *([" ".join(map(str, row.box or ()))] if boxed else [])]
        if isinstance(row, MapAnswer):
            table.add_row(*cells, escape(row.label or ""), *_describe_areas(row))
        elif isinstance(row, BoxesAnswer):
            table.add_row(*cells, *map(escape, _describe_objects(row)))
        elif row.abstained and row.probabilities is not None:
            highest, likeliest = max((chance, name) for name, chance in row.probabilities.items())
            sure = f"{likeliest} {highest:.3f}"
            table.add_row(*cells, f"[yellow]{UNDECIDED}[/]", escape(sure))
        elif row.label is None or row.probabilities is None:
            table.add_row(*cells, "[red]no answer[/]", "")
        else:
            names = row.labels if isinstance(row, LabelsAnswer) else (row.label,)
            sure = ", ".join(f"{row.probabilities[name]:.3f}" for name in names)
            table.add_row(*cells, escape(row.label), sure)
    return table


def _describe_areas(row: MapAnswer) -> tuple[str, str]:
    """How many components of each class were found, and what share of the pixels each class has."""
    found = Counter(component.label for component in row.components)
    whole = max(sum(row.areas.values()), 1)
    shares = ", ".join(f"{name} {row.areas[name] / whole:.2%}" for name in found)
    return ", ".join(f"{count} {name}" for name, count in found.items()) or "nothing", shares


def _describe_objects(row: BoxesAnswer) -> tuple[str, str]:
    """How many objects of each class were found, and the one that is surest."""
    found = ", ".join(f"{count} {name}" for name, count in row.counts.items() if count) or "nothing"
    return found, f"{row.objects[0].label} {row.objects[0].confidence:.3f}" if row.objects else ""


def _list_unanswered(rows: Sequence[Answer]) -> list[str]:
    """One message per reason, and for how many further rows it holds: all pictures of a folder may lack boxes."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for error in (row.error for row in rows if row.error is not None):
        kinds.setdefault((error.expected, error.found, error.hint), []).append(error.message)
    return [first + (f" The same for {len(further):,} more." if further else "") for first, *further in kinds.values()]


def count_words(number: int, word: str) -> str:
    """`1 group`, `2 groups`."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def shorten_path(path: str, parts: int = 3) -> str:
    """The end of a path, which tells images apart; the front is the same for all of them."""
    ending = Path(path).parts[-parts:]
    return path if len(ending) == len(Path(path).parts) else str(Path("…", *ending))
