"""The connection to MLflow: its address, its errors as TrackingError, and a run's tags and metrics in few requests."""

import logging
import os
import re
import socket
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from components.errors import TrackingError
from components.files import open_private
from components.tracking.live import Point
from components.workspace import Workspace

TAG = "tessera."
SERVER_SECONDS = 5.0
MOST_PARAMS, MOST_METRICS = 100, 1000  # MLflow's limits for one batch
#: How MLflow's client waits for a server: 3 + 6 + 12 + 24 + 48 s. Its own settings take four minutes to tell of a full
#: disk.
CLIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "3",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_ANSWERED = set[str]()  # servers, in this process


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
    with refusals(), FileLock(lock):  # two first users would both migrate
        mlflow.MlflowClient().search_experiments(max_results=1)


def is_server(uri: str) -> bool:
    """Else it is a database, of which nobody else knows how to wait for it."""
    return uri.startswith(("http://", "https://"))


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} -> {"a.b": "1"}: nested settings as MLflow parameters; None is left out."""
    flat: dict[str, str] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[clean_key(f"{prefix}{key}")] = str(value)
    return flat


@contextmanager
def refusals() -> Iterator[None]:
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


def name_process() -> str:
    """Who writes a run, and can be asked whether it still lives."""
    return f"{socket.gethostname()}:{os.getpid()}"


def create_tags(**tags: str) -> dict[str, str]:
    """Lineage tags, and who and what is at work as MLflow's own columns show it."""
    from mlflow.tracking.context.registry import resolve_tags

    named = {f"{TAG}{key}": value for key, value in tags.items() if value}
    if "role" not in tags:
        return named
    own = {"mlflow.source.name": "tessera", "mlflow.source.type": "LOCAL"}
    commit = {"mlflow.source.git.commit": tags["git_commit"]} if tags.get("git_commit") else {}
    return {**resolve_tags(), **own, **commit, **named}


def match_tags(parent: str | None, **tags: str) -> str:
    """MLflow's filter for runs with these tags, below one parent where it is named."""
    wanted = {f"{TAG}{key}": value for key, value in tags.items()} | ({"mlflow.parentRunId": parent} if parent else {})
    return " AND ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items())


def set_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """In one request."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def log_points(client: Any, run_id: str, points: Sequence[Point]) -> None:
    from mlflow.entities import Metric

    entries = [Metric(clean_key(key), value, p.when, p.step) for p in points for key, value in p.values.items()]
    for start in range(0, len(entries), MOST_METRICS):
        client.log_batch(run_id, metrics=entries[start : start + MOST_METRICS])


def log_metrics(client: Any, run_id: str, metrics: Mapping[str, float], step: int, when: int) -> None:
    from mlflow.entities import Metric

    points = [Metric(clean_key(key), float(value), when, step) for key, value in metrics.items()]
    for start in range(0, len(points), MOST_METRICS):
        client.log_batch(run_id, metrics=points[start : start + MOST_METRICS])


def clean_key(key: str) -> str:
    """MLflow allows a metric's or parameter's name letters, digits, spaces and `_-.:/`; class names hold anything."""
    return re.sub(r"[^\w\-.: /]", "_", key)
