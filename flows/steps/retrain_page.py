"""The retrain report: one HTML file on disk that needs nothing else, and its table as markdown for Prefect."""

import base64
import html
from collections.abc import Mapping
from pathlib import Path

from components.files import write_whole
from components.records.history import Promotion
from components.records.outcomes import Outcome, Score
from components.reports.words import HEADS, describe_candidate, list_gains, list_searches
from components.tasks import Task, create_task
from components.tasks.base import by_class
from components.tracking.pages import CARD, DATA, name_verdict, without_html
from flows.plan import Plan

UNTRAINED = "The backbone is UNTRAINED (random weights): these scores show the machinery, not the methods."
MOST_LISTED = 50
COLOUR = {"PROMOTE": "#1a7f37", "HOLD": "#9a6700", "REJECT": "#cf222e"}

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem;color:#1f2328}
table{border-collapse:collapse;width:100%;margin:1rem 0}td,th{padding:.35rem .6rem;text-align:right}
td:first-child,th:first-child{text-align:left}th{border-bottom:2px solid #d0d7de}td{border-bottom:1px solid #eaeef2}
tr.best{font-weight:600;background:#f6f8fa}.verdict{font-size:1.3rem;font-weight:700}
.warning{background:#fff8c5;border:1px solid #d4a72c;padding:.5rem .8rem}dt{color:#59636e}dd{margin:0 0 .4rem}
dd{overflow-wrap:anywhere}code{font-size:.9em}img{width:100%}
.bar{background:#afb8c1;height:8px;position:relative;width:160px;border-radius:4px;display:inline-block}
.bar i{position:absolute;height:8px;background:#0969da;border-radius:4px}
.bar b{position:absolute;width:2px;height:14px;top:-3px;background:#1f2328}
"""


def report_path(plan: Plan) -> Path:
    return plan.folder / "report.html"


def write_report(plan: Plan, outcome: Outcome, picture: Path, pages: Mapping[str, str]) -> Path:
    """Write the report beside the adapters it speaks of; returns its path. pages: of `list_pages`."""
    path = report_path(plan)
    write_whole(path, render_html(plan, outcome, picture, pages).encode())
    return path


def render_markdown(outcome: Outcome) -> str:
    """The verdict and its reasons, and the candidates' table."""
    rows = [" | ".join(HEADS), " | ".join("---" for _ in HEADS)]
    rows += [" | ".join(cell.strip() for cell in describe_candidate(row)) for row in outcome.candidates]
    gains = [f"- {text}" for text in list_gains(outcome.tuners)]
    searches = [f"- {name}: {text}" for name, text in list_searches(outcome.tuners).items()]
    warning = [] if outcome.backbone.trained else [f"> {UNTRAINED}", ""]
    data = f"Data version `{outcome.data_version}`."
    parts = [render_verdict(outcome), "", "## Candidates", "", *warning, *rows, "", *gains, *searches, "", data]
    return without_html("\n".join(parts))


def render_verdict(judged: Outcome | Promotion) -> str:
    """What a version came to, why, and who is champion now."""
    findings = [f"- **{f.gate}** {name_verdict(f.verdict)}: {f.reason}" for f in judged.findings]
    warnings = [line for warning in judged.warnings for line in (f"> Warning: {warning}", "")]
    head = f"# {judged.domain} version {judged.challenger_version}: {judged.verdict}"
    champion = judged.champion_version
    told = f"Champion now: {f'version {champion}' if champion else 'none yet'}."
    parts = [head, "", judged.reason, "", *warnings, told, "", "## Gates", "", *findings]
    return without_html("\n".join(parts))


def render_validation(plan: Plan) -> str:
    """What the data stages found: classes by side, what was put away, what deserves a look."""
    record, manifest = plan.load_validation(), plan.load_manifest()
    sides = ("train", "val", "test")
    counted = by_class(manifest).group_by("label", "split").len()
    counts = {(label, side): count for label, side, count in counted.rows()}
    labels = [label for label in plan.domain.classes if any((label, side) in counts for side in sides)]
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
                f"The report with pictures: `{plan.validation_report}`",
            ]
        )
    )


def render_html(plan: Plan, outcome: Outcome, picture: Path, elsewhere: Mapping[str, str]) -> str:
    """The whole report with the picture in it; every text in it is escaped. elsewhere: pages on servers, by name."""
    domain = plan.domain
    title = html.escape(domain.title or domain.name)
    verdict = outcome.verdict
    warning = "" if outcome.backbone.trained else f'<p class="warning">{UNTRAINED}</p>'
    told = f"<p>{html.escape(outcome.reason)}</p>{render_warnings(outcome)}"
    table = _render_table(outcome, create_task(domain))
    findings = "".join(
        f"<dt><b>{html.escape(f.gate)}</b> {name_verdict(f.verdict)}</dt><dd>{html.escape(f.reason)}</dd>"
        for f in outcome.findings
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}: {verdict}</title><style>{STYLE}</style>'
        f"<h1>{title}</h1><p>{html.escape(domain.description)}</p>{warning}"
        f'<p class="verdict" style="color:{COLOUR[verdict]}">{verdict}</p>{told}'
        f"<h2>Candidates</h2>{table}{_render_gains(outcome)}{_render_picture(picture)}{_list_searcheses(outcome)}<h2>Gates</h2><dl>{findings}</dl>"
        f"<h2>Lineage</h2><dl>{_render_lineage(plan, outcome)}"
        f"{render_links(elsewhere, card=plan.folder / CARD)}</dl></html>"
    )


def render_warnings(outcome: Outcome) -> str:
    return "".join(f'<p class="warning">{html.escape(warning)}</p>' for warning in outcome.warnings)


def _render_gains(outcome: Outcome) -> str:
    return "".join(f"<p>{html.escape(text)}</p>" for text in list_gains(outcome.tuners))


def _render_table(outcome: Outcome, task: Task) -> str:
    head = "".join(f"<th>{name}</th>" for name in (*HEADS, ""))
    body = "".join(
        f'<tr class="{"best" if row.selected else ""}">'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in describe_candidate(row))
        + f"<td>{_render_bar(row.test)}</td></tr>"
        for row in outcome.candidates
    )
    note = f"The score is {task.metric_words}; intervals by bootstrap over groups. ► the best on validation (mean)"
    return f"<table><tr>{head}</tr>{body}</table><p>{note}</p>"


def _render_picture(picture: Path) -> str:
    encoded = base64.b64encode(picture.read_bytes()).decode()
    return f'<img alt="Scores against costs, scores by class" src="data:image/png;base64,{encoded}">'


def _list_searcheses(outcome: Outcome) -> str:
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


def render_links(elsewhere: Mapping[str, str], **here: Path) -> str:
    """Other pages of the same: on servers, and beside this one on the disk of the machine that wrote it."""
    pages = dict(elsewhere) | {f"{name} (on the machine of the retrain)": path.as_uri() for name, path in here.items()}
    links = [f'<a href="{html.escape(page)}">{html.escape(name)}</a>' for name, page in pages.items()]
    return f"<dt>see also</dt><dd>{' · '.join(links)}</dd>"


def _render_lineage(plan: Plan, outcome: Outcome) -> str:
    backbone, data = outcome.backbone, outcome.validation
    facts = {
        "data version": outcome.data_version,
        "images": f"{data.fit} fit of {data.images}, in {data.groups} groups",
        "backbone": f"{backbone.name}, sha256 {backbone.sha256}",
        "code": plan.code,
        "key": outcome.verdict_key,
        "challenger": f"version {outcome.challenger_version}",
        "champion": f"version {outcome.champion_version}" if outcome.champion_version else "none yet",
        "licence of the data": plan.domain.licence or "not stated in domain.yaml",
        "citation": plan.domain.citation or "not stated in domain.yaml",
    }
    rows = "".join(f"<dt>{name}</dt><dd><code>{html.escape(value)}</code></dd>" for name, value in facts.items())
    here, in_mlflow = html.escape(plan.validation_report.as_uri()), f"{DATA}/{plan.validation_report.name}"
    links = f'<a href="{here}">on the machine of the retrain</a>; in MLflow <code>{in_mlflow}</code> of the same run'
    return rows + f"<dt>validation report</dt><dd>{links}</dd>"
