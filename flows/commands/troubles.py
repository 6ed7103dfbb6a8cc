"""What the configured Prefect server knows of trouble, for `tessera doctor`: each with the command that fixes it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from flows.commands.status import list_online

SLOT_SECONDS = 120.0  # a lease is 60 s
LATE_SECONDS = 60.0  # a worker that has room asks every few seconds
SKEW_SECONDS = 30.0  # between two clocks, from which on schedules and heartbeats go wrong
DAY = timedelta(days=1)
MOST_TOLD = 3
LONGEST = 600  # characters of a message
MOST_RUNS = 200  # Prefect's limit for one answer

Trouble = tuple[str, str]


def find_troubles() -> tuple[list[Trouble], str]:
    """Troubles that are, and a note of those that were and fixed themselves."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        lost, note = _find_lost(client)
        return [*_find_skew(client), *_find_late(client), *_find_slots(client), *lost], note


def _find_skew(client: Any) -> Iterator[Trouble]:
    told = parsedate_to_datetime(client.request("GET", "/health").headers["date"])
    ahead = (datetime.now(UTC) - told).total_seconds()
    if abs(ahead) > SKEW_SECONDS:
        way = "ahead of" if ahead > 0 else "behind"
        yield f"this machine's clock is {abs(ahead):.0f} s {way} the server's", "timedatectl set-ntp true"


def _find_late(client: Any) -> Iterator[Trouble]:
    """What waits for a worker that is not there, by the clock: a server on SQLite marks nothing as late."""
    due = {"before_": (datetime.now(UTC) - timedelta(seconds=LATE_SECONDS)).isoformat()}
    late = _read_runs(client, {"state": {"type": {"any_": ["SCHEDULED"]}}, "next_scheduled_start_time": due})
    for pool in sorted({run.work_pool_name for run in late if run.work_pool_name}):
        count, workers = sum(run.work_pool_name == pool for run in late), len(list_online(client, pool))
        start = f"prefect worker start --type process --pool {pool}"
        hint = "More workers, or rarer schedules." if workers else start
        yield f"{count} late runs on pool {pool}, which has {workers} workers", hint


def _find_slots(client: Any) -> Iterator[Trouble]:
    """What holds a GPU for nobody."""
    if _read_runs(client, {"state": {"type": {"any_": ["RUNNING"]}}}):
        return
    for limit in client.read_global_concurrency_limits(limit=MOST_RUNS, offset=0):
        since = (datetime.now(UTC) - limit.updated).total_seconds() if limit.updated else 0.0
        if limit.name.startswith("gpu") and limit.active_slots and since > SLOT_SECONDS:
            hint = f"prefect gcl update {limit.name} --active-slots 0"
            yield f"slot {limit.name} is taken and no run is on", hint


def _find_lost(client: Any) -> tuple[list[Trouble], str]:
    """Runs of the last day that ended badly: those that a later run of the same name made good are worth a note."""
    bad = ["CRASHED", "FAILED"]
    states = {"state": {"type": {"any_": ["COMPLETED", *bad]}}}
    recent = _read_runs(client, states | {"end_time": {"after_": (datetime.now(UTC) - DAY).isoformat()}})
    last: dict[str, Any] = {}
    for run in recent:  # the latest first
        last.setdefault(run.name, run)
    lost = [run for run in last.values() if run.state_type.value in bad]
    good = [run for run in recent if run.state_type.value in bad and last[run.name].state_type.value not in bad]
    troubles = []
    for run in lost[:MOST_TOLD]:
        domain = next((tag for tag in run.tags if tag != "tessera" and ":" not in tag), "NAME")
        again = run.name.replace(" version ", " ") if run.name.startswith(("promote ", "reproduce ")) else ""
        troubles.append((_tell(run), f"`tessera {again or f'retrain {domain}'}` goes on from what there is."))
    note = f"; {len(good)} lost within a day and done again: {_tell(good[0])}" if good else ""
    return troubles, note


def _tell(run: Any) -> str:
    """A message ends with what fixes it."""
    when = run.end_time.astimezone().strftime("%H:%M") if run.end_time else ""
    message = " ".join((run.state.message or "").split())
    told = message if len(message) <= LONGEST else f"{message[:200]} ... {message[200 - LONGEST :]}"
    return f"{run.name!r} {run.state_type.value.lower()} at {when}: {told}"


def _read_runs(client: Any, wanted: dict[str, Any]) -> list[Any]:
    """Ours, the latest end first."""
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort

    known = FlowRunFilter.model_validate({"tags": {"all_": ["tessera"]}} | wanted)
    found: list[Any] = client.read_flow_runs(flow_run_filter=known, sort=FlowRunSort.END_TIME_DESC, limit=MOST_RUNS)
    return found
