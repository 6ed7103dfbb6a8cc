"""The page of the server of champions in a real browser: what it asks, and that it shows what the server answered."""

import base64
import io
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from browser import CHROMIUM, Browser, open_browser
from fleets import write_adapter
from PIL import Image
from served import create_service, draw_picture

from components.models.adapter import InputMeta
from components.models.backbones import load_backbone
from components.serving.server.app import create_app
from components.tasks.detection import DetectionTask
from components.tasks.segmentation import SegmentationTask

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
    pytest.mark.timeout(120),
]
TOKEN = "0123456789abcdef"
NAMES = ("good", "crack", "pit")
CROP = InputMeta(kind="crop", max_megapixels=100, min_side=4)
DOMAINS: dict[str, dict[str, Any]] = {
    "plates": {},
    "tiles": {"task": SegmentationTask(background="good")},
    "smears": {"task": DetectionTask(), "thresholds": dict.fromkeys(NAMES, 0.02)},
    "nuclei": {"input": CROP},
}
SETTLED = "state.items.length && state.items.every(i => i.asks.every(a => ['done', 'failed'].includes(a.status)))"
PAINTED = "[...document.querySelectorAll('.stage canvas')].every(one => one.dataset.painted)"
ANSWER = "state.chosen.asks[state.chosen.at].answer"


@dataclass(frozen=True)
class Site:
    """One service behind two doors. guarded: the one that wants the token."""

    url: str
    guarded: str
    browser: Browser

    def ask(self, domain: str, image: bytes, **query: str) -> dict[str, Any]:
        """What the server answers without the page."""
        found = httpx.post(f"{self.url}/predict/{domain}", content=image, params=query, timeout=60).raise_for_status()
        return dict(found.json())

    def show(self, domain: str, *files: Path) -> None:
        """Open the page for a domain and give it files; wait for its answers."""
        self.browser.open(f"{self.url}/?{domain}#{domain}")
        self.browser.wait(f"state.domain === {json.dumps(domain)}")
        self.browser.give("#files", files)
        self.browser.wait(SETTLED)
        self.browser.wait(PAINTED)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, backbone = tmp_path_factory.mktemp("page"), load_backbone("embedded", 32)
    adapters = {
        name: write_adapter(folder / name, backbone, {"kind": "linear"}, seed, NAMES, **facts)
        for seed, (name, facts) in enumerate(DOMAINS.items())
    }
    service = create_service(adapters)
    doors = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    apps = create_app(service), create_app(service, TOKEN)
    servers = [uvicorn.Server(uvicorn.Config(app, log_config=None)) for app in apps]
    threads = [threading.Thread(target=server.run, args=([door],)) for server, door in zip(servers, doors, strict=True)]
    for thread in threads:
        thread.start()
    try:
        with open_browser(folder / "profile") as browser:
            urls = [f"http://127.0.0.1:{door.getsockname()[1]}" for door in doors]
            yield Site(*urls, browser)
    finally:
        for server in servers:
            server.should_exit = True
        for thread in threads:
            thread.join(30)
        service.close(10)


@pytest.fixture(autouse=True)
def complaints(site: Site) -> Iterator[list[str]]:
    """The browser's, of which a test may remove what it expects: nothing was refused, and no script failed."""
    site.browser.complaints.clear()
    yield site.browser.complaints
    assert not site.browser.complaints


def _text(site: Site, selector: str = "#detail") -> str:
    return str(site.browser.ask(f"document.querySelector({json.dumps(selector)}).innerText"))


def test_images_are_answered_with_bars_and_saliency(site: Site, complaints: list[str], tmp_path: Path) -> None:
    (fit := tmp_path / "fit it's.png").write_bytes(draw_picture(1))
    (broken := tmp_path / "broken.png").write_bytes(draw_picture(2)[:200])
    site.show("plates", fit, broken)
    wanted = site.ask("plates", fit.read_bytes(), saliency="1")
    text, chances = _text(site), wanted["probabilities"]
    assert _text(site, "#detail h2") == f"{wanted['label']}, {100 * chances[wanted['label']]:.1f} %"
    assert all(f"{100 * share:.1f} %" in text for share in chances.values() if share > 0.001)
    assert wanted["adapter_sha256"][:16] in text
    bars = site.browser.ask(
        "[...document.querySelectorAll('.chance .bar span')].map(one => parseFloat(one.style.width))"
    )
    assert bars == pytest.approx(
        sorted((100 * share for share in wanted["probabilities"].values()), reverse=True), abs=2
    )
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(wanted["saliency"]))))
    shown = site.browser.ask("(c => [c.width, c.height])(document.querySelector('canvas.saliency'))")
    assert shown == [grey.shape[1], grey.shape[0]]
    site.browser.ask("document.querySelector('#layer-saliency').focus()")
    site.browser.press("Space")
    assert site.browser.ask("document.querySelector('canvas.saliency').hidden")
    site.browser.press("Space")
    line = site.browser.ask("document.querySelector('#detail pre').textContent")
    assert line == f"curl --data-binary @'fit it'\\''s.png' '{site.url}/predict/plates?saliency=1'"
    assert _text(site, "#counts") == "2 images: 1 " + wanted["label"] + ", 1 error."
    site.browser.ask("document.querySelector('#list button').focus()")
    site.browser.press("ArrowDown")
    site.browser.wait("document.querySelector('#detail .failed')")
    assert all(word in _text(site) for word in ("status 422", "expected", "found", "hint"))
    assert site.browser.ask("document.activeElement.innerText").endswith("broken.png")
    complaints[:] = [text for text in complaints if "status of 422" not in text]


def test_masks_lie_on_the_upright_picture(site: Site, tmp_path: Path) -> None:
    picture = Image.open(io.BytesIO(draw_picture(3, (64, 40))))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    picture.save(turned := tmp_path / "turned.jpg", exif=exif, quality=95)
    site.show("tiles", turned)
    wanted = site.ask("tiles", turned.read_bytes())
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(wanted["mask"]))))
    assert mask.shape == (64, 40)
    frames = site.browser.ask(
        "[...document.querySelectorAll('.stage img, .stage canvas')].map(one => one.getBoundingClientRect()).map(f => "
        "[f.left, f.top, f.width, f.height].map(Math.round))"
    )
    assert frames[0] == frames[1]
    assert frames[0][3] > frames[0][2]
    alphas = site.browser.ask(
        "(c => [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, k) => "
        "k % 4 === 3)])(document.querySelector('canvas.mask'))"
    )
    assert alphas[:2] == [40, 64]
    assert np.array_equal(np.array(alphas[2]).reshape(64, 40) > 0, mask != NAMES.index("good"))
    assert all(name in _text(site, ".legend") for name in ("crack", "pit") if wanted["areas"][name])


def test_boxes_lie_where_the_answer_says(site: Site, tmp_path: Path) -> None:
    (picture := tmp_path / "smear.png").write_bytes(draw_picture(4, (80, 40)))
    site.show("smears", picture)
    objects = site.ask("smears", picture.read_bytes())["objects"]
    shown = site.browser.ask(
        "(s => [...document.querySelectorAll('.boxes [data-object]')].map(one => one.getBoundingClientRect()).map(f => "
        "[(f.left - s.left) / s.width * 80, (f.top - s.top) / s.height * 40, (f.right - s.left) / s.width * 80, "
        "(f.bottom - s.top) / s.height * 40]))(document.querySelector('.stage').getBoundingClientRect())"
    )
    assert len(shown) == len(objects) > 0
    assert np.array(shown) == pytest.approx(np.array([one["box"] for one in objects]), abs=1)
    site.browser.ask("document.querySelector('#layer-boxes').click()")
    assert not site.browser.ask("document.querySelectorAll('.boxes [data-object]').length")


def test_a_box_is_drawn_or_written_and_asked_about(site: Site, tmp_path: Path) -> None:
    (picture := tmp_path / "cells.png").write_bytes(draw_picture(5, (80, 80)))
    site.browser.open(f"{site.url}/?nuclei#nuclei")
    site.browser.wait("state.domain === 'nuclei'")
    site.browser.give("#files", [picture])
    site.browser.wait("document.querySelector('.stage.draw')")
    site.browser.draw(".stage", (0.25, 0.25), (0.5, 0.75))
    assert site.browser.wait(f"{SETTLED} && state.chosen.asks.length === 1 && {ANSWER}")["box"] == [20, 20, 40, 60]
    site.browser.wait("document.querySelector('#corner-left')")
    site.browser.ask("document.querySelector('#corner-left').focus(), document.querySelector('#corner-left').select()")
    site.browser.write("4")
    site.browser.press("Enter")
    found = site.browser.wait(f"{SETTLED} && state.chosen.asks.length === 2 && {ANSWER}")
    wanted = site.ask("nuclei", picture.read_bytes(), box="4,20,40,60")
    assert (found["box"], found["label"]) == ([4, 20, 40, 60], wanted["label"])
    assert site.browser.ask("document.querySelectorAll('.tabs button').length") == 2


def test_the_token_is_asked_for_and_kept_in_the_tab_alone(site: Site, complaints: list[str], tmp_path: Path) -> None:
    (picture := tmp_path / "plate.png").write_bytes(draw_picture(6))
    site.browser.open(f"{site.guarded}/#plates")
    for given in ("a wrong token", TOKEN):
        site.browser.wait("document.querySelector('#login').open && document.activeElement.id === 'token'")
        site.browser.write(given)
        site.browser.press("Enter")
    site.browser.wait("state.champions.length")
    site.browser.give("#files", [picture])
    site.browser.wait(SETTLED)
    assert site.browser.ask(f"{ANSWER}.domain") == "plates"
    assert "$TOKEN" in site.browser.ask("document.querySelector('#detail pre').textContent")
    kept = site.browser.ask(
        "[Object.values(sessionStorage), localStorage.length, document.cookie, document.body.innerHTML]"
    )
    assert (kept[:3], TOKEN in kept[3]) == ([[TOKEN], 0, ""], False)
    complaints[:] = [text for text in complaints if "status of 401" not in text]
