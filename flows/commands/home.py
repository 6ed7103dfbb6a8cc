"""What the home page of `tessera up` shows of every domain: champion, trend, drift, pictures, and what needs attention.

What cannot change is read once: scores of registered versions, pictures of a training. A part that fails is named on
the page, and the rest of it is shown.
"""

import json
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from components.domain.domain import Domain
from components.errors import TesseraError
from components.promotion import ledger, versions
from components.promotion.ledger import MOVES, Record
from components.records.images import ValidationSummary
from components.records.operations import DomainRow
from components.records.outcomes import Score
from components.records.serving import ServedDomain, ServedDomains
from components.reports.trend import Point
from components.serving.address import load_address
from components.tasks import create_task
from components.tracking import candidates
from components.tracking.store import Store
from components.workspace import Workspace
from flows.commands.home_page import Card, Facts, Trouble, render_home
from flows.commands.home_pictures import Tile, find_training, load_hardest, load_some
from flows.commands.status import status
from flows.server.address import ANSWER_SECONDS, Services
from flows.server.schedules import load_domains
from flows.server.start_page import list_links

MOST_POINTS = 16  # versions in a trend
MOST_TILES, TILE_BYTES, PAGE_BYTES = 6, 5_000, 700_000
MUCH_DRIFT = 0.2  # as in the terminal: a domain with few groups has some without any

Part = TypeVar("Part")
Other = TypeVar("Other")


@dataclass
class Home:
    """The page of one `tessera up`: `update` reads the workspace anew, `render` gives the page as HTML."""

    workspace: Workspace
    services: Services
    facts: Facts = field(init=False)
    scores: dict[str, Score] = field(default_factory=dict)  # of registered versions, by their run
    tiles: dict[tuple[str, str], list[Tile]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.facts = Facts(self.workspace.root, reading=True)

    def render(self) -> str:
        return render_home(self.facts)

    def update(self) -> None:
        """Read what there is now. Whatever fails is a note on the page, beside what was known before."""
        self.notes = []
        try:
            self.facts = replace(self._read(), notes=tuple(self.notes))
        except TesseraError as error:
            self.facts = replace(self.facts, notes=(f"This page is not up to date. {error}",))
        except Exception as error:  # noqa: BLE001 - a defect of this page must neither end `tessera up` nor pass unseen
            where = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
            self.facts = replace(self.facts, notes=(f"This page is not up to date. {told}",))

    def _read(self) -> Facts:
        found = status(self.workspace)
        store, domains = Store.open(self.workspace), load_domains(self.workspace).read
        links = self._try("links to the servers", lambda: list_links(self.workspace, self.services), self.facts.links)
        served = self._try("the server of champions", lambda: _ask_served(self.workspace), None)
        by_name = {domain.name: domain for domain in domains}
        most = min(MOST_TILES, PAGE_BYTES // TILE_BYTES // max(1, len(found.domains)))
        cards = [self._describe(store, row, by_name.get(row.domain), served, links, most) for row in found.domains]
        pools = [pool.name for pool in found.pools if pool.retrains and not pool.paused and not pool.workers_online]
        self.notes += [f"No worker is online for pool {name}: retrains wait." for name in pools]
        if served is not None and served.answer.stale:
            self.notes.append(f"The server of champions could not read the registry: {served.answer.stale}")
        return Facts(
            self.workspace.root,
            tuple(sorted(cards, key=lambda card: (-card.weight, card.row.domain))),
            links,
            None if served is None else served.url,
        )

    def _try(self, what: str, read: Callable[[], Part], otherwise: Other) -> Part | Other:
        """What `read` returns; where it fails, a note, and `otherwise`."""
        try:
            return read()
        except (TesseraError, OSError, ValueError) as error:
            self.notes.append(f"{what[:1].upper()}{what[1:]} cannot be shown: {error}")
            return otherwise

    def _describe(
        self,
        store: Store,
        row: DomainRow,
        domain: Domain | None,
        served: "Served | None",
        links: Mapping[str, Mapping[str, str | None]],
        most: int,
    ) -> Card:
        name, own = row.domain, links.get(row.domain, {})
        ask = None if served is None or name not in served.domains else f"{served.url}/#{name}"
        if domain is None:
            return Card(row, name, links=own, troubles=tuple(find_troubles(row, None, None)), ask=ask)
        records = self._try(f"the history of {name}", lambda: _load_records(store, name), ())
        points = self._try(f"the trend of {name}", lambda: self._load_points(store, domain, records), ())
        checked = self._try(f"the check of {name}", lambda: _load_validation(self.workspace, name), None)
        move = next((record for record in reversed(records) if record.action in MOVES), None)
        judged = next((record for record in reversed(records) if record.verdict), None)
        troubles = tuple(find_troubles(row, checked, None if served is None else served.domains.get(name)))
        champion = (
            None
            if row.champion_version is None
            else self._try(f"the champion of {name}", lambda: _load_champion(store, row), None)
        )
        return Card(
            row,
            domain.title or name,
            metric=create_task(domain).metric_words,
            tuner="" if champion is None else champion.tuner,
            move=move if move is not None and move.to_version == row.champion_version else None,
            judged=judged,
            points=points,
            tiles=self._try(f"pictures of {name}", lambda: self._load_tiles(domain, row, champion, most), ()),
            troubles=troubles,
            links=own,
            ask=ask,
        )

    def _load_points(self, store: Store, domain: Domain, records: Sequence[Record]) -> tuple[Point, ...]:
        """The newest versions that have a score."""
        metric, points = create_task(domain).metric, []
        verdicts = {record.to_version: record.verdict for record in records if record.verdict != ""}
        served = {record.to_version for record in records if record.action in MOVES}
        with store.client():
            known = versions.list_versions(domain.name, MOST_POINTS)
        for version in known:
            if version.run_id not in self.scores:
                score = candidates.load_test_score(store, version.run_id, metric)
                if score is None:
                    continue
                self.scores[version.run_id] = score
            facts = self.scores[version.run_id], verdicts.get(version.version), version.version in served
            points.append(Point(version.version, version.tuner, *facts))
        return tuple(points)

    def _load_tiles(
        self, domain: Domain, row: DomainRow, champion: versions.Version | None, most: int
    ) -> tuple[Tile, ...]:
        """The champion's hardest test images where they are known here, or else some of the domain's; none where there
        are too many domains for pictures of all."""
        if not most:
            return ()
        sha256 = "" if champion is None else champion.adapter_sha256
        key = domain.name, f"{sha256} {row.data_version} {most}"
        if key not in self.tiles:
            training = find_training(self.workspace, domain.name, sha256) if sha256 else None
            hard = [] if training is None else load_hardest(self.workspace, domain, training, most)
            self.tiles = {known: tiles for known, tiles in self.tiles.items() if known[0] != domain.name}
            self.tiles[key] = hard or load_some(self.workspace, domain, most)
        return tuple(self.tiles[key])


@dataclass(frozen=True)
class Served:
    """What the running server of champions says."""

    url: str
    answer: ServedDomains
    domains: Mapping[str, ServedDomain]


def _ask_served(workspace: Workspace) -> Served | None:
    """None where no server of champions runs for this workspace. Raises OSError where it does not answer."""
    address = load_address(workspace)
    if address is None:
        return None
    token = address.read_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{address.url}/champions", headers=headers)
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as found:
        answer = ServedDomains.model_validate(json.loads(found.read()))
    return Served(address.url, answer, {one.domain: one for one in answer.domains})


def _load_champion(store: Store, row: DomainRow) -> versions.Version | None:
    with store.client():
        return versions.load_version(row.domain, row.champion_version or versions.CHAMPION)


def _load_records(store: Store, name: str) -> tuple[Record, ...]:
    with store.client():
        return ledger.load_records(name)


def _load_validation(workspace: Workspace, name: str) -> ValidationSummary | None:
    """What the data stages found the last time; None before they ran."""
    path = workspace.derived(name) / "validation.json"
    return ValidationSummary.model_validate_json(path.read_text()) if path.exists() else None


def find_troubles(row: DomainRow, checked: ValidationSummary | None, served: ServedDomain | None) -> Iterator[Trouble]:
    """What a person should look at, the worst first."""
    if row.error is not None:
        yield Trouble(row.error.message, True)
    if row.champion_trouble is not None:
        yield Trouble(row.champion_trouble.message, True)
    if row.last_run is not None and row.last_run.state != "Completed":
        yield Trouble(
            f"The last retrain ended as {row.last_run.state.lower()}. `tessera retrain {row.domain}` goes on.", True
        )
    if checked is not None and not checked.ok:
        yield Trouble(f"The images failed their check: {'; '.join(checked.problems)}", True)
    known = "" if row.champion_trouble is None else row.champion_trouble.message
    if served is not None and served.trouble and served.trouble != known:
        yield Trouble(f"Not served: {served.trouble}", True)
    elif served is not None and row.champion_version and served.version != row.champion_version:
        yield Trouble(
            f"The server answers with version {served.version}, not with version {row.champion_version}.", False
        )
    if row.drift is not None and row.drift.share is not None and row.drift.share > MUCH_DRIFT:
        share, expected = f"{row.drift.share:.0%}", f"{row.drift.expected:.0%}"
        unlike = f"{share} of {row.drift.images} new images are unlike all that the champion saw"
        yield Trouble(f"{unlike}; without drift {expected} would be.", False)
    if checked is not None and checked.quarantined:
        yield Trouble(f"{len(checked.quarantined)} of {checked.images} images are in quarantine.", False)
