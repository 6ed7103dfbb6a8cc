"""The tasks that flows share. Each is a thin shell over a plain function; results between tasks are JSON, while images
and weights stay on disk.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial, wraps
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from components.data.store import versioning
from components.data.store.pipeline import Stages
from components.errors import TesseraError, TrackingError, VersioningError
from components.promotion import versions
from components.promotion.gates.base import Decision
from components.promotion.versions import Version
from components.records.images import ValidationSummary
from components.records.jobs import load_result
from components.reports import retrain_page
from components.tracking import artifacts, runs
from components.tracking.store import Store, is_server
from components.workspace import Workspace, find_workspace
from flows import progress
from flows.plan import Plan, create_plan, load_checked_domain
from flows.progress import listening, report
from flows.server.links import link, write_key
from flows.steps.dispatch import find_pool, following, score_on_pool
from flows.steps.history import open_registry
from flows.steps.judge import Approval, limits_serving, score_version, settle_challenger

Made = TypeVar("Made")


def named_flow(name: str, run_name: str) -> Callable[[Callable[..., Any]], Any]:
    """A flow whose page in Prefect logs what a terminal would show."""

    def decorate(function: Callable[..., Any]) -> Any:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with listening(partial(_log, get_run_logger())):
                return function(*args, **kwargs)

        return flow(name=name, flow_run_name=run_name, persist_result=True, result_serializer="json")(run)

    return decorate


def _log(logger: Any, event: progress.Event) -> None:
    match event:
        case {"event": "note", "text": text}:
            logger.warning("%s", text)
        case {"event": "stage-done", "title": what, "note": note}:
            logger.info("%s: %s", what, note)
        case {"event": "new", "text": text}:
            logger.info("%s", text)
        case {"event": "candidate" | "search-done", "name": what, "note": note}:
            logger.info("%s: %s", what, note)


def step(name: str, retries: int = 2) -> Callable[[Callable[..., Any]], Any]:
    """A task under the name that people read."""
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


def _may_pass(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Retry what time may fix: a lock, the system; never bad data or bad settings, nor a server that MLflow's client
    has waited for already."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, TrackingError):
        return not is_server(find_workspace().tracking_uri)
    return not isinstance(error, TesseraError) or isinstance(error, VersioningError)


def enter(workspace: str | None) -> Workspace:
    """The workspace that a flow works in, ready for it."""
    place = find_workspace(Path(workspace) if workspace else None)
    place.activate()
    return place


@contextmanager
def turn(place: Workspace, flow_name: str, of: str) -> Iterator[bool]:
    """One such flow at a time; a second one waits and says so. Yields whether it had to wait."""
    waited = False
    lock = FileLock(place.state / "locks" / f"{flow_name}-{of}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waited = True
        report("stage", title=f"wait for another {flow_name} of {of} to end")
        lock.acquire()
    try:
        yield waited
    finally:
        lock.release()


def run_all(plan: Plan, tasks: Sequence[Any], orders: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What each task makes of its order: all at once where a work pool does the work, one after the other here."""
    if find_pool(plan.domain) is None:
        return [task(*order) for task, order in zip(tasks, orders, strict=True)]
    with following() as stopped:
        futures = [task.submit(*order, stopped) for task, order in zip(tasks, orders, strict=True)]
        for future in futures:
            future.wait()  # one that failed costs the others nothing
        return [future.result() for future in futures]


@step("version images")
def version_images(workspace: Workspace, domain: str, overrides: Sequence[str] = (), plan: Plan | None = None) -> Plan:
    """The plan for the images as they are now, which are pushed. plan: one made before, good if it still holds."""
    if plan is None or not plan.holds():
        plan = create_plan(workspace, load_checked_domain(workspace, domain, overrides))
    versioning.push_version(workspace, domain)
    return plan


def prepare_data(plan: Plan, stages: Stages) -> ValidationSummary:
    """The data stages of dvc.yaml, one task each; returns what validation found."""
    titles = {
        "manifest": "read manifest",
        "features": "compare images",
        "validate": "validate images",
        "split": "split groups",
    }
    with closing(stages):
        for stage, title in titles.items():
            report("stage", title=title)
            run_stage.with_options(name=title, task_run_name=title)(stages, stage)
    summary, manifest = plan.load_validation(), plan.load_manifest()
    counts = manifest["split"].value_counts(sort=True)
    sides = ", ".join(f"{count} {split}" for split, count in counts.iter_rows())
    page = retrain_page.render_validation(summary, manifest, plan.domain.classes, plan.validation_report)
    show("validation", plan.domain.name, page, "Images, classes and what was put away")
    done = "images, checks and code as before" if stages.fresh else "checked and split images"
    report("stage-done", title=done, note=f"{summary.groups} groups; {sides}")
    return summary


@step("run data stage")
def run_stage(stages: Stages, stage: str) -> None:
    stages.run(stage)


@step("open MLflow run")
def start_run(plan: Plan, role: runs.Role) -> str:
    store = Store.open(plan.workspace)
    facts = {"data_version": plan.version.md5, "verdict_key": plan.verdict_key, "git_commit": plan.code}
    facts |= {"manifest_key": plan.manifest_key, "manifest_sha256": plan.manifest_sha256}
    parent = runs.start_parent(store, plan.domain, **facts, role=role)
    artifacts.log_data(store, parent, plan.manifest, plan.validation_report)
    link(store, parent, plan.domain.name)
    return parent


@contextmanager
def recording(plan: Plan, role: runs.Role) -> Iterator[str]:
    """The MLflow run of the flow, closed as the block ends."""
    parent = start_run(plan, role)
    store = Store.open(plan.workspace, patient=True)  # it has answered a moment ago
    try:
        yield parent
    except BaseException as error:
        runs.end_parent(store, parent, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    runs.end_parent(store, parent, "FINISHED")


@step("score challenger")
def score_challenger(plan: Plan, parent: str, version: int, stopped: Event | None = None) -> None:
    """Where a gate limits what serving takes, on this machine in any case."""
    store = Store.open(plan.workspace)
    challenger = versions.require_version(plan.domain.name, version)
    _score(store, plan, parent, challenger, stopped, here=limits_serving(plan.domain))


@step("score champion")
def score_champion(plan: Plan, parent: str, challenger: int, stopped: Event | None = None) -> None:
    """The gate finds the scores. A champion that comes in between is scored by the gate itself."""
    store = Store.open(plan.workspace)
    champion = versions.load_version(plan.domain.name, versions.CHAMPION)
    if champion is not None and champion.version != challenger:
        _score(store, plan, parent, champion, stopped)


def _score(store: Store, plan: Plan, parent: str, version: Version, stopped: Event | None, here: bool = False) -> None:
    """On the work pool where there is one, else here; the predictions come to `score_folder` from both."""
    if here or find_pool(plan.domain) is None:
        score_version(plan, version)
    else:
        score_on_pool(store, plan, parent, version.version, stopped)


@step("gate and promote")
def gate_and_promote(
    plan: Plan, scores: Path, version: int, approval: Approval | None = None
) -> tuple[Decision, int | None]:
    """The decision, which took effect against the very champion it speaks of, and the champion there is now.

    scores: the folder of the version's predictions.
    """
    store = open_registry(plan.workspace, plan.domain.name)
    challenger = versions.require_version(plan.domain.name, version)
    decision, champion = settle_challenger(store, plan, require(load_result(scores), "result"), challenger, approval)
    return decision, None if champion is None else champion.version


def require(made: Made | None, what: str) -> Made:
    """What an earlier task of this run left; its absence is a defect, or somebody else's hand."""
    if made is None:
        raise LookupError(f"the {what} this run made a moment ago is gone")
    return made


def show(what: str, of: str, text: str, description: str) -> None:
    """A page of the flow run, whose earlier versions Prefect keeps under the same name."""
    create_markdown_artifact(text, key=write_key(f"{what}-{of}"), description=f"{description}: {of}")
