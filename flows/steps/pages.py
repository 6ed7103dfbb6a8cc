"""Writes the retrain report and the model card of a plan, side by side in its folder."""

import math
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from components.domain.domain import Domain
from components.files import write_whole
from components.models.adapter import load_meta
from components.promotion.escapes import report_decision
from components.promotion.evidence import score_frame
from components.promotion.statistics import bootstrap
from components.records.jobs import Result, load_predictions
from components.records.outcomes import Outcome, PassReport
from components.reports import answers, card, retrain_page
from components.reports.box_tables import count_images
from components.reports.card import ModelCard, SliceScore
from components.reports.retrain_page import RetrainReport
from components.reports.suspects import Questioned
from components.tasks import create_task
from components.tasks.base import DenseTask, by_class, has_labels
from components.tasks.box_answers import read_answers
from components.tracking.candidates import load_thresholds
from components.tracking.pages import CARD, DATA, EVIDENCE
from flows.plan import Plan

CARD_TEXT = "model_card.md"


def report_path(plan: Plan) -> Path:
    return plan.folder / "report.html"


def create_report(
    plan: Plan,
    outcome: Outcome,
    about: ModelCard,
    picture: Path,
    pages: Mapping[str, str],
    questioned: Questioned | None = None,
) -> RetrainReport:
    """The report of a finished retrain. about: the challenger's card. pages: of `list_pages`."""
    return RetrainReport(
        domain=plan.domain,
        outcome=outcome,
        picture=picture,
        challenger=about.result.folder,
        known=about.known,
        raw=plan.workspace.raw(plan.domain.name),
        questioned=questioned,
        code=plan.code,
        validation=plan.validation_report,
        validation_artifact=f"{DATA}/{plan.validation_report.name}",
        card=plan.folder / CARD,
        pages=pages,
    )


def write_report(plan: Plan, about: RetrainReport) -> Path:
    """Write the report beside the adapters it speaks of; returns its path."""
    path = report_path(plan)
    write_whole(path, retrain_page.render_html(about).encode())
    return path


def describe_classes(about: ModelCard) -> str:
    """How the challenger answered each class on the test split; nothing where answers are labels."""
    task = create_task(about.domain)
    if not isinstance(task, DenseTask):
        return ""
    frame = load_predictions(about.result.folder, "test")
    return answers.describe_classes(frame, task, about.domain.classes, about.known)


def report_passes(plan: Plan, folder: Path) -> PassReport | None:
    """What the decision of a trained candidate lets pass and costs; None where it has none. folder: of its training."""
    rule = load_meta(folder / "adapter").decision
    if rule is None:
        return None
    return report_decision(rule, load_predictions(folder, "val"), load_predictions(folder, "test"), plan.domain)


def create_card(plan: Plan, outcome: Outcome, result: Result, parent: str, pages: Mapping[str, str]) -> ModelCard:
    """The card of the outcome's challenger. parent: the retrain's run in MLflow. pages: of the candidate's run."""
    return ModelCard(
        domain=plan.domain,
        outcome=outcome,
        result=result,
        scores=score_slices(load_predictions(result.folder, "test"), plan.domain),
        validation=plan.load_validation(),
        manifest=plan.load_manifest(),
        raw=plan.workspace.raw(plan.domain.name),
        code=plan.code,
        code_sha256=plan.sources.training,
        run_id=parent,
        validation_artifact=f"{DATA}/{plan.validation_report.name}",
        evidence_artifact=EVIDENCE,
        report=report_path(plan),
        pages=pages,
        thresholds=load_thresholds(plan.domain, result),
    )


def write_card(plan: Plan, about: ModelCard) -> tuple[Path, Path]:
    """Both forms, beside the retrain report."""
    page, text = plan.folder / CARD, plan.folder / CARD_TEXT
    write_whole(page, card.render_html(about).encode())
    write_whole(text, card.render_markdown(about).encode())
    return page, text


def score_slices(frame: pl.DataFrame, domain: Domain) -> tuple[SliceScore, ...]:
    """All images of a frame of predictions, then each class, each size of object, each value of each slice column.

    A slice in which nothing is to be found has no score and is left out.
    """
    task, confidence = create_task(domain), domain.gates.confidence
    classes, sizes = task.class_evidence(frame, domain.classes), task.size_evidence(frame, domain.classes)
    images = count_images(read_answers(frame, domain.classes)) if sizes else {}
    counts = dict(by_class(frame)["label"].value_counts().iter_rows())
    parts = [SliceScore("all", frame.height, score_frame(frame, domain))]
    parts += [
        SliceScore(f"class = {name}", counts[name], bootstrap(classes[name], confidence), name)
        for name in sorted(classes)
    ]
    parts += [SliceScore(f"size = {name}", images[name], bootstrap(of, confidence)) for name, of in sizes.items()]
    for column in domain.slices:
        for (value,), part in sorted(frame.group_by(column), key=lambda item: str(item[0][0])):
            if has_labels(part) and not math.isnan((score := score_frame(part, domain)).value):
                parts.append(SliceScore(f"{column} = {value}", part.height, score))
    return tuple(parts)
