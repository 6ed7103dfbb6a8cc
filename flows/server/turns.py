"""Mutual exclusion on all machines that share a Prefect server: a slot is a global concurrency limit of one.

Without a configured server, the file locks of a machine or workspace are sufficient, and no slot is used.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from components.errors import PromotionError
from flows.server.prefect_boot import find_server

#: Seconds of the shortest lease that Prefect grants. The slot of a killed holder is free after it and up to 15 s more,
#: for the server's sweep; a running holder renews the lease.
LEASE_SECONDS = 60
WAIT_SECONDS = 180


@contextmanager
def promotion_turn(domain: str) -> Iterator[None]:
    """One promotion per domain at a time, so that none is judged in vain. Only the ledger guarantees exclusion.

    Raises PromotionError if the server is away, or if others hold the slot for longer than any promotion takes.
    """
    if (url := find_server()) is None:
        yield
        return
    import httpx

    name = f"tessera-promote-{domain}"
    with ExitStack() as stack:
        try:
            stack.enter_context(server_slot(name, WAIT_SECONDS, outlasts_silence=False))
        except (httpx.HTTPError, TimeoutError, ValueError) as error:  # ValueError: not an address
            raise PromotionError(
                f"promotion of {domain}",
                expected=f"the slot {name!r} of the Prefect server {url} within {WAIT_SECONDS} s",
                found=str(error) or type(error).__name__,
                hint="Start the server or correct PREFECT_API_URL, then run the command again; `prefect gcl inspect"
                f" {name}` shows the slot.",
            ) from error
        yield


@contextmanager
def server_slot(name: str, seconds: float | None, *, outlasts_silence: bool) -> Iterator[None]:
    """Hold the configured server's slot of this name, which is created at first use.

    Raises TimeoutError if it is not free within `seconds`; None waits without limit. outlasts_silence: the holder
    continues if the server does not answer when the lease must be renewed, at the risk of a second holder.
    """
    from prefect.concurrency.sync import concurrency

    _create_limit(name)
    renewal = not outlasts_silence
    with concurrency(
        name,
        timeout_seconds=seconds,
        lease_duration=LEASE_SECONDS,
        strict=True,
        raise_on_lease_renewal_failure=renewal,
    ):
        yield


def _create_limit(name: str) -> None:
    """Create a limit unless it exists; if two processes create it at the same time, both find it afterwards."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            try:
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
            except ObjectAlreadyExists:
                return
