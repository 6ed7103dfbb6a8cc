"""The retrain report: one HTML file on disk that needs nothing else, and its table as Markdown for Prefect."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from components.domain.domain import Domain
from components.records.history import Promotion
from components.records.images import ValidationSummary
from components.records.jobs import load_predictions
from components.records.licences import describe_chain
from components.records.outcomes import Outcome, PassReport, Score
from components.reports import answers
from components.reports.decisions import HEADS as PASSED
from components.reports.decisions import describe_decision
from components.reports.shell import (
    embed_picture,
    render_links,
    render_page,
    render_row,
    render_verdict,
    render_warning,
)
from components.reports.suspects import Questioned, render_suspects
from components.reports.words import (
    HEADS,
    UNTRAINED,
    ByClass,
    describe_candidate,
    describe_gains,
    explain_control,
    find_control,
    list_searches,
    name_verdict,
    without_html,
)
from components.tasks import Task, create_task
from components.tasks.base import DenseTask, by_class

MOST_LISTED = 50


@dataclass(frozen=True)
class RetrainReport:
    """Everything the report is made from.

    picture: a PNG that compares the candidates. challenger: the folder of its training. known: what is known of
    classes. raw: the folder of the images. code: git commit. validation: the validation report, and
    `validation_artifact` its place in MLflow. card: the model card. pages: those on servers, by name.
    questioned: the labels, where
    these are boxes.
    """

    domain: Domain
    outcome: Outcome
    picture: Path
    challenger: Path
    known: ByClass
    raw: Path
    code: str
    validation: Path
    validation_artifact: str
    card: Path
    pages: Mapping[str, str]
    questioned: Questioned | None = None


def render_markdown(outcome: Outcome, classes: str = "") -> str:
    """The verdict and its reasons, and the candidates' table.

    classes: what the challenger's answers are worth by class, where these are more than labels.
    """
    control, gains = find_control(outcome.tuners), describe_gains(outcome.tuners)
    rows = _list_lines(HEADS, [describe_candidate(row, control) for row in outcome.candidates])
    compared = [*_list_lines(gains.heads, gains.rows), ""] if gains.rows else []
    notes = [f"- {text}" for text in (*map(_escape_star, explain_control(outcome.tuners)), *gains.sentences)]
    searches = [f"- {name}: {text}" for name, text in list_searches(outcome.tuners).items()]
    warning = [] if outcome.backbone.trained else [f"> {UNTRAINED}", ""]
    by_name = ["## Classes", "", classes, ""] if classes else []
    passed = _list_decision(outcome.decision) if outcome.decision else []
    data = f"Data version `{outcome.data_version}`. Licences: {describe_chain(outcome.licences)}."
    suspicion = [] if outcome.suspicion is None else [f"Labels: {outcome.suspicion.text}", ""]
    parts = [describe_verdict(outcome), "", "## Candidates", "", *warning, *rows, "", *compared, *notes, *searches, ""]
    return without_html("\n".join([*parts, *passed, *by_name, *suspicion, data]))


def _list_decision(report: PassReport) -> list[str]:
    """A section on what passes, line by line."""
    about = describe_decision(report)
    notes = [f"- {text}" for text in (about.terms, about.origin, *about.notes)]
    return ["## Decision", "", about.rule, "", *_list_lines(PASSED, about.rows), "", *notes, ""]


def _list_lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, line by line."""
    lines = [" | ".join(_escape_star(cell.strip()) for cell in cells) for cells in (heads, *rows)]
    return [lines[0], " | ".join("---" for _ in heads), *lines[1:]]


def _escape_star(text: str) -> str:
    return text.replace("*", "\\*")


def describe_verdict(judged: Outcome | Promotion) -> str:
    """What a version came to, why, and who is champion now."""
    findings = [f"- **{f.gate}** {name_verdict(f.verdict)}: {f.reason}" for f in judged.findings]
    warnings = [line for warning in judged.warnings for line in (f"> Warning: {warning}", "")]
    head = f"# {judged.domain} version {judged.challenger_version}: {judged.verdict}"
    champion = judged.champion_version
    told = f"Champion now: {f'version {champion}' if champion else 'none yet'}."
    parts = [head, "", judged.reason, "", *warnings, told, "", "## Gates", "", *findings]
    return without_html("\n".join(parts))


def render_validation(record: ValidationSummary, manifest: pl.DataFrame, classes: Sequence[str], report: Path) -> str:
    """What the data stages found: images that show each class by split, what is in quarantine, and warnings.

    manifest: samples with their splits. report: the page with pictures.
    """
    sides = ("train", "val", "test")
    counted = by_class(manifest).group_by("label", "split").len()
    counts = {(label, side): count for label, side, count in counted.rows()}
    labels = [label for label in classes if any((label, side) in counts for side in sides)]
    rows = [f"| {label} | " + " | ".join(str(counts.get((label, s), 0)) for s in sides) + " |" for label in labels]
    put_away = [f"- `{row.path}`: {row.reason}" for row in record.quarantined]
    told = [f"- {warning}" for warning in record.warnings]
    return without_html(
        "\n".join(
            [
                f"# {record.fit} of {record.images} images are fit, in {record.groups} groups",
                "",
                "| class | train | val | test |",
                "|---|---|---|---|",
                *rows,
                *(["", "## Warnings", *told] if told else []),
                *(["", f"## In quarantine: {len(put_away)}", *put_away[:MOST_LISTED]] if put_away else []),
                "",
                f"The report with pictures: `{report}`",
            ]
        )
    )


def render_html(report: RetrainReport) -> str:
    """The whole report with the picture in it; every text in it is escaped."""
    domain, outcome = report.domain, report.outcome
    title = domain.title or domain.name
    untrained = "" if outcome.backbone.trained else render_warning(UNTRAINED)
    findings = "".join(
        f"<dt><b>{html.escape(f.gate)}</b> {name_verdict(f.verdict)}</dt><dd>{html.escape(f.reason)}</dd>"
        for f in outcome.findings
    )
    picture = embed_picture(report.picture.read_bytes(), "Scores against costs, scores by class")
    task = create_task(domain)
    body = (
        f"<h1>{html.escape(title)}</h1><p>{html.escape(domain.description)}</p>{untrained}"
        f"{render_verdict(outcome.verdict, outcome.reason, outcome.warnings)}"
        f"<h2>Candidates</h2>{_render_table(outcome, task)}{_render_gains(outcome)}{picture}"
        f"{_render_searches(outcome)}{_render_decision(outcome)}{_render_answers(report, task)}"
        f"{_render_suspects(report)}"
        f"<h2>Gates</h2><dl>{findings}</dl>"
        f"<h2>Lineage</h2><dl>{_render_lineage(report)}{render_links(report.pages, card=report.card)}</dl>"
    )
    return render_page(f"{title}: {outcome.verdict}", body)


def _render_gains(outcome: Outcome) -> str:
    gains = describe_gains(outcome.tuners)
    rows = "".join(map(render_row, gains.rows))
    table = f"<table>{render_row(gains.heads, 'th')}{rows}</table>" if rows else ""
    return table + "".join(f"<p>{html.escape(text)}</p>" for text in gains.sentences)


def _render_decision(outcome: Outcome) -> str:
    """What the challenger lets pass and what that costs, where it has a decision."""
    if outcome.decision is None:
        return ""
    about = describe_decision(outcome.decision)
    rows = "".join(map(render_row, about.rows))
    table = f"<p>{html.escape(about.rule)}</p><table>{render_row(PASSED, 'th')}{rows}</table>"
    explained = f"<p>{html.escape(f'{about.terms} {about.origin}')}</p>"
    return f"<h2>Decision</h2>{table}{explained}{''.join(map(render_warning, about.notes))}"


def _render_answers(report: RetrainReport, task: Task) -> str:
    """What the challenger's answers are worth, where these are more than labels."""
    if not isinstance(task, DenseTask):
        return ""
    frame = load_predictions(report.challenger, "test")
    return answers.render_sections(frame, task, report.domain.classes, report.raw, report.known)


def _render_suspects(report: RetrainReport) -> str:
    if report.questioned is None:
        return ""
    return render_suspects(report.questioned, report.domain.classes, report.raw)


def _render_table(outcome: Outcome, task: Task) -> str:
    control = find_control(outcome.tuners)
    head = "".join(f"<th>{name}</th>" for name in (*HEADS, ""))
    body = "".join(
        f'<tr class="{"best" if row.selected else ""}">'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in describe_candidate(row, control))
        + f"<td>{_render_bar(row.test)}</td></tr>"
        for row in outcome.candidates
    )
    note = f"The score is {task.metric_words}; intervals by bootstrap over groups. ► the best on validation (mean)"
    notes = "".join(f"<p>{html.escape(text)}</p>" for text in (note, *explain_control(outcome.tuners)))
    return f"<table><tr>{head}</tr>{body}</table>{notes}"


def _render_searches(outcome: Outcome) -> str:
    """What was tried and chosen, where there was a search."""
    searches = list_searches(outcome.tuners).items()
    items = "".join(f"<dt><b>{html.escape(name)}</b></dt><dd>{html.escape(text)}</dd>" for name, text in searches)
    return f"<h2>Searches</h2><dl>{items}</dl>" if items else ""


def _render_bar(test: Score) -> str:
    """The interval, where it is known, on the scale from 0 to 1, and the score as a tick."""
    score = f'<b style="left:{100 * test.value:.1f}%"></b>'
    if test.low is None or test.high is None:
        return f'<span class="bar">{score}</span>'
    low, width = 100 * test.low, 100 * (test.high - test.low)
    return f'<span class="bar"><i style="left:{low:.1f}%;width:{width:.1f}%"></i>{score}</span>'


def _render_lineage(report: RetrainReport) -> str:
    domain, outcome = report.domain, report.outcome
    backbone, data = outcome.backbone, outcome.validation
    facts = {
        "data version": outcome.data_version,
        "images": f"{data.fit} fit of {data.images}, in {data.groups} groups",
        "backbone": f"{backbone.name}, sha256 {backbone.sha256}",
        "code": report.code,
        "key": outcome.verdict_key,
        "challenger": f"version {outcome.challenger_version}",
        "champion": f"version {outcome.champion_version}" if outcome.champion_version else "none yet",
        **{f"licence of {link.subject}": link.licence for link in outcome.licences},
        "citation": domain.citation or "not stated in domain.yaml",
    }
    rows = "".join(f"<dt>{name}</dt><dd><code>{html.escape(value)}</code></dd>" for name, value in facts.items())
    here, there = html.escape(report.validation.as_uri()), html.escape(report.validation_artifact)
    links = f'<a href="{here}">on the machine of the retrain</a>; in MLflow <code>{there}</code> of the same run'
    return rows + f"<dt>validation report</dt><dd>{links}</dd>"
