"""The registry as the server of champions sees it: which version each domain names, and its adapter on disk. No torch.

    registry = Registry(workspace)
    sights = registry.search()              one request, however many domains there are
    fetched = registry.fetch("plates")      downloaded, and proven against registry and ledger

The ledger decides, as for `tessera predict`: a champion that was moved by hand is never fetched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.errors import PromotionError
from components.promotion import aliases, versions
from components.promotion.ledger import LEDGER, SETTLED, find_last_move, load_ledger
from components.tracking.store import Store
from components.workspace import Workspace

PAGE = 1000  # registered models per request: MLflow's limit


@dataclass(frozen=True)
class Sight:
    """What a search says of a domain. As long as it says the same, nothing has moved.

    ledger, settled: the tags of its registered model; empty where it has none.
    """

    champion: int | None = None
    ledger: str = ""
    settled: str = ""


@dataclass(frozen=True)
class Fetched:
    """A champion on this machine's disk. sha256: of adapter.json, or of the weights where the registry knows only that;
    empty in versions from before either was kept."""

    version: int
    sha256: str
    folder: Path


class Moving(Exception):  # noqa: N818  a state rather than an error
    """A move of the domain is under way: the alias is not yet where the newest record says."""


class Registry:
    """domains: those to serve, also where they do not exist yet; without any, every registered model with a ledger.

    Every method raises TrackingError where MLflow does not answer or refuses. Safe for several threads once `search`
    returned.
    """

    def __init__(self, workspace: Workspace, domains: Sequence[str] = ()) -> None:
        self.workspace, self.domains = workspace, frozenset(domains)
        self._store: Store | None = None

    def search(self, known: frozenset[str] = frozenset()) -> dict[str, Sight]:
        """Every domain to serve. known: domains that count even where somebody removed their ledger's tag."""
        if self._store is None:
            self._store = Store.open(self.workspace)
        with self._store.client() as client:
            models = list(page := client.search_registered_models(max_results=PAGE))
            while page.token:
                models += (page := client.search_registered_models(max_results=PAGE, page_token=page.token))
        # A model without ledger is somebody else's.
        wanted = self.domains or known | {model.name for model in models if LEDGER in model.tags}
        seen = {model.name: _read_sight(model.aliases, model.tags) for model in models if model.name in wanted}
        return dict.fromkeys(self.domains, Sight()) | seen

    def fetch(self, domain: str) -> Fetched | None:
        """The domain's champion on disk; None where it has none and was not asked for.

        Raises PromotionError where the alias was moved by hand, or where the adapter is not the registered one; Moving
        where it is to be asked again; OSError for a full disk.
        """
        assert self._store is not None, "search first"
        with self._store.client():
            ledger = load_ledger(domain)
            recorded = find_last_move(ledger)
            if ledger.champion != recorded and ledger.settled < ledger.last:
                raise Moving(f"{domain}: its move to version {recorded} was begun and not completed")
            if (trouble := aliases.explain_champion(ledger)) is not None:
                raise trouble
            if recorded is None:
                if domain in self.domains:
                    raise _describe_missing(domain)
                return None
            version = versions.require_version(domain, recorded)
            folder = versions.fetch_adapter(version, self.workspace.adapters, ledger, replace_damaged=True)
        return Fetched(version.version, version.adapter_json_sha256 or version.adapter_sha256, folder)


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
