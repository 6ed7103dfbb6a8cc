"""Links between the pages of a run in Prefect and in MLflow."""

import re

from components.tracking import runs
from components.tracking.store import Store
from flows.progress import report
from flows.server.prefect_boot import find_server


def link(store: Store, run_id: str, name: str) -> None:
    """Link the current flow run and its MLflow run to one another, if the other one has a page."""
    point_to(store, run_id, name)
    if (page := find_page()) is not None:
        runs.log_flow_page(store, run_id, page)


def point_to(store: Store, run_id: str, name: str) -> None:
    """Add to the current flow run a link to an MLflow run, if that has a page."""
    import httpx
    from prefect.artifacts import create_link_artifact

    if (page := runs.find_page(store, run_id)) is not None:
        key, text = write_key(f"mlflow-{name}"), "The run in MLflow"
        try:
            create_link_artifact(page, f"{name} in MLflow", key=key, description=text)
        except httpx.HTTPError as error:  # a missing link must not stop a training
            report("note", text=f"Prefect shows no link to {page}: {error}")


def find_page() -> str | None:
    """The page of the running flow on a permanent Prefect server; None for an embedded server."""
    from prefect.context import FlowRunContext
    from prefect.settings import get_current_settings

    context, url = FlowRunContext.get(), find_server()
    if url is None or context is None or context.flow_run is None:
        return None
    page = get_current_settings().ui_url or url.removesuffix("/").removesuffix("/api")
    return f"{page}/runs/flow-run/{context.flow_run.id}"


def list_pages(store: Store, run_id: str) -> dict[str, str]:
    """The pages of an MLflow run and of its flow run, by name; only pages on permanent servers."""
    found = {"MLflow": runs.find_page(store, run_id), "Prefect": find_page()}
    return {name: page for name, page in found.items() if page is not None}


def write_key(text: str) -> str:
    """The text as a key of a Prefect artifact: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
