"""Who follows promotions: an MLflow server's own webhook, received by a real HTTP server."""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import mlflow
import pytest
from conftest import free_port
from cryptography.fernet import Fernet
from servers import Servers, answers, wait_until
from tiny import promote

from components.promotion import aliases, contest
from components.tracking.store import Store
from components.workspace import Workspace

SECRET = "follows-promotions-5e1f"


class Receiver(HTTPServer):
    """Keeps what it is sent, with whether the signature is that of the secret."""

    def __init__(self) -> None:
        self.got: Queue[tuple[bool, dict[str, Any]]] = Queue()
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        signed = f"{self.headers['X-MLflow-Delivery-Id']}.{self.headers['X-MLflow-Timestamp']}.{body}"
        digest = hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).digest()
        expected = f"v1,{base64.b64encode(digest).decode()}"
        self.server.got.put((self.headers["X-MLflow-Signature"] == expected, json.loads(body)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Not into the tests' output."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.slow
def test_mlflow_reports_each_alias_that_moves(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, port = Workspace(tmp_path), free_port()
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    allowed = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
    key = {"MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode()}
    with ExitStack() as stack:
        store = ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", str(tmp_path)]
        command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *store]
        Servers(tmp_path, stack).start("mlflow", command, allowed | key)
        wait_until(lambda: answers(f"{url}/health"), 120, "MLflow")
        Store.open(place)
        address = f"http://127.0.0.1:{receiver.server_port}/"
        mlflow.MlflowClient().create_webhook("serving", address, ["model_version_alias.created"], secret=SECRET)
        facts = {"adapter_sha256": "", "tuner": "vpt", "data_version": "d"}
        for version, before in ((1, None), (2, 1)):
            aliases.register_challenger("parts", "", "s3://nowhere/model", **facts)
            promote(place, "parts", version, expected=before, reason="better")
        contest.rollback(place, "parts", "worse in use")
        told = [receiver.got.get(timeout=60) for _ in range(7)]
    assert all(signed for signed, _ in told)
    assert {(message["entity"], message["action"]) for _, message in told} == {("model_version_alias", "created")}
    moved = [(message["data"]["alias"], message["data"]["version"]) for _, message in told]
    challengers = [("challenger", "1"), ("challenger", "2")]
    moves = [("champion", "1"), ("previous", "1"), ("champion", "2"), ("previous", "2"), ("champion", "1")]
    assert sorted(moved) == sorted(challengers + moves)
