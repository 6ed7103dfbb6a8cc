"""Tessera's events on the Prefect server, which automations and other systems can follow. Without a server, none."""

from typing import Any

from components.promotion.versions import Version
from flows.progress import report
from flows.server.prefect_boot import find_server
from flows.server.schedules import VERSIONED, name_resource

PROMOTED = "tessera.champion.promoted"


def emit_versioned(domain: str, version: dict[str, Any]) -> None:
    """`tessera.data.versioned`: a data version was named."""
    emit(VERSIONED, domain, version)


def emit_promoted(champion: Version) -> None:
    """`tessera.champion.promoted`: an automation on this event can roll out the new champion.

    It is sent at least once for each move, rollbacks included; a follower uses the version that the event names.
    """
    uri = f"models:/{champion.domain}/{champion.version}"
    facts = {"domain": champion.domain, "version": champion.version, "model_uri": uri}
    emit(PROMOTED, champion.domain, facts | {"adapter_sha256": champion.adapter_sha256})


def emit(event: str, domain: str, payload: dict[str, Any]) -> None:
    """Send an event about a domain and return when the server has it.

    If the server is away or refuses, that is reported as a note, because what the event is about has happened anyway.
    Prefect's own `emit_event` sends from a thread, which may be cut off when a command ends.
    """
    if (url := find_server()) is None:
        return
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.events import Event
    from prefect.exceptions import PrefectHTTPStatusError

    resource = {"prefect.resource.id": name_resource(domain), "prefect.resource.name": domain}
    record = Event.model_validate({"event": event, "resource": resource, "payload": payload}).model_dump(mode="json")
    try:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[record])
    except (httpx.TransportError, PrefectHTTPStatusError) as error:
        report("note", text=f"Prefect at {url} did not get the event {event} for {domain}: {error}")
