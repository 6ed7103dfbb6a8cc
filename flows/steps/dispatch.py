"""Candidates on a work pool: what a retrain sends, what a worker does with it, and how the result comes back.

    retrain                                    worker of the pool, perhaps another machine
      Order (settings, version, hashes) ──▶      images by hash from the DVC remote, manifest from MLflow
      wait, all candidates at once               the same code as in a retrain's own process, one GPU slot
      adapter, predictions, result  ◀── MLflow ── one child run a candidate

Nothing but the order goes through Prefect, and nothing comes back through it: a result is the finished child run of
the same data, settings and code. So a retrain that is killed finds what its candidates did meanwhile, and one whose
worker dies sends the order again, to go on from the checkpoint where that is on the same machine.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any, Literal

from prefect import flow, get_run_logger

from components.data.store.versioning import DataVersion
from components.domain.domain import Domain
from components.domain.strict import Strict
from components.errors import TrackingError, TrainingError, WorkspaceError
from components.keys import Code, read_code
from components.models.repositories import resolve_name
from components.models.tuners import Tuner, create_tuners
from components.promotion import versions
from components.records.jobs import Job, load_result
from components.records.outcomes import SearchedTuner, TrainedCandidate
from components.tracking import artifacts, candidates
from components.tracking.store import Store
from components.workspace import Workspace, find_workspace
from flows.plan import Plan, hash_backbone
from flows.processes.fetched import Data, hold_fetched, is_here
from flows.progress import report
from flows.server.links import link
from flows.server.prefect_boot import find_server
from flows.steps.candidates import find_trained, take_over, train_job
from flows.steps.judge import score_folder, score_version
from flows.steps.search import search_options

FLOW = "run_order"
POLL_SECONDS = 1.0
PATIENCE = 300.0  # seconds without an answer of the Prefect server: it may be restarted meanwhile
TRIES = 3  # orders for one candidate whose workers die
UNHEARD = 30.0  # seconds after which it is said that no worker takes the order
#: An order that nobody takes is due since then: a worker asks for what is due by its own clock, which may be behind.
ANY_CLOCK = timedelta(days=1)
WAITING = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED")
LOST = ("CRASHED", "CANCELLED", "CANCELLING")

Action = Literal["search", "train", "score"]


class Order(Strict):
    """One candidate to be searched or trained, or a registered version to be scored: what a worker must know of it.

    place: host and workspace of the sender, whose images are used where they are. fresh: nothing that an earlier
    retrain made counts. manifest: sha256 of the manifest, which is an artifact of the parent run. sources: hashes of
    the code that results depend on. work: key of the result.
    """

    action: Action
    name: str
    tuner: dict[str, Any]
    registered: int | None = None
    parent: str
    fresh: bool
    domain: Domain
    version: DataVersion
    code: str
    sources: Code
    work: str
    manifest: str
    place: str

    @property
    def key(self) -> str:
        """What two orders for the same work have in common; a fresh one is shared by nobody else."""
        facts = [self.action, self.domain.name, self.work, self.name, self.parent if self.fresh else ""]
        return f"order:{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}"


def find_pool(domain: Domain) -> str | None:
    """The work pool that trains the domain's candidates: the named one, where a Prefect server is configured."""
    return domain.work_pool if find_server() else None


# The sender's side


def train_on_pool(
    store: Store, plan: Plan, parent: str, name: str, job: Job, fresh: bool, stopped: Event | None
) -> TrainedCandidate:
    """Have a worker train the candidate, and bring its files to where they would be if it was trained here."""
    result, found = find_trained(store, plan, parent, job, fresh)
    if result is None or found is None:
        work = plan.candidate_key(job.tuner, job.seed)
        send(_write_order(plan, parent, "train", name, work, job.tuner, fresh), _require_pool(plan), stopped)
        found = candidates.find_candidate(store, plan.domain.name, work, parent if fresh else None)
        result, same = find_trained(store, plan, parent, job, fresh)
        if found not in (None, same):  # what lay here before has other weights than those that the worker logged
            result = artifacts.fetch_candidate(store, found, job.folder)
    if result is None or found is None:
        raise TrackingError(
            f"candidate {name}",
            expected="its finished run in MLflow, now that its worker is done",
            found="none",
            hint="Worker and retrain must use one MLflow server: compare MLFLOW_TRACKING_URI of both.",
        )
    return take_over(store, plan, parent, result, found)


def search_on_pool(
    store: Store, plan: Plan, parent: str, tuner: Tuner, fresh: bool, stopped: Event | None
) -> SearchedTuner:
    """Have a worker do the search; its trials are in MLflow then, from which the same search is read here."""
    work, options = plan.trial_key(tuner, tuner), tuner.model_dump(mode="json")
    order = _write_order(plan, parent, "search", tuner.label, work, options, fresh)
    send(order, _require_pool(plan), stopped)
    return search_options(store, plan, parent, tuner, fresh)


def score_on_pool(store: Store, plan: Plan, parent: str, registered: int, stopped: Event | None) -> None:
    """Have a worker score a registered version, and bring the result to where `score_version` looks for it."""
    name, folder = f"version-{registered}", score_folder(plan, registered)
    if load_result(folder) is None:
        # fresh: the scores are left with this run
        order = _write_order(plan, parent, "score", name, plan.scores.name, {}, True, registered)
        send(order, _require_pool(plan), stopped)
        artifacts.fetch_score(store, parent, name, folder)


def _require_pool(plan: Plan) -> str:
    if (pool := find_pool(plan.domain)) is None:
        raise ValueError("the domain trains in its own process")
    return pool


def _write_order(
    plan: Plan,
    parent: str,
    action: Action,
    name: str,
    work: str,
    tuner: dict[str, Any],
    fresh: bool,
    registered: int | None = None,
) -> Order:
    """A backbone inside the workspace is named from there, for the worker's workspace is another folder."""
    backbone = plan.domain.backbone
    if Path(backbone).is_relative_to(plan.workspace.root):
        backbone = f"./{Path(backbone).relative_to(plan.workspace.root)}"
    return Order(
        action=action,
        name=name,
        tuner=tuner,
        registered=registered,
        parent=parent,
        fresh=fresh,
        domain=plan.domain.model_copy(update={"backbone": backbone}),
        version=plan.version,
        code=plan.code,
        sources=plan.sources,
        work=work,
        manifest=plan.manifest_sha256,
        place=_name_place(plan.workspace),
    )


def _name_place(workspace: Workspace) -> str:
    return f"{os.uname().nodename}:{workspace.root}"


def send(order: Order, pool: str, stopped: Event | None = None) -> None:
    """Run the order on the pool and wait for its end. Raises TrainingError when it failed, or its workers died.

    stopped: set when the retrain is stopped, see `following`.
    """
    for _ in range(TRIES):
        state, message = _follow(order, pool, _submit(order, pool), stopped or Event())
        if state == "COMPLETED":
            return
        if state not in LOST:
            break
        report("note", text=f"{order.name} was lost on pool {pool} ({message or state.lower()}); it is sent again.")
    raise TrainingError(
        f"{order.name} on work pool {pool}",
        expected="the candidate trained",
        found=message or state.lower(),
        hint="The same command goes on from what there is; the flow run's page in Prefect has its log.",
    )


def _submit(order: Order, pool: str) -> Any:
    """The flow run of this order: one that an earlier retrain sent and that is not over, or a new one."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    wanted = {"tags": {"all_": [order.key]}, "state": {"type": {"any_": WAITING}}}
    with get_client(sync_client=True) as client:
        known = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted), limit=1)
    if known:
        return known[0].id
    try:
        run = run_deployment(
            f"{FLOW}/{pool}",
            parameters={"order": order.model_dump(mode="json")},
            flow_run_name=f"{order.action} {order.domain.name} {order.name}",
            tags=["tessera", order.domain.name, order.key],
            timeout=0,
        )
    except ObjectNotFound:
        raise WorkspaceError(
            f"work pool {pool}",
            expected=f"a deployment {FLOW}/{pool} on the Prefect server",
            found="none",
            hint="Run `tessera deploy`, and start a worker: `prefect worker start --type process --pool " + pool + "`.",
        ) from None
    return run.id  # type: ignore[union-attr]


@contextmanager
def following() -> Iterator[Event]:
    """Yields an event for the threads that follow orders. It is set when something stops the block from outside
    (Ctrl-C, a cancelled flow). An error of one order does not stop the others."""
    stopped = Event()
    try:
        yield stopped
    except Exception:
        raise
    except BaseException:
        stopped.set()
        raise


def _follow(order: Order, pool: str, run_id: Any, stopped: Event) -> tuple[str, str]:
    """Type and message of the run's last state. A server that is away is waited for; our own end cancels the run."""
    heard = began = time.monotonic()
    told = False
    try:
        while True:
            state = _read_state(run_id)
            if state is not None:
                heard = time.monotonic()
                if state.is_final():
                    return state.type.value, state.message or ""
                if not told and state.type.value == "SCHEDULED" and heard - began > UNHEARD:
                    told = True
                    report("note", text=f"{order.name} waits for a free worker of pool {pool}.")
                    _date_back(run_id)
            elif time.monotonic() - heard > PATIENCE:
                return "UNKNOWN", f"the Prefect server did not answer for {PATIENCE:.0f} s"
            if stopped.wait(POLL_SECONDS):
                raise KeyboardInterrupt
    except BaseException:
        _cancel(run_id)
        raise


def _cancel(run_id: Any) -> None:
    """A run that never began has nobody who would end it."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled, Cancelling

    with suppress(httpx.TransportError), get_client(sync_client=True) as client:
        state = client.read_flow_run(run_id).state
        word = Cancelled if state is not None and state.type.value == "SCHEDULED" else Cancelling
        client.set_flow_run_state(run_id, word(message="whoever sent it was stopped"))


def _date_back(run_id: Any) -> None:
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.states import Scheduled

    with suppress(httpx.TransportError), get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Scheduled(scheduled_time=datetime.now(UTC) - ANY_CLOCK))


def _read_state(run_id: Any) -> Any:
    """None when the server does not answer."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(run_id).state
    except httpx.TransportError:
        return None
    except PrefectHTTPStatusError as error:
        if error.response.status_code < 500:
            raise
        return None


# The worker's side


@flow(name=FLOW, persist_result=False)
def run_order(order: dict[str, Any]) -> None:
    """What a worker runs: one order, leaving everything in MLflow."""
    wanted = Order.model_validate(order)
    home = find_workspace()
    home.activate()
    store = Store.open(home, patient=True)  # the sender used it a moment ago
    with receive(store, wanted, home) as plan:
        _obey(store, wanted, plan)


def _obey(store: Store, wanted: Order, plan: Plan) -> None:
    if wanted.registered is not None:
        version = versions.load_version(plan.domain.name, wanted.registered)
        if version is None:
            raise LookupError(f"{wanted.name} of {plan.domain.name} is not registered any more")
        artifacts.log_score(store, wanted.parent, wanted.name, score_version(plan, version).folder)
        return
    (tuner,) = plan.tuners
    if wanted.action == "search":
        search_options(store, plan, wanted.parent, tuner, wanted.fresh)
        return
    job = plan.create_jobs()[wanted.name]
    if wanted.fresh:
        job = job.model_copy(update={"folder": job.folder.with_name(f"{wanted.name}-{wanted.parent[:12]}")})
    row = train_job(store, plan, wanted.parent, wanted.name, job, wanted.fresh)
    link(store, row.run_id, f"{plan.domain.name}-{wanted.name}")
    get_run_logger().info("%s: val %.3f, MLflow run %s", wanted.name, row.val, row.run_id)


def require_code(order: Order, ours: Code) -> None:
    """Raise WorkspaceError where this worker's code would make another result than the sender's."""
    parts = ("training", "search") if order.action == "search" else ("training",)
    other = [part for part in parts if getattr(ours, part) != getattr(order.sources, part)]
    if other:
        raise WorkspaceError(
            f"worker on {os.uname().nodename}",
            expected=f"the code of the retrain, git commit {order.code[:12]}",
            found=f"other code of {' and '.join(other)}",
            hint="Bring worker and sender to the same commit; a result is found by the code that made it.",
        )


@contextmanager
def receive(store: Store, order: Order, home: Workspace) -> Iterator[Plan]:
    """The sender's plan on this machine, its images and manifest in place as long as the block runs."""
    sources = read_code(home.cache)
    require_code(order, sources)
    domain = order.domain
    domain = domain.model_copy(update={"backbone": resolve_name(domain.backbone, home.root)})
    tuners = create_tuners([order.tuner] if order.tuner else [])
    data = Data(domain.name, order.version.md5, order.manifest, order.parent)
    here = order.place == _name_place(home) and is_here(home, data)
    with nullcontext(home) if here else hold_fetched(store, home, data) as place:
        backbone = hash_backbone(domain.backbone)
        plan = Plan(place, domain, tuners, order.version, order.code, sources, backbone)
        yield replace(plan, manifest_sha256=order.manifest)
