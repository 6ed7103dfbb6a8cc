"""The registry's champions on the racks: promotions and rollbacks are served within seconds, by themselves.

    follower = Follower(champions, racks, workspace)
    follower.start()    looks now and every two seconds, in a thread of its own, until `stop`
    follower.wake()     looks at once

A look is one search of the registered models. It costs more only where something moved, or where a champion could not
be loaded and its pause is over. The ledger decides, as for `tessera predict`: a champion that was moved by hand is not
served. The new row is on its rack before the name is given to it, so that a request sees one version whole. What cannot
be served leaves the old version serving, is reported, and is tried again after growing pauses.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from components.errors import PromotionError, TesseraError, TrackingError
from components.promotion import aliases, versions
from components.promotion.ledger import LEDGER, SETTLED, find_last_move, load_ledger
from components.serving.server.champions import Champion, Champions
from components.tracking.store import Store
from components.workspace import DISK_TROUBLE, Workspace, describe_disk_trouble

if TYPE_CHECKING:
    from components.serving.rack import Racks

LOG = logging.getLogger(__name__)
EVERY = 2.0  # seconds between two looks
MOST_PAUSE = 60.0  # seconds until a champion that could not be loaded is tried again
PATIENCE = 5  # looks at a move that its process has not completed, before it is reported
PAGE = 1000  # registered models per request: MLflow's limit
#: Settings of MLflow's client in a process that serves: a server that hangs is given up within seconds, because the
#: next look tries again anyway.
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


@dataclass(frozen=True)
class Sight:
    """What a search says of a domain. A domain that looks as it did before is not looked into."""

    champion: int | None = None
    ledger: str = ""
    settled: str = ""


@dataclass(frozen=True)
class Visit:
    """When a domain was last looked into. again: monotonic seconds, from which on it is looked into unasked; None:
    never, because all is well. failures: in a row, of this sight."""

    sight: Sight
    failures: int = 0
    again: float | None = None


class Moving(Exception):  # noqa: N818  a state rather than an error
    """A move of the domain is under way: the alias is not yet where its newest record says."""


class Follower:
    """Keeps `champions` and `racks` as the registry says; the only one that writes to either.

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
        self.champions, self.racks, self.workspace = champions, racks, workspace
        self.domains, self.every = frozenset(domains), every
        self._store: Store | None = None
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
                sights = self._search()
            except Exception as error:  # noqa: BLE001  the thread must outlive whatever a broken registry answers
                self._go_stale(error)
                return
            self._read, self._stale_since, self.champions.stale = time.monotonic(), "", ""
            for domain in {*self.champions, *self.champions.troubles, *self._visits} - set(sights):
                self._forget(domain)
            for domain in self._list_due(sights):
                if self._ended.is_set() or not self._visit(domain, sights[domain]):
                    return  # the next look's search says whether the registry is there at all
            self.champions.ready = True

    def _run(self) -> None:
        while not self._ended.is_set():
            self.look()
            self._woken.wait(self.every)
            self._woken.clear()

    def _search(self) -> dict[str, Sight]:
        """Every domain to serve, also one that is asked for and does not exist."""
        if self._store is None:
            self._store = Store.open(self.workspace)
        with self._store.client() as client:
            models = list(page := client.search_registered_models(max_results=PAGE))
            while page.token:
                models += (page := client.search_registered_models(max_results=PAGE, page_token=page.token))
        # A model without ledger is somebody else's, unless it is asked for or was served.
        ours = {model.name for model in models if LEDGER in model.tags or model.name in self.champions}
        wanted = self.domains or ours
        seen = {model.name: _read_sight(model.aliases, model.tags) for model in models if model.name in wanted}
        return dict.fromkeys(self.domains, Sight()) | seen

    def _list_due(self, sights: Mapping[str, Sight]) -> list[str]:
        """Domains to look into, those that failed before after all others."""
        now = time.monotonic()
        due = {
            domain: visit.failures if visit and visit.sight == sight else 0
            for domain, sight in sights.items()
            if (visit := self._visits.get(domain)) is None
            or visit.sight != sight
            or (visit.again is not None and visit.again <= now)
        }
        return sorted(due, key=lambda domain: (due[domain], domain))

    def _visit(self, domain: str, sight: Sight) -> bool:
        """Look into a domain; False where the registry itself failed."""
        before = self._visits.get(domain)
        failures = (before.failures if before and before.sight == sight else 0) + 1
        trouble: Exception | None = None
        try:
            self._follow(domain, sight)
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

    def _follow(self, domain: str, sight: Sight) -> None:
        """Serve the domain's champion, or raise why it cannot be served."""
        assert self._store is not None
        with self._store.client():
            if sight.champion is None and domain in self.champions:
                self._drop(domain)
            ledger = load_ledger(domain)
            recorded = find_last_move(ledger)
            if ledger.champion != recorded and ledger.settled < ledger.last:
                raise Moving(f"{domain}: its move to version {recorded} has been under way for a while")
            if (trouble := aliases.explain_champion(ledger)) is not None:
                raise trouble
            if recorded is None:
                if domain in self.domains:
                    raise _describe_missing(domain)
                self.champions.report(domain, "")
                return
            self._serve(versions.require_version(domain, recorded))

    def _serve(self, version: versions.Version) -> None:
        domain, bound = version.domain, version.adapter_json_sha256 or version.adapter_sha256
        served = self.champions.get(domain)
        if served is not None and (served.version, served.adapter_sha256) == (version.version, bound):
            self.champions.report(domain, "")
            return
        folder = versions.fetch_adapter(version, self.workspace.adapters)
        rack, resident = self.racks.put(domain, folder)
        sha256 = bound or resident.meta.adapter_sha256
        self.champions.put(Champion(domain, version.version, sha256, rack, resident))
        LOG.info("%s: version %d is served%s", domain, version.version, f" after {served.version}" if served else "")

    def _drop(self, domain: str) -> None:
        """First the name, then the row: a request that has its champion keeps it."""
        self.champions.remove(domain)
        self.racks.remove(domain)
        LOG.info("%s: served no longer, because the registry names no champion", domain)

    def _forget(self, domain: str) -> None:
        """Of a domain whose registered model is gone."""
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
        """As a text; what is no error of a user's or of the disk's keeps its traceback in the log."""
        if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
            error = describe_disk_trouble(self.workspace.root, error)
        if isinstance(error, TesseraError | Moving):
            return str(error)
        LOG.error("a defect, or a fault of the system", exc_info=error)
        return f"{type(error).__name__}: {error}"


def _read_sight(named: Mapping[str, str], tags: Mapping[str, str]) -> Sight:
    champion = named.get(versions.CHAMPION)
    return Sight(None if champion is None else int(champion), tags.get(LEDGER, ""), tags.get(SETTLED, ""))


def _describe_missing(domain: str) -> PromotionError:
    return PromotionError(
        f"serving of {domain}",
        expected="a champion",
        found="none",
        hint=f"Train and promote one with `tessera retrain {domain}`; it is served as soon as it is there.",
    )
