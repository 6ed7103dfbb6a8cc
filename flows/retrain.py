"""The retrain flow: version, manifest, validate, split, search, train candidates, select, gate, promote, publish.

Read `retrain` from top to bottom: it is the architecture. Each task is a thin shell over a function in `components`;
results between tasks are JSON, images and weights stay on disk. Without a configured Prefect server the flow runs on
an embedded one.
"""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import wraps
from pathlib import Path
from threading import Event
from typing import Any

from components.data.store.versioning import hold_domain
from components.errors import PromotionError
from components.models.adapter import hash_meta, load_meta, require_intact
from components.models.tuners import Tuner, create_tuners
from components.promotion import aliases, versions
from components.promotion.licences import trace_licences
from components.promotion.versions import Version
from components.records.images import ValidationSummary
from components.records.jobs import Job, load_result
from components.records.outcomes import Outcome, SearchedTuner, Status, TrainedCandidate, Verdict
from components.reports import retrain_page
from components.reports.compare import PICTURE, draw_picture
from components.reports.decisions import show_share
from components.reports.suspects import Questioned
from components.tasks import create_task
from components.tracking import artifacts, outcomes
from components.tracking.store import Store
from components.workspace import Workspace
from flows.plan import Plan
from flows.processes.training import prepare
from flows.progress import report
from flows.server.links import list_pages
from flows.steps import pages
from flows.steps.beginning import Beginning, begin
from flows.steps.candidates import select_candidate, train_job
from flows.steps.compare import summarise_tuners
from flows.steps.dispatch import find_pool, search_on_pool, train_on_pool
from flows.steps.search import search_options
from flows.steps.suspects import question_labels, write_suspects
from flows.steps.tasks import (
    enter,
    gate_and_promote,
    named_flow,
    prepare_data,
    recording,
    require,
    run_all,
    score_champion,
    show,
    step,
    turn,
    version_images,
)

STATUS: dict[Verdict, Status] = {"PROMOTE": "done", "HOLD": "held", "REJECT": "rejected"}


@named_flow("retrain", "retrain {domain}")
def retrain(
    domain: str, workspace: str | None = None, overrides: list[str] | None = None, force: bool = False
) -> Outcome:
    """Retrain one domain and promote the best candidate if the gates agree.

    Returns what `tessera retrain --json` prints. Raises the TesseraError that stopped it.

    Args:
        domain: name of a folder in data/.
        workspace: where data and state live; the worker's own when left out.
        overrides: keys of domain.yaml and what they shall be, e.g. training.epochs=5.
        force: train again even if nothing changed.
    """
    return follow(enter(workspace), domain, overrides or [], force)


def go_on(begun: Beginning, **parameters: Any) -> Outcome:
    """The same flow in the process that has begun it. parameters: those of `retrain`."""

    @wraps(retrain.fn)
    def retrain_begun(
        domain: str, workspace: str | None = None, overrides: list[str] | None = None, force: bool = False
    ) -> Outcome:
        return follow(enter(workspace), domain, overrides or [], force, begun)

    outcome: Outcome = named_flow("retrain", "retrain {domain}")(retrain_begun)(**parameters)
    return outcome


def follow(place: Workspace, domain: str, overrides: list[str], force: bool, begun: Beginning | None = None) -> Outcome:
    """All steps of a retrain. begun: its beginning, made again where something has changed since."""
    started = time.monotonic()
    with turn(place, "retrain", domain) as waited:
        with hold_domain(place, domain, f"tessera retrain {domain}", patience=-1):
            report("stage", title="version images")
            plan = version_images(place, domain, overrides, None if waited or begun is None else begun.plan)
            report("stage-done", title="versioned images", note=f"{plan.version.files} files, {plan.version.md5[:12]}")
            if begun is None or plan != begun.plan:
                begun = begin_again(plan, force, begun)
            if begun.known is not None:
                return begun.known
            facts = {"new": begun.new.model_dump(mode="json"), "estimate_seconds": begun.estimate.seconds}
            report("new", text=begun.describe(), **facts)
            if find_pool(plan.domain) is None:
                prepare(plan.domain)
            summary = prepare_data(plan, begun.stages)
            plan = plan.settle()
            if force:
                shutil.rmtree(plan.scores, ignore_errors=True)
        with recording(plan, "retrain") as parent:
            plan, searches = search_candidates(plan, parent, fresh=force)
            outcome = _train_and_promote(plan, parent, searches, summary, begun, started, fresh=force)
    return outcome


def begin_again(plan: Plan, force: bool, begun: Beginning | None) -> Beginning:
    """The beginning for this plan; what was begun for another one is ended."""
    if begun is not None:
        begun.stages.close()
    return begin(plan, force)


def _train_and_promote(
    plan: Plan,
    parent: str,
    searches: Mapping[str, SearchedTuner],
    summary: ValidationSummary,
    begun: Beginning,
    started: float,
    fresh: bool,
) -> Outcome:
    """From fit images to a decision; everything here is inside the MLflow parent run."""
    rows = select_candidate(train_candidates(plan, parent, fresh))
    best = next(row for row in rows if row.selected)
    report("stage", title="register and gate")
    version = register_challenger(plan, best)
    score_champion(plan, parent, version)
    decision, champion = gate_and_promote(plan, best.folder, version)
    report("stage-done", title=f"gated version {version}", note=decision.verdict)
    questioned = question_labels(plan, rows)
    outcome = Outcome(
        domain=plan.domain.name,
        status=STATUS[decision.verdict],
        data_version=plan.version.md5,
        verdict=decision.verdict,
        reason=decision.reason,
        findings=decision.findings,
        warnings=decision.warnings,
        champion_version=champion,
        challenger_version=version,
        manifest_key=plan.manifest_key,
        verdict_key=plan.verdict_key,
        metric=create_task(plan.domain).metric,
        backbone=best.backbone,
        licences=trace_licences(load_meta(best.folder / "adapter").origin, plan.domain, plan.version.md5),
        tuners=summarise_tuners(plan, rows, searches),
        candidates=tuple(row.to_row() for row in rows),
        validation=summary.count(),
        suspicion=None if questioned is None else questioned.suspicion,
        decision=pages.report_passes(plan, best.folder),
        new=begun.new,
        estimate_seconds=begun.estimate.seconds,
        report=pages.report_path(plan),
        seconds=round(time.monotonic() - started, 1),
    )
    publish(plan, parent, outcome, questioned)
    return outcome


def search_candidates(plan: Plan, parent: str, fresh: bool) -> tuple[Plan, dict[str, SearchedTuner]]:
    """The plan with every candidate as its search found it, and what each search took; both as they were without one.

    fresh: train again what was trained before.
    """
    if plan.domain.search is None:
        return plan, {}
    tasks = [search_candidate.with_options(task_run_name=f"search {tuner.label}") for tuner in plan.tuners]
    orders = [(plan, parent, tuner, fresh) for tuner in plan.tuners]
    records = run_all(plan, tasks, orders)
    searches = {tuner.label: record for tuner, record in zip(plan.tuners, records, strict=True)}
    found = create_tuners([record.tuner for record in searches.values()])
    return replace(plan, tuners=found), searches


@step("search candidate", retries=1)
def search_candidate(plan: Plan, parent: str, tuner: Tuner, fresh: bool, stopped: Event | None = None) -> SearchedTuner:
    store = Store.open(plan.workspace)
    if find_pool(plan.domain) is None:
        return search_options(store, plan, parent, tuner, fresh)
    return search_on_pool(store, plan, parent, tuner, fresh, stopped)


def train_candidates(plan: Plan, parent: str, fresh: bool) -> list[TrainedCandidate]:
    """The candidates' rows: all at once on the domain's work pool, else one after the other here."""
    jobs = plan.create_jobs()
    if fresh:
        for job in jobs.values():
            shutil.rmtree(job.folder, ignore_errors=True)
    jobs = name_others(jobs)
    tasks = [train_candidate.with_options(task_run_name=f"train {name}") for name in jobs]
    report("candidates", count=len(jobs), epochs=plan.domain.training.epochs)
    return run_all(plan, tasks, [(plan, parent, name, job, fresh) for name, job in jobs.items()])


def name_others(jobs: Mapping[str, Job]) -> dict[str, Job]:
    """The jobs, of which the first that has no result names the other candidates, so that all are known to fit a device
    before any is trained there."""
    missing = {name: job for name, job in jobs.items() if load_result(job.folder) is None}
    first = next(iter(missing), None)
    others = {json.dumps(job.tuner): job.tuner for job in missing.values()}
    return {
        name: job.model_copy(update={"beside": tuple(each for each in others.values() if each != job.tuner)})
        if name == first
        else job
        for name, job in jobs.items()
    }


@step("train candidate", retries=1)
def train_candidate(
    plan: Plan, parent: str, name: str, job: Job, fresh: bool, stopped: Event | None = None
) -> TrainedCandidate:
    """Train in a child process or on a worker, logged to MLflow and Prefect while it runs; returns the row."""
    store = Store.open(plan.workspace)
    known = load_result(job.folder) is not None
    if find_pool(plan.domain) is None:
        row = train_job(store, plan, parent, name, job, fresh)
    else:
        row = train_on_pool(store, plan, parent, name, job, fresh, stopped)
    note = "finished earlier" if known else f"val {row.val:.3f} in {row.seconds:.0f} s"
    report("candidate", name=name, epochs=plan.domain.training.epochs, note=note)
    return row


@step("register challenger")
def register_challenger(plan: Plan, best: TrainedCandidate) -> int:
    """The winner as a version of the domain's registered model; one adapter is never registered twice."""
    store = Store.open(plan.workspace)
    name, adapter = plan.domain.name, best.folder / "adapter"
    known = find_registered(plan.workspace, name, adapter)
    if known is not None:
        if not {versions.CHALLENGER, versions.CHAMPION} & set(known.aliases):
            aliases.point_challenger(name, known.version)
        return known.version
    code = {"git_commit": plan.code, "code_sha256": plan.sources.training}
    artifacts.log_code(store, best.run_id, code)
    return aliases.register_challenger(
        name,
        best.run_id,
        artifacts.log_model(store, best.run_id, adapter),
        adapter_sha256=best.adapter_sha256,
        tuner=best.tuner,
        data_version=plan.version.md5,
        git_commit=plan.code,
        origin=load_meta(adapter).origin,
    )


def find_registered(workspace: Workspace, name: str, adapter: Path) -> Version | None:
    """The newest version that answers as this adapter does: the same weights, classes, calibration and input.

    It may lack its alias, where the process that registered it was killed in between. Raises AdapterError where the
    adapter is not as training left it.
    """
    meta = require_intact(adapter)
    for version in versions.find_versions(name, meta.adapter_sha256):
        if version.adapter_json_sha256 == hash_meta(adapter):
            return versions.load_version(name, version.version)  # with its aliases, which a search leaves out
        try:
            there = load_meta(versions.fetch_adapter(version, workspace.adapters))
        except PromotionError as error:
            report("note", text=f"Version {version.version} is passed over: {error}")
            continue
        if there.answering == meta.answering:
            return versions.load_version(name, version.version)
    return None


@step("publish report")
def publish(plan: Plan, parent: str, outcome: Outcome, questioned: Questioned | None = None) -> None:
    """The result table as a Prefect artifact, an HTML report on disk, and both in MLflow.

    questioned: labels under suspicion, where they are boxes.
    """
    store = Store.open(plan.workspace)
    picture = draw_picture(outcome, create_task(plan.domain), plan.folder / PICTURE)
    best = outcome.best
    job = plan.create_jobs()[f"{best.tuner}-s{best.seed}"]
    result = require(load_result(job.folder), "result")
    card = pages.create_card(plan, outcome, result, parent, list_pages(store, best.run_id))
    about = pages.create_report(plan, outcome, card, picture, list_pages(store, parent), questioned)
    path = pages.write_report(plan, about)
    page, text = pages.write_card(plan, card)
    tags = {"test score": f"{best.test.value:.3f}"}
    if outcome.decision is not None:
        tags["test escapes"] = show_share(outcome.decision.test.escapes)
    artifacts.log_card(store, best.run_id, plan.domain.name, outcome.challenger_version, page, text, tags)
    files = [path, picture]
    if questioned is not None and questioned.suspects:
        files.append(write_suspects(plan, questioned.suspects))
    outcomes.log_result(store, parent, outcome, files)
    summary = retrain_page.render_markdown(outcome, pages.describe_classes(card))
    show("retrain", plan.domain.name, summary, "Candidates and verdict")
