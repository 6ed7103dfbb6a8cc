"""Where a run is to be seen: from Prefect's page to MLflow's and back."""

import re

from components.tracking import runs
from components.tracking.store import Store
from flows.progress import report
from flows.server.prefect_boot import find_server


def link(store: Store, run_id: str, name: str) -> None:
    """The flow run that goes on and the MLflow run it makes say where the other is, if that has a page."""
    point_to(store, run_id, name)
    if (page := find_page()) is not None:
        runs.log_flow_page(store, run_id, page)


def point_to(store: Store, run_id: str, name: str) -> None:
    """The flow run that goes on says where an MLflow run is, if that has a page."""
    import httpx
    from prefect.artifacts import create_link_artifact

    if (page := runs.find_page(store, run_id)) is not None:
        key, text = write_key(f"mlflow-{name}"), "What MLflow keeps of it"
        try:
            create_link_artifact(page, f"{name} in MLflow", key=key, description=text)
        except httpx.HTTPError as error:  # no reason to lose what is trained
            report("note", text=f"Prefect shows no link to {page}: {error}")


def find_page() -> str | None:
    """The page of the running flow on a Prefect server that stays; an embedded one has none."""
    from prefect.context import FlowRunContext
    from prefect.settings import get_current_settings

    context, url = FlowRunContext.get(), find_server()
    if url is None or context is None or context.flow_run is None:
        return None
    page = get_current_settings().ui_url or url.removesuffix("/").removesuffix("/api")
    return f"{page}/runs/flow-run/{context.flow_run.id}"


def list_pages(store: Store, run_id: str) -> dict[str, str]:
    """Where an MLflow run and the flow run that makes it are to be seen, by name: on servers that stay alone."""
    found = {"MLflow": runs.find_page(store, run_id), "Prefect": find_page()}
    return {name: page for name, page in found.items() if page is not None}


def write_key(text: str) -> str:
    """As Prefect names artifacts: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
