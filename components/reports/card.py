"""The model card of a registered version: one HTML file that needs nothing else, and the same text as Markdown.

What it says is measured or read from the version's own record; what nobody stated is said to be not stated.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from components.domain.canvas import ImgSize
from components.domain.domain import Domain
from components.records.images import ValidationSummary
from components.records.jobs import SALIENCY_FILE, Result, load_predictions
from components.records.outcomes import Outcome, PassReport
from components.reports import answers
from components.reports.decisions import describe_decision
from components.reports.pictures import draw_calibration, draw_mistakes, draw_saliency
from components.reports.shell import (
    embed_figure,
    render_links,
    render_page,
    render_row,
    render_section,
    render_verdict,
    render_warning,
)
from components.reports.words import (
    UNTRAINED,
    ByClass,
    Estimate,
    doubt_backbone,
    format_share,
    list_gains,
    name_verdict,
    render_ends,
    render_table,
    without_html,
)
from components.tasks import Task, choose_fit, create_task
from components.tasks.base import UNLABELLED, DenseTask, by_class

UNSTATED = "not stated in domain.yaml"
HEADS = ("slice", "images", "groups", "score", "between")
STYLE = ".pair{display:flex;gap:1rem;align-items:flex-start}.pair img{width:50%;min-width:0}"
LOOKED = (
    "The hardest test images, those whose truth got the least probability, and the patches that speak for the "
    "most probable class: HiResCAM (Draelos & Carin, arXiv 2011.08891) at the patch tokens that enter the last block."
)
WHOLE = "Contains the whole fine-tuned backbone, whose licence therefore holds for the adapter's file."
APART = (
    "Contains no weights of the backbone and works on it alone. Whether an adapter is a derivative of its backbone is "
    "for the backbone's licence to say."
)
EXPORTED = "`tessera export-model` writes the backbone's weights into its graph, whose file stands under their licence."
Section = tuple[str, Sequence[tuple[str, str]]]


@dataclass(frozen=True)
class SliceScore:
    """The score of some test images: of all, of a class, or of a value of a slice column, as `name` says.

    label: the class that it is the score of; None where it is that of images.
    """

    name: str
    images: int
    score: Estimate
    label: str | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """As the table shows it; HEADS are above."""
        score = self.score
        return self.name, str(self.images), str(score.groups), f"{score.value:.3f}", render_ends(score)


@dataclass(frozen=True)
class ModelCard:
    """Everything a card is made from.

    scores: on the test images, that of all first. validation, manifest: of the images it was trained on. raw: the
    folder that the manifest's paths are in. code: git commit; code_sha256: of the code that trains. run_id: the
    retrain's run in MLflow; validation_artifact: a file of it; evidence_artifact: a folder of the candidate's run.
    report: the retrain report. pages: those of the candidate's run, by name. thresholds: the confidence from which on
    each class is shown, where answers have any.
    """

    domain: Domain
    outcome: Outcome
    result: Result
    scores: Sequence[SliceScore]
    validation: ValidationSummary
    manifest: pl.DataFrame
    raw: Path
    code: str
    code_sha256: str
    run_id: str
    validation_artifact: str
    evidence_artifact: str
    report: Path
    pages: Mapping[str, str]
    thresholds: Mapping[str, float] = field(default_factory=dict)

    @property
    def known(self) -> ByClass:
        intervals = {row.label: row.score for row in self.scores if row.label is not None}
        return ByClass(intervals, self.thresholds)

    @property
    def title(self) -> str:
        name = self.domain.title or self.domain.name
        return f"{name}: {self.result.label}, version {self.outcome.challenger_version}"


def render_markdown(card: ModelCard) -> str:
    """Words and tables; the pictures are in the HTML."""
    lines = [f"# {card.title}", "", _summarise(card), ""]
    lines += [] if card.result.backbone["trained"] else [f"> {UNTRAINED}", ""]
    lines += [line for warning in card.outcome.warnings for line in (f"> Warning: {warning}", "")]
    lines += ["## Scores by slice", "", render_table(HEADS, [row.cells for row in card.scores]), ""]
    task = create_task(card.domain)
    if isinstance(task, DenseTask):
        frame = load_predictions(card.result.folder, "test")
        text = answers.describe_classes(frame, task, card.domain.classes, card.known)
        lines += ["## Classes", "", text, ""]
    for title, facts in _sections(card):
        lines += [f"## {title}", "", *(f"- **{name}**: {value}" for name, value in facts), ""]
    return without_html("\n".join(lines))


def render_html(card: ModelCard) -> str:
    """The whole card with its pictures; every text in it is escaped."""
    outcome, task = card.outcome, create_task(card.domain)
    untrained = "" if card.result.backbone["trained"] else render_warning(UNTRAINED)
    use, *rest = _sections(card)
    rows = "".join(render_row(row.cells) for row in card.scores)
    sections = "".join(render_section(*section) for section in rest)
    body = (
        f"<h1>{html.escape(card.title)}</h1>{untrained}"
        f"{render_verdict(outcome.verdict, _summarise(card), outcome.warnings)}"
        f"{render_section(*use)}<h2>Scores by slice</h2><table>{render_row(HEADS, 'th')}{rows}</table>"
        f"<p>{_capitalise(task.metric_words)} on the test groups; of one class its {task.class_words}. Intervals by "
        f"bootstrap over groups at {card.domain.gates.confidence:.0%}.</p>"
        f"{_render_pictures(card, task)}{sections}"
        f"<dl>{render_links(card.pages, report=card.report)}</dl>"
    )
    return render_page(card.title, body, STYLE)


def _summarise(card: ModelCard) -> str:
    words = _capitalise(create_task(card.domain).metric_words)
    test, metrics = card.scores[0].score, card.result.metrics
    return (
        f"{words} {test.value:.3f} on the test groups, interval {render_ends(test)}; "
        f"calibration error {metrics['test/ece']:.3f}. When it was trained the gates said {card.outcome.verdict}: "
        f"{card.outcome.reason}"
    )


def _sections(card: ModelCard) -> list[Section]:
    """Titles, and names with values; the first is what a reader must know before any number."""
    decision = card.outcome.decision
    return [
        ("Intended use", _describe_use(card)),
        *([("Decision", _describe_passes(decision))] if decision else []),
        ("Data", _describe_data(card)),
        ("Training", _describe_training(card)),
        ("Gates", [(f"{f.gate}: {name_verdict(f.verdict)}", f.reason) for f in card.outcome.findings]),
        ("Licences", _describe_licences(card)),
        ("Lineage", _describe_lineage(card)),
    ]


def _describe_use(card: ModelCard) -> list[tuple[str, str]]:
    domain = card.domain
    limits = (
        "It answers in its classes for any image whatever. Its scores hold for images like those it was tested on, "
        "and say nothing of other sources."
    )
    return [
        ("Use", domain.intended_use or UNSTATED),
        ("What it tells apart", f"{', '.join(domain.classes)}. {domain.description}".strip()),
        ("Limits", limits),
    ]


def _describe_passes(report: PassReport) -> list[tuple[str, str]]:
    """What the adapter's decision lets pass, and what that costs."""
    about = describe_decision(report)
    facts = [
        (name, f"{test} on test, {val} on validation" + (f"; without the decision {plain} on test" if plain else ""))
        for name, val, test, plain in about.rows
    ]
    notes = " ".join((about.terms, about.origin, *about.notes))
    return [("Rule", about.rule), *((name.capitalize(), text) for name, text in facts), ("Note", notes)]


def _describe_data(card: ModelCard) -> list[tuple[str, str]]:
    found, manifest = card.validation, card.manifest
    splits = [
        f"{part.height} images of {part['group'].n_unique()} groups in {split}"
        for split in ("train", "val", "test")
        if (part := manifest.filter(pl.col("split") == split)).height
    ]
    classes = by_class(manifest)["label"].value_counts(sort=True).iter_rows()
    more = _share_pixels(card) | _count_objects(card)
    named = [f"{name} {count}{more.get(name, '')}" for name, count in classes]
    if empty := manifest.filter(pl.col("label") == UNLABELLED).height:
        named.append(f"none of them {empty}")
    return [
        ("Images", f"{found.fit} fit of {found.images}; {len(found.quarantined)} excluded"),
        ("Split", f"{'; '.join(splits)}. All images of a group are in one split, for good"),
        ("Classes", ", ".join(named)),
        ("Warnings", "; ".join(found.warnings) or "none"),
        ("Source", card.domain.source or UNSTATED),
    ]


def _share_pixels(card: ModelCard) -> dict[str, str]:
    """The share of each class of all labelled pixels, as it stands behind the number of its images."""
    if "pixels" not in card.manifest.columns:
        return {}
    counts = np.array(card.manifest["pixels"].to_list()).sum(axis=0)
    shares = zip(card.domain.classes, counts / counts.sum(), strict=True)
    return {name: f" ({format_share(share)} of the pixels)" for name, share in shares}


def _count_objects(card: ModelCard) -> dict[str, str]:
    """How many objects of each class count, as it stands behind the number of its images."""
    if "objects" not in card.manifest.columns:
        return {}
    objects = card.manifest["objects"].explode().drop_nulls().struct.unnest()
    counts = objects.filter(pl.col("kind") == "object")["label"].value_counts().iter_rows()
    return {name: f" ({count:,} objects)" for name, count in counts}


def _describe_training(card: ModelCard) -> list[tuple[str, str]]:
    result = card.result
    learns = f"{result.trainable_params:,} ({result.share:.2%} of the backbone)" if result.trainable_params else "none"
    return [
        ("Method", f"{result.label}, seed {result.seed}"),
        ("Parameters that learn", f"{learns}, and a head of {result.head_params:,}"),
        ("Budget", _describe_budget(card)),
        ("Against the baselines", " ".join(f"{text}." for text in _list_own_gains(card))),
        ("Adapter", f"{result.adapter_bytes / 1e6:.2g} MB"),
        (
            "Calibration",
            f"{result.calibration}; error on test {result.metrics['test/ece_uncalibrated']:.3f} before, "
            f"{result.metrics['test/ece']:.3f} after",
        ),
    ]


def _describe_budget(card: ModelCard) -> str:
    result, training = card.result, card.domain.training
    if "strength" in result.metrics:
        return f"solved to its optimum at strength {result.metrics['strength']:g}; {result.seconds:.0f} s"
    return f"{training.epochs} epochs of batches of {training.batch_size}; {result.seconds:.0f} s"


def _list_own_gains(card: ModelCard) -> list[str]:
    """What the table says of this candidate; of a linear probe, what it says of all others."""
    tuners = card.outcome.tuners
    own = next(row for row in tuners if row.tuner == card.result.label)
    if own.gains:
        return [gain.text for gain in own.gains] + doubt_backbone(tuners)
    return list_gains(tuners) or ["it is one, and there was no other candidate"]


def _describe_licences(card: ModelCard) -> list[tuple[str, str]]:
    """The chain, and whose licence holds for which file."""
    own = next((row for row in card.outcome.tuners if row.tuner == card.result.label), None)
    return [
        *((link.subject.capitalize(), link.licence) for link in card.outcome.licences),
        ("Terms of the images", card.domain.licence or UNSTATED),
        ("Citation", card.domain.citation or UNSTATED),
        ("Adapter", WHOLE if own is not None and own.kind == "full" else APART),
        ("Export", EXPORTED),
    ]


def _describe_lineage(card: ModelCard) -> list[tuple[str, str]]:
    result, outcome = card.result, card.outcome
    return [
        ("Images", f"DVC {outcome.data_version}"),
        ("Validation report", f"{card.validation_artifact} of MLflow run {card.run_id}"),
        ("Split", f"sha256 {result.split_sha256}"),
        ("Backbone", f"{result.backbone['name']}, sha256 {result.backbone['sha256']}"),
        ("Settings", f"key {outcome.verdict_key}"),
        ("Code", f"commit {card.code}, sha256 {card.code_sha256}"),
        ("Environment", ", ".join(f"{key} {value}" for key, value in result.environment.items())),
        ("Adapter", f"sha256 {result.adapter_sha256}"),
        ("MLflow run", outcome.best.run_id),
        (
            "Gate evidence",
            f"{card.evidence_artifact}/ of that run, a file named by the hash in its record of the ledger",
        ),
        ("Again", f"tessera reproduce {card.domain.name} {outcome.challenger_version}"),
    ]


def _render_pictures(card: ModelCard, task: Task) -> str:
    """Calibration and mistakes; then what answers are worth that are more than labels, or what was looked at."""
    classes, frame = card.domain.classes, load_predictions(card.result.folder, "test")
    calibration = draw_calibration(frame, task, classes, "calibration, test")
    mistakes = draw_mistakes(frame, task, classes, "mistakes, test")
    pair = embed_figure(calibration, "How often each probability was right")
    pair += embed_figure(mistakes, "What was answered, by class")
    section = f'<h2>Calibration and mistakes</h2><div class="pair">{pair}</div>'
    if isinstance(task, DenseTask):
        return section + answers.render_sections(frame, task, classes, card.raw, card.known)
    return section + _render_saliency(card, task, frame)


def _render_saliency(card: ModelCard, task: Task, frame: pl.DataFrame) -> str:
    from safetensors.numpy import load_file

    saliency = load_file(card.result.folder / SALIENCY_FILE)
    rows = frame.filter(pl.col("id").is_in(list(saliency)))
    hardest = rows.with_columns(ease=task.ease(rows)).sort("ease", "id")
    size = ImgSize.of(card.result.backbone["img_size"])
    seen = draw_saliency(hardest, task, saliency, card.raw, size, choose_fit(card.domain))
    pictures = embed_figure(seen, "The hardest images and what was looked at")
    return f"<h2>What it looked at</h2><p>{LOOKED}</p>{pictures}"


def _capitalise(text: str) -> str:
    """`Mean IoU`; `mAP50` stays as it is."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]
