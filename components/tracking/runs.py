"""MLflow's record of each retrain or promotion (a parent run), and of each candidate or trial (a child run).

    store.connect(workspace)                 once per process; then
    run_id = start_parent(domain, ...)       RUNNING until end_parent(run_id, "FINISHED")
    child = start_child(run_id, ...)         RUNNING while it is trained; log_epochs(child, points) as they come
    candidates.log_candidate(run_id, ...)    parameters, history, metrics, pictures, adapter, lineage; FINISHED
    candidates.log_trial(child, ...)         the scores of a trial of a search
    artifacts.log_model(child, adapter)      the winner only: ready for the registry and for `mlflow models serve`
    outcomes.log_result(run_id, outcome)     what `find_retrain` gives back when nothing has changed

Runs are written through MlflowClient, never through the fluent API's hidden "active run": tasks and threads do not
share one. Tags that join a run to its data and code start with `tessera.`. mlflow takes seconds to import and is
imported inside the functions.
"""

import re
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from components.domain.domain import Domain
from components.processes import answers
from components.tracking.live import Point
from components.tracking.pages import (
    NOTE,
    link_prefect,
    tag_experiment,
)
from components.tracking.store import (
    TAG,
    create_tags,
    flatten,
    is_server,
    log_points,
    match_tags,
    name_process,
    refusals,
    set_tags,
)

#: How a run of MLflow's ended, in Prefect's words.
ENDINGS = {"FINISHED": "Completed", "FAILED": "Failed", "KILLED": "Cancelled"}
MOST_DIGEST = 36


Ending = Literal["FINISHED", "FAILED", "KILLED"]
Role = Literal["retrain", "promote"]


def start_parent(
    domain: Domain, data_version: str, verdict_key: str, git_commit: str, role: Role = "retrain", **keys: str
) -> str:
    """Open the run of one retrain or promotion and return its id; `end_parent` must follow.

    keys: manifest_key and manifest_sha256, by which `find_manifest` knows what the data stages made.
    """
    import mlflow
    from mlflow.entities import Param

    with refusals():
        client = mlflow.MlflowClient()
        experiment = _find_experiment(client, domain)
        _end_dead_runs(client, experiment)
        tags = create_tags(
            domain=domain.name,
            role=role,
            data_version=data_version,
            verdict_key=verdict_key,
            git_commit=git_commit,
            backbone=domain.backbone,
            process=name_process(),
            **keys,
        )
        run_id = str(client.create_run(experiment, tags=tags, run_name=f"{role} {data_version[:8]}").info.run_id)
        params = flatten(domain.model_dump(mode="json", include={"training", "gates", "split", "augmentation"}))
        client.log_batch(run_id, params=[Param(key, value) for key, value in params.items()])
        log_dataset(client, run_id, domain.name, data_version)
        return run_id


def start_child(parent: str, name: str, **tags: str) -> str:
    """Open the run of a training that begins now: RUNNING until `log_candidate`, `log_trial` or `end_child`.

    tags: role (candidate or trial), tuner, seed and what else it is to be found by.
    """
    import mlflow

    with refusals():
        client = mlflow.MlflowClient()
        above = client.get_run(parent)
        own = create_tags(process=name_process(), **tags) | {"mlflow.parentRunId": parent}
        created = client.create_run(above.info.experiment_id, tags=inherit_tags(above) | own, run_name=name)
        return str(created.info.run_id)


def adopt_child(parent: str, run_id: str) -> None:
    """A candidate or trial that an earlier retrain left becomes this one's, unless that one came to an outcome."""
    import mlflow

    with refusals():
        client = mlflow.MlflowClient()
        above = client.get_run(run_id).data.tags.get("mlflow.parentRunId", "")
        if above != parent and not (above and f"{TAG}result" in client.get_run(above).data.tags):
            client.set_tag(run_id, "mlflow.parentRunId", parent)


def find_manifest(domain: str, manifest_key: str) -> str | None:
    """sha256 of the manifest that the data stages made for this key, as the latest run recorded it."""
    import mlflow

    with refusals():
        client = mlflow.MlflowClient()
        if (experiment := client.get_experiment_by_name(domain)) is None:
            return None
        wanted = match_tags(None, manifest_key=manifest_key)
        newest = ["attributes.start_time DESC"]
        found = client.search_runs([experiment.experiment_id], wanted, max_results=1, order_by=newest)
    return found[0].data.tags.get(f"{TAG}manifest_sha256") if found else None


def continue_child(run_id: str) -> tuple[int, ...]:
    """A trial's run goes on; returns the epochs it has."""
    import mlflow

    with refusals():
        client = mlflow.MlflowClient()
        set_tags(client, run_id, create_tags(process=name_process()))
        client.update_run(run_id, status="RUNNING")
        return tuple(point.step for point in client.get_metric_history(run_id, "val/loss"))


def log_epochs(run_id: str, points: Sequence[Point]) -> None:
    """The epochs' numbers in one request, or as few as MLflow allows."""
    import mlflow

    with refusals():
        client = mlflow.MlflowClient()
        log_points(client, run_id, points)


def end_child(run_id: str, status: Ending, message: str = "") -> None:
    """Close the run of a training that did not come to its end, and say why."""
    import mlflow

    with refusals():
        client = mlflow.MlflowClient()
        if message:
            tags = create_tags(error=message) | {NOTE: f"{status.lower()}: {message}"}
            set_tags(client, run_id, tags)
        client.set_terminated(run_id, status)


def find_page(run_id: str) -> str | None:
    """The address of a run's page on an MLflow server; None for a store without one."""
    import mlflow

    uri = mlflow.get_tracking_uri()
    if not is_server(uri):
        return None
    with refusals():
        experiment = mlflow.MlflowClient().get_run(run_id).info.experiment_id
    return f"{re.sub('//[^/@]*@', '//', uri).rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def tell_page(run_id: str, page: str) -> None:
    """Where the flow run that makes this run can be looked at: as a tag, and as a link in its description."""
    import mlflow

    with refusals():
        client = mlflow.MlflowClient()
        note = client.get_run(run_id).data.tags.get(NOTE, "")
        set_tags(client, run_id, {f"{TAG}prefect": page, NOTE: note + link_prefect(page)})


def end_parent(run_id: str, status: Ending = "FINISHED") -> None:
    """Close the run of a retrain or promotion."""
    import mlflow

    with refusals():
        mlflow.MlflowClient().set_terminated(run_id, status)


def find_retrains(domain: str) -> dict[str, Any]:
    """The latest retrain that ended, as {"state", "when"}, and since when one runs, as this store knows them.

    One whose process on this machine is gone has crashed, whatever its run says.
    """
    import mlflow

    found: dict[str, Any] = {"last": None, "running": None}
    with refusals():
        client = mlflow.MlflowClient()
        if (experiment := client.get_experiment_by_name(domain)) is None:
            return found
        runs = client.search_runs([experiment.experiment_id], f"tags.`{TAG}role` = 'retrain'", max_results=10)
    for run in runs:  # the latest first
        if run.info.status == "RUNNING" and not has_died(run):
            found["running"] = found["running"] or _write_time(run.info.start_time)
        elif found["last"] is None:
            state = "Crashed" if run.info.status == "RUNNING" else ENDINGS.get(run.info.status, run.info.status)
            found["last"] = {"state": state, "when": _write_time(run.info.end_time or run.info.start_time)}
    return found


def _write_time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _find_experiment(client: Any, domain: Domain) -> str:
    """The domain's experiment, made on first use; its description and its view are always those of today."""
    found = client.get_experiment_by_name(domain.name)
    experiment = _create_experiment(client, domain.name) if found is None else str(found.experiment_id)
    for key, value in tag_experiment(domain, experiment).items():
        client.set_experiment_tag(experiment, key, value)
    return experiment


def _create_experiment(client: Any, name: str) -> str:
    """A server chooses where artifacts go, SQLite has them beside it."""
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = mlflow.get_tracking_uri()
    location = None
    if uri.startswith("sqlite:///"):
        location = (Path(uri.removeprefix("sqlite:///")).resolve().parent / "artifacts" / name).as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return str(client.get_experiment_by_name(name).experiment_id)  # another process was faster


def _end_dead_runs(client: Any, experiment: str) -> None:
    """A process that was killed outright leaves its runs RUNNING for ever: close those of this machine's dead ones."""
    running = client.search_runs([experiment], "attributes.status = 'RUNNING'")
    for run in filter(has_died, running):
        client.set_terminated(run.info.run_id, "KILLED")


def has_died(run: Any) -> bool:
    """Whether the process of this machine that wrote the run is gone."""
    host, _, pid = run.data.tags.get(f"{TAG}process", "").rpartition(":")
    return host == socket.gethostname() and pid.isdecimal() and not answers(int(pid))


def inherit_tags(above: Any) -> dict[str, str]:
    """What a candidate shares with its retrain."""
    shared = [f"{TAG}{key}" for key in ("domain", "data_version", "git_commit")]
    return {key: above.data.tags[key] for key in (*shared, "mlflow.source.git.commit") if key in above.data.tags}


def log_dataset(client: Any, run_id: str, name: str, digest: str) -> None:
    """The data version as MLflow's dataset input, by which runs can be searched."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = CodeDatasetSource({"dvc": f"data/{name}/raw.dvc", "md5": digest})
    dataset = MetaDataset(source, name=name, digest=digest[:MOST_DIGEST])
    entry = DatasetInput(Dataset(**dataset.to_dict()), [InputTag("mlflow.data.context", "training")])
    client.log_inputs(run_id, [entry])
