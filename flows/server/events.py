"""Events of ours on the Prefect server: what automations and other systems can follow. Without a server, none."""

from typing import Any

from components.promotion.versions import Version
from flows.progress import report
from flows.server.prefect_boot import find_server
from flows.server.schedules import VERSIONED, name_resource

PROMOTED = "tessera.champion.promoted"


def tell_versioned(domain: str, version: dict[str, Any]) -> None:
    """`tessera.data.versioned`: a data version was named."""
    emit(VERSIONED, domain, version)


def tell_promoted(champion: Version) -> None:
    """`tessera.champion.promoted`: an automation on it can roll out what serves.

    At least once for each move, rollbacks included; a follower takes the version that the event names.
    """
    uri = f"models:/{champion.domain}/{champion.version}"
    facts = {"domain": champion.domain, "version": champion.version, "model_uri": uri}
    emit(PROMOTED, champion.domain, facts | {"adapter_sha256": champion.adapter_sha256})


def emit(event: str, domain: str, payload: dict[str, Any]) -> None:
    """Send an event about a domain and return when the server has it.

    A server that is away or refuses is told as a note: what happened has happened all the same. Prefect's own
    `emit_event` sends from a thread, which the end of a command cuts off.
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
        report("note", text=f"Prefect at {url} was not told of {event} for {domain}: {error}")
