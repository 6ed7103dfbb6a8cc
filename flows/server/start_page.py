"""The page of links that `tessera up` writes: `.tessera/services.html`, one file, readable by its owner alone.

Each link to a server contains the key of this `tessera up`; the server answers with a cookie, so that no login has to
be typed. Pages that do not exist yet are listed without a link.
"""

import base64
import json
import urllib.request
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from components.files import PRIVATE, write_whole
from components.tracking.pages import FOR_TRAINING
from components.workspace import Workspace
from flows.server.address import ANSWER_SECONDS, Services
from flows.server.guard import OPEN
from flows.server.schedules import FLOWS, TAG, load_domains

STYLE = "body{font:16px system-ui;margin:3rem}th{text-align:left;padding:.3rem 2rem .3rem 0}i{color:#777}"
PREFECT_PAGES = ("runs", "deployments", "work-pools", "automations", "concurrency-limits")
MLFLOW_PAGES = ("experiments", "models")

Links = Mapping[str, str | None]


def page_path(workspace: Workspace) -> Path:
    return workspace.state / "services.html"


def write_page(workspace: Workspace, services: Services) -> None:
    """Write the page if its content has changed; if a server is away, the page stays as it is."""
    try:
        rows = list_links(workspace, services)
    except (OSError, ValueError):
        return
    text, path = render_page(workspace, rows).encode(), page_path(workspace)
    if not path.exists() or path.read_bytes() != text:
        write_whole(path, text, mode=PRIVATE)


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


def render_page(workspace: Workspace, rows: Mapping[str, Links]) -> str:
    """One HTML file with every address. It loads nothing, and browsers send no referrer from it."""
    items = "".join(f"<tr><th>{escape(name)}</th><td>{_render_links(links)}</td></tr>" for name, links in rows.items())
    head = "<!doctype html><meta charset=utf-8><meta name=referrer content=no-referrer><title>Tessera</title>"
    return f"{head}<style>{STYLE}</style><h1>Tessera</h1><p>{escape(str(workspace.root))}</p><table>{items}</table>"


def _render_links(links: Links) -> str:
    return " · ".join(
        f"<i>{escape(text)}: none yet</i>"
        if link is None
        else f"<a href='{escape(link, quote=True)}'>{escape(text)}</a>"
        for text, link in links.items()
    )


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
