"""The home page of `tessera up`: what it says of a workspace, and that neither a fault nor its end leaves it wrong."""

import os
import time
from pathlib import Path

import pytest
import yaml
from conftest import DOMAIN, run_tessera
from fleets import promote_adapter, write_adapter
from servers import wait_until

from components.errors import TrackingError
from components.models.backbones import load_backbone
from components.records.fields import ErrorRecord
from components.records.operations import DomainRow, Drift, Ended
from components.records.outcomes import Score
from components.reports.trend import Point, draw_trend
from components.tracking.store import Point as Measured
from components.tracking.store import Store
from components.workspace import Workspace
from flows.commands import home
from flows.commands.home import Home
from flows.commands.home_page import Card, Facts, Trouble, render_home
from flows.server import drawer
from flows.server.address import Services
from flows.server.drawer import Drawer

NOBODY = Services("0 0", "http://127.0.0.1:9/api", "http://127.0.0.1:9")  # nothing answers there
HOSTILE = "<script>alert('x')</script>"


def test_a_workspace_in_a_page(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert run_tessera(workspace, "check", DOMAIN).code == 0
    file = Workspace(workspace).domain_file(DOMAIN)
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"title": HOSTILE}))
    (workspace / "data" / "broken").mkdir()
    (workspace / "data" / "broken" / "domain.yaml").write_text("name: broken\n")
    (workspace / "data" / "broken" / "raw.dvc").write_text("")
    place = Workspace(workspace)
    store = Store.open(place)
    page = Home(place, NOBODY)
    assert "being read" in page.render()
    page.update()
    (broken, parts) = page.facts.cards
    assert (broken.row.domain, broken.weight, parts.row.domain, parts.weight) == ("broken", 2, DOMAIN, 0)
    assert [tile.hard for tile in parts.tiles] == [False] * home.MOST_TILES
    assert any("Links to the servers cannot be shown" in note for note in page.facts.notes)
    backbone = load_backbone("embedded", 32)
    for seed in (1, 2):
        adapter = write_adapter(workspace / f"adapter{seed}", backbone, {"kind": "linear"}, seed)
        champion = promote_adapter(place, store, DOMAIN, adapter)
        scores = {f"test/balanced_accuracy{end}": value for end, value in (("", 0.8), ("_low", 0.7), ("_high", 0.9))}
        store.log_metrics(champion.run_id, [Measured.now(0, scores)])
    monkeypatch.setattr(home, "list_links", lambda *_: {DOMAIN: {"model": "http://127.0.0.1:9/?a=1&b=2", "card": None}})
    page.update()
    text = page.render()
    assert page.facts.notes == ()
    assert "Champion: <b>version 2</b> linear since" in text
    assert "balanced accuracy by version: version 1 0.800, version 2 0.800" in text
    assert ("PROMOTE" in text, "by hand, for a trial" in text) == (True, True)
    assert "<a href='http://127.0.0.1:9/?a=1&amp;b=2'>model</a> · <i>card: none yet</i>" in text
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text
    assert "http" not in text.replace("http://127.0.0.1:9", "").replace("http-equiv", "")  # nothing from elsewhere
    assert len(text) < 1_000_000
    shown = [tile.text for tile in page.facts.cards[1].tiles]
    (place.raw(DOMAIN) / shown[0].partition(":")[0]).write_bytes(b"damaged")
    page.tiles.clear()
    page.update()
    assert [tile.text for tile in page.facts.cards[1].tiles] == shown[1:]
    with store.client() as client:
        client.set_registered_model_alias(DOMAIN, "champion", "1")
    monkeypatch.setattr(home, "PAGE_BYTES", 0)
    page.update()
    assert (page.facts.notes, page.facts.cards[1].tiles) == ((), ())
    assert "Champion: <b>version 1</b> linear</p>" in page.render()  # no move of the ledger made it champion
    assert [card.weight for card in page.facts.cards] == [2, 2]  # the alias was moved by hand


def test_what_fails_is_on_the_page_beside_what_was_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Home(Workspace(tmp_path), NOBODY)
    page.facts = Facts(tmp_path, (Card(DomainRow(domain="plates"), "Plates"),))
    gone = TrackingError("MLflow", expected="an answer", found="none", hint="Start it.")
    for error, told in ((gone, "MLflow: expected an answer; found none. Start it."), (KeyError("x"), "KeyError")):
        monkeypatch.setattr(home, "status", lambda _, error=error: (_ for _ in ()).throw(error))
        page.update()
        text = page.render()
        assert ("This page is not up to date." in text, told in text, "Plates" in text) == (True, True, True)


def test_trouble_comes_first_and_in_words(tmp_path: Path) -> None:
    drift = Drift(new=9, images=9, share=0.5, expected=0.05, classes={})
    trouble = ErrorRecord(type="x", what="w", expected="e", found="f", hint="h", message="moved by hand")
    rows = {
        "fine": DomainRow(domain="fine", last_run=Ended(state="Completed", when="2026-01-01T00:00:00+00:00")),
        "drifts": DomainRow(domain="drifts", drift=drift),
        "failed": DomainRow(domain="failed", last_run=Ended(state="Crashed", when=None)),
        "moved": DomainRow(domain="moved", champion_trouble=trouble),
    }
    weights = {
        name: Card(row, name, troubles=tuple(home.find_troubles(row, None, None))).weight for name, row in rows.items()
    }
    assert weights == {"fine": 0, "drifts": 1, "failed": 2, "moved": 2}
    text = render_home(Facts(tmp_path, (Card(rows["moved"], "moved", troubles=(Trouble("moved by hand", True),)),)))
    assert "1 domain needs attention" in text
    assert "This workspace has no domain yet" in render_home(Facts(tmp_path))


def test_a_trend_has_a_point_per_version() -> None:
    scores = [Score(value=0.8, low=0.7, high=0.9), Score(value=0.9), Score(value=0.85, low=0.8, high=0.9)]
    points = [Point(k + 1, "vpt", score, "PROMOTE" if k else None, k != 1) for k, score in enumerate(scores)]
    drawn = draw_trend(points, 3, "balanced accuracy")
    assert (drawn.count("<title>"), drawn.count("<line"), drawn.count("ring")) == (3, 2, 1)
    assert "version 1 0.800, version 2 0.900, version 3 0.850" in drawn
    assert draw_trend(points[:1], None, "mAP50").count("<title>") == 1
    assert draw_trend([], None, "mAP50") == ""


class _Page:
    def __init__(self) -> None:
        self.text, self.error = "first", None

    def update(self) -> None:
        if self.error:
            raise self.error

    def render(self) -> str:
        return self.text


def test_the_drawer_outlives_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawer, "PAGE_SECONDS", 0.01)
    page, path, told = _Page(), tmp_path / "page.html", list[str]()
    drawing = Drawer(page, path, told.append)
    drawing.start()
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("first", 0o600)
    page.text = "second"
    wait_until(lambda: path.read_text() == "second", 10, "the second page")
    os.utime(path, (0, 0))
    wait_until(lambda: path.stat().st_mtime > 0, 10, "a sign that it was looked at")
    page.error = RuntimeError("a defect")
    wait_until(lambda: bool(told), 10, "the report of the defect")
    time.sleep(0.1)
    assert told == [f"The page {path} was not drawn: RuntimeError: a defect"]
    page.error, page.text = None, "third"
    wait_until(lambda: path.read_text() == "third", 10, "the third page")
    drawing.stop()
    assert not path.exists()
