"""`tessera status`: every domain in one row, from the files here, MLflow and, where there is one, Prefect."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from components.data.store import proofs
from components.data.store.versioning import read_version
from components.data.store.versions import list_versions
from components.domain.domain import Domain
from components.errors import TesseraError, TrackingError
from components.promotion import aliases, ledger, versions
from components.tasks import create_task
from components.tracking import candidates, outcomes, runs
from components.tracking.store import Store
from components.workspace import Workspace
from flows.commands.drift import find_drift
from flows.server.prefect_boot import find_server, why_silent
from flows.server.schedules import POOL, TAG, load_domains

ONLINE_SECONDS = 120.0  # a worker tells of itself every 30


def status(workspace: Workspace) -> dict[str, Any]:
    """All domains that have images, and the servers asked."""
    store = Store.open(workspace)
    domains = load_domains(workspace)
    server, locked = _ask_prefect(domains.read), proofs.load_locked(workspace)
    rows = [
        _try_describe(store, workspace, domain, _find_runs(store, server, domain.name), locked)
        for domain in domains.read
    ]
    rows += [_describe_unread(name, error) for name, error in domains.unread.items()]
    return {
        "workspace": str(workspace.root),
        "mlflow": store.address,
        "prefect": server["url"],
        "pools": server["pools"],
        "domains": sorted(rows, key=lambda row: str(row["domain"])),
    }


#: Columns of a row, all null in the row of a domain that cannot be read.
COLUMNS = (
    *("data_version", "data_name", "files", "champion_version", "champion_data", "rolled_back_from"),
    "champion_trouble",
    *("champion_score", "drift", "verdict", "last_seconds", "work_pool", "last_run", "running", "next_run"),
)


def _try_describe(
    store: Store, workspace: Workspace, domain: Domain, known: Mapping[str, Any], locked: Mapping[str, Any]
) -> dict[str, Any]:
    """The row of a domain; trouble with its files must not hide the other domains. The store's is everybody's."""
    try:
        return _describe(store, workspace, domain, known, locked)
    except TrackingError:
        raise
    except TesseraError as error:
        return _describe_unread(domain.name, error)


def _describe_unread(name: str, error: TesseraError) -> dict[str, Any]:
    return {"domain": name, **dict.fromkeys(COLUMNS), "error": error.to_dict()}


def _find_runs(store: Store, server: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Retrains as Prefect knows them; where no server knows of any, as MLflow does: from commands of their own."""
    known = server["domains"].get(name, {})
    return dict(known) if known.get("last") or known.get("running") else {**known, **runs.find_retrains(store, name)}


def _describe(
    store: Store, workspace: Workspace, domain: Domain, known: Mapping[str, Any], locked: Mapping[str, Any]
) -> dict[str, Any]:
    here, metric = read_version(workspace, domain.name), create_task(domain).metric
    named = [version.name for version in list_versions(workspace, domain.name) if version.md5 == here.md5]
    champion = versions.load_version(domain.name, versions.CHAMPION)
    last = outcomes.load_last_result(store, domain.name)
    return {
        "domain": domain.name,
        "data_version": here.md5,
        "data_name": named[-1] if named else None,
        "files": here.files,
        "champion_version": None if champion is None else champion.version,
        "champion_data": None if champion is None else champion.data_version,
        "rolled_back_from": None if champion is None else _find_rollback(domain.name, champion.version),
        "champion_trouble": None if (trouble := aliases.find_trouble(domain.name)) is None else trouble.to_dict(),
        "champion_score": None
        if champion is None
        else _find_score(store, metric, last, champion.version, champion.run_id),
        "drift": None if champion is None else find_drift(store, workspace, champion, here.md5, locked),
        "verdict": None if last is None else last.get("verdict"),
        "last_seconds": None if last is None else last.get("seconds"),
        "work_pool": domain.work_pool,
        "last_run": known.get("last"),
        "running": known.get("running"),
        "next_run": known.get("next"),
        "error": None,
    }


def _find_rollback(name: str, version: int) -> int | None:
    """The version that was rolled back to reach the champion; None where the champion was promoted."""
    moves = [record for record in ledger.load_records(name) if record.action in ledger.MOVES]
    back = bool(moves) and moves[-1].action == "rollback" and moves[-1].to_version == version
    return moves[-1].from_version if back else None


def _find_score(
    store: Store, metric: str, last: Mapping[str, Any] | None, version: int, run_id: str
) -> dict[str, float] | None:
    """The champion's test score: its own row of the last retrain, or what its run says."""
    if last is not None and last.get("challenger_version") == version:
        row = next((row for row in last["candidates"] if row.get("selected")), None)
        if row is not None:
            return dict(row["test"])
    return candidates.load_test_score(store, run_id, metric)


def _ask_prefect(domains: list[Domain]) -> dict[str, Any]:
    """Runs, schedules and workers; nothing without a configured server, and why where it does not answer."""
    url = find_server()
    empty: dict[str, Any] = {"url": url, "pools": [], "domains": {}}
    if url is None:
        return empty
    if (reason := why_silent(url)) is not None:
        return empty | {"url": f"{url} does not answer ({reason})"}
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        pools = [_describe_pool(client, pool) for pool in client.read_work_pools()]
        return empty | {"pools": pools, "domains": {domain.name: _ask_runs(client, domain) for domain in domains}}


def _describe_pool(client: Any, pool: Any) -> dict[str, Any]:
    online = list_online(client, pool.name)
    return {"name": pool.name, "retrains": pool.name == POOL, "paused": pool.is_paused, "workers_online": online}


def list_online(client: Any, pool: str) -> list[str]:
    """Workers of a pool that were heard lately."""
    since = datetime.now(UTC) - timedelta(seconds=ONLINE_SECONDS)
    workers = client.read_workers_for_work_pool(pool)
    return [worker.name for worker in workers if worker.last_heartbeat_time and worker.last_heartbeat_time > since]


def _ask_runs(client: Any, domain: Domain) -> dict[str, Any]:
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
    return {
        "last": None if ended is None else {"state": ended.state_name, "when": _write_time(ended.end_time)},
        "running": None if running is None else _write_time(running.start_time),
        "next": None if coming is None else _write_time(coming.next_scheduled_start_time),
    }


def _write_time(when: datetime | None) -> str | None:
    return None if when is None else when.astimezone(UTC).isoformat(timespec="seconds")
