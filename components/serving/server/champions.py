"""What is served now: one champion per domain, each with the version that the registry names. No torch here.

A request takes its champion once and keeps it to the end, so that it sees one version whole, whatever is promoted
meanwhile.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from components.serving.rack import Rack, Resident


@dataclass(frozen=True, eq=False)
class Champion:
    """A version that is served. adapter_sha256: of adapter.json, which stands for the whole adapter, where the registry
    knows it; else of the weights."""

    domain: str
    version: int
    adapter_sha256: str
    rack: "Rack" = field(repr=False)
    resident: "Resident" = field(repr=False)


class Champions:
    """By domain. One thread writes (`put`, `remove`, `report`, `ready`, `stale`), any number read.

    troubles: domain -> why its newest champion is not served; an older one may still be. ready: whether the registry
    was read once, so that no domain is missing only because nobody has looked. stale: why the registry could not be
    read the last time; empty where it could.
    """

    def __init__(self) -> None:
        self._champions: Mapping[str, Champion] = {}
        self.troubles: Mapping[str, str] = {}
        self.ready = False
        self.stale = ""

    def __getitem__(self, domain: str) -> Champion:
        return self._champions[domain]

    def get(self, domain: str) -> Champion | None:
        return self._champions.get(domain)

    def __contains__(self, domain: object) -> bool:
        return domain in self._champions

    def __iter__(self) -> Iterator[str]:
        return iter(self._champions)

    def __len__(self) -> int:
        return len(self._champions)

    def put(self, champion: Champion) -> None:
        """Serve it from now on, in the place of the one of its domain."""
        self._champions = {**self._champions, champion.domain: champion}
        self.troubles = {name: why for name, why in self.troubles.items() if name != champion.domain}

    def remove(self, domain: str) -> None:
        """Serve the domain no longer; nothing where it is not served."""
        self._champions = {name: one for name, one in self._champions.items() if name != domain}
        self.troubles = {name: why for name, why in self.troubles.items() if name != domain}

    def report(self, domain: str, trouble: str) -> None:
        """Say why the newest champion of a domain is not served; "" where nothing is wrong any more."""
        troubles = {name: why for name, why in self.troubles.items() if name != domain}
        self.troubles = troubles | ({domain: trouble} if trouble else {})
