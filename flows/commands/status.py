"""`tessera status`: every domain in one row, from the files here, MLflow and, where there is one, Prefect."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from components.data.store import proofs
from components.data.store.versioning import read_version
from components.data.store.versions import list_versions
from components.domain.domain import Domain
from components.errors import TesseraError, TrackingError
from components.promotion import aliases, ledger, versions
from components.promotion.licences import find_outside_now, recall_licences
from components.promotion.versions import Version
from components.records.fields import ErrorRecord
from components.records.licences import Chain
from components.records.operations import DomainRow, Ended, Pool, Status
from components.records.outcomes import Outcome, Score
from components.tasks import create_task
from components.tracking import candidates, outcomes, runs
from components.tracking.store import Store
from components.workspace import Workspace
from flows.commands.drift import find_drift
from flows.server.prefect_boot import find_server, why_silent
from flows.server.schedules import POOL, TAG, load_domains

ONLINE_SECONDS = 120.0  # a worker tells of itself every 30


def status(workspace: Workspace) -> Status:
    """All domains that have images, and the servers asked."""
    store = Store.open(workspace)
    domains = load_domains(workspace)
    server, locked = _ask_prefect(domains.read), proofs.load_locked(workspace)
    rows = [
        _try_describe(store, workspace, domain, _find_runs(store, server, domain.name), locked)
        for domain in domains.read
    ]
    rows += [DomainRow(domain=name, error=ErrorRecord.of(error)) for name, error in domains.unread.items()]
    return Status(
        workspace=workspace.root,
        mlflow=store.address,
        prefect=server.url,
        pools=server.pools,
        domains=tuple(sorted(rows, key=lambda row: row.domain)),
    )


@dataclass(frozen=True)
class Retrains:
    """A domain's last, present and next retrain."""

    last: Ended | None = None
    running: str | None = None
    next: str | None = None


@dataclass(frozen=True)
class Server:
    """What Prefect knows. url: also says why it does not answer. domains: by name."""

    url: str | None
    pools: tuple[Pool, ...] = ()
    domains: Mapping[str, Retrains] = field(default_factory=dict)


def _try_describe(
    store: Store, workspace: Workspace, domain: Domain, known: Retrains, locked: Mapping[str, Any]
) -> DomainRow:
    """The row of a domain; trouble with its files must not hide the other domains. The store's is everybody's."""
    try:
        return _describe(store, workspace, domain, known, locked)
    except TrackingError:
        raise
    except TesseraError as error:
        return DomainRow(domain=domain.name, error=ErrorRecord.of(error))


def _find_runs(store: Store, server: Server, name: str) -> Retrains:
    """Retrains as Prefect knows them; where no server knows of any, as MLflow does: from commands of their own."""
    known = server.domains.get(name, Retrains())
    if known.last or known.running:
        return known
    found = runs.find_retrains(store, name)
    last = None if found["last"] is None else Ended(**found["last"])
    return replace(known, last=last, running=found["running"])


def _describe(
    store: Store, workspace: Workspace, domain: Domain, known: Retrains, locked: Mapping[str, Any]
) -> DomainRow:
    here, metric = read_version(workspace, domain.name), create_task(domain).metric
    named = [version.name for version in list_versions(workspace, domain.name) if version.md5 == here.md5]
    champion = versions.load_version(domain.name, versions.CHAMPION)
    last, trouble = outcomes.load_last_result(store, domain.name), aliases.find_trouble(domain.name)
    row = DomainRow(
        domain=domain.name,
        data_version=here.md5,
        data_name=named[-1] if named else None,
        files=here.files,
        champion_trouble=None if trouble is None else ErrorRecord.of(trouble),
        verdict=None if last is None else last.verdict,
        last_seconds=None if last is None else last.seconds,
        work_pool=domain.work_pool,
        last_run=known.last,
        running=known.running,
        next_run=known.next,
    )
    if champion is None:
        return row
    return row.model_copy(
        update={
            "champion_version": champion.version,
            "champion_data": champion.data_version,
            "rolled_back_from": _find_rollback(domain.name, champion.version),
            "champion_score": _find_score(store, metric, last, champion.version, champion.run_id),
            **_find_licences(workspace, domain, champion),
            "drift": find_drift(store, workspace, champion, here.md5, locked),
        }
    )


def _find_licences(workspace: Workspace, domain: Domain, champion: Version) -> dict[str, Chain]:
    """The champion's licences, and those that the domain's gate would reject; nothing is downloaded for it."""
    outside = find_outside_now(workspace, champion, domain)
    return {"licences": recall_licences(workspace, champion, domain), "licences_outside": outside}


def _find_rollback(name: str, version: int) -> int | None:
    """The version that was rolled back to reach the champion; None where the champion was promoted."""
    moves = [record for record in ledger.load_records(name) if record.action in ledger.MOVES]
    back = bool(moves) and moves[-1].action == "rollback" and moves[-1].to_version == version
    return moves[-1].from_version if back else None


def _find_score(store: Store, metric: str, last: Outcome | None, version: int, run_id: str) -> Score | None:
    """The champion's test score: its own row of the last retrain, or what its run says."""
    if last is not None and last.challenger_version == version:
        return last.best.test
    return candidates.load_test_score(store, run_id, metric)


def _ask_prefect(domains: list[Domain]) -> Server:
    """Runs, schedules and workers; nothing without a configured server, and why where it does not answer."""
    url = find_server()
    if url is None:
        return Server(None)
    if (reason := why_silent(url)) is not None:
        return Server(f"{url} does not answer ({reason})")
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        pools = tuple(_describe_pool(client, pool) for pool in client.read_work_pools())
        return Server(url, pools, {domain.name: _ask_runs(client, domain) for domain in domains})


def _describe_pool(client: Any, pool: Any) -> Pool:
    online = tuple(list_online(client, pool.name))
    return Pool(name=pool.name, retrains=pool.name == POOL, paused=pool.is_paused, workers_online=online)


def list_online(client: Any, pool: str) -> list[str]:
    """Workers of a pool that were heard lately."""
    since = datetime.now(UTC) - timedelta(seconds=ONLINE_SECONDS)
    workers = client.read_workers_for_work_pool(pool)
    return [worker.name for worker in workers if worker.last_heartbeat_time and worker.last_heartbeat_time > since]


def _ask_runs(client: Any, domain: Domain) -> Retrains:
    """The latest finished, the running and the next retrain of a domain, whoever started it."""
    from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort

    def find(states: list[str], sort: Any) -> Any:
        wanted = {"state": {"type": {"any_": states}}, "tags": {"all_": [TAG, domain.name]}}
        found = client.read_flow_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": ["retrain"]}}),
            flow_run_filter=FlowRunFilter.model_validate(wanted),
            sort=sort,
            limit=1,
        )
        return found[0] if found else None

    ended = find(["COMPLETED", "FAILED", "CRASHED", "CANCELLED"], FlowRunSort.END_TIME_DESC)
    running = find(["RUNNING", "PENDING"], FlowRunSort.START_TIME_DESC)
    coming = find(["SCHEDULED"], FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC)
    return Retrains(
        last=None if ended is None else Ended(state=ended.state_name, when=_write_time(ended.end_time)),
        running=None if running is None else _write_time(running.start_time),
        next=None if coming is None else _write_time(coming.next_scheduled_start_time),
    )


def _write_time(when: datetime | None) -> str | None:
    return None if when is None else when.astimezone(UTC).isoformat(timespec="seconds")
