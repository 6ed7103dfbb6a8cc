"""MLflow's record of each retrain or promotion (a parent run) and of each candidate or trial (a child run), by domain.

parent = start_parent(store, domain, ...)       RUNNING until end_parent(store, parent, "FINISHED")
child = start_child(store, parent, ...)         RUNNING while it is trained; store.log_metrics(child, points)
log_candidate(store, parent, ..., reporter)     candidates.py: parameters, metrics, pictures, adapter; FINISHED
log_trial(store, child, ...)                    candidates.py: the scores of one trial of a search
log_model(store, child, adapter)                artifacts.py: the winner, ready for the registry
log_result(store, parent, outcome)              outcomes.py: the answer when nothing has changed
"""

import re
from datetime import UTC, datetime
from typing import Any, Literal

from components.domain.domain import Domain
from components.processes import ended_here, identify
from components.tasks import create_task
from components.tracking.pages import NOTE, link_prefect, tag_experiment
from components.tracking.store import TAG_PREFIX, Store, create_tags, flatten, is_server, match_tags

#: MLflow's name for how a run ended: Prefect's name.
ENDINGS = {"FINISHED": "Completed", "FAILED": "Failed", "KILLED": "Cancelled"}
PARENT_TAG = "mlflow.parentRunId"

Ending = Literal["FINISHED", "FAILED", "KILLED"]
Role = Literal["retrain", "promote"]


def start_parent(
    store: Store,
    domain: Domain,
    data_version: str,
    verdict_key: str,
    git_commit: str,
    *,
    role: Role = "retrain",
    **keys: str,
) -> str:
    """Open the run of one retrain or promotion and return its id; `end_parent` must follow.

    keys: manifest_key and manifest_sha256, by which `find_manifest` knows the manifest that the data stages wrote.
    """
    experiment = store.ensure_experiment(domain.name)
    with store.client() as client:
        for key, value in tag_experiment(domain, experiment, create_task(domain).metric).items():
            client.set_experiment_tag(experiment, key, value)
        _end_dead_runs(client, experiment)
        tags = create_tags(
            domain=domain.name,
            role=role,
            data_version=data_version,
            verdict_key=verdict_key,
            git_commit=git_commit,
            backbone=domain.backbone,
            process=identify(),
            **keys,
        )
        run_id = str(client.create_run(experiment, tags=tags, run_name=f"{role} {data_version[:8]}").info.run_id)
    settings = domain.model_dump(mode="json", include={"training", "gates", "split", "augmentation"})
    store.log_params(run_id, flatten(settings))
    store.log_dataset(run_id, domain.name, data_version)
    return run_id


def end_parent(store: Store, run_id: str, status: Ending = "FINISHED") -> None:
    """Close the run of a retrain or promotion."""
    with store.client() as client:
        client.set_terminated(run_id, status)


def start_child(store: Store, parent: str, name: str, **tags: str) -> str:
    """Open the run of a training that begins now: RUNNING until `log_candidate`, `log_trial` or `end_child`.

    tags: role (candidate or trial), tuner, seed and what else the run is to be found by.
    """
    with store.client() as client:
        above = client.get_run(parent)
        own = create_tags(process=identify(), **tags) | {PARENT_TAG: parent}
        created = client.create_run(above.info.experiment_id, tags=inherit_tags(above) | own, run_name=name)
        return str(created.info.run_id)


def adopt_child(store: Store, parent: str, run_id: str) -> None:
    """Move a candidate or trial of an earlier retrain below this one, unless that retrain has an outcome."""
    with store.client() as client:
        above = client.get_run(run_id).data.tags.get(PARENT_TAG, "")
        if above != parent and not (above and f"{TAG_PREFIX}result" in client.get_run(above).data.tags):
            client.set_tag(run_id, PARENT_TAG, parent)


def find_manifest(store: Store, domain: str, manifest_key: str) -> str | None:
    """sha256 of the manifest that the data stages wrote for this key, as the latest run recorded it."""
    newest = ["attributes.start_time DESC"]
    found = store.search_runs(domain, match_tags(manifest_key=manifest_key), max_results=1, order_by=newest)
    return found[0].data.tags.get(f"{TAG_PREFIX}manifest_sha256") if found else None


def continue_child(store: Store, run_id: str) -> tuple[int, ...]:
    """Reopen a trial's run; returns the epochs it already has."""
    store.set_tags(run_id, create_tags(process=identify()))
    with store.client() as client:
        client.update_run(run_id, status="RUNNING")
        return tuple(point.step for point in client.get_metric_history(run_id, "val/loss"))


def end_child(store: Store, run_id: str, status: Ending, message: str = "") -> None:
    """Close the run of a training that did not complete. message: why."""
    if message:
        store.set_tags(run_id, create_tags(error=message) | {NOTE: f"{status.lower()}: {message}"})
    with store.client() as client:
        client.set_terminated(run_id, status)


def find_page(store: Store, run_id: str) -> str | None:
    """The address of a run's page on an MLflow server; None for a store without one."""
    if not is_server(store.uri):
        return None
    with store.client() as client:
        experiment = client.get_run(run_id).info.experiment_id
    return f"{re.sub('//[^/@]*@', '//', store.uri).rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def log_flow_page(store: Store, run_id: str, page: str) -> None:
    """Record the page of the flow run that made this run: as a tag, and as a link in its description."""
    with store.client() as client:
        note = client.get_run(run_id).data.tags.get(NOTE, "")
    store.set_tags(run_id, {f"{TAG_PREFIX}prefect": page, NOTE: note + link_prefect(page)})


def find_retrains(store: Store, domain: str) -> dict[str, Any]:
    """The latest retrain that ended, as {"state", "when"}, and since when one runs, as this store knows them.

    A run whose process on this machine is gone has crashed, whatever its status.
    """
    found: dict[str, Any] = {"last": None, "running": None}
    for run in store.search_runs(domain, match_tags(role="retrain"), max_results=10):  # the latest first
        if run.info.status == "RUNNING" and not _has_died(run):
            found["running"] = found["running"] or _write_time(run.info.start_time)
        elif found["last"] is None:
            state = "Crashed" if run.info.status == "RUNNING" else ENDINGS.get(run.info.status, run.info.status)
            found["last"] = {"state": state, "when": _write_time(run.info.end_time or run.info.start_time)}
    return found


def _write_time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _end_dead_runs(client: Any, experiment: str) -> None:
    """Close the runs that killed processes of this machine left RUNNING."""
    for run in filter(_has_died, client.search_runs([experiment], "attributes.status = 'RUNNING'")):
        client.set_terminated(run.info.run_id, "KILLED")


def _has_died(run: Any) -> bool:
    return ended_here(run.data.tags.get(f"{TAG_PREFIX}process", ""))


def inherit_tags(above: Any) -> dict[str, str]:
    """The tags that a candidate shares with its retrain, the run `above`."""
    shared = [f"{TAG_PREFIX}{key}" for key in ("domain", "data_version", "git_commit")]
    return {key: above.data.tags[key] for key in (*shared, "mlflow.source.git.commit") if key in above.data.tags}
