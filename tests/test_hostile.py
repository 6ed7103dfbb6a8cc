"""What no client should send reaches a server in a process of its own: it answers none of it with a defect, keeps its
memory, and goes on answering."""

import contextlib
import http.client
import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from fleets import CLASSES, promote_adapter, write_adapter
from hostile import Hostile, draw_requests
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from served import DOMAINS, Running, draw_picture, start_server

from components.models.backbones import load_backbone
from components.tracking.store import Store
from components.workspace import Workspace

MANY = "TESSERA_FAULTS" in os.environ
REQUESTS, WARM = (10_000, 1500) if MANY else (400, 100)
EXAMPLES = 100 if MANY else 4
GROWTH = 50 << 20  # bytes
PICTURE = draw_picture()
#: What is no HTTP, or ends before it is a request.
RAW = [
    b"", b"\r\n" * 500, b"\x16\x03\x01\x02\x00\x01\x00" + b"\xfc" * 200, b"GET", b"GET / HTTP/9.9\r\n\r\n",
    b"\0" * 5000,
    b"POST /predict/tiles HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999999999999\r\n\r\n",
    b"POST /predict/tiles HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
    b"POST /predict/tiles HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 90\r\n\r\nshort",
    b"POST /predict/tiles HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nx",
    b"POST /predict/tiles HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n",
    b"GET /champions HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET /champions HTTP/1.1\r\n\r\n", b"GET /champions HTTP/1.1\r\nHost: a\r\nHost: 127.0.0.1\r\n\r\n",
]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(mlflow_workspace: Workspace, store: Store) -> Iterator[Running]:
    backbone = load_backbone("embedded", 64)
    for number, (domain, facts) in enumerate(DOMAINS.items()):
        folder = mlflow_workspace.root / "adapters" / domain
        promote_adapter(
            mlflow_workspace, store, domain, write_adapter(folder, backbone, {"kind": "vpt"}, number, **facts)
        )
    with start_server(mlflow_workspace.root) as running:
        yield running


def send(connection: http.client.HTTPConnection, request: Hostile) -> int:
    """The status of the answer; 0 where the server closed the connection instead, as HTTP allows it."""
    try:
        connection.putrequest("POST", request.path.replace(" ", "%20"), skip_accept_encoding=True)
        headers = {"Content-Length": str(len(request.body)), **request.headers}
        for name, value in headers.items():
            connection.putheader(name, value.encode("latin-1"))
        connection.endheaders(request.body)
        answer = connection.getresponse()
        answer.read()
    except (ConnectionError, http.client.HTTPException):
        connection.close()
        return 0
    return answer.status


def measure_memory(running: Running) -> int:
    """Bytes that the server's process holds in memory."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) << 10


def require_alive(running: Running) -> None:
    assert running.process.poll() is None, running.log[-3000:]
    answer = httpx.post(f"{running.url}/predict/tiles", content=PICTURE, timeout=60)
    assert (answer.status_code, answer.json()["label"] in CLASSES) == (200, True)


def test_hostile_bodies_are_answered_and_leave_nothing_behind(server: Running) -> None:
    url = httpx.URL(server.url)
    connection = http.client.HTTPConnection(url.host, url.port, timeout=120)
    found, idle, warm = Counter[tuple[str, int]](), measure_memory(server), 0
    for number, request in enumerate(draw_requests(20, REQUESTS, [*DOMAINS])):
        if number == WARM:
            warm = measure_memory(server)
        status = send(connection, request)
        found[request.kind, status] += 1
        assert status < 500, (number, request, server.log[-3000:])
        if number % 250 == 0:
            require_alive(server)
    require_alive(server)
    grown = measure_memory(server) - warm
    print(f"{REQUESTS} requests, memory {idle >> 20} MB, {warm >> 20} MB and {grown / 2**20:+.1f} MB:", dict(found))  # noqa: T201
    assert grown < GROWTH
    assert sum(count for (_, status), count in found.items() if status == 200) < REQUESTS / 2
    assert {kind for kind, _ in found} == {"image", "json", "broken json", "lie", "csv", "path"}
    assert found["image", 0] + found["json", 0] + found["lie", 0] == 0


def test_what_is_no_http_disturbs_nobody(server: Running) -> None:
    url = httpx.URL(server.url)
    for raw in RAW:
        with socket.create_connection((url.host, url.port), timeout=20) as client:
            try:
                client.sendall(raw)
                client.shutdown(socket.SHUT_WR)
                answered = client.recv(200)
            except ConnectionError:
                answered = b""
        assert answered[:13] not in (b"HTTP/1.1 500 ", b"HTTP/1.1 503 "), raw[:80]
    require_alive(server)


def list_operations(server: Running) -> list[Any]:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return [found.ok() for found in schema.get_all_operations()]


def test_what_the_openapi_document_allows_and_what_it_does_not_is_no_defect(server: Running) -> None:
    """Schemathesis makes requests of the document, valid ones and others; no path, no parameter is left out."""
    operations = list_operations(server)
    assert {operation.path for operation in operations} >= {"/predict/{domain}", "/v2/models/{domain}/infer"}
    for operation in operations:
        try_operation(operation, GenerationMode.POSITIVE, {})
        if "{domain}" in operation.path:
            for mode in GenerationMode:
                try_operation(operation, mode, {"domain": "tiles"})
    require_alive(server)


def try_operation(operation: Any, mode: GenerationMode, fixed: dict[str, str]) -> None:
    skipped = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)

    @seed(20)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=skipped)
    @given(case=operation.as_strategy(mode, path_parameters=fixed or None))
    def ask(case: Any) -> None:
        case.validate_response(case.call(timeout=60), checks=[not_a_server_error])

    # Where all that may be chosen is a path, nothing can be chosen wrongly.
    with contextlib.suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else contextlib.nullcontext():
        ask()
