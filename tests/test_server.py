"""The server of champions in this process: what it answers, what it refuses, and how its batches are made."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleets import write_adapter
from served import create_service, draw_picture
from starlette.testclient import TestClient

from components.models.backbones import load_backbone
from components.records.serving import Served, ServedDomains, ServedError
from components.serving.predictor import Predictor
from components.serving.server.app import create_app
from components.serving.server.service import Service

SIZE = 32  # of the canvas, in pixels
URL = "http://127.0.0.1:8080"
TOKEN = "0123456789abcdef"
KINDS = {"plates": "vpt", "tiles": "vapt", "sheets": "linear"}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, backbone = tmp_path_factory.mktemp("adapters"), load_backbone("embedded", SIZE)
    return {
        name: write_adapter(folder / name, backbone, {"kind": kind}, seed=seed)
        for seed, (name, kind) in enumerate(KINDS.items())
    }


@pytest.fixture
def service(adapters: dict[str, Path]) -> Iterator[Service]:
    made = create_service(adapters)
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
        ("GET", "/v2/health/live", {"headers": {"Host": "evil.example"}}, 403, "its own machine"),
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
