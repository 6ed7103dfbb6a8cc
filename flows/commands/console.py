"""What a person sees in the terminal: live progress while a run goes on, one table and a verdict at its end."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live as Screen
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from components.records.embedding import Embedded
from components.records.exports import ModelExport
from components.records.history import (
    History,
    HistoryAt,
    LedgerExport,
    LedgerReport,
    Promotion,
    Reproduced,
    Restored,
)
from components.records.images import (
    Checked,
    Created,
    Exported,
    Imported,
    ObjectCounts,
    Previewed,
    Removed,
)
from components.records.licences import describe_chain
from components.records.operations import Deployment, Diagnosis, DomainRow, Drift, Status
from components.records.outcomes import Comparison, Demonstrated, Outcome, PassReport
from components.records.versions import CheckedOut, Named, NamedVersion, Versions
from components.reports.decisions import HEADS as PASSED
from components.reports.decisions import describe_decision
from components.reports.words import (
    HEADS,
    UNTRAINED,
    describe_candidate,
    describe_gains,
    describe_numbers,
    explain_control,
    find_control,
    format_score,
    list_searches,
    mark_name,
    render_gates,
)
from components.tasks import TASKS
from flows.commands.answers import count_words, draw_answers

OUT = Console(highlight=False)
ERR = Console(stderr=True, highlight=False)
WATCH_SECONDS = 5.0
MUCH_DRIFT = 0.2  # without any, one growth in twenty of a domain with few groups has more (benchmarks/drift.py)
DRIFT = "[dim]drift: new images unlike all of the champion's data version; without drift 5 %[/]"
SHOWN = 8  # lines of one kind of trouble; the report has all
COLOUR = {"PROMOTE": "green", "HOLD": "yellow", "REJECT": "red"}


def show_retrain(outcome: Outcome) -> None:
    """The table of candidates, the verdict and why, and where to go from here."""
    name = outcome.domain
    if outcome.status == "unchanged":
        OUT.print(
            f"[green]Nothing changed[/] in {name}: the same images ({outcome.data_version[:12]}), settings and code "
            f"were answered before. Champion: version {outcome.champion_version}. Use --force to train again."
        )
        return
    show_candidates(outcome)
    if outcome.decision is not None:
        _show_decision(outcome.decision)
    OUT.print()
    _show_verdict(outcome)
    if outcome.suspicion is not None and outcome.suspicion.images:
        OUT.print(f"Labels   {escape(outcome.suspicion.text)}")
    champion = outcome.champion_version
    OUT.print(f"Licences {escape(describe_chain(outcome.licences))}")
    OUT.print(f"Champion of {name}: " + (f"version {champion}" if champion else "none yet"))
    OUT.print(
        f"Report   {escape(str(outcome.report))}\n"
        "Pages    `tessera up` serves MLflow and Prefect; it prints both addresses"
    )
    show_next(name)


def _show_decision(report: PassReport) -> None:
    """What passes by the challenger's decision, what that costs, and what the figures do not show."""
    about = describe_decision(report)
    table = _create_table("decision of the best candidate", PASSED)
    for cells in about.rows:
        table.add_row(*map(escape, cells))
    OUT.print(table)
    OUT.print(escape(f"{about.rule} {about.terms}"))
    for text in about.notes:
        OUT.print(f"[yellow]warning[/]  {escape(text)}")


def _show_verdict(outcome: Outcome | Promotion) -> None:
    """The verdict and why, what each gate said, and the classes to look after."""
    OUT.print(f"[bold {COLOUR[outcome.verdict]}]{outcome.verdict}[/]  {escape(outcome.reason)}")
    if outcome.findings:
        OUT.print(f"Gates    {escape(render_gates(outcome.findings))}")
    for warning in outcome.warnings:
        OUT.print(f"[yellow]warning[/]  {escape(warning)}")


def show_candidates(outcome: Outcome) -> None:
    """One row a candidate and seed, best on validation marked."""
    backbone = outcome.backbone
    table = _create_table(f"{outcome.domain} on {backbone.name}", HEADS)
    control = find_control(outcome.tuners)
    for row in outcome.candidates:
        cells = describe_candidate(row, control)
        table.add_row(*map(escape, cells), style="bold" if row.selected else None)
    OUT.print(table)
    _show_gains(outcome)
    if not backbone.trained:
        OUT.print(f"[yellow]{UNTRAINED}[/]")


def _show_gains(outcome: Outcome) -> None:
    """What the control is, and whether each candidate beats the baselines; where intervals are not known, why."""
    gains = describe_gains(outcome.tuners)
    for text in explain_control(outcome.tuners):
        OUT.print(escape(text))
    if gains.rows:
        table = _create_table("gains, test", gains.heads)
        for cells in gains.rows:
            table.add_row(*map(escape, cells))
        OUT.print(table)
    for text in gains.sentences:
        OUT.print(escape(text))
    if any(line.test.low is None for line in outcome.tuners):
        OUT.print("[yellow]Intervals are not known: the test set has fewer than three groups.[/]")


def show_comparison(outcome: Comparison) -> None:
    """A row a tuner over its seeds, the score of every class, what was searched, and where the picture is."""
    backbone = outcome.backbone
    table = _create_table(f"{outcome.domain} on {backbone.name}", ("tuner", "seeds", *HEADS[2:]))
    control = find_control(outcome.tuners)
    for line in outcome.tuners:
        seeds = " ".join(str(seed) for seed in line.seeds)
        cells = (mark_name(line, control), seeds, *describe_numbers(line))
        table.add_row(*map(escape, cells), style="bold" if line.selected else None)
    OUT.print(table)
    _show_gains(outcome)
    classes = list(outcome.tuners[0].class_scores)
    scores = _create_table("score by class, test", ("tuner", *classes))
    for line in outcome.tuners:
        scores.add_row(escape(line.tuner), *(f"{line.class_scores[name]:.2f}" for name in classes))
    OUT.print(scores)
    for name, text in list_searches(outcome.tuners).items():
        OUT.print(f"{escape(name)}: {escape(text)}")
    if not backbone.trained:
        OUT.print(f"[yellow]{UNTRAINED}[/]")
    OUT.print(f"Picture  {escape(str(outcome.picture))}", soft_wrap=True)


def _create_table(title: str, heads: Sequence[str]) -> Table:
    """Narrow on purpose: it has to fit a terminal of 80 columns."""
    table = Table(
        title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False
    )
    for place, head in enumerate(heads):
        table.add_column(escape(head), justify="right" if place else "left", no_wrap=True)
    return table


def show_next(name: str) -> None:
    """The commands a newcomer would want now."""
    OUT.print(
        f"\nNext     tessera compare {name}     the candidates again\n"
        f"         tessera history {name}     who was champion, when and why\n"
        f"         tessera predict {name} IMAGE...\n"
        f"         tessera check {name}       the images and their problems\n"
        "         tessera import FOLDER --domain NAME   images of your own"
    )


def show_check(outcome: Checked) -> None:
    """Counts, classes, and the first of what is wrong."""
    word = "[green]fit[/]" if outcome.ok else "[red]not fit[/]"
    noun = "crops" if outcome.understood.cut else "images"
    OUT.print(
        f"{outcome.domain}: {word}, {outcome.fit:,} of {outcome.images:,} {noun} may be used, "
        f"in {count_words(outcome.groups, 'group')}; "
        f"{count_words(outcome.near_duplicate_pairs, 'near-duplicate pair')}"
    )
    table = Table(header_style="bold")
    several = TASKS[outcome.understood.task].annotation != "label"  # classes of one image
    table.add_column("images that show" if several else "class")
    for head in outcome.splits:
        table.add_column(head, justify="right")
    for name in outcome.classes:
        cells = [
            f"{counts.images.get(name, 0):,} in {count_words(counts.groups.get(name, 0), 'group')}"
            for counts in outcome.splits.values()
        ]
        table.add_row(escape(name), *cells)
    if outcome.splits:
        OUT.print(table)
    lines = Table.grid(padding=(0, 2))
    for kind, texts in _troubles(outcome).items():
        for text in [*texts[:SHOWN], *([f"... and {len(texts) - SHOWN:,} more"] if len(texts) > SHOWN else [])]:
            lines.add_row(kind, escape(text))
            kind = ""  # once, above the rest of its kind
    OUT.print(lines)
    show_understood(outcome)
    OUT.print(f"Report   {escape(str(outcome.report))}", soft_wrap=True)
    _warn_of_pictures(outcome)


def show_import(outcome: Imported) -> None:
    """What changed, what was understood, and what to do next."""
    change = f"+{outcome.added} -{outcome.removed}"
    change += f" ~{outcome.changed}" if outcome.changed else ""
    OUT.print(
        f"{outcome.domain}: {change}, {outcome.files:,} files, version {outcome.data_version[:12]}",
        soft_wrap=True,
    )
    if outcome.kept:
        OUT.print("In what was brought now:")
    show_understood(outcome)
    if outcome.masks_unread:
        line = f"Masks    used as masks of {outcome.understood.task}; `--task {outcome.masks_unread}` "
        OUT.print(f"{line}under another name learns the class of every pixel from them", soft_wrap=True)
    if outcome.boxes_unread:
        line = f"Boxes    cut out for {outcome.understood.task}; `--task {outcome.boxes_unread}` "
        OUT.print(f"{line}under another name finds the objects in whole pictures", soft_wrap=True)
    OUT.print(f"Next     tessera check {outcome.domain}")
    for line in outcome.warnings:
        OUT.print(f"[yellow]Warning[/]  {escape(line)}", soft_wrap=True)
    _warn_of_pictures(outcome)


def show_understood(outcome: Checked | Imported) -> None:
    """Layout, task, classes, groups, pictures and three examples, so that a wrong reading is seen at once."""
    known, pictures = outcome.understood, outcome.pictures
    counts = f"{pictures.found:,} found: {pictures.used:,} used"
    counts += f" ({pictures.masks:,} as masks)" if pictures.masks else ""
    counts += f", {pictures.quarantined:,} quarantined, {len(pictures.ignored):,} ignored"
    samples = "crops of pictures" if known.cut else "pictures"
    lines = Table.grid(padding=(0, 1))
    lines.add_column(width=8)
    lines.add_column(overflow="fold")
    lines.add_row("Layout", escape(known.layout))
    lines.add_row("Task", f"{known.task}, {known.samples:,} {samples}")
    classes = ", ".join(f"{name} {count:,}" for name, count in known.classes.items())
    lines.add_row("Classes", escape(f"pictures that show {classes}" if known.objects else classes))
    if known.objects:
        lines.add_row("Objects", escape(_count_objects(known.objects)))
    lines.add_row("Groups", f"{known.groups:,}, by {escape(known.group or 'picture')}")
    lines.add_row("Pictures", counts)
    for word, texts in (("Note", [f"{what}: {count:,}" for what, count in outcome.notes.items()]),
                        ("Split", outcome.hints),
                        ("Such as", [f"{item.path}: {item.label}" for item in known.examples])):  # fmt: skip
        for place, text in enumerate(texts):
            lines.add_row("" if place else word, escape(text))
    OUT.print(lines)


def _count_objects(objects: ObjectCounts) -> str:
    """Objects per class, those that are ignored, and pictures without any."""
    text = ", ".join(f"{name} {count:,}" for name, count in objects.counts.items())
    kinds = (("difficult", objects.difficult), ("crowd", objects.crowd))
    ignored = " and ".join(f"{count:,} {kind}" for kind, count in kinds if count)
    text += f"; ignored: {ignored}" if ignored else ""
    return f"{text}; {objects.empty:,} of {objects.pictures:,} pictures without any"


def _warn_of_pictures(outcome: Checked | Imported) -> None:
    """The last line, where it cannot be overlooked."""
    from components.data.accounts import warn_of_ignored  # loads slowly, and only two commands need it

    for line in warn_of_ignored(outcome.pictures):
        OUT.print(f"[yellow]Warning[/]  {escape(line)}", soft_wrap=True)


def _troubles(outcome: Checked) -> dict[str, Sequence[str]]:
    """What deserves a look, by kind; the worst first."""
    suspects = [
        f"{row.path}{' at ' + ' '.join(map(str, row.crop)) if row.crop else ''}: "
        f"{row.given}, rather {row.suggested}; {row.why}"
        for row in outcome.suspicious_labels
    ]
    kinds: dict[str, Sequence[str]] = {
        "[red]problem[/]": outcome.problems,
        "[yellow]quarantined[/]": [f"{row.path}: {row.reason}" for row in outcome.quarantined],
        "[yellow]put aside[/]": [f"{row.path}: {row.reason}" for row in outcome.aside],
        "[yellow]label?[/]": suspects,
        "[yellow]look at[/]": outcome.warnings,
        "labels": [outcome.labels.note] if outcome.labels else [],
    }
    return {kind: texts for kind, texts in kinds.items() if texts}


def show_version(outcome: Named) -> None:
    """The name, new or old, and what it stands for."""
    named = outcome.version
    if outcome.status == "unchanged":
        OUT.print(f"[green]Nothing changed[/]: these images are {named.name} already; the remote has them.")
        return
    OUT.print(f"[green]{named.name}[/]  {named.images} images, {describe_difference(named)}; on the remote")
    if outcome.git:
        OUT.print("Next     git push --follow-tags     makes the name known to others")


def show_versions(outcome: Versions) -> None:
    """One row a version."""
    if not outcome.versions:
        OUT.print(f"{outcome.domain} has no named version yet: tessera version {outcome.domain}")
        return
    table = Table(header_style="bold", box=SIMPLE_HEAD)
    for head in ("version", "when", "images", "classes", "change", "message"):
        table.add_column(head)
    for named in outcome.versions:
        classes = ", ".join(f"{label} {count}" for label, count in (named.classes or {}).items())
        cells = (named.name, named.created[:10], str(named.images or f"{named.files} files"), classes)
        table.add_row(*map(escape, (*cells, describe_difference(named), named.message)))
    OUT.print(table)


def show_checkout(outcome: CheckedOut) -> None:
    """What is there now."""
    named = outcome.version
    OUT.print(f"[green]{named.name}[/] is in {escape(str(outcome.raw))}: {named.files} files")


def show_schema(keys: Sequence[Mapping[str, str]]) -> None:
    """One key a line, in 80 columns; options of layouts and candidates below the key that takes them."""
    for row in keys:
        allowed = f" ({row['allowed']})" if row["allowed"] else ""
        OUT.print(f"[bold]{row['key']}[/]: {escape(row['default'])}", highlight=False)
        text = Padding(escape(f"{row['meaning']}{allowed}"), (0, 0, 0, 4))
        OUT.print(text, width=80, highlight=False)


def show_preview(outcome: Previewed) -> None:
    """Where the sheet is."""
    OUT.print(str(outcome.path), soft_wrap=True, markup=False)


def show_removal(outcome: Removed) -> None:
    """What went, what stays, and how to have it back."""
    name = outcome.domain
    OUT.print(f"{name}: removed {outcome.files} files and what was made of them:")
    for path in outcome.removed:
        OUT.print(f"  {path}", soft_wrap=True, markup=False, highlight=False)
    OUT.print("Stays: ledger, models and their runs, named versions, DVC's cache and remote, and")
    for path in outcome.kept:
        OUT.print(f"  {path}", soft_wrap=True, markup=False, highlight=False)
    OUT.print(f"To have it back, as long as DVC's cache or remote has its files:\n  {outcome.back}", soft_wrap=True)
    OUT.print(f"  tessera check {name}\nSchedules end with the next `tessera deploy`.", highlight=False)


def describe_difference(named: NamedVersion) -> str:
    """`+12 -3, 2 relabelled` against the version before."""
    change = named.difference
    if change is None:
        return "the first"
    return f"+{change.added} -{change.removed}, {change.relabelled} relabelled"


def show_records(outcome: History) -> None:
    """The verdict, if one was just given, and the ledger."""
    if isinstance(outcome, Promotion):
        _show_verdict(outcome)
    table = Table(header_style="bold")
    for head in ("#", "when (UTC)", "who", "what", "from", "to", "why"):
        table.add_column(head, no_wrap=head == "when (UTC)")
    for row in outcome.records:
        when = row.when[:16].replace("T", " ")
        what = row.verdict if row.action == "judge" else row.action
        cells = (row.number, when, row.who, what, row.previous, row.version, row.reason)
        table.add_row(*("" if cell is None else escape(str(cell)) for cell in cells))
    OUT.print(table)
    champion = outcome.champion_version
    OUT.print(f"Champion of {outcome.domain}: " + (f"version {champion}" if champion else "none yet"))
    if isinstance(outcome, HistoryAt):
        then = outcome.champion_at
        OUT.print(f"At {outcome.at}: " + (f"version {then}" if then else "none yet"))
    for problem in outcome.ledger_problems:
        OUT.print(f"[red]ledger[/] {escape(problem)}")


def show_ledger(outcome: LedgerReport) -> None:
    """Whole, or what is wrong with it."""
    for problem in outcome.problems:
        OUT.print(f"[red]problem[/] {escape(problem)}")
    for note in outcome.notes:
        OUT.print(f"[yellow]note[/] {escape(note)}")
    word = "[red]not whole[/]" if outcome.problems else "[green]whole[/]"
    OUT.print(f"Ledger of {outcome.domain}: {word}; records: {outcome.records}")


def show_export(outcome: Exported) -> None:
    """How many rows and files went where, and what did not."""
    OUT.print(f"{outcome.domain}: {outcome.rows} rows, {outcome.files} files in {outcome.folder}", markup=False)
    for what, count in outcome.notes.items():
        OUT.print(f"[yellow]Warning[/]  {escape(what)}: {count:,}", soft_wrap=True)


def show_embed(outcome: Embedded) -> None:
    """What is in the file, by which network, and which files have no row."""
    features, backbone = outcome.features, outcome.features.backbone
    computed = features.rows - features.known
    OUT.print(
        f"{outcome.domain}: {features.rows:,} features of {features.width:,} numbers in {outcome.out} "
        f"({computed:,} computed, {features.known:,} known; {outcome.seconds:.0f} s)",
        markup=False,
        soft_wrap=True,
    )
    OUT.print(
        f"Backbone {backbone.name} at {features.img_size} pixels, {features.dtype} on {features.device}; "
        f"licence {backbone.licence}",
        markup=False,
        soft_wrap=True,
    )
    if not backbone.trained:
        OUT.print("[yellow]Warning[/]  its weights are not trained: the features mean nothing")
    for row in outcome.left_out[:SHOWN]:
        OUT.print(f"[yellow]no row[/]   {escape(row.path)}: {escape(row.reason)}", soft_wrap=True)
    if (more := len(outcome.left_out) - SHOWN) > 0:
        OUT.print(f"[yellow]no row[/]   and {more:,} more; `--json` lists all")


def show_model_export(outcome: ModelExport) -> None:
    """What was written, what was verified, and what the gate of int8 said."""
    card, verified, int8 = outcome.card, outcome.card.verified, outcome.card.int8
    OUT.print(
        f"{outcome.domain} version {outcome.version} ({card.tuner}) in {escape(str(outcome.folder))}", soft_wrap=True
    )
    for name, size in outcome.files.items():
        OUT.print(f"  {escape(name):<18} {size / 1e6:8.2f} MB")
    if card.licences:
        OUT.print(f"Licences {escape(describe_chain(card.licences))}", soft_wrap=True)
    if verified is not None:
        kind = "drawn pictures, because images of the test split are not here" if verified.synthetic else "test images"
        apart = max(verified.largest_difference, verified.graph_difference)
        told = f"{verified.equal} of {verified.images} answers equal Tessera's in float32"
        OUT.print(f"Verified on {kind}: {told}, probabilities within {apart:.1g}", soft_wrap=True)
    if int8 is not None:
        OUT.print(f"[{'green' if int8.kept else 'yellow'}]int8[/] {escape(int8.reason)}", soft_wrap=True)
    for problem in outcome.problems:
        OUT.print(f"[red]problem[/] {escape(problem)}", soft_wrap=True)
    if outcome.logged:
        OUT.print(f"Logged to MLflow beside the version, as export/ of run {outcome.logged}", soft_wrap=True)


def show_ledger_export(outcome: LedgerExport) -> None:
    """How many records went where."""
    OUT.print(f"Ledger of {outcome.domain} in {escape(str(outcome.file))}; records: {outcome.records}", soft_wrap=True)


def show_demo(outcome: Created | Outcome) -> None:
    """The images that were made; or the retrain, and its champion's answers for some of them."""
    if isinstance(outcome, Created):
        OUT.print(f"{outcome.domain}: {outcome.files} files in {outcome.raw}", markup=False)
        return
    show_retrain(outcome)
    if isinstance(outcome, Demonstrated):
        OUT.print()
        OUT.print(draw_answers(f"{outcome.domain} version {outcome.champion_version}", outcome.predictions))
        if outcome.picture:
            OUT.print(f"Picture  {escape(str(outcome.picture))}", soft_wrap=True)


def show_reproduced(outcome: Reproduced) -> None:
    """Whether it is the same, and why."""
    OUT.print(f"{outcome.verdict}  {outcome.reason}", markup=False)


def show_restored(outcome: Restored) -> None:
    """What the alias is now, and what it was."""
    champion = outcome.champion_version
    told = f"Champion of {outcome.domain}: {f'version {champion}' if champion else 'none'}, as the ledger says."
    OUT.print(told + (f" It was {escape(outcome.found)}." if outcome.found else " Nothing was to be done."))


def show_doctor(outcome: Diagnosis) -> None:
    """One line a check, with the fixing command where it failed."""
    mark = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "error": "[red]✗[/]"}
    for row in outcome.checks:
        OUT.print(f"{mark[row.state]} {row.name:<12} {escape(row.found)}")
        if row.hint:
            OUT.print(f"  [dim]hint:[/] {escape(row.hint)}")


def show_deployed(outcome: Deployment) -> None:
    """What deploying did, a line a thing; what stayed is dim."""
    mark = {
        "created": "[green]+[/]",
        "changed": "[yellow]~[/]",
        "removed": "[red]-[/]",
        "unchanged": "[dim]=[/]",
        "unreadable": "[red]![/]",
    }
    for row in outcome.deployed:
        style = "dim" if row.change == "unchanged" else ""
        text = f"{row.kind:<11} {row.name}  {row.change}" + (f"  ({row.note})" if row.note else "")
        OUT.print(f"{mark[row.change]} [{style or 'default'}]{escape(text)}[/]")


def show_status(outcome: Status) -> None:
    """The table, once."""
    OUT.print(draw_status(outcome))


def draw_status(outcome: Status) -> Group:
    """Up to three lines per domain, which fit 80 columns, and the pools with their workers below."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", padding=0, show_edge=False)
    for head in ("domain", "data", "champion", "drift", "last run", "next run"):
        table.add_column(head, no_wrap=head != "domain", overflow="fold" if head == "domain" else "ellipsis")
    for row in outcome.domains:
        if row.error is None:
            table.add_row(*_describe_domain(row))
        else:
            table.add_row(escape(row.domain), *["[red]?[/]"] * 5)
    pools = [
        f"pool {pool.name}: "
        + (", ".join(pool.workers_online) or "[yellow]no worker[/]")
        + (" [yellow](paused)[/]" if pool.paused else "")
        for pool in outcome.pools
    ]
    errors = [
        f"[red]{escape(row.domain)} cannot be read:[/] {escape(row.error.message)}"
        for row in outcome.domains
        if row.error is not None
    ]
    troubles = [
        f"[red]{escape(row.champion_trouble.message)}[/]" for row in outcome.domains if row.champion_trouble is not None
    ]
    licences = [_format_licences(row) for row in outcome.domains if row.licences]
    servers = f"[dim]MLflow {escape(outcome.mlflow)} · Prefect {escape(outcome.prefect or 'embedded')}[/]"
    legend = [DRIFT] if any(row.drift for row in outcome.domains) else []
    if not outcome.domains:
        legend = ["No domain yet: `tessera import FOLDER --domain NAME` makes one of your images."]
    return Group(table, *legend, *licences, *errors, *troubles, *pools, servers)


def _describe_domain(row: DomainRow) -> tuple[str, ...]:
    """The cells of one domain, each of one to three lines."""
    champion = row.champion_version
    stale = champion is not None and row.champion_data != row.data_version
    name = (row.data_name or (row.data_version or "")[:8]).removeprefix(f"{row.domain}@")
    moved = "[red]moved by hand[/]" if row.champion_trouble else ""
    who = moved or "none yet" if champion is None else f"version {champion}" + (" [yellow]old data[/]" if stale else "")
    back = f"\n[yellow]rolled back from {row.rolled_back_from}[/]" if row.rolled_back_from else ""
    verdict = f"[{COLOUR[row.verdict]}]{row.verdict}[/]\n" if row.verdict else ""
    score = "-" if row.champion_score is None else escape(format_score(row.champion_score))
    return (
        escape(row.domain),
        f"{escape(name)}\n{row.files:,} files",
        who if champion is None else f"{who}\n{score}{back}",
        _format_drift(row.drift),
        f"{verdict}{_format_run(row)}",
        _format_when(row.next_run),
    )


def _format_licences(row: DomainRow) -> str:
    """The licences of a champion on a line; those that the domain's gate would reject with their names."""
    domain, short = escape(row.domain), " · ".join(f"{link.role} {link.licence}" for link in row.licences)
    if not row.licences_outside:
        return f"[dim]licences of {domain}: {escape(short)}[/]"
    return f"[red]licences of {domain} outside `gates.licences`:[/] {escape(describe_chain(row.licences_outside))}"


def _format_drift(drift: Drift | None) -> str:
    if drift is None or drift.share is None:
        return "-" if drift is None else f"?\n{drift.new:,} new"
    colour = "yellow" if drift.share >= MUCH_DRIFT else "default"
    return f"[{colour}]{drift.share:.0%}[/]\n{drift.new:,} new"


def _format_run(row: DomainRow) -> str:
    if row.running:
        return f"[cyan]running\nfor {_format_when(row.running).removesuffix(' ago')}[/]"
    last = row.last_run
    return "-" if last is None else f"{last.state}\n{_format_when(last.when)}"


def _format_when(text: str | None) -> str:
    """`in 4 d`, `2 h ago`: how far a moment is from now."""
    if text is None:
        return "-"
    seconds = (datetime.fromisoformat(text) - datetime.now(UTC)).total_seconds()
    far = abs(seconds)
    size, unit = next((pair for pair in ((86400, "d"), (3600, "h"), (60, "min")) if far >= pair[0]), (1, "s"))
    return f"in {far / size:.0f} {unit}" if seconds > 0 else f"{far / size:.0f} {unit} ago"


def watch(look: Callable[[], Status], draw: Callable[[Status], Group]) -> None:
    """Draw what there is again and again, until Ctrl-C."""
    with Screen(draw(look()), console=OUT, auto_refresh=False) as screen:
        while True:
            time.sleep(WATCH_SECONDS)
            screen.update(draw(look()), refresh=True)
