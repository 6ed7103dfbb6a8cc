"""The home page of `tessera up` as HTML: one file that loads nothing, with pictures and script in it.

Times are UTC in the file; the script in it shows them as the reader's clock has them, and loads the file again while
it is looked at.
"""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from components.promotion.ledger import Record
from components.records.operations import DomainRow
from components.records.outcomes import Score
from components.reports.shell import render_page, render_warning
from components.reports.trend import Point, draw_trend
from flows.commands.home_pictures import Tile
from flows.server.start_page import Links

STYLE, SCRIPT = (Path(__file__).with_name(f"home.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
HEAD = '<meta name="referrer" content="no-referrer">'
FIRST = """<section class="first"><h2>This workspace has no domain yet</h2><ol>
<li>See all of it work, in some minutes, on images that come with Tessera: <br><code>tessera demo</code></li>
<li>Bring your own images, a folder per class or with annotations: <br>
<code>tessera import FOLDER --domain NAME</code></li>
<li>Train, judge and promote: <br><code>tessera retrain NAME</code></li></ol>
<p class="quiet">Each domain then has a card here.</p></section>"""


@dataclass(frozen=True)
class Trouble:
    """What a person should look at. severe: something does not work; else it may be worth a look."""

    text: str
    severe: bool


@dataclass(frozen=True)
class Card:
    """One domain. metric: what its score is, in words. move: by which its champion became it. judged: the last verdict.
    ask: the page on which the champion can be asked; None where it is not served."""

    row: DomainRow
    title: str
    metric: str = ""
    tuner: str = ""
    move: Record | None = None
    judged: Record | None = None
    points: tuple[Point, ...] = ()
    tiles: tuple[Tile, ...] = ()
    troubles: tuple[Trouble, ...] = ()
    links: Links = field(default_factory=dict)
    ask: str | None = None

    @property
    def weight(self) -> int:
        """How much it needs attention."""
        return max((2 if trouble.severe else 1 for trouble in self.troubles), default=0)


@dataclass(frozen=True)
class Facts:
    """All of the page. links: of the servers and logs, by name. served: the address of the server of champions; None
    where none runs. notes: what concerns all domains, or could not be read. reading: the workspace has not been
    read yet."""

    root: Path
    cards: tuple[Card, ...] = ()
    links: Mapping[str, Links] = field(default_factory=dict)
    served: str | None = None
    notes: tuple[str, ...] = ()
    reading: bool = False


def render_home(facts: Facts) -> str:
    """The whole page; every text in it is escaped."""
    cards = "".join(map(_render_card, facts.cards))
    nothing = "<p>The workspace is being read.</p>" if facts.reading else "" if facts.cards else FIRST
    body = (
        f"<body{' data-reading=1' if facts.reading else ''}>{_render_top(facts)}<main>"
        f"{''.join(map(render_warning, facts.notes))}{_render_attention(facts.cards)}{nothing}"
        f'<div class="cards">{cards}</div></main><p class="quiet"><span id="read"></span>'
        "Drawn by <code>tessera up</code>, which stops with <code>tessera down</code>.</p>"
        f"<script>{SCRIPT}</script></body>"
    )
    return render_page("Tessera", body, STYLE, HEAD)


def _render_top(facts: Facts) -> str:
    own = {card.row.domain for card in facts.cards}
    lines = {name: render_links(links) for name, links in facts.links.items() if name not in own}
    served = render_links({"ask a champion": facts.served, "API": f"{facts.served}/docs"}) if facts.served else ""
    lines |= {"Serving": served or "<i>not running: <code>tessera serve</code></i>"}
    rows = "".join(f"<p><b>{escape(name)}</b> {links}</p>" for name, links in lines.items())
    return f'<div class="top"><h1>Tessera</h1><p class="quiet">{escape(str(facts.root))}</p>{rows}</div>'


def _render_attention(cards: Iterable[Card]) -> str:
    """The domains with trouble, as links to their cards."""
    wanting = [card for card in cards if card.troubles]
    if not wanting:
        return ""
    count = f"{len(wanting)} domain{'s need' if len(wanting) > 1 else ' needs'} attention"
    items = "".join(
        f'<li><a href="#{escape(card.row.domain)}">{escape(card.title)}</a>: {escape(card.troubles[0].text[:200])}</li>'
        for card in wanting
    )
    return f'<h2>{count}</h2><ul class="attention">{items}</ul>'


def _render_card(card: Card) -> str:
    kind = ("card", "card trouble", "card severe")[card.weight]
    troubles = "".join(
        f'<p class="failed">{escape(one.text)}</p>' if one.severe else render_warning(one.text) for one in card.troubles
    )
    name = escape(card.row.domain)
    code = "" if card.title == card.row.domain else f"<code>{name}</code>"
    ask = f'<a class="ask" href="{escape(card.ask)}">Ask it</a>' if card.ask else ""
    return (
        f'<article class="{kind}" id="{name}"><header><div><h2>{escape(card.title)}</h2>{code}</div>{ask}</header>'
        f"{troubles}{_render_champion(card)}{_render_verdict(card)}{_render_data(card.row)}{_render_runs(card.row)}"
        f'{_render_tiles(card)}<p class="links">{render_links(card.links)}</p></article>'
    )


def _render_champion(card: Card) -> str:
    """The champion, its score, and the scores of the versions before it."""
    row = card.row
    if row.error is not None:
        return ""
    trend = draw_trend(card.points, row.champion_version, card.metric)
    if row.champion_version is None:
        return f"<p>No champion yet. Train one: <code>tessera retrain {escape(row.domain)}</code></p>{trend}"
    since = "" if card.move is None else f" since {_render_time(card.move.when, 'at')} by {escape(card.move.who)}"
    back = f", rolled back from version {row.rolled_back_from}" if row.rolled_back_from else ""
    return (
        f"<p>Champion: <b>version {row.champion_version}</b> {escape(card.tuner)}{since}{back}</p>"
        f'<div class="numbers"><div>{_render_score(row.champion_score, card.metric)}</div>{trend}</div>'
    )


def _render_score(score: Score | None, metric: str) -> str:
    if score is None:
        return f'<p class="quiet">{escape(metric)}: not known</p>'
    ends = "interval not known" if score.low is None or score.high is None else f"{score.low:.2f} to {score.high:.2f}"
    return f'<div class="big">{score.value:.3f}</div><div class="quiet">{escape(metric)}<br>{ends}</div>'


def _render_verdict(card: Card) -> str:
    if card.judged is None:
        return ""
    judged = card.judged
    return (
        f'<p class="reason" tabindex="0"><b style="color:var(--{judged.verdict})">{judged.verdict}</b> '
        f"version {judged.to_version}, {_render_time(judged.when)}: {escape(judged.reason)}</p>"
    )


def _render_data(row: DomainRow) -> str:
    """The images now, and how they are beside those that the champion was trained on."""
    if row.data_version is None:
        return ""
    name = row.data_name or row.data_version[:8]
    parts = [f"{row.files:,} files, data version <code>{escape(name)}</code>"]
    if row.champion_data and row.champion_data != row.data_version:
        parts.append("changed since the champion was trained")
    if row.drift is not None and row.drift.share is not None:
        parts.append(f"{row.drift.share:.0%} of {row.drift.images} new images unlike those before")
    return f'<p class="quiet">{"; ".join(parts)}</p>'


def _render_runs(row: DomainRow) -> str:
    parts = []
    if row.running:
        parts.append(f"<b>retrain running</b>, started {_render_time(row.running)}")
    if row.last_run is not None:
        ended = _render_time(row.last_run.when) if row.last_run.when else ""
        parts.append(f"last retrain {escape(row.last_run.state.lower())} {ended}")
    if row.next_run:
        parts.append(f"next {_render_time(row.next_run)}")
    return f'<p class="quiet">{"; ".join(parts)}</p>' if parts else ""


def _render_tiles(card: Card) -> str:
    if not card.tiles:
        return ""
    words = "Hardest test images of the champion" if card.tiles[0].hard else "Some of its images"
    kinds = {True: "right", False: "wrong", None: ""}
    pictures = "".join(
        f'<img class="{kinds[tile.right]}" src="data:image/jpeg;base64,{base64.b64encode(tile.jpeg).decode()}" '
        f'alt="{escape(tile.text)}" title="{escape(tile.text)}">'
        for tile in card.tiles
    )
    strip = f'<div class="strip" tabindex="0" role="group" aria-label="{words}">{pictures}</div>'
    return f'<div class="quiet">{words}</div>{strip}'


def _render_time(text: str, kind: str = "ago") -> str:
    """A moment. The script turns it into how long ago it was, or, of the kind `at`, into the reader's time."""
    return f'<time class="{kind}" datetime="{escape(text)}">{escape(text[:16].replace("T", " "))} UTC</time>'


def render_links(links: Links) -> str:
    """Links in one line; what does not exist yet is named without one."""
    return " · ".join(
        f"<i>{escape(text)}: none yet</i>"
        if link is None
        else f"<a href='{escape(link, quote=True)}'>{escape(text)}</a>"
        for text, link in links.items()
    )
