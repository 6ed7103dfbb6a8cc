"""Texts on MLflow's pages, the links between them, and the view that compares candidates.

MLflow shows the first lines of a description and folds the rest: the answer comes first. Its tables have no space
between columns. Links name a `workflowType`, because MLflow shows its pages for language models to a browser that has
chosen none.
"""

import json
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from components.domain.domain import Domain
from components.domain.licences import normalise
from components.records.history import Promotion
from components.records.jobs import Result
from components.records.outcomes import CandidateRow, Outcome
from components.reports.words import (
    CONTROL,
    describe_gains,
    explain_control,
    find_control,
    render_ends,
    render_gates,
    render_table,
    without_html,
)
from components.tasks.base import Annotation, Task

NOTE = "mlflow.note.content"
FOR_TRAINING = "workflowType=machine_learning"
DATA = "data"  # artifact folder of a retrain's manifest and validation report
EVIDENCE = "gates"  # artifact folder of the gates' findings on a version, one file per judgement
CARDS, CARD = "card", "model_card.html"  # artifact folder and page of the model card
#: A view of an experiment's runs as MLflow saves it: listed under `Views`, and opened by a link with its name.
VIEW = "candidates"
SAMPLES: dict[Annotation, str] = {
    "label": "mistakes",
    "labels": "mistakes",
    "mask": "the worst answers",
    "boxes": "the worst answers",
}
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"


def link_run(experiment: str, run_id: str, artifact: str = "") -> str:
    """The page of a run, or of one of its artifacts."""
    return f"#/experiments/{experiment}/runs/{run_id}{artifact and f'/artifacts/{artifact}'}?{FOR_TRAINING}"


def link_candidates(experiment: str) -> str:
    return f"#/experiments/{experiment}/runs?viewStateShareKey={VIEW}&{FOR_TRAINING}"


def link_comparison(experiment: str, runs: Sequence[str]) -> str:
    wanted = {"runs": list(runs), "experiments": [experiment]}
    return "#/compare-runs?" + "".join(f"{key}={quote(json.dumps(ids))}&" for key, ids in wanted.items()) + FOR_TRAINING


def link_model(domain: str, version: int | None = None) -> str:
    """The page of a registered model, or of one of its versions."""
    return f"#/models/{domain}{f'/versions/{version}' if version else ''}?{FOR_TRAINING}"


def link_prefect(page: str | None) -> str:
    return f"\n\n[The flow run in Prefect]({page})" if page else ""


def list_columns(metric: str) -> dict[str, int]:
    """The columns of the view with their widths in pixels: how good, how costly, and how certain."""
    return {
        "attributes.`Models`": 90,
        f"metrics.`val/{metric}`": 165,
        f"metrics.`test/{metric}`": 165,
        "metrics.`cost/trainable_params`": 165,
        "metrics.`cost/adapter_bytes`": 145,
        "metrics.`cost/training_seconds`": 165,
        f"metrics.`test/{metric}_low`": 200,
        f"metrics.`test/{metric}_high`": 200,
    }


def tag_experiment(domain: Domain, experiment: str, metric: str) -> dict[str, str]:
    """The experiment's description, and the view `Candidates`, sorted by the score on validation.

    Sorted by time MLflow would hide children below their parents.
    """
    columns = list_columns(metric)
    state = {
        "searchFilter": "tags.`tessera.role` = 'candidate'",
        "orderByKey": f"metrics.`val/{metric}`",
        "orderByAsc": False,
        "selectedColumns": list(columns),
        "columnOrder": list(columns),
        "columnWidths": columns,
    }
    view = {"name": "Candidates", "createdAt": 0, "state": json.dumps(state)}
    return {NOTE: _describe_domain(domain, experiment), VIEW_TAG: json.dumps(view)}


def _describe_domain(domain: Domain, experiment: str) -> str:
    """The description of an experiment; MLflow's list shows its start without rendering, so it has no markup there."""
    facts = {"Source": domain.source, "Licence": domain.licence, "Citation": domain.citation}
    candidates, versions = link_candidates(experiment), link_model(domain.name)
    lines = [
        f"{domain.title or domain.name}: {domain.description}".removesuffix(": "),
        f"[Candidates side by side]({candidates}) · [registered versions]({versions})",
        f"Classes: {', '.join(domain.classes)}.",
        *(f"{key}: {value}" for key, value in facts.items() if value),
    ]
    return without_html("\n\n".join(lines))


def describe_candidate(domain: Domain, result: Result, row: CandidateRow, task: Task, details: str = "") -> str:
    """The description of a candidate's run. details: a text of its own at the end."""
    test, backbone = row.test, result.backbone
    random = " **The backbone's weights are random: this tries the machinery, not the method.**"
    untrained = "" if backbone["trained"] else random
    more = "`pictures/false_alarms.png` (recall against false alarms), " if task.annotation == "boxes" else ""
    tuned = f"{result.trainable_params:,} parameters ({result.share:.2%} of the backbone) and"
    return (
        f"**{result.label}**, seed {result.seed}: {task.metric_words} **{test.value:.3f}** on test "
        f"({domain.gates.confidence:.0%} interval {render_ends(test)}), {row.val:.3f} on "
        f"validation.{untrained}\n\n"
        f"Tuned {tuned if result.trainable_params else 'only'} a head of {result.head_params:,} in "
        f"{result.seconds:.0f} s; the adapter takes {result.adapter_bytes / 1e6:.2g} MB. "
        f"Backbone `{backbone['name']}`, weights `{str(backbone['sha256'])[:12]}`, "
        f"licence {normalise(backbone.get('licence'))}.\n\n"
        f"Artifacts: `pictures/samples.png` ({SAMPLES[task.annotation]} first), `pictures/mistakes.png`, {more}"
        "`pictures/learning_curves.png`, `predictions.parquet`, `adapter/`."
    ) + (details and f"\n\n{without_html(details)}")


def describe_outcome(outcome: Outcome, experiment: str, run_id: str, files: Iterable[str]) -> str:
    """files: the artifacts of the run that a reader may want to open."""
    rows = sorted(outcome.candidates, key=lambda row: -row.val)
    pages = {file: link_run(experiment, run_id, file) for file in files}
    if logged := [row.run_id for row in rows if row.run_id]:
        pages["candidates compared"] = link_comparison(experiment, logged)
        pages[f"version {outcome.challenger_version}"] = link_model(outcome.domain, outcome.challenger_version)
        pages["its model card"] = link_run(experiment, outcome.best.run_id, f"{CARDS}/{CARD}")
    links = " · ".join(f"[{name}]({page})" for name, page in pages.items())
    gains, control = describe_gains(outcome.tuners), find_control(outcome.tuners)
    compared = [render_table(gains.heads, gains.rows)] if gains.rows else []
    notes = [f"\\{text}" for text in explain_control(outcome.tuners)]
    return _describe_verdict(
        outcome, links, [_render_candidates(rows, experiment, control), *notes, *compared, *gains.sentences]
    )


def describe_promotion(promotion: Promotion) -> str:
    """What a promotion came to."""
    return _describe_verdict(promotion, "", ())


def _describe_verdict(judged: Outcome | Promotion, links: str, details: Iterable[str]) -> str:
    """The answer first: MLflow folds away all but the first lines."""
    champion = judged.champion_version
    parts = (
        f"**{judged.verdict}**: {judged.reason}",
        links,
        f"Gates: {render_gates(judged.findings)}." if judged.findings else "",
        *(f"Warning: {warning}" for warning in judged.warnings),
        *details,
        f"Champion afterwards: {'none' if champion is None else f'version {champion}'}.",
    )
    return without_html("\n\n".join(part for part in parts if part))


def _render_candidates(rows: Sequence[CandidateRow], experiment: str, control: str | None) -> str:
    lines = []
    for row in rows:
        name = f"[{row.tuner}]({link_run(experiment, row.run_id)})" if row.run_id else row.tuner
        name = f"**{name}**" if row.selected else name
        name = f"{name} \\{CONTROL}" if row.tuner == control else name
        test = f"{row.test.value:.3f} ({render_ends(row.test)})"
        costs = (f"{row.trainable_params:,}", f"{row.adapter_bytes:,}", f"{row.seconds:.0f}")
        lines.append((name, str(row.seed), f"{row.val:.3f}", test, *costs))
    heads = ("candidate", "seed", "validation", "test", "trainable parameters", "adapter bytes", "seconds")
    selected = "Bold is what was selected: the best mean on validation over its seeds, and of these the best."
    return f"{render_table(heads, lines)}\n\n{selected}" if lines else ""
