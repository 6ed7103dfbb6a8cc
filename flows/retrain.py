"""The retrain flow: version, manifest, validate, split, search, train candidates, select, gate, promote, publish.

Read `retrain` from top to bottom: it is the architecture. Each task is a thin shell over a function in `components`;
results between tasks are JSON, images and weights stay on disk. Without a configured Prefect server the flow runs on
an embedded one.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from components import tracking
from components.data import versioning
from components.data.pipeline import Stages
from components.errors import TesseraError, TrackingError, VersioningError
from components.models.tuners import Tuner, create_tuners
from components.promotion import registry
from components.training.job import Job, load_result
from components.workspace import Workspace, find_workspace
from flows import pages
from flows.candidates import select_candidate, train_job
from flows.card import Card, write_card
from flows.compare import PICTURE, draw_picture, summarise_tuners
from flows.dispatch import find_pool, score_on_pool, search_on_pool, train_on_pool
from flows.links import link, write_key
from flows.plan import Plan, create_plan, hash_code, require_trainable
from flows.progress import report
from flows.promote import contest, mark_unchanged, open_registry
from flows.search import search_options
from flows.train_candidate import prepare

Made = TypeVar("Made")
STATUS = {"PROMOTE": "done", "HOLD": "held", "REJECT": "rejected"}


def _may_pass(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Retry what time may mend: a lock, the system; never bad data or bad settings, nor a server that MLflow's client
    has waited for already."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, TrackingError):
        return not tracking.is_server(find_workspace().tracking_uri)
    return not isinstance(error, TesseraError) or isinstance(error, VersioningError)


def _task(name: str, retries: int = 2) -> Callable[[Callable[..., Any]], Any]:
    return task(
        name=name,
        task_run_name=name,
        retries=retries,
        retry_delay_seconds=2,
        retry_condition_fn=_may_pass,
        cache_policy=NO_CACHE,
        persist_result=True,
        result_serializer="json",
    )


@flow(name="retrain", flow_run_name="retrain {domain}", persist_result=True, result_serializer="json")
def retrain(
    domain: str, workspace: str | None = None, overrides: list[str] | None = None, force: bool = False
) -> dict[str, Any]:
    """Retrain one domain and promote the best candidate if the gates agree.

    Returns what `tessera retrain --json` prints. Raises the TesseraError that stopped it.
    """
    place = find_workspace(Path(workspace) if workspace else None)
    place.activate()
    started = time.monotonic()
    with _turn(place, domain):
        report("stage", title="version images")
        plan = version_images(place, domain, overrides or [])
        report("stage-done", title="versioned images", note=f"{plan.version.files} files, {plan.version.md5[:12]}")
        if force:
            shutil.rmtree(plan.folder, ignore_errors=True)
        elif (known := find_known(plan)) is not None:
            return dict(known)
        if find_pool(plan.domain) is None:
            prepare(plan.domain)
        summary = prepare_data(plan)
        parent = start_run(plan)
        try:
            plan, searches = search_candidates(plan, parent, fresh=force)
            outcome = _train_and_promote(plan, parent, searches, summary, started, fresh=force)
        except BaseException as error:
            tracking.end_retrain(parent, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        tracking.end_retrain(parent, "FINISHED")
    return outcome


@contextmanager
def _turn(place: Workspace, domain: str) -> Iterator[None]:
    """One retrain of a domain at a time; a second one waits and says so."""
    lock = FileLock(place.state / "locks" / f"retrain-{domain}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("stage", title=f"wait for another retrain of {domain} to end")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _train_and_promote(
    plan: Plan, parent: str, searches: dict[str, Any], summary: dict[str, Any], started: float, fresh: bool
) -> dict[str, Any]:
    """From fit images to a decision; everything here is inside the MLflow parent run."""
    rows = train_candidates(plan, parent, fresh)
    best = select_candidate(rows)
    best["selected"] = True
    report("stage", title="register and gate")
    version = register_challenger(plan, best)
    if find_pool(plan.domain) is not None:
        score_champion(plan, parent)
    decision, champion = gate_and_promote(plan, best, version)
    report("stage-done", title=f"gated version {version}", note=decision["verdict"])
    outcome = {
        "domain": plan.domain.name,
        "status": STATUS[decision["verdict"]],
        "data_version": plan.version.md5,
        "verdict": decision["verdict"],
        "reason": decision["reason"],
        "findings": decision["findings"],
        "champion_version": champion,
        "challenger_version": version,
        "fingerprint": plan.fingerprint,
        "backbone": best["backbone"],
        "tuners": summarise_tuners(plan, rows, searches),
        "candidates": [{key: row[key] for key in row if key not in ("backbone", "folder")} for row in rows],
        "validation": summary,
        "report": str(pages.report_path(plan)),
        "seconds": round(time.monotonic() - started, 1),
    }
    publish(plan, parent, outcome)
    return outcome


@_task("version images")
def version_images(workspace: Workspace, domain: str, overrides: Sequence[str]) -> Plan:
    plan = create_plan(workspace, domain, overrides)
    require_trainable(plan.domain)
    versioning.push_version(workspace, domain)
    return plan


@_task("look for a known answer")
def find_known(plan: Plan) -> dict[str, Any] | None:
    """The outcome of an earlier retrain of the same data, settings and code."""
    tracking.connect(plan.workspace)
    known = tracking.find_retrain(plan.domain.name, plan.fingerprint)
    return None if known is None else mark_unchanged(plan.domain.name, known)


def prepare_data(plan: Plan) -> dict[str, Any]:
    """The data stages of dvc.yaml, a task each; returns the validation's summary."""
    titles = {
        "manifest": "read manifest",
        "features": "compare images",
        "validate": "validate images",
        "split": "split groups",
    }
    with closing(plan.create_stages()) as stages:
        for stage, title in titles.items():
            report("stage", title=title)
            run_stage.with_options(name=title, task_run_name=title)(stages, stage)
    summary = plan.load_validation()
    counts = plan.load_manifest()["split"].value_counts(sort=True)
    sides = ", ".join(f"{count} {split}" for split, count in counts.iter_rows())
    _show_in_prefect(plan, "validation", pages.render_validation(plan), "Images, classes and what was put away")
    done = "images, checks and code as before" if stages.fresh else "checked and split images"
    report("stage-done", title=done, note=f"{summary['groups']} groups; {sides}")
    return {key: summary[key] for key in ("images", "fit", "groups")} | {"quarantined": len(summary["quarantined"])}


@_task("run data stage")
def run_stage(stages: Stages, stage: str) -> None:
    stages.run(stage)


@_task("open MLflow run")
def start_run(plan: Plan) -> str:
    tracking.connect(plan.workspace)
    parent = tracking.start_retrain(plan.domain, plan.version.md5, plan.fingerprint, plan.code)
    tracking.log_data(parent, plan.manifest, plan.validation_report)
    link(parent, plan.domain.name)
    return parent


def _show_in_prefect(plan: Plan, what: str, text: str, description: str) -> None:
    """A page of the flow run, whose earlier versions Prefect keeps under the same name."""
    key = write_key(f"{what}-{plan.domain.name}")
    create_markdown_artifact(text, key=key, description=f"{description}: {plan.domain.name}")


def search_candidates(plan: Plan, parent: str, fresh: bool) -> tuple[Plan, dict[str, Any]]:
    """The plan with every candidate as its search found it, and what each search took; both as they were without one.

    fresh: train again what was trained before.
    """
    if plan.domain.search is None:
        return plan, {}
    tasks = [search_candidate.with_options(task_run_name=f"search {tuner.label}") for tuner in plan.tuners]
    orders = [(plan, parent, tuner, fresh) for tuner in plan.tuners]
    records = _run_all(plan, tasks, orders)
    searches = {tuner.label: record for tuner, record in zip(plan.tuners, records, strict=True)}
    found = create_tuners([record["tuner"] for record in searches.values()])
    return replace(plan, tuners=found), searches


@_task("search candidate", retries=1)
def search_candidate(plan: Plan, parent: str, tuner: Tuner, fresh: bool) -> dict[str, Any]:
    tracking.connect(plan.workspace)
    search = search_options if find_pool(plan.domain) is None else search_on_pool
    return search(plan, parent, tuner, fresh)


def train_candidates(plan: Plan, parent: str, fresh: bool) -> list[dict[str, Any]]:
    """The candidates' rows: all at once on the domain's work pool, else one after the other here."""
    jobs = plan.create_jobs()
    tasks = [train_candidate.with_options(task_run_name=f"train {name}") for name in jobs]
    report("candidates", count=len(jobs), epochs=plan.domain.training.epochs)
    return _run_all(plan, tasks, [(plan, parent, name, job, fresh) for name, job in jobs.items()])


def _run_all(plan: Plan, tasks: Sequence[Any], orders: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """What each task makes of its order: all at once where a work pool does the work, one after the other here."""
    if find_pool(plan.domain) is None:
        return [task(*order) for task, order in zip(tasks, orders, strict=True)]
    futures = [task.submit(*order) for task, order in zip(tasks, orders, strict=True)]
    return [future.result() for future in futures]


@_task("train candidate", retries=1)
def train_candidate(plan: Plan, parent: str, name: str, job: Job, fresh: bool) -> dict[str, Any]:
    """Train in a child process or on a worker, told to MLflow and Prefect as it goes on; returns the row."""
    tracking.connect(plan.workspace)
    known = load_result(job.folder) is not None
    if find_pool(plan.domain) is None:
        row = train_job(plan, parent, name, job)
    else:
        row = train_on_pool(plan, parent, name, job, fresh)
    note = "finished earlier" if known else f"val {row['val']:.3f} in {row['seconds']:.0f} s"
    report("candidate", name=name, epochs=plan.domain.training.epochs, note=note)
    return row


@_task("register challenger")
def register_challenger(plan: Plan, best: dict[str, Any]) -> int:
    """The winner as a version of the domain's registered model; one adapter is never registered twice in a row."""
    tracking.connect(plan.workspace)
    name = plan.domain.name
    for alias in (registry.CHALLENGER, registry.CHAMPION):
        there = registry.load_version(name, alias)
        if there is not None and there.adapter_sha256 == best["adapter_sha256"]:
            return there.version
    code = {"git_commit": plan.code, "code_sha256": hash_code()}
    tracking.log_code(best["run_id"], code)
    uri = tracking.log_model(best["run_id"], Path(best["folder"]) / "adapter")
    return registry.register_challenger(
        name,
        best["run_id"],
        uri,
        adapter_sha256=best["adapter_sha256"],
        tuner=best["tuner"],
        data_version=plan.version.md5,
        git_commit=plan.code,
    )


@_task("score champion")
def score_champion(plan: Plan, parent: str) -> None:
    """On the work pool; the gate finds the scores. One that came in between is scored where the retrain runs."""
    tracking.connect(plan.workspace)
    champion = registry.load_version(plan.domain.name, registry.CHAMPION)
    if champion is not None:
        score_on_pool(plan, parent, champion.version)


@_task("gate and promote")
def gate_and_promote(plan: Plan, best: dict[str, Any], version: int) -> tuple[dict[str, Any], int | None]:
    """The decision, which took effect against the very champion it speaks of, and the champion there is now."""
    open_registry(plan.workspace, plan.domain.name)
    scored = _require(load_result(Path(best["folder"])), "result")
    challenger = _require(registry.load_version(plan.domain.name, version), "version")
    decision, champion = contest(plan, scored, challenger)
    return decision.model_dump(mode="json"), None if champion is None else champion.version


def _require(made: Made | None, what: str) -> Made:
    """What an earlier task of this run left; its absence is a defect, or somebody else's hand."""
    if made is None:
        raise LookupError(f"the {what} this run made a moment ago is gone")
    return made


@_task("publish report")
def publish(plan: Plan, parent: str, outcome: dict[str, Any]) -> None:
    """The result table as a Prefect artifact, an HTML report on disk, and both in MLflow."""
    tracking.connect(plan.workspace)
    picture = draw_picture(outcome, plan.folder / PICTURE)
    path = pages.write_report(plan, outcome, picture)
    best = next(row for row in outcome["candidates"] if row["selected"])
    result = _require(load_result(plan.folder / f"{best['tuner']}-s{best['seed']}"), "result")
    page, text = write_card(Card(plan, outcome, result, parent))
    tags = {"test score": f"{best['test']['value']:.3f}"}
    tracking.log_card(best["run_id"], plan.domain.name, outcome["challenger_version"], page, text, tags)
    tracking.log_result(parent, outcome, [path, picture])
    _show_in_prefect(plan, "retrain", pages.render_markdown(outcome), "Candidates and verdict")
