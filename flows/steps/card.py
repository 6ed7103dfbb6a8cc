"""The model card of a registered version: one HTML file that needs nothing else, and the same text as Markdown.

What it says is measured or read from the version's own record; what nobody stated is said to be not stated.
"""

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from components.files import write_whole
from components.promotion.evidence import score_frame
from components.promotion.statistics import bootstrap
from components.records.jobs import SALIENCY_FILE, Result, load_predictions
from components.records.outcomes import Outcome
from components.reports.pictures import draw_calibration, draw_mistakes, draw_saliency
from components.reports.words import list_gains
from components.tasks import create_task
from components.tasks.base import by_class, has_labels
from components.tracking.pages import CARD, DATA, EVIDENCE, name_verdict, render_ends, render_table, without_html
from flows.plan import Plan
from flows.steps.retrain_page import COLOUR, STYLE, UNTRAINED, render_links, render_warnings, report_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNSTATED = "not stated in domain.yaml"
CARD_TEXT = "model_card.md"
LOOKED = (
    "The hardest test images, those whose truth got the least probability, and the patches that speak for the "
    "answer given: HiResCAM (Draelos & Carin, arXiv 2011.08891) at the patch tokens that enter the last block."
)
Section = tuple[str, Sequence[tuple[str, str]]]


@dataclass(frozen=True)
class ModelCard:
    """Everything a card is made from. parent: the retrain's run in MLflow. pages: those of the candidate's run."""

    plan: Plan
    outcome: Outcome
    result: Result
    parent: str
    pages: Mapping[str, str]

    @property
    def title(self) -> str:
        name = self.plan.domain.title or self.plan.domain.name
        return f"{name}: {self.result.label}, version {self.outcome.challenger_version}"


def write_card(card: ModelCard) -> tuple[Path, Path]:
    """Both forms, beside the retrain report."""
    page, text = card.plan.folder / CARD, card.plan.folder / CARD_TEXT
    write_whole(page, render_html(card).encode())
    write_whole(text, render_markdown(card).encode())
    return page, text


def render_markdown(card: ModelCard) -> str:
    """Words and tables; the pictures are in the HTML."""
    lines = [f"# {card.title}", "", _summarise(card), ""]
    lines += [] if card.result.backbone["trained"] else [f"> {UNTRAINED}", ""]
    lines += [line for warning in card.outcome.warnings for line in (f"> Warning: {warning}", "")]
    head, *rows = list(_score_slices(card))
    lines += ["## Scores by slice", "", render_table(head, rows), ""]
    for title, facts in _sections(card):
        lines += [f"## {title}", "", *(f"- **{name}**: {value}" for name, value in facts), ""]
    return without_html("\n".join(lines))


def render_html(card: ModelCard) -> str:
    """The whole card with its pictures; every text in it is escaped."""
    verdict = card.outcome.verdict
    warning = "" if card.result.backbone["trained"] else f'<p class="warning">{UNTRAINED}</p>'
    told = f"<p>{html.escape(_summarise(card))}</p>{render_warnings(card.outcome)}"
    use, *rest = _sections(card)
    task = create_task(card.plan.domain)
    head, *rows = list(_score_slices(card))
    table = "".join(_render_row(row, "td") for row in rows)
    calibration, confusion, saliency = _draw_pictures(card)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(card.title)}</title>'
        f"<style>{STYLE}.pair{{display:flex;gap:1rem;align-items:flex-start}}.pair img{{width:50%;min-width:0}}</style>"
        f"<h1>{html.escape(card.title)}</h1>{warning}"
        f'<p class="verdict" style="color:{COLOUR[verdict]}">{verdict}</p>{told}'
        f"{_render_section(use)}<h2>Scores by slice</h2><table>{_render_row(head, 'th')}{table}</table>"
        f"<p>{_capitalise(task.metric_words)} on the test groups; of one class its {task.class_words}. Intervals by "
        f"bootstrap over groups at {card.plan.domain.gates.confidence:.0%}.</p>"
        f'<h2>Calibration and mistakes</h2><div class="pair">{calibration}{confusion}</div>'
        f"<h2>What it looked at</h2><p>{LOOKED}</p>{saliency}{''.join(map(_render_section, rest))}"
        f"<dl>{render_links(card.pages, report=report_path(card.plan))}</dl></html>"
    )


def _summarise(card: ModelCard) -> str:
    words = _capitalise(create_task(card.plan.domain).metric_words)
    test, metrics = score_frame(load_predictions(card.result.folder, "test"), card.plan.domain), card.result.metrics
    return (
        f"{words} {test.value:.3f} on the test groups, interval {render_ends(test)}; "
        f"calibration error {metrics['test/ece']:.3f}. When it was trained the gates said {card.outcome.verdict}: "
        f"{card.outcome.reason}"
    )


def _sections(card: ModelCard) -> list[Section]:
    """Titles, and names with values; the first is what a reader must know before any number."""
    return [
        ("Intended use", _describe_use(card)),
        ("Data", _describe_data(card)),
        ("Training", _describe_training(card)),
        ("Gates", [(f"{f.gate}: {name_verdict(f.verdict)}", f.reason) for f in card.outcome.findings]),
        ("Licences", _describe_licences(card)),
        ("Lineage", _describe_lineage(card)),
    ]


def _describe_use(card: ModelCard) -> list[tuple[str, str]]:
    domain = card.plan.domain
    limits = (
        "It answers in its classes for any image whatever. Its scores hold for images like those it was tested on, "
        "and say nothing of other sources."
    )
    return [
        ("Use", domain.intended_use or UNSTATED),
        ("What it tells apart", f"{', '.join(domain.classes)}. {domain.description}".strip()),
        ("Limits", limits),
    ]


def _describe_data(card: ModelCard) -> list[tuple[str, str]]:
    plan, found = card.plan, card.plan.load_validation()
    manifest = plan.load_manifest()
    sides = [
        f"{part.height} images of {part['group'].n_unique()} groups in {side}"
        for side in ("train", "val", "test")
        if (part := manifest.filter(pl.col("split") == side)).height
    ]
    classes = by_class(manifest)["label"].value_counts(sort=True).iter_rows()
    return [
        ("Images", f"{found.fit} fit of {found.images}; {len(found.quarantined)} put aside"),
        ("Split", f"{'; '.join(sides)}. A group is on one side, for good"),
        ("Classes", ", ".join(f"{name} {count}" for name, count in classes)),
        ("Warnings", "; ".join(found.warnings) or "none"),
        ("Source", plan.domain.source or UNSTATED),
    ]


def _describe_training(card: ModelCard) -> list[tuple[str, str]]:
    result = card.result
    learns = f"{result.trainable_params:,} ({result.share:.2%} of the backbone)" if result.trainable_params else "none"
    return [
        ("Method", f"{result.label}, seed {result.seed}"),
        ("Parameters that learn", f"{learns}, and a head of {result.head_params:,}"),
        ("Budget", _describe_budget(card)),
        ("Against a linear probe", " ".join(f"{text}." for text in _list_own_gains(card))),
        ("Adapter", f"{result.adapter_bytes / 1e6:.2g} MB"),
        (
            "Calibration",
            f"{result.calibration}; error on test {result.metrics['test/ece_uncalibrated']:.3f} before, "
            f"{result.metrics['test/ece']:.3f} after",
        ),
    ]


def _describe_budget(card: ModelCard) -> str:
    result, training = card.result, card.plan.domain.training
    if "strength" in result.metrics:
        return f"solved to its optimum at strength {result.metrics['strength']:g}; {result.seconds:.0f} s"
    return f"{training.epochs} epochs of batches of {training.batch_size}; {result.seconds:.0f} s"


def _list_own_gains(card: ModelCard) -> list[str]:
    """What the table says of this candidate; of a linear probe, what it says of all others."""
    tuners = card.outcome.tuners
    own = next(row for row in tuners if row.tuner == card.result.label)
    if own.over_linear:
        return [own.over_linear.text]
    return list_gains(tuners) or ["it is one, and there was no other candidate"]


def _describe_licences(card: ModelCard) -> list[tuple[str, str]]:
    domain, backbone = card.plan.domain, card.result.backbone
    return [
        ("Data", domain.licence or UNSTATED),
        ("Citation", domain.citation or UNSTATED),
        ("Backbone", f"{backbone['name']}: {backbone.get('licence') or 'not stated'}"),
    ]


def _describe_lineage(card: ModelCard) -> list[tuple[str, str]]:
    plan, result, outcome = card.plan, card.result, card.outcome
    best = outcome.best
    return [
        ("Images", f"DVC {outcome.data_version}"),
        ("Validation report", f"{DATA}/{plan.validation_report.name} of MLflow run {card.parent}"),
        ("Split", f"sha256 {result.split_sha256}"),
        ("Backbone", f"{result.backbone['name']}, sha256 {result.backbone['sha256']}"),
        ("Settings", f"key {outcome.verdict_key}"),
        ("Code", f"commit {plan.code}, sha256 {plan.sources.training}"),
        ("Environment", ", ".join(f"{key} {value}" for key, value in result.environment.items())),
        ("Adapter", f"sha256 {result.adapter_sha256}"),
        ("MLflow run", best.run_id),
        ("Gate evidence", f"{EVIDENCE}/ of that run, a file named by the hash in its record of the ledger"),
        ("Again", f"tessera reproduce {plan.domain.name} {outcome.challenger_version}"),
    ]


def _score_slices(card: ModelCard) -> Iterator[tuple[str, ...]]:
    """A head, then a row for all test images, each class, and each value of each slice column."""
    domain, frame = card.plan.domain, load_predictions(card.result.folder, "test")
    yield "slice", "images", "groups", "score", "between"
    classes, confidence = create_task(domain).class_evidence(frame, domain.classes), domain.gates.confidence
    counts = dict(by_class(frame)["label"].value_counts().iter_rows())
    parts = [("all", frame.height, score_frame(frame, domain))]
    parts += [(f"class = {name}", counts[name], bootstrap(classes[name], confidence)) for name in sorted(classes)]
    for column in domain.slices:
        for (value,), part in sorted(frame.group_by(column), key=lambda item: str(item[0][0])):
            if has_labels(part):
                parts.append((f"{column} = {value}", part.height, score_frame(part, domain)))
    for name, images, score in parts:
        yield name, str(images), str(score.groups), f"{score.value:.3f}", render_ends(score)


def _draw_pictures(card: ModelCard) -> tuple[str, str, str]:
    from safetensors.numpy import load_file

    domain, frame = card.plan.domain, load_predictions(card.result.folder, "test")
    saliency = load_file(card.result.folder / SALIENCY_FILE)
    rows = frame.filter(pl.col("id").is_in(list(saliency)))
    task = create_task(domain)
    hardest = rows.with_columns(ease=task.ease(rows)).sort("ease", "id")
    raw = card.plan.workspace.raw(domain.name)
    return (
        _embed(
            draw_calibration(frame, task, domain.classes, "calibration, test"), "How often each probability was right"
        ),
        _embed(draw_mistakes(frame, task, domain.classes, "mistakes, test"), "What was answered, by class"),
        _embed(draw_saliency(hardest, task, saliency, raw, ""), "The hardest images and what was looked at"),
    )


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


def _embed(figure: "Figure", alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{encoded}">'


def _render_section(section: Section) -> str:
    title, facts = section
    items = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts)
    return f"<h2>{html.escape(title)}</h2><dl>{items}</dl>"


def _render_row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
