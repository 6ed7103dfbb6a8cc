"""What happened, in MLflow: a parent run a retrain or promotion, a child run a candidate or trial, by domain.

    connect(workspace)                       once a process; then
    run_id = start_parent(domain, ...)       RUNNING until end_parent(run_id, "FINISHED")
    child = start_child(run_id, ...)         RUNNING while it is trained; log_epochs(child, points) as they come
    log_candidate(run_id, ..., live)         parameters, history, metrics, pictures, adapter, lineage; FINISHED
    log_trial(child, ...)                    what a search's trial scored; find_trials(...) gives them back
    uri = log_model(child, adapter)          the winner only: ready for the registry and for `mlflow models serve`
    log_result(run_id, outcome)              what `find_retrain` gives back when nothing has changed

Runs are written through MlflowClient, never through the fluent API's hidden "active run": tasks and threads do not
share one. Tags that join a run to its data and code start with `tessera.`. mlflow takes seconds to import and is
imported inside the functions.
"""

import json
import logging
import os
import re
import socket
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Literal

from components.domain.domain import Domain
from components.errors import TrackingError
from components.files import open_private, whole_file
from components.models.adapter import hash_meta, load_meta
from components.processes import answers
from components.records import HEAT_FILE, JOB_FILE, PROBABILITY, Result, Rung, load_predictions, write_result
from components.reports.pictures import draw_confusion, draw_curves, draw_samples
from components.tracking.live import Live, Point
from components.tracking.pages import (
    CARDS,
    DATA,
    EVIDENCE,
    NOTE,
    describe_candidate,
    describe_outcome,
    link_prefect,
    link_run,
    tag_experiment,
)
from components.workspace import Workspace

TAG = "tessera."
RESULT_FILE = "result.json"
SCORES = "scores"  # artifact folder of registered versions' predictions
MOST_DESCRIPTION = 5000  # characters: the store's column
TRAINING = "training"  # artifact folder of what a training process was told and left
CODE_FILE = f"{TRAINING}/code.json"
#: How a run of MLflow's ended, in Prefect's words.
ENDINGS = {"FINISHED": "Completed", "FAILED": "Failed", "KILLED": "Cancelled"}
SERVER_SECONDS = 5.0
MOST_PARAMS, MOST_METRICS = 100, 1000  # MLflow's limits for one batch
MOST_DIGEST = 36
PYFUNC_FILE = Path(__file__).parents[1] / "serving" / "pyfunc.py"
#: What the served model needs beside Tessera itself, which is not on PyPI and must not be guessed from there.
REQUIREMENTS = ("mlflow", "torch", "timm", "safetensors", "pillow", "numpy", "polars", "pydantic", "scikit-learn")

#: How MLflow's client waits for a server: 3 + 6 + 12 + 24 + 48 s. Its own settings take four minutes to tell of a full
#: disk.
CLIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "3",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_ANSWERED = set[str]()  # servers, in this process

Ending = Literal["FINISHED", "FAILED", "KILLED"]
Role = Literal["retrain", "promote"]


def connect(workspace: Workspace, patient: bool = False) -> None:
    """Point MLflow at the workspace's store, and make or migrate its SQLite schema where that is the store.

    Raises TrackingError when the store cannot be used. A server that is away is told within seconds, unless it is known
    to exist (`patient`: from somebody else; or it answered before): that is waited for, as in every later request.
    """
    uri = workspace.tracking_uri
    if is_server(uri) and uri not in _ANSWERED and not patient:
        _require_server(uri)
    if uri == f"sqlite:///{workspace.state / 'mlflow' / 'mlflow.db'}":
        open_private(workspace.state / "mlflow" / "mlflow.db").close()  # before SQLite makes it as the umask says
    _ANSWERED.add(uri)
    for key, value in CLIENT.items():
        os.environ.setdefault(key, value)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # "Updating database tables"
    import mlflow
    from filelock import FileLock

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    lock = workspace.state / "locks" / "mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with _refusals(), FileLock(lock):  # two first users would both migrate
        mlflow.MlflowClient().search_experiments(max_results=1)


def is_server(uri: str) -> bool:
    """Else it is a database, of which nobody else knows how to wait for it."""
    return uri.startswith(("http://", "https://"))


def start_parent(domain: Domain, data_version: str, fingerprint: str, git_commit: str, role: Role = "retrain") -> str:
    """Open the run of one retrain or promotion and return its id; `end_parent` must follow."""
    import mlflow
    from mlflow.entities import Param

    with _refusals():
        client = mlflow.MlflowClient()
        experiment = _find_experiment(client, domain)
        _end_dead_runs(client, experiment)
        tags = _create_tags(
            domain=domain.name,
            role=role,
            data_version=data_version,
            fingerprint=fingerprint,
            git_commit=git_commit,
            backbone=domain.backbone,
            process=_name_process(),
        )
        run_id = str(client.create_run(experiment, tags=tags, run_name=f"{role} {data_version[:8]}").info.run_id)
        params = flatten(domain.model_dump(mode="json", include={"training", "gates", "split", "augmentation"}))
        client.log_batch(run_id, params=[Param(key, value) for key, value in params.items()])
        _log_dataset(client, run_id, domain.name, data_version)
        return run_id


def start_child(parent: str, name: str, **tags: str) -> str:
    """Open the run of a training that begins now: RUNNING until `log_candidate`, `log_trial` or `end_child`.

    tags: role (candidate or trial), tuner, seed and what else it is to be found by.
    """
    import mlflow

    with _refusals():
        client = mlflow.MlflowClient()
        above = client.get_run(parent)
        own = _create_tags(process=_name_process(), **tags) | {"mlflow.parentRunId": parent}
        created = client.create_run(above.info.experiment_id, tags=_inherit_tags(above) | own, run_name=name)
        return str(created.info.run_id)


def adopt_child(parent: str, run_id: str) -> None:
    """A trial that an earlier retrain left becomes this one's."""
    import mlflow

    with _refusals():
        mlflow.MlflowClient().set_tag(run_id, "mlflow.parentRunId", parent)


def continue_child(run_id: str) -> tuple[int, ...]:
    """A trial's run goes on; returns the epochs it has."""
    import mlflow

    with _refusals():
        client = mlflow.MlflowClient()
        _set_tags(client, run_id, _create_tags(process=_name_process()))
        client.update_run(run_id, status="RUNNING")
        return tuple(point.step for point in client.get_metric_history(run_id, "val/loss"))


def log_epochs(run_id: str, points: Sequence[Point]) -> None:
    """The epochs' numbers in one request, or as few as MLflow allows."""
    import mlflow

    with _refusals():
        client = mlflow.MlflowClient()
        _log_points(client, run_id, points)


def end_child(run_id: str, status: Ending, message: str = "") -> None:
    """Close the run of a training that did not come to its end, and say why."""
    import mlflow

    with _refusals():
        client = mlflow.MlflowClient()
        if message:
            tags = _create_tags(error=message) | {NOTE: f"{status.lower()}: {message}"}
            _set_tags(client, run_id, tags)
        client.set_terminated(run_id, status)


def log_trial(
    run_id: str, number: int, rungs: Sequence[Rung], own: Mapping[str, Any], points: Sequence[Point] = ()
) -> None:
    """What a trial of a search has scored so far, as a finished run.

    own: the options the search chose. points: epochs the run lacks.

    Options and rungs are tags, written at once: they are there whole or not at all.
    """
    import mlflow
    from mlflow.entities import Param

    last = rungs[-1]
    told = [rung.model_dump(mode="json", exclude={"tuner"}) for rung in rungs]
    chosen = ", ".join(f"{key} {value}" for key, value in own.items())
    note = f"Trial {number}: **{last.score:.3f}** on validation after {last.epochs} epochs, with {chosen}. {last.error}"
    numbers = {
        "search/score": last.score,
        "search/epochs": last.epochs,
        "search/seconds": sum(r.seconds for r in rungs),
    }
    with _refusals():
        client = mlflow.MlflowClient()
        params = flatten({"tuner": last.tuner, "seed": last.seed})
        client.log_batch(run_id, params=[Param(key, value) for key, value in params.items()])
        _log_points(client, run_id, points)
        _log_metrics(client, run_id, numbers, step=last.epochs, when=int(time.time() * 1000))
        tags = _create_tags(options=json.dumps(last.tuner), rungs=json.dumps(told))
        _set_tags(client, run_id, tags | {NOTE: note.strip()})
        client.set_terminated(run_id, "FINISHED")


def find_trials(
    domain: str, fingerprint: str, tuner: str, parent: str | None = None
) -> dict[int, tuple[str, tuple[Rung, ...]]]:
    """Run and rungs of every trial of the same data, settings and code, by its number.

    parent: only those of this retrain; else those that earlier ones left, too.
    """
    import mlflow

    with _refusals():
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(domain)
        if experiment is None:
            return {}
        condition = _match_tags(parent, role="trial", fingerprint=fingerprint, tuner=tuner)
        runs = client.search_runs([experiment.experiment_id], condition, order_by=["attributes.start_time ASC"])
    found = {}
    for run in runs:
        tags = run.data.tags
        if f"{TAG}rungs" in tags:
            options = json.loads(tags[f"{TAG}options"])
            rungs = tuple(Rung(tuner=options, **rung) for rung in json.loads(tags[f"{TAG}rungs"]))
            found[int(tags[f"{TAG}trial"])] = (str(run.info.run_id), rungs)
    return found


def log_candidate(
    parent: str, domain: Domain, result: Result, row: Mapping[str, Any], raw: Path, live: Live | None = None
) -> str:
    """One trained candidate as a finished child run; `row` is its line of the table, with the test interval.

    live: has the run that was open while it was trained, and what that run lacks; without one a run is made.
    """
    import mlflow

    with _refusals():
        client = mlflow.MlflowClient()
        above = client.get_run(parent)
        tags = _create_candidate_tags(above, domain, result, row)
        ended = int(time.time() * 1000)
        points = [] if live is None else live.missing
        if live is None or live.run_id is None:
            started = ended - int(result.seconds * 1000)  # so that MLflow's duration is the training's
            name = f"{result.label} · seed {result.seed}"
            created = client.create_run(above.info.experiment_id, start_time=started, tags=tags, run_name=name)
            run_id, points = str(created.info.run_id), _spread(result.history, (started, ended))
        else:
            run_id = live.run_id
            _set_tags(client, run_id, tags)
        status = "FAILED"
        try:
            _log_points(client, run_id, points)
            _log_numbers(client, run_id, domain, result, row, ended)
            _log_files(client, run_id, domain, result, raw)
            _log_dataset(client, run_id, domain.name, above.data.tags[f"{TAG}data_version"])
            status = "FINISHED"
        finally:
            client.set_terminated(run_id, status, end_time=ended)
        return run_id


def find_page(run_id: str) -> str | None:
    """The address of a run's page on an MLflow server; None for a store without one."""
    import mlflow

    uri = mlflow.get_tracking_uri()
    if not is_server(uri):
        return None
    with _refusals():
        experiment = mlflow.MlflowClient().get_run(run_id).info.experiment_id
    return f"{re.sub('//[^/@]*@', '//', uri).rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def tell_page(run_id: str, page: str) -> None:
    """Where the flow run that makes this run can be looked at: as a tag, and as a link in its description."""
    import mlflow

    with _refusals():
        client = mlflow.MlflowClient()
        note = client.get_run(run_id).data.tags.get(NOTE, "")
        _set_tags(client, run_id, {f"{TAG}prefect": page, NOTE: note + link_prefect(page)})


def log_data(parent: str, *files: Path) -> None:
    """Leave the manifest, for workers that have none, and the validation report with the parent run."""
    import mlflow

    with _refusals():
        for path in files:
            mlflow.MlflowClient().log_artifact(parent, str(path), DATA)


def find_candidate(domain: str, fingerprint: str, tuner: str, seed: int, parent: str | None = None) -> str | None:
    """The finished run of one candidate and seed of the same data, settings and code; the latest where there are more.

    parent: only that of this retrain; else what earlier ones left, too.
    """
    import mlflow

    with _refusals():
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(domain)
        if experiment is None:
            return None
        condition = _match_tags(parent, role="candidate", fingerprint=fingerprint, tuner=tuner, seed=str(seed))
        condition += " AND attributes.status = 'FINISHED'"
        newest = ["attributes.start_time DESC"]
        runs = client.search_runs([experiment.experiment_id], condition, max_results=1, order_by=newest)
    return str(runs[0].info.run_id) if runs else None


def fetch_file(run_id: str, path: str, target: Path) -> None:
    """One artifact of a run as this file, there whole or not at all."""
    import mlflow

    with _refusals(), whole_file(target) as partial, tempfile.TemporaryDirectory(dir=target.parent) as folder:
        os.replace(mlflow.MlflowClient().download_artifacts(run_id, path, folder), partial)


def fetch_manifest(run_id: str, target: Path) -> bool:
    """The manifest that a candidate's retrain left, as this file; False where there is none any more."""
    import mlflow
    from mlflow.exceptions import MlflowException

    with _refusals():
        client = mlflow.MlflowClient()
        try:
            parent = client.get_run(run_id).data.tags.get("mlflow.parentRunId", "")
            there = {item.path for item in client.list_artifacts(parent, "data")} if parent else set()
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
    if "data/manifest.parquet" not in there:
        return False
    fetch_file(parent, "data/manifest.parquet", target)
    return True


def fetch_candidate(run_id: str, folder: Path) -> Result:
    """What a worker's training left, put into `folder` as if it had been trained there; the result comes last."""
    import mlflow

    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT_FILE).unlink(missing_ok=True)
    with _refusals():
        client = mlflow.MlflowClient()
        for name in ("adapter", "predictions.parquet", HEAT_FILE):
            client.download_artifacts(run_id, name, str(folder))
    return _fetch_result(run_id, f"{TRAINING}/{RESULT_FILE}", folder)


def log_score(parent: str, name: str, folder: Path) -> None:
    """What scoring a registered version left, with the retrain that asked for it; the result comes last."""
    import mlflow

    with _refusals():
        for file in ("predictions.parquet", RESULT_FILE):
            mlflow.MlflowClient().log_artifact(parent, str(folder / file), f"{SCORES}/{name}")


def fetch_score(parent: str, name: str, folder: Path) -> None:
    """The same, put into `folder` as if it had been scored there."""
    fetch_file(parent, f"{SCORES}/{name}/predictions.parquet", folder / "predictions.parquet")
    _fetch_result(parent, f"{SCORES}/{name}/{RESULT_FILE}", folder)


def _fetch_result(run_id: str, path: str, folder: Path) -> Result:
    partial = folder / f"{RESULT_FILE}.partial"
    fetch_file(run_id, path, partial)
    result = Result.model_validate(json.loads(partial.read_text()) | {"folder": str(folder)})
    write_result(result)
    partial.unlink()
    return result


def log_model(run_id: str, adapter: Path) -> str:
    """Log an adapter folder to its run as a pyfunc from code; returns the model's URI for the registry."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    meta = load_meta(adapter)
    # Every adapter has the column `box`: MLflow drops what it does not know, and a box must never be passed over.
    inputs = [ColSpec("string", "image"), ColSpec("string", "box", required=False)]
    outputs = [ColSpec("string", "label"), *(ColSpec("double", f"{PROBABILITY}{name}") for name in meta.classes)]
    with _refusals(), _reopened(run_id), warnings.catch_warnings():
        # MLflow would run inference on an example to find what is stated here: the signature and the requirements.
        warnings.filterwarnings("ignore", message=".*An input example was not provided")
        logged = mlflow.pyfunc.log_model(
            name="model",  # its files are listed among the run's own, where adapter/ is taken
            python_model=str(PYFUNC_FILE),
            artifacts={"adapter": str(adapter)},
            pip_requirements=[f"{name}=={installed_version(name)}" for name in REQUIREMENTS],
            signature=ModelSignature(
                Schema(inputs), Schema(outputs), ParamSchema([ParamSpec("whole", "boolean", False)])
            ),
            metadata={
                "adapter_sha256": meta.adapter_sha256,
                "adapter_json_sha256": hash_meta(adapter),
                "tuner": meta.label,
                "classes": list(meta.classes),
                "input": meta.input.kind if meta.input else "unknown",
            },
        )
    return str(logged.model_uri)


def log_code(run_id: str, code: Mapping[str, str]) -> None:
    """Which code a registered version was trained with: its commit, and the sha256 of what results depend on."""
    import mlflow

    with _refusals():
        mlflow.MlflowClient().log_text(run_id, json.dumps(dict(code), indent=1), CODE_FILE)


def fetch_training(run_id: str, folder: Path) -> Path:
    """What the training of a registered version was told and left, and `data/manifest.parquet`, into a folder.

    Raises TrackingError where the run has none.
    """
    import mlflow

    with _refusals():
        client = mlflow.MlflowClient()
        parent = client.get_run(run_id).data.tags["mlflow.parentRunId"]
        if CODE_FILE not in {item.path for item in client.list_artifacts(run_id, TRAINING)}:
            raise TrackingError(
                f"run {run_id}",
                expected=f"the artifact {CODE_FILE}, as a retrain leaves it with the version it registers",
                found="none",
                hint="Versions from before there were any cannot be trained again: retrain the domain.",
            )
        client.download_artifacts(parent, DATA, str(folder))  # whole folders: a file alone would lose its place
        return Path(client.download_artifacts(run_id, TRAINING, str(folder)))


def log_card(run_id: str, domain: str, version: int, page: Path, text: Path, tags: Mapping[str, str]) -> None:
    """The model card with the run, and its words as the description of the registered version.

    tags: what the list of versions is to show beside the aliases.
    """
    import mlflow

    _, _, words = text.read_text(encoding="utf-8").partition("\n\n")  # without the title: MLflow's list shows the start
    summary, _, rest = words.partition("\n\n")
    with _refusals():
        client = mlflow.MlflowClient()
        card = link_run(client.get_run(run_id).info.experiment_id, run_id, f"{CARDS}/{page.name}")
        told = f"{summary}\n\n[The same with its pictures]({card}), of the run.\n\n{rest}"
        for path in (page, text):
            client.log_artifact(run_id, str(path), CARDS)
        client.update_model_version(domain, str(version), told[:MOST_DESCRIPTION])
        for key, value in tags.items():
            client.set_model_version_tag(domain, str(version), key, value)


def log_evidence(run_id: str, sha256: str, text: str) -> None:
    """What the gates found of a version, with its run and under the hash that its record in the ledger names."""
    import mlflow

    with _refusals():
        mlflow.MlflowClient().log_text(run_id, text, f"{EVIDENCE}/{sha256}.json")


def log_result(run_id: str, outcome: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
    """Leave the whole outcome with the parent run; `find_retrain` finds it from now on.

    outcome: as `tessera retrain --json` prints it. files: report and pictures to keep beside it.
    """
    import mlflow

    text = json.dumps(outcome, indent=1, ensure_ascii=False, allow_nan=False)
    best = next((row for row in outcome.get("candidates", ()) if row.get("selected")), None)
    verdict = str(outcome.get("verdict") or "")
    winner = "" if best is None else f"{best['tuner']} · seed {best['seed']}"
    with _refusals():
        client = mlflow.MlflowClient()
        client.log_text(run_id, text, RESULT_FILE)
        for path in files:
            client.log_artifact(run_id, str(path))
        run, there = client.get_run(run_id), [item.path for item in client.list_artifacts(run_id, DATA)]
        pages = [path for path in (*(path.name for path in files), *there) if path.endswith(".html")]
        note = describe_outcome(outcome, run.info.experiment_id, run_id, pages)
        tags = _create_tags(verdict=verdict, winner=winner)
        tags |= {NOTE: note + link_prefect(run.data.tags.get(f"{TAG}prefect"))}
        if best is not None:
            _log_metrics(client, run_id, _summarise(best), step=0, when=int(time.time() * 1000))
        if best is not None and "run_id" in best:
            client.set_tag(best["run_id"], f"{TAG}selected", "true")
        client.update_run(run_id, name=f"{verdict or 'retrain'} {winner}".strip())
        for key, value in (tags | {f"{TAG}result": RESULT_FILE}).items():  # last: the result is there and whole
            client.set_tag(run_id, key, value)


def log_verdict(run_id: str, outcome: Mapping[str, Any]) -> None:
    """What a promotion came to. It is no result of a retrain, which `find_retrain` would find."""
    import mlflow

    verdict, told = str(outcome["verdict"]), json.dumps(outcome, indent=1, ensure_ascii=False, allow_nan=False)
    with _refusals():
        client = mlflow.MlflowClient()
        run = client.get_run(run_id)
        note = describe_outcome(outcome, run.info.experiment_id, run_id, ())
        note += link_prefect(run.data.tags.get(f"{TAG}prefect"))
        client.log_text(run_id, told, "verdict.json")
        client.update_run(run_id, name=f"{verdict} version {outcome['challenger_version']}")
        _set_tags(client, run_id, _create_tags(verdict=verdict) | {NOTE: note})


def end_parent(run_id: str, status: Ending = "FINISHED") -> None:
    """Close the run of a retrain or promotion."""
    import mlflow

    with _refusals():
        mlflow.MlflowClient().set_terminated(run_id, status)


def find_retrain(domain: str, fingerprint: str) -> dict[str, Any] | None:
    """The outcome of the latest finished retrain of exactly this data, configuration and code; None without one."""
    return _load_latest(domain, f"AND tags.`{TAG}fingerprint` = '{fingerprint}'")


def load_last_result(domain: str) -> dict[str, Any] | None:
    """The outcome of the domain's latest finished retrain, whatever it was of."""
    return _load_latest(domain)


def find_retrains(domain: str) -> dict[str, Any]:
    """The latest retrain that ended, as {"state", "when"}, and since when one runs, as this store knows them.

    One whose process on this machine is gone has crashed, whatever its run says.
    """
    import mlflow

    found: dict[str, Any] = {"last": None, "running": None}
    with _refusals():
        client = mlflow.MlflowClient()
        if (experiment := client.get_experiment_by_name(domain)) is None:
            return found
        runs = client.search_runs([experiment.experiment_id], f"tags.`{TAG}role` = 'retrain'", max_results=10)
    for run in runs:  # the latest first
        if run.info.status == "RUNNING" and not _has_died(run):
            found["running"] = found["running"] or _write_time(run.info.start_time)
        elif found["last"] is None:
            state = "Crashed" if run.info.status == "RUNNING" else ENDINGS.get(run.info.status, run.info.status)
            found["last"] = {"state": state, "when": _write_time(run.info.end_time or run.info.start_time)}
    return found


def _write_time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def load_test_score(run_id: str) -> dict[str, float] | None:
    """A candidate's score on test with its interval, as its run has them; None where that run is gone or has none."""
    import mlflow
    from mlflow.exceptions import MlflowException

    keys = {"value": "", "low": "_low", "high": "_high"}
    with _refusals():
        try:
            metrics = mlflow.MlflowClient().get_run(run_id).data.metrics
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
    found = {key: metrics.get(f"test/balanced_accuracy{ending}") for key, ending in keys.items()}
    return {key: value for key, value in found.items() if value is not None} or None


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} -> {"a.b": "1"}: nested settings as MLflow parameters; None is left out."""
    flat: dict[str, str] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[_clean(f"{prefix}{key}")] = str(value)
    return flat


@contextmanager
def _refusals() -> Iterator[None]:
    """What MLflow or its database refuses, as a TrackingError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        import mlflow

        found = " ".join(str(error).split())
        broken = "too many 500 error responses" in found
        raise TrackingError(
            f"MLflow store {hide_password(mlflow.get_tracking_uri())}",
            expected="a store that answers and accepts",
            found=found[-300:] if broken else found[:500],
            hint="Free space where the server keeps artifacts and database, or see what its log says is wrong there."
            if broken
            else "Correct MLFLOW_TRACKING_URI, or unset it to use the SQLite store of the workspace.",
        ) from error


@contextmanager
def _reopened(run_id: str) -> Iterator[None]:
    """The run as the fluent API's active one, as `log_model` demands; its status and end stay as they were.

    Left alone, MLflow would close a parent that goes on, and count the minutes since a training into its duration.
    """
    import mlflow

    client = mlflow.MlflowClient()
    before = client.get_run(run_id).info
    try:
        with mlflow.start_run(run_id=run_id, nested=True):
            yield
    finally:
        if before.status == "RUNNING":
            client.update_run(run_id, status="RUNNING")
        else:
            client.set_terminated(run_id, before.status, end_time=before.end_time)


def hide_password(uri: str) -> str:
    """`https://me:secret@host` without the secret, for messages."""
    return re.sub(r"(//[^:/@]*):[^@/]*@", r"\1:…@", uri)


def _require_server(uri: str) -> None:
    """MLflow itself would try for many minutes."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SERVER_SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code < 500:  # it answers; what it wants (a login) is told by the first real call
            return
        found = f"the answer {error.code} {error.reason}"
    except (OSError, ValueError) as error:
        found = f"none: {getattr(error, 'reason', error)}"
    raise TrackingError(
        f"MLflow server {hide_password(uri)}",
        expected=f"an answer within {SERVER_SECONDS:g} s",
        found=found,
        hint="Start the server, correct MLFLOW_TRACKING_URI, or unset it to use the SQLite store of the workspace.",
    )


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
    for run in filter(_has_died, running):
        client.set_terminated(run.info.run_id, "KILLED")


def _has_died(run: Any) -> bool:
    """Whether the process of this machine that wrote the run is gone."""
    host, _, pid = run.data.tags.get(f"{TAG}process", "").rpartition(":")
    return host == socket.gethostname() and pid.isdecimal() and not answers(int(pid))


def _name_process() -> str:
    """Who writes a run, and can be asked whether it still lives."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _create_tags(**tags: str) -> dict[str, str]:
    """Lineage tags, and who and what is at work as MLflow's own columns show it."""
    from mlflow.tracking.context.registry import resolve_tags

    named = {f"{TAG}{key}": value for key, value in tags.items() if value}
    if "role" not in tags:
        return named
    own = {"mlflow.source.name": "tessera", "mlflow.source.type": "LOCAL"}
    commit = {"mlflow.source.git.commit": tags["git_commit"]} if tags.get("git_commit") else {}
    return {**resolve_tags(), **own, **commit, **named}


def _match_tags(parent: str | None, **tags: str) -> str:
    """MLflow's filter for runs with these tags, below one parent where it is named."""
    wanted = {f"{TAG}{key}": value for key, value in tags.items()} | ({"mlflow.parentRunId": parent} if parent else {})
    return " AND ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items())


def _set_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """In one request."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def _inherit_tags(above: Any) -> dict[str, str]:
    """What a candidate shares with its retrain."""
    shared = [f"{TAG}{key}" for key in ("domain", "data_version", "fingerprint", "git_commit")]
    return {key: above.data.tags[key] for key in (*shared, "mlflow.source.git.commit") if key in above.data.tags}


def _create_candidate_tags(above: Any, domain: Domain, result: Result, row: Mapping[str, Any]) -> dict[str, str]:
    backbone = result.backbone
    own = _create_tags(
        role="candidate",
        tuner=result.label,
        seed=str(result.seed),
        split_sha256=result.split_sha256,
        backbone=str(backbone["name"]),
        backbone_sha256=str(backbone["sha256"]),
        backbone_trained=str(backbone["trained"]).lower(),
        adapter_sha256=result.adapter_sha256,
    )
    note = describe_candidate(domain, result, row)
    return own | _inherit_tags(above) | {"mlflow.parentRunId": above.info.run_id, NOTE: note}


def _log_numbers(client: Any, run_id: str, domain: Domain, result: Result, row: Mapping[str, Any], ended: int) -> None:
    """Parameters and the final metrics. MLflow compares by the parameters that sort first and differ."""
    from mlflow.entities import Param

    tuner = load_meta(result.folder / "adapter").tuner.model_dump(mode="json")
    shared = domain.model_dump(mode="json", include={"training", "augmentation"})
    environment = ", ".join(f"{key} {value}" for key, value in result.environment.items())
    own = {"candidate": result.label, "seed": result.seed, "tuner": tuner, "img_size": result.backbone["img_size"]}
    entries = [Param(key, value) for key, value in flatten(own | shared | {"environment": environment}).items()]
    for start in range(0, len(entries), MOST_PARAMS):
        client.log_batch(run_id, params=entries[start : start + MOST_PARAMS])
    final, epochs = result.metrics | _summarise(row), {key for epoch in result.history for key in epoch}
    # A millisecond after the last epoch: at one step and time MLflow would show the greater value, not the later one.
    curves = {key: final[key] for key in final if key in epochs}
    _log_metrics(client, run_id, curves, step=len(result.history), when=ended + 1)
    # What is measured once is of step 0: of that MLflow draws a bar a run, else a dot at the last epoch.
    _log_metrics(client, run_id, {key: final[key] for key in final if key not in epochs}, step=0, when=ended + 1)


def _summarise(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a table line that are no metrics of the training: the interval and the costs."""
    test = row["test"]
    costs = {
        "trainable_params": row["trainable_params"],
        "head_params": row["head_params"],
        "share_of_backbone": row["share"],
        "training_seconds": row["seconds"],
        "adapter_bytes": row["adapter_bytes"],
    }
    ends = {f"test/balanced_accuracy_{end}": test[end] for end in ("low", "high") if test[end] is not None}
    return {
        "val/balanced_accuracy": row["val"],
        "test/balanced_accuracy": test["value"],
        **ends,
        **{f"cost/{key}": float(value) for key, value in costs.items()},
    }


def _spread(history: Sequence[Mapping[str, float]], span: tuple[int, int]) -> list[Point]:
    """A point an epoch, their times spread over the training."""
    whole = span[1] - span[0]
    return [
        Point(int(row["epoch"]), span[0] + whole * number // len(history), {k: row[k] for k in row if k != "epoch"})
        for number, row in enumerate(history, start=1)
    ]


def _log_points(client: Any, run_id: str, points: Sequence[Point]) -> None:
    from mlflow.entities import Metric

    entries = [Metric(_clean(key), value, p.when, p.step) for p in points for key, value in p.values.items()]
    for start in range(0, len(entries), MOST_METRICS):
        client.log_batch(run_id, metrics=entries[start : start + MOST_METRICS])


def _log_metrics(client: Any, run_id: str, metrics: Mapping[str, float], step: int, when: int) -> None:
    from mlflow.entities import Metric

    points = [Metric(_clean(key), float(value), when, step) for key, value in metrics.items()]
    for start in range(0, len(points), MOST_METRICS):
        client.log_batch(run_id, metrics=points[start : start + MOST_METRICS])


def _clean(key: str) -> str:
    """MLflow allows a metric's or parameter's name letters, digits, spaces and `_-.:/`; class names hold anything."""
    return re.sub(r"[^\w\-.: /]", "_", key)


def _log_files(client: Any, run_id: str, domain: Domain, result: Result, raw: Path) -> None:
    """The adapter, its predictions, and the pictures."""
    client.log_artifacts(run_id, str(result.folder / "adapter"), "adapter")
    client.log_artifact(run_id, str(result.folder / "predictions.parquet"))
    client.log_artifact(run_id, str(result.folder / HEAT_FILE))
    for path in (result.folder / RESULT_FILE, result.folder / JOB_FILE):
        if path.exists():
            client.log_artifact(run_id, str(path), TRAINING)
    test = load_predictions(result.folder, "test")
    title = f"{domain.name}: {result.label}, seed {result.seed}, test split"
    client.log_figure(run_id, draw_confusion(test, domain.classes, title), "pictures/confusion_matrix.png")
    if result.history:
        best = int(result.metrics["best_epoch"])
        client.log_figure(run_id, draw_curves(result.history, best, title), "pictures/learning_curves.png")
    client.log_figure(run_id, draw_samples(test, raw, title), "pictures/samples.png")


def _log_dataset(client: Any, run_id: str, name: str, digest: str) -> None:
    """The data version as MLflow's dataset input, by which runs can be searched."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = CodeDatasetSource({"dvc": f"data/{name}/raw.dvc", "md5": digest})
    dataset = MetaDataset(source, name=name, digest=digest[:MOST_DIGEST])
    entry = DatasetInput(Dataset(**dataset.to_dict()), [InputTag("mlflow.data.context", "training")])
    client.log_inputs(run_id, [entry])


def _load_latest(domain: str, condition: str = "") -> dict[str, Any] | None:
    import mlflow

    with _refusals():
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(domain)
        if experiment is None:
            return None
        wanted = f"attributes.status = 'FINISHED' AND tags.`{TAG}result` = '{RESULT_FILE}' {condition}"
        runs = client.search_runs([experiment.experiment_id], wanted, order_by=["attributes.end_time DESC"])
        if not runs:
            return None
        record: dict[str, Any] = mlflow.artifacts.load_dict(f"{runs[0].info.artifact_uri}/{RESULT_FILE}")
        return record
