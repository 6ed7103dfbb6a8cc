"""Where the home page of `tessera up` is, `.tessera/services.html`, and what it links to.

Each link to a server contains the key of this `tessera up`; the server answers with a cookie, so that no login has to
be typed; so the page is readable by its owner alone. Pages that do not exist yet are listed without a link.
"""

import base64
import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from components.tracking.pages import FOR_TRAINING
from components.workspace import Workspace
from flows.server.address import ANSWER_SECONDS, Services
from flows.server.guard import OPEN
from flows.server.schedules import FLOWS, TAG, load_domains

PREFECT_PAGES = ("runs", "deployments", "work-pools", "automations", "concurrency-limits")
MLFLOW_PAGES = ("experiments", "models")

Links = Mapping[str, str | None]


def page_path(workspace: Workspace) -> Path:
    return workspace.state / "services.html"


def list_links(workspace: Workspace, services: Services) -> dict[str, Links]:
    """The rows of the page: the servers, each domain, the logs. None: nothing to link yet."""
    deployments, models = _ask_deployments(services), _ask_models(services)
    prefect = {name.replace("-", " "): link_prefect(services, f"/{name}") for name in PREFECT_PAGES}
    mlflow = {name: link_mlflow(services, name) for name in MLFLOW_PAGES}
    rows: dict[str, Links] = {"Prefect": prefect, "MLflow": mlflow}
    for domain in load_domains(workspace).read:
        ids = {flow: deployments.get((flow, domain.name)) for flow in FLOWS}
        rows[domain.name] = {
            **{flow: key and link_prefect(services, f"/deployments/deployment/{key}") for flow, key in ids.items()},
            "model": link_mlflow(services, f"models/{quote(domain.name)}") if domain.name in models else None,
            "images": _link_file(workspace.derived(domain.name) / "validation.html"),
            "last report": _link_file(_find_last(workspace.runs(domain.name), "*/report.html")),
            "model card": _link_file(_find_last(workspace.runs(domain.name), "*/model_card.html")),
            "reports and adapters": _link_file(workspace.runs(domain.name)),
        }
    return rows | {"logs": {path.stem: path.as_uri() for path in sorted((workspace.state / "logs").glob("*.log"))}}


def link_prefect(services: Services, page: str) -> str:
    return _open(services.prefect.removesuffix("/api"), services.key, page)


def link_mlflow(services: Services, page: str) -> str:
    return _open(services.mlflow, services.key, f"/#/{page}?{FOR_TRAINING}")


def _open(server: str, key: str, page: str) -> str:
    return f"{server}{OPEN}?{urlencode({'key': key, 'to': page})}"


def _link_file(path: Path | None) -> str | None:
    return None if path is None or not path.exists() else path.as_uri()


def _find_last(folder: Path, pattern: str) -> Path | None:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns, default=None)


def _ask_deployments(services: Services) -> dict[tuple[str, str], str]:
    """The id of each deployment of Tessera, by its flow and its name."""
    wanted = {"deployments": {"tags": {"all_": [TAG]}}}
    found = _ask(services, f"{services.prefect}/deployments/filter", wanted)
    return {(row["entrypoint"].rpartition(".")[2], row["name"]): row["id"] for row in found if row.get("entrypoint")}


def _ask_models(services: Services) -> set[str]:
    found = _ask(services, f"{services.mlflow}/api/2.0/mlflow/registered-models/search?max_results=1000")
    return {row["name"] for row in found.get("registered_models", [])}


def _ask(services: Services, url: str, body: Mapping[str, Any] | None = None) -> Any:
    login = base64.b64encode(services.login.encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=ANSWER_SECONDS) as answer:
        return json.loads(answer.read())
