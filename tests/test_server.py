"""The server of champions in this process: what it answers, what it refuses, and how its batches are made."""

import asyncio
import base64
import io
import os
import random
import re
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import numpy as np
import pytest
import schemathesis
from fleets import write_adapter
from PIL import Image
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from served import create_champions, create_service, draw_picture
from starlette.testclient import TestClient

from components.models.adapter import InputMeta
from components.models.backbones import load_backbone
from components.records.serving import Served, ServedDomains, ServedError
from components.serving.predictor import Predictor
from components.serving.server import door
from components.serving.server import service as services
from components.serving.server.app import create_app
from components.serving.server.batcher import Batcher, Full, Late, Row, choose_rows
from components.serving.server.champions import Champion, Champions
from components.serving.server.service import Service, open_service
from components.tasks import parse_task

SIZE = 32  # of the canvas, in pixels
URL = "http://127.0.0.1:8080"
TOKEN = "0123456789abcdef"
EXAMPLES = 300 if "TESSERA_FAULTS" in os.environ else 4  # requests per route and mode
HOSTILE = 10_000 if "TESSERA_FAULTS" in os.environ else 60  # bodies
ANY: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(hypothesis.HealthCheck)}
KINDS = {"plates": "vpt", "tiles": "lora", "sheets": "linear"}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, backbone = tmp_path_factory.mktemp("adapters"), load_backbone("embedded", SIZE)
    return {
        name: write_adapter(folder / name, backbone, {"kind": kind}, seed=seed)
        for seed, (name, kind) in enumerate(KINDS.items())
    }


@pytest.fixture(scope="module")
def racked(adapters: dict[str, Path]) -> Champions:
    return create_champions(adapters)


@pytest.fixture
def champions(racked: Champions) -> Champions:
    """A table of a test's own, of the same residents."""
    own = Champions()
    for domain in racked:
        own.put(racked[domain])
    own.ready = True
    return own


@pytest.fixture
def service(champions: Champions) -> Iterator[Service]:
    made = open_service(champions)
    yield made
    assert made.close(10)


@pytest.fixture
def client(service: Service) -> TestClient:
    return TestClient(create_app(service), base_url=URL)


def test_an_answer_is_the_predictors_and_names_whose_it_is(
    client: TestClient, adapters: dict[str, Path], tmp_path: Path
) -> None:
    for seed, domain in enumerate(KINDS):
        (picture := tmp_path / f"{domain}.png").write_bytes(draw_picture(seed))
        (wanted,) = Predictor(adapters[domain]).predict([picture])
        response = client.post(f"/predict/{domain}", content=picture.read_bytes(), headers={"X-Request-Id": "mine-1"})
        answer = Served.model_validate_json(response.content)
        assert (response.status_code, response.headers["x-request-id"]) == (200, "mine-1")
        assert (answer.domain, answer.version, answer.id) == (domain, 1, "mine-1")
        assert answer.label == wanted.label
        assert answer.probabilities == pytest.approx(wanted.probabilities, abs=0.02)  # bfloat16, another batch
    listed = ServedDomains.model_validate_json(client.get("/champions").content)
    assert {one.domain: one.version for one in listed.domains} == dict.fromkeys(KINDS, 1)


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "words"),
    [
        ("POST", "/predict/nobody", {"content": draw_picture()}, 404, "none of this name"),
        ("POST", "/predict/plates?version=2", {"content": draw_picture()}, 404, "the version that is served, 1"),
        ("POST", "/predict/plates?version=x", {"content": draw_picture()}, 422, "query version"),
        ("POST", "/predict/plates?box=1,2,3", {"content": draw_picture()}, 422, "a box x0,y0,x1,y1"),
        ("POST", "/predict/plates?box=1,2,9,9", {"content": draw_picture()}, 422, "Leave the box out"),
        ("POST", "/predict/plates", {"content": b"no image"}, 422, "expected an image"),
        ("POST", "/predict/plates", {"content": b""}, 422, "expected an image"),
        ("POST", "/predict/plates", {"content": draw_picture(size=(8, 8))}, 422, "16"),
        ("GET", "/predict/plates", {}, 405, "another method"),
        ("GET", "/nowhere", {}, 404, "/docs"),
        ("GET", "/champions", {"headers": {"Origin": "http://evil.example"}}, 403, "another page"),
        ("GET", "/champions", {"headers": {"Host": "evil.example"}}, 403, "its own machine"),
        ("GET", "/openapi.json", {"headers": {"Host": "evil.example"}}, 403, "its own machine"),
    ],
)
def test_what_is_refused_is_refused_as_a_record(
    client: TestClient, method: str, path: str, sent: dict[str, Any], status: int, words: str
) -> None:
    response = client.request(method, path, **sent)
    refused = ServedError.model_validate_json(response.content)
    assert response.status_code == status
    assert words in refused.error.message
    assert refused.id == response.headers["x-request-id"]
    assert client.post("/predict/plates", content=draw_picture()).status_code == 200


# Micro-batches


def _submit(batcher: Batcher, champion: Champion, number: int = 1, **options: Any) -> list[Any]:
    pixels = np.full((SIZE, SIZE, 3), 7, np.uint8)
    return [batcher.submit(champion, pixels, **options) for _ in range(number)]


@pytest.mark.parametrize(
    ("waiting", "most", "chosen"),
    [
        ("p", 4, [0]),
        ("ptp", 4, [0, 2]),  # the oldest one's kind alone: vpt, and not lora
        ("pstsp", 4, [0, 1, 3, 4]),  # linear is computed with vpt
        ("ptptptpp", 3, [0, 2, 4]),
        ("tpppt", 3, [0, 4]),
        ("PppP", 4, [0]),  # an explanation is computed by itself
        ("pPpt", 4, [0, 2]),
        ("pop", 4, [0, 2]),  # another rack
        ("opo", 4, [0, 2]),
    ],
)
def test_a_batch_is_of_the_oldest_rows_kind(
    champions: Champions, adapters: dict[str, Path], waiting: str, most: int, chosen: list[int]
) -> None:
    other = create_champions({"plates": adapters["plates"]})
    named = {"p": champions["plates"], "t": champions["tiles"], "s": champions["sheets"], "o": other["plates"]}
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    rows = [Row(named[sign.lower()], pixels, sign.isupper(), time.monotonic() + 9) for sign in waiting]
    assert [rows.index(row) for row in choose_rows(rows, most)] == chosen


def test_the_queue_is_bounded_cancelled_rows_are_not_computed_and_late_ones_fail(service: Service) -> None:
    batches: list[int] = []
    batcher = Batcher(most_rows=4, most_waiting=6, watch=lambda rows, seconds: batches.append(rows))
    first = _submit(batcher, service.champions["plates"], 5)
    late = _submit(batcher, service.champions["tiles"], until=time.monotonic() - 1)
    with pytest.raises(Full) as full:
        _submit(batcher, service.champions["tiles"])
    assert full.value.retry_after >= 1
    assert first[1].cancel()
    assert first[4].cancel()
    batcher.start()
    with pytest.raises(Late):
        late[0].result(10)
    assert all(first[place].result(10).shape == (3,) for place in (0, 2, 3))
    assert batcher.close(10)
    assert sum(batches) == 3
    with pytest.raises(RuntimeError, match="closed"):
        _submit(batcher, service.champions["plates"])


def test_what_was_accepted_is_computed_before_the_batcher_ends(service: Service) -> None:
    batcher = Batcher(most_rows=8)
    rows = _submit(batcher, service.champions["plates"], 30) + _submit(batcher, service.champions["tiles"], 30)
    batcher.start()
    assert batcher.close(30)
    assert all(row.done() and row.exception() is None for row in rows)


def test_one_bad_adapter_fails_no_other_row_and_not_the_thread(service: Service) -> None:
    batcher = Batcher(linger=0)
    good = _submit(batcher, service.champions["plates"], 2)
    odd = batcher.submit(service.champions["tiles"], np.zeros((SIZE + 1, SIZE, 3), np.uint8))  # no forward takes it
    good += _submit(batcher, service.champions["sheets"], 2)
    batcher.start()
    assert all(row.result(10).shape == (3,) for row in good)
    assert odd.exception(10) is not None
    assert _submit(batcher, service.champions["tiles"])[0].result(10).shape == (3,)
    assert batcher.close(10)


# Requests


@pytest.fixture
def stuck(champions: Champions) -> Iterator[Service]:
    """A service whose batcher computes nothing until it is started."""
    made = open_service(champions)
    assert made.batcher.close(5)
    made.batcher = Batcher(most_waiting=2, watch=made.metrics.watch_batch)
    yield made
    made.close(5)


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def _open(service: Service, token: str = "") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=create_app(service, token))
    return httpx.AsyncClient(transport=transport, base_url=URL, timeout=20)


def test_a_full_queue_refuses_at_once_and_a_deadline_ends_waiting(stuck: Service) -> None:
    async def act() -> None:
        async with _open(stuck) as client:
            asked = [asyncio.create_task(client.post("/predict/plates", content=draw_picture(n))) for n in range(2)]
            await _until(lambda: stuck.batcher.waiting == 2)
            refused = await client.post("/predict/tiles", content=draw_picture())
            assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (429, True)
            assert (await client.get("/champions")).status_code == 200
            stuck.batcher.start()
            assert [(await one).status_code for one in asked] == [200, 200]
            stuck.batcher.deadline = -1.0
            assert (await client.post("/predict/tiles", content=draw_picture())).status_code == 504

    asyncio.run(act())


def test_the_rows_of_a_client_that_leaves_are_not_computed(stuck: Service) -> None:
    app, left = create_app(stuck), asyncio.Event()
    messages = [{"type": "http.request", "body": draw_picture(), "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there to send to")

    async def act() -> None:
        headers = [(b"host", b"localhost")]
        scope = {"type": "http", "method": "POST", "path": "/predict/plates", "query_string": b"", "headers": headers}
        asked = asyncio.create_task(app(scope, receive, send))
        await _until(lambda: stuck.batcher.waiting == 1)
        left.set()
        await asked

    asyncio.run(act())
    stuck.batcher.start()
    assert stuck.close(5)
    text = stuck.metrics.write().decode()
    assert 'tessera_requests_total{domain="plates",protocol="tessera",status="499"} 1.0' in text
    assert "tessera_batch_rows_sum 0.0" in text


def test_a_server_that_starts_or_drains_says_so(service: Service) -> None:
    client = TestClient(create_app(service), base_url=URL)
    service.champions.ready = False
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 503
    assert client.post("/predict/plates", content=draw_picture()).status_code == 200  # it is loaded already
    unknown = client.post("/predict/nobody", content=draw_picture())
    assert (unknown.status_code, "starts" in unknown.text, unknown.headers["retry-after"]) == (503, True, "2")
    service.champions.ready = service.draining = True
    for response in (client.get("/v2/health/ready"), client.post("/predict/plates", content=draw_picture())):
        assert (response.status_code, response.headers["connection"]) == (503, "close")
    service.draining = False
    service.champions.report("broken", "its file is damaged")
    assert "damaged" in client.post("/predict/broken", content=b"").text


def test_bodies_are_limited_while_they_are_read(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MOST_BODY", 50_000)
    assert client.post("/predict/plates", content=bytes(60_000)).status_code == 413
    monkeypatch.setattr(door, "MOST_HELD", 20_000)
    held = client.post("/predict/plates", content=bytes(30_000))
    assert (held.status_code, held.headers["retry-after"]) == (429, "1")
    assert client.post("/predict/plates", content=draw_picture()).status_code == 200  # what was held is given back


@pytest.mark.parametrize(("sent", "limit", "status"), [(3, 50_000, 413), (10_000, 50_000, 408)])
def test_a_body_that_never_ends_is_given_up(
    service: Service, monkeypatch: pytest.MonkeyPatch, sent: int, limit: int, status: int
) -> None:
    """Either more comes than the limit, in parts, or too little in too long."""
    monkeypatch.setattr(door, "MOST_BODY", limit)
    monkeypatch.setattr(door, "BODY_SECONDS", 0.05)
    answered: list[Any] = []

    async def receive() -> Any:
        if sent > 1000:
            await asyncio.sleep(10)
        return {"type": "http.request", "body": bytes(20_000), "more_body": True}

    async def send(message: Any) -> None:
        answered.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict/plates", "query_string": b""}
    asyncio.run(create_app(service)(scope | {"headers": [(b"host", b"localhost")]}, receive, send))
    assert answered[0]["status"] == status
    ServedError.model_validate_json(answered[1]["body"])


def test_an_unexpected_error_is_counted_logged_by_its_id_and_survived(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(services, "describe", lambda *_: 1 / 0)
        response = client.post("/predict/plates", content=draw_picture(), headers={"X-Request-Id": "the-bad-one"})
    assert response.status_code == 500
    assert "division" not in response.text
    assert ServedError.model_validate_json(response.content).id == "the-bad-one"
    assert "the-bad-one" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert client.post("/predict/plates", content=draw_picture()).status_code == 200
    assert 'tessera_errors_total{domain="plates",kind="internal"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/champions", {}, 401),
        ("/metrics", {}, 401),
        ("/champions", {"Authorization": f"Bearer {TOKEN}"}, 200),
        ("/champions", {"Authorization": f"bearer  {TOKEN} "}, 200),
        ("/champions", {"Authorization": f"Bearer {TOKEN}", "Host": "gpu-box:8080"}, 200),
        ("/champions", {"Authorization": f"Bearer {TOKEN}x"}, 401),
        ("/champions", {"Authorization": TOKEN}, 401),
        ("/champions", {"Authorization": f"Basic {TOKEN}"}, 401),
        ("/champions", {"Authorization": b"Bearer " + "é".encode()}, 401),
        ("/v2/health/ready", {}, 200),
        ("/docs", {}, 200),
        ("/openapi.json", {}, 200),
        ("/v2/health/../../champions", {}, 401),
    ],
)
def test_a_token_opens_what_is_not_open(service: Service, path: str, headers: dict[str, Any], status: int) -> None:
    response = TestClient(create_app(service, TOKEN), base_url=URL).get(path, headers=headers)
    assert response.status_code == status
    assert ("www-authenticate" in response.headers) == (status == 401)


def test_pages_load_nothing_from_elsewhere(client: TestClient) -> None:
    for path in ("/docs", "/"):
        response = client.get(path)
        assert response.status_code == 200
        assert "default-src 'none'" in response.headers["content-security-policy"]
        addresses = re.findall(r"""(?:src|href)=["']([^"']+)|url: ["']([^"']+)""", response.text)
        for address in filter(None, (part for pair in addresses for part in pair)):
            if not address.startswith(("#", "data:")):
                assert httpx.URL(URL).join(address).host == "127.0.0.1"
                assert client.get(address).status_code == 200
    assert '"validatorUrl": null' in client.get("/docs").text


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Adapters of other inputs and tasks."""
    folder, backbone = tmp_path_factory.mktemp("others"), load_backbone("embedded", SIZE)
    inputs = InputMeta(kind="either", fit="squash", max_megapixels=0.01, min_side=8)
    adapters = {"parts": write_adapter(folder / "parts", backbone, {"kind": "linear"}, input=inputs)}
    for kind in ("segmentation", "detection", "multilabel"):
        calibrated = {} if kind == "segmentation" else {"thresholds": dict.fromkeys(("good", "crack", "pit"), 0.3)}
        task = parse_task(kind)
        adapters[kind] = write_adapter(folder / kind, backbone, {"kind": "linear"}, task=task, **calibrated)
    made = create_service(adapters)
    yield made
    assert made.close(10)


def test_boxes_are_answered_one_by_one(crops: Service) -> None:
    client, picture = TestClient(create_app(crops), base_url=URL), draw_picture(size=(60, 50))
    one = Served.model_validate_json(client.post("/predict/parts?box=1,2,30,40", content=picture).content)
    assert (one.box, one.crop) == ((1, 2, 30, 40), (1, 2, 30, 40))
    both = client.post("/predict/parts?box=1,2,30,40&box=90,90,99,99&saliency=1", content=picture)
    good, bad = both.json()
    assert Served.model_validate(good).probabilities == pytest.approx(one.probabilities, abs=0.02)
    assert Image.open(io.BytesIO(base64.b64decode(good["saliency"]))).size == (29, 38)
    assert ServedError.model_validate(bad).error.type == "DataError"
    assert client.post("/predict/parts?box=90,90,99,99", content=picture).status_code == 422
    large = client.post("/predict/parts", content=draw_picture(size=(200, 100)))
    assert (large.status_code, "0.01 megapixels" in large.text) == (422, True)
    assert 'tessera_errors_total{domain="parts",kind="image"} 3.0' in client.get("/metrics").text


def test_every_task_answers_in_its_own_words(crops: Service) -> None:
    client, picture = TestClient(create_app(crops), base_url=URL), draw_picture(size=(60, 50))

    def ask(domain: str) -> Served:
        return Served.model_validate_json(client.post(f"/predict/{domain}", content=picture).content)

    mask = ask("segmentation")
    assert mask.areas is not None
    assert mask.mask is not None
    drawn = Image.open(io.BytesIO(base64.b64decode(mask.mask)))
    assert (drawn.size, sum(mask.areas.values())) == ((60, 50), 3000)
    assert np.bincount(np.asarray(drawn).reshape(-1), minlength=3).tolist() == list(mask.areas.values())
    assert ask("detection").counts is not None
    assert ask("multilabel").labels is not None
    saliency = client.post("/predict/segmentation?saliency=1", content=picture)
    assert (saliency.status_code, "saliency" in saliency.text) == (422, True)


# The OpenAPI document


def test_every_answer_is_one_that_the_document_describes(service: Service) -> None:
    """Requests that schemathesis makes of the document, fit and unfit ones, to every route: no 500, and no status,
    content type or body that is not described. Which bytes are a fit image a document cannot say."""
    document = schemathesis.openapi.from_asgi("/openapi.json", create_app(service, TOKEN))
    header, statuses = {"Authorization": f"Bearer {TOKEN}"}, set[int]()
    for found in document.get_all_operations():
        operation = found.ok()

        def ask(case: schemathesis.Case) -> None:
            for name in {"domain", "model", "name"} & set(case.path_parameters or {}):
                case.path_parameters[name] = "plates"
            response = case.call(headers=header)
            statuses.add(response.status_code)
            case.validate_response(response, excluded_checks=[positive_data_acceptance, negative_data_rejection])

        for mode in schemathesis.GenerationMode:
            if mode.is_negative and not operation.body and not list(operation.iter_parameters()):
                continue  # nothing that could be unfit
            cases = operation.as_strategy(generation_mode=mode)
            examples = hypothesis.settings(max_examples=EXAMPLES, phases=[hypothesis.Phase.generate], **ANY)
            examples(hypothesis.given(case=cases)(ask))()
    assert {200, 422} <= statuses


# Hostile bodies


def make_hostile(number: int) -> bytes:
    """Truncated, damaged, random, of another type, or a small file that says that it has billions of pixels."""
    dice = random.Random(number)
    form = dice.choice(["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
    picture = draw_picture(number % 7, (200, 150), form)
    damaged = bytearray(picture)
    for _ in range(20):
        damaged[dice.randrange(len(damaged))] = dice.randrange(256)
    side = dice.choice([12_000, 60_000])
    bomb = struct.pack(">I4sIIBBBBB", 13, b"IHDR", side, side, 8, 2, 0, 0, 0)
    bomb += struct.pack(">I", zlib.crc32(bomb[4:])) + struct.pack(">I", 1000) + b"IDAT" + zlib.compress(bytes(1 << 20))
    return [
        picture[: dice.randrange(len(picture))],
        bytes(damaged),
        b"\x89PNG\r\n\x1a\n" + bomb,
        dice.randbytes(dice.randrange(5000)),
        picture[:20] + dice.randbytes(3000),
        b'{"image": "aGVsbG8="}',
    ][number % 6]


def test_hostile_bodies_are_refused_and_leave_nothing_behind(client: TestClient) -> None:
    def read_memory() -> float:
        """Megabytes of this process."""
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    seen: set[int] = set()
    for number in range(HOSTILE):
        if number == HOSTILE // 3:
            before = read_memory()
        seen.add(client.post("/predict/plates", content=make_hostile(number)).status_code)
    assert seen <= {200, 422}  # some damage is none to a decoder
    assert read_memory() - before < 50
    assert client.post("/predict/plates", content=draw_picture()).status_code == 200
