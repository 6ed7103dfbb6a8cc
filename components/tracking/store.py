"""MLflow as one workspace uses it: its address, its client, and MLflow's errors as TrackingError.

    store = Store.open(workspace)
    with store.client() as client:                                        MLflow's own client
        client.set_terminated(run_id, "FINISHED")
    store.read_or_none(lambda client: client.get_registered_model(name))  None where there is no such model
    store.create_or_none(lambda client: client.create_experiment(name))   None where another process was faster

The functions of this package take a Store as their first argument. Registry and ledger need no other access to MLflow:
`read_or_none` and `create_or_none` are the only places that know its error codes.

Runs are written through MlflowClient, never through the fluent API with its hidden "active run", which tasks and
threads would share. MLflow takes a second to import, so functions import it and modules do not.
"""

import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from components.errors import TrackingError
from components.files import open_private
from components.workspace import Workspace

TAG_PREFIX = "tessera."  # of the tags that join a run to its data and code
SERVER_SECONDS = 5.0
MOST_PARAMS, MOST_METRICS = 100, 1000  # MLflow's limits for one request
MOST_DIGEST = 36  # characters of a dataset's digest

#: Settings of MLflow's client: it retries a server for 3 + 6 + 12 + 24 + 48 s. By its defaults a full disk would be
#: reported after four minutes.
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "3",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Point:
    """Metrics of one step, and when they were measured in milliseconds since 1970."""

    step: int
    when: int
    values: Mapping[str, float]

    @classmethod
    def now(cls, step: int, values: Mapping[str, float]) -> "Point":
        return cls(step, int(time.time() * 1000), values)


@dataclass(frozen=True, eq=False)
class Store:
    """One MLflow store, reachable when it was opened. Every method raises TrackingError for what MLflow refuses."""

    uri: str = field(repr=False)  # may hold a password
    _client: Any = field(repr=False)

    @classmethod
    def open(cls, workspace: Workspace, patient: bool = False) -> "Store":
        """Connect to the workspace's store; a SQLite store is created, or migrated to MLflow's present schema.

        A server that does not answer the first time is reported within seconds. patient: wait for it instead, as every
        later request does, because another process is known to have used it a moment ago.

        MLflow's functions without a client use the store that this process opened last.
        """
        uri = workspace.tracking_uri
        if is_server(uri) and not patient:
            _require_server(uri)
        if uri == f"sqlite:///{workspace.state / 'mlflow' / 'mlflow.db'}":
            open_private(workspace.state / "mlflow" / "mlflow.db").close()  # before SQLite makes it as the umask says
        for key, value in CLIENT_SETTINGS.items():
            os.environ.setdefault(key, value)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # "Updating database tables"
        import mlflow
        from filelock import FileLock

        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        lock = workspace.state / "locks" / "mlflow.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with _translate_errors(uri), FileLock(lock):  # two first users would both migrate
            client = mlflow.MlflowClient(uri, uri)
            client.search_experiments(max_results=1)
        return cls(uri, client)

    @property
    def address(self) -> str:
        """The address without its password, for messages."""
        return hide_password(self.uri)

    @contextmanager
    def client(self) -> Iterator[Any]:
        """MLflow's client. What MLflow or its database refuses inside the block is raised as TrackingError."""
        with _translate_errors(self.uri):
            yield self._client

    def read_or_none(self, read: Callable[[Any], Answer]) -> Answer | None:
        """What `read(client)` returns, or None where MLflow has no such run, experiment, model, version or alias."""
        from mlflow.exceptions import MlflowException

        with self.client() as client:
            try:
                return read(client)
            except MlflowException as error:
                missing_alias = error.error_code == "INVALID_PARAMETER_VALUE" and "alias" in str(error)
                if error.error_code == "RESOURCE_DOES_NOT_EXIST" or missing_alias:
                    return None
                raise

    def create_or_none(self, create: Callable[[Any], Answer]) -> Answer | None:
        """What `create(client)` returns, or None where it exists already: another process may have been faster."""
        from mlflow.exceptions import MlflowException

        with self.client() as client:
            try:
                return create(client)
            except MlflowException as error:
                if error.error_code == "RESOURCE_ALREADY_EXISTS":
                    return None
                raise

    def ensure_experiment(self, name: str, tags: Mapping[str, str] | None = None) -> str:
        """The id of an experiment, created with these tags on first use.

        A server chooses where artifacts are kept; SQLite has them beside it.
        """
        location = None
        if self.uri.startswith("sqlite:///"):
            location = (Path(self.uri.removeprefix("sqlite:///")).resolve().parent / "artifacts" / name).as_uri()
        facts = {"artifact_location": location, "tags": None if tags is None else dict(tags)}
        with self.client() as client:
            found = client.get_experiment_by_name(name)
            if found is None and (created := self.create_or_none(lambda c: c.create_experiment(name, **facts))):
                return str(created)
            return str((found or client.get_experiment_by_name(name)).experiment_id)

    def search_runs(self, experiment: str, condition: str, **options: Any) -> list[Any]:
        """The runs that meet MLflow's filter; none where there is no experiment of that name.

        options: of `MlflowClient.search_runs`, such as max_results and order_by.
        """
        with self.client() as client:
            found = client.get_experiment_by_name(experiment)
            return [] if found is None else list(client.search_runs([found.experiment_id], condition, **options))

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """All in one request, so that they are there together or not at all."""
        from mlflow.entities import RunTag

        with self.client() as client:
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        with self.client() as client:
            for some in _split([Param(key, value) for key, value in params.items()], MOST_PARAMS):
                client.log_batch(run_id, params=some)

    def log_metrics(self, run_id: str, points: Sequence[Point]) -> None:
        """The metrics of several steps in as few requests as MLflow allows."""
        from mlflow.entities import Metric

        entries = [Metric(clean_key(key), float(v), p.when, p.step) for p in points for key, v in p.values.items()]
        with self.client() as client:
            for some in _split(entries, MOST_METRICS):
                client.log_batch(run_id, metrics=some)

    def log_dataset(self, run_id: str, name: str, digest: str) -> None:
        """A domain's data version as MLflow's dataset input, by which runs can be searched. digest: of DVC."""
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = CodeDatasetSource({"dvc": f"data/{name}/raw.dvc", "md5": digest})
        dataset = MetaDataset(source, name=name, digest=digest[:MOST_DIGEST])
        entry = DatasetInput(Dataset(**dataset.to_dict()), [InputTag("mlflow.data.context", "training")])
        with self.client() as client:
            client.log_inputs(run_id, [entry])


def _split(entries: list[Any], size: int) -> Iterator[list[Any]]:
    return (entries[start : start + size] for start in range(0, len(entries), size))


@contextmanager
def _translate_errors(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        found = " ".join(str(error).split())
        broken = "too many 500 error responses" in found
        raise TrackingError(
            f"MLflow store {hide_password(uri)}",
            expected="a store that answers and accepts",
            found=found[-300:] if broken else found[:500],
            hint="Free space where the server keeps artifacts and database, or see what its log says is wrong there."
            if broken
            else "Correct MLFLOW_TRACKING_URI, or unset it to use the SQLite store of the workspace.",
        ) from error


@cache  # a server that answered this process once is waited for from then on
def _require_server(uri: str) -> None:
    """Raise TrackingError for a server that does not answer at once; MLflow's client would retry for minutes."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SERVER_SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code < 500:  # it answers; the first real request reports what it wants, such as a login
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


def is_server(uri: str) -> bool:
    """True for an MLflow server. A database has no client that retries, so its callers must."""
    return uri.startswith(("http://", "https://"))


def hide_password(uri: str) -> str:
    """`https://me:secret@host` without the secret, for messages."""
    return re.sub(r"(//[^:/@]*):[^@/]*@", r"\1:…@", uri)


def create_tags(**tags: str) -> dict[str, str]:
    """Tags of lineage, empty ones left out; with `role`, also who runs what, for MLflow's own columns."""
    from mlflow.tracking.context.registry import resolve_tags

    named = {f"{TAG_PREFIX}{key}": value for key, value in tags.items() if value}
    if "role" not in tags:
        return named
    own = {"mlflow.source.name": "tessera", "mlflow.source.type": "LOCAL"}
    commit = {"mlflow.source.git.commit": tags["git_commit"]} if tags.get("git_commit") else {}
    return {**resolve_tags(), **own, **commit, **named}


def match_tags(parent: str | None = None, **tags: str) -> str:
    """MLflow's filter for runs with these tags of lineage; parent: only those below this run."""
    wanted = {f"{TAG_PREFIX}{key}": value for key, value in tags.items()}
    wanted |= {"mlflow.parentRunId": parent} if parent else {}
    return " AND ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items())


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} -> {"a.b": "1"}: nested settings as MLflow parameters; None is left out."""
    flat: dict[str, str] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[clean_key(f"{prefix}{key}")] = str(value)
    return flat


def clean_key(key: str) -> str:
    """A metric's or parameter's name as MLflow accepts it: letters, digits, blanks and `_-.:/`, `_` for all others."""
    return re.sub(r"[^\w\-.: /]", "_", key)
