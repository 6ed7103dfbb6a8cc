"""Whether the running server of champions serves what the registry names, for `tessera doctor`."""

import time
import urllib.request
from collections.abc import Mapping

from components.errors import TesseraError
from components.records.operations import Check
from components.records.serving import ServedDomains
from components.serving.address import Address, load_address
from components.serving.server.registry import Registry
from components.workspace import Workspace

ANSWER_SECONDS = 5.0
FOLLOW_SECONDS = 7.0  # within which a server follows a promotion


def check_serving(workspace: Workspace) -> Check:
    """The server answers, and serves the champion of each of its domains. Where none runs, nothing is wrong."""
    address = load_address(workspace)
    if address is None:
        return Check(name="serving", state="ok", found="no `tessera serve` runs here")
    try:
        served = ask_champions(address)
        named = _read_champions(workspace)
        if find_old(served, named):  # it may have been promoted a moment ago
            time.sleep(FOLLOW_SECONDS)
            served, named = ask_champions(address), _read_champions(workspace)
    except (OSError, ValueError) as error:
        found = f"{address.url} does not answer: {getattr(error, 'reason', error)}"
        hint = f"Stop its process {address.process.partition('@')[0]} and run `tessera serve` again."
        return Check(name="serving", state="error", found=found, hint=hint)
    return _judge(address.url, served, named)


def _judge(url: str, served: ServedDomains, named: Mapping[str, int] | None) -> Check:
    """named: champions by domain; None where this process cannot read the registry either."""
    found = [f"{row.domain}: {row.trouble}" for row in served.domains if row.trouble]
    found += find_old(served, named).values()
    if served.stale:
        found.insert(0, f"the registry cannot be read {served.stale}")
    if found:
        hint = "The server keeps trying; what it names can be fixed while it runs."
        return Check(name="serving", state="error", found=f"{url}: {' '.join(found)}", hint=hint)
    if not served.ready:
        hint = "Wait until it has loaded every champion."
        return Check(name="serving", state="warning", found=f"{url} is starting", hint=hint)
    count = sum(row.version is not None for row in served.domains)
    note = "" if named is None else f" of {len(named)}"
    return Check(name="serving", state="ok", found=f"{url} serves {count}{note} champions, all current")


def ask_champions(address: Address) -> ServedDomains:
    """What the server says that it serves. Raises OSError where it does not answer, ValueError for another answer."""
    token = address.read_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{address.url}/champions", headers=headers)
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
        return ServedDomains.model_validate_json(answer.read())


def find_old(served: ServedDomains, named: Mapping[str, int] | None) -> dict[str, str]:
    """Of the domains that the server calls well, those with another champion in the registry, and a sentence each."""
    if named is None:
        return {}
    there = {row.domain: row.version for row in served.domains if not row.trouble}
    return {
        domain: f"{domain}: version {version} is served; the registry's champion is version {named.get(domain)}."
        for domain, version in there.items()
        if version != named.get(domain)
    }


def _read_champions(workspace: Workspace) -> dict[str, int] | None:
    """By domain; None where MLflow does not answer, which another check reports."""
    try:
        sights = Registry(workspace).search()
    except TesseraError:
        return None
    return {domain: sight.champion for domain, sight in sights.items() if sight.champion is not None}
