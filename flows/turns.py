"""One promotion of a domain at a time on all machines that share a Prefect server: a global concurrency limit.

Without a configured server the workspace's file lock (`registry.lock_domain`), which every move takes, is enough.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from components.errors import PromotionError
from flows.embedded import OWN

#: The shortest lease that Prefect grants. A killed holder's slot is free again after it, and up to 15 s for the
#: server's sweep; a live holder renews it.
LEASE_SECONDS = 60
WAIT_SECONDS = 180


@contextmanager
def promotion_turn(domain: str) -> Iterator[None]:
    """Hold the domain's slot on the Prefect server that PREFECT_API_URL names, made on first use.

    Raises PromotionError where the server is away, and where others hold the slot for longer than any promotion takes.
    """
    url = os.environ.get("PREFECT_API_URL")
    if not url or url == os.environ.get(OWN):
        yield
        return
    import httpx
    from prefect.concurrency.sync import concurrency

    name = f"tessera-promote-{domain}"
    with ExitStack() as stack:
        try:
            _create_limit(name)
            stack.enter_context(
                concurrency(name, timeout_seconds=WAIT_SECONDS, lease_duration=LEASE_SECONDS, strict=True)
            )
        except (httpx.HTTPError, TimeoutError) as error:
            raise PromotionError(
                f"promotion of {domain}",
                expected=f"the slot {name!r} of the Prefect server {url} within {WAIT_SECONDS} s",
                found=str(error) or type(error).__name__,
                mend="Start the server or correct PREFECT_API_URL, then run the command again; `prefect gcl inspect"
                f" {name}` shows the slot.",
            ) from error
        yield


def _create_limit(name: str) -> None:
    """Two who create it at once both find it there afterwards."""
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
