"""What the server measures, for Prometheus. A registry of its own, so that nothing of a library gets in.

A request about a domain that is not served counts under domain="", so that strangers make no labels.
"""

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from components.serving.server.champions import Champions

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 24, 32)
MLFLOW = ("invocations", "ping", "version", "health")


class Metrics:
    """The counters of one server."""

    def __init__(self, champions: Champions) -> None:
        self.champions, self.registry = champions, CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        requests = "Requests that were answered or refused."
        self._requests = Counter("tessera_requests", requests, ["domain", "protocol", "status"], **own)
        seconds = "Seconds from a request to its answer."
        self._seconds = Histogram("tessera_request_seconds", seconds, ["domain"], buckets=SECONDS, **own)
        self._rows = Histogram("tessera_batch_rows", "Rows of a batch.", buckets=ROWS, **own)
        self._busy = Counter("tessera_compute_seconds", "Seconds that the computing thread was busy.", **own)
        self._waiting = Gauge("tessera_waiting_rows", "Rows that wait for a batch.", **own)
        errors = "What could not be answered: an image that is unfit, or an error of the server itself."
        self._errors = Counter("tessera_errors", errors, ["domain", "kind"], **own)
        self._age: Callable[[], float | None] = lambda: None
        self.registry.register(self)

    def watch_waiting(self, count: Callable[[], int]) -> None:
        self._waiting.set_function(count)

    def watch_registry(self, age: Callable[[], float | None]) -> None:
        """age: seconds since the registry was read the last time; None where it never was."""
        self._age = age

    def watch_batch(self, rows: int, seconds: float) -> None:
        self._rows.observe(rows)
        self._busy.inc(seconds)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """seconds: from the request to its answer."""
        protocol, named = name_request(path)
        domain = named if named in self.champions else ""
        self._requests.labels(domain, protocol, str(status)).inc()
        if domain:
            self._seconds.labels(domain).observe(seconds)

    def count_errors(self, domain: str, kind: str, number: int = 1) -> None:
        if number:
            self._errors.labels(domain if domain in self.champions else "", kind).inc(number)

    def collect(self) -> Iterator[Metric]:
        """What the table of champions says at this moment."""
        champions = self.champions
        versions = GaugeMetricFamily("tessera_champion_version", "The version that is served.", labels=["domain"])
        stale = GaugeMetricFamily(
            "tessera_champion_stale", "1 where the registry's champion is not the one served.", labels=["domain"]
        )
        for name in sorted({*champions, *champions.troubles}):
            if (champion := champions.get(name)) is not None:
                versions.add_metric([name], champion.version)
            stale.add_metric([name], float(name in champions.troubles))
        yield from (versions, stale)
        if (age := self._age()) is not None:
            seconds = "Seconds since the registry was read the last time."
            yield GaugeMetricFamily("tessera_registry_seconds", seconds, value=age)

    def write(self) -> bytes:
        return generate_latest(self.registry)


def name_request(path: str) -> tuple[str, str]:
    """The protocol of a path, and the domain it names or ""."""
    match path.strip("/").split("/"):
        case ["predict", domain]:
            return "tessera", domain
        case ["v2", "models", domain, *_]:
            return "kserve", domain
        case ["v2", *_]:
            return "kserve", ""
        case [domain, last] if last in MLFLOW:
            return "mlflow", domain
        case [only] if only in MLFLOW:
            return "mlflow", ""
    return "page", ""
