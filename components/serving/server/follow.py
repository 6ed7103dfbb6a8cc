"""The registry's champions on the racks: promotions and rollbacks are served within seconds, by themselves.

    follower = Follower(champions, racks, workspace)
    follower.start()    looks now and every two seconds, in a thread of its own, until `stop`
    follower.wake()     looks at once

A look is one search of the registered models. It costs more only where something moved, or where a champion could not
be served and its pause is over. The new row is on its rack before the name is given to it, so that a request sees one
version whole. What cannot be served leaves the old version serving, is reported, and is tried again after growing
pauses. Where the registry is away, everything goes on as it was.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from components.errors import TesseraError, TrackingError
from components.serving.server.champions import Champion, Champions
from components.serving.server.registry import Fetched, Moving, Registry, Sight
from components.workspace import DISK_TROUBLE, Workspace, describe_disk_trouble

if TYPE_CHECKING:
    from components.serving.rack import Racks

LOG = logging.getLogger(__name__)
EVERY = 2.0  # seconds between two looks
MOST_PAUSE = 60.0  # seconds until a champion that could not be served is tried again
PATIENCE = 5  # looks at a move that its process has not completed, before it is reported
FETCHES = 8  # champions that are fetched at the same time: over a network it is latency that adds up
#: Settings of MLflow's client in a process that serves: a server that hangs is given up within half a minute, because
#: the next look asks again anyway. One retry is for connections that the server closed while they were idle.
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


@dataclass(frozen=True)
class Visit:
    """The last time that a domain was looked into. failures: in a row, of this sight. again: monotonic seconds, from
    which on it is looked into though nothing moved; None where all is well."""

    sight: Sight
    failures: int = 0
    again: float | None = None


class Follower:
    """Keeps `champions` and `racks` as the registry says; nobody else writes to either.

    domains: serve these alone; one that does not exist is reported, and served as soon as it does. Without any, every
    registered model with a ledger is served.
    """

    def __init__(
        self,
        champions: Champions,
        racks: "Racks",
        workspace: Workspace,
        domains: Sequence[str] = (),
        every: float = EVERY,
    ) -> None:
        self.champions, self.racks, self.workspace, self.every = champions, racks, workspace, every
        self.registry = Registry(workspace, domains)
        self._visits: dict[str, Visit] = {}
        self._read: float | None = None
        self._stale_since = ""
        self._turn, self._woken, self._ended = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    @property
    def age(self) -> float | None:
        """Seconds since the registry was read the last time; None where it never was."""
        return None if self._read is None else time.monotonic() - self._read

    def start(self) -> None:
        """Look now, and from then on; for the server's own process, whose MLflow client it makes impatient."""
        for key, value in CLIENT_SETTINGS.items():
            os.environ.setdefault(key, value)
        self._thread.start()

    def wake(self) -> None:
        self._woken.set()

    def stop(self, seconds: float = 1.0) -> None:
        """Look no longer; a look under way is waited for at most this long."""
        self._ended.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def look(self) -> None:
        """Serve what the registry names now. Raises nothing: what is wrong is in `champions`."""
        with self._turn:
            try:
                sights = self.registry.search(frozenset(self.champions))
            except Exception as error:  # noqa: BLE001  the thread must outlive whatever a broken registry answers
                self._go_stale(error)
                return
            self._read, self._stale_since, self.champions.stale = time.monotonic(), "", ""
            for domain in {*self.champions, *self.champions.troubles, *self._visits} - set(sights):
                self._forget(domain)
            if self._visit_due(sights):
                self.champions.ready = True

    def _run(self) -> None:
        while not self._ended.is_set():
            self.look()
            self._woken.wait(self.every)
            self._woken.clear()

    def _visit_due(self, sights: Mapping[str, Sight]) -> bool:
        """Look into every domain that is due; False where the registry failed, or the thread is to end."""
        with ThreadPoolExecutor(FETCHES) as pool:
            fetches = {domain: pool.submit(self.registry.fetch, domain) for domain in self._list_due(sights)}
            for domain, fetch in fetches.items():
                if self._ended.is_set() or not self._visit(domain, sights[domain], fetch):
                    pool.shutdown(cancel_futures=True)  # the next search says whether the registry is there at all
                    return False
        return True

    def _list_due(self, sights: Mapping[str, Sight]) -> list[str]:
        """Domains to look into, those that failed before after all others."""
        due, now = dict[str, int](), time.monotonic()
        for domain, sight in sights.items():
            visit = self._visits.get(domain)
            if visit is None or visit.sight != sight:
                due[domain] = 0
            elif visit.again is not None and visit.again <= now:
                due[domain] = visit.failures
        return sorted(due, key=lambda domain: (due[domain], domain))

    def _visit(self, domain: str, sight: Sight, fetch: "Future[Fetched | None]") -> bool:
        """Serve what was fetched for a domain, or report why not; False where the registry itself failed."""
        before = self._visits.get(domain)
        failures = (before.failures if before and before.sight == sight else 0) + 1
        trouble: Exception | None = None
        if sight.champion is None and domain in self.champions:
            self._drop(domain)
        try:
            self._serve(domain, fetch.result())
        except Moving as move:
            trouble = move if failures > PATIENCE else None
        except Exception as error:  # noqa: BLE001  one domain's defect must not keep the others from being followed
            trouble = error
        else:
            self._visits[domain] = Visit(sight)
            return True
        pause = min(self.every * 2 ** min(failures - 1, 10), MOST_PAUSE)
        self._visits[domain] = Visit(sight, failures, time.monotonic() + pause)
        if trouble is not None:
            self._report(domain, trouble)
        return not isinstance(trouble, TrackingError)

    def _serve(self, domain: str, fetched: Fetched | None) -> None:
        """First the row, then the name."""
        served = self.champions.get(domain)
        same = served and (served.version, served.resident.folder)
        if fetched is not None and (fetched.version, fetched.folder) != same:
            rack, resident = self.racks.put(domain, fetched.folder)
            sha256 = fetched.sha256 or resident.meta.adapter_sha256
            self.champions.put(Champion(domain, fetched.version, sha256, rack, resident))
            LOG.info("%s: version %d is served", domain, fetched.version)
        self.champions.report(domain, "")

    def _drop(self, domain: str) -> None:
        """First the name, then the row: a request that has its champion keeps it."""
        self.champions.remove(domain)
        self.racks.remove(domain)
        LOG.info("%s: served no longer, because the registry names no champion", domain)

    def _forget(self, domain: str) -> None:
        """A domain whose registered model is gone."""
        if domain in self.champions:
            self._drop(domain)
        self.champions.report(domain, "")
        self._visits.pop(domain, None)

    def _report(self, domain: str, error: Exception) -> None:
        text = self._explain(error)
        if self.champions.troubles.get(domain) != text:
            LOG.warning("%s: its champion is not served: %s", domain, text)
        self.champions.report(domain, text)

    def _go_stale(self, error: Exception) -> None:
        text = self._explain(error)
        if not self._stale_since:
            self._stale_since = datetime.now(UTC).isoformat(timespec="seconds")
            LOG.warning("the registry cannot be read: %s", text)
        self.champions.stale = f"since {self._stale_since}: {text}"

    def _explain(self, error: Exception) -> str:
        """As a text. What neither a user nor the disk can cause keeps its traceback in the log."""
        if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
            error = describe_disk_trouble(self.workspace.root, error)
        if isinstance(error, TesseraError | Moving):
            return str(error)
        LOG.error("a defect, or a fault of the system", exc_info=error)
        return f"{type(error).__name__}: {error}"
