"""The server of champions on real connections, and as a process: slow clients, signals, kills, tokens."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from conftest import clean_environment
from fleets import promote_adapter, write_adapter
from loads import Load, write_pictures
from served import create_service, draw_picture, start_server

from components.models.backbones import load_backbone
from components.records.serving import Served, ServedError
from components.serving.address import load_address
from components.serving.server import connections, door
from components.serving.server.app import create_app
from components.serving.server.connections import Server
from components.serving.server.service import Service
from components.tracking.store import Store
from components.workspace import QUIET, REPOSITORY, Workspace

SIZE = 32  # of the canvas, in pixels


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    adapter = write_adapter(tmp_path_factory.mktemp("adapter"), load_backbone("embedded", SIZE), {"kind": "vpt"})
    return create_service({"plates": adapter})


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[tuple[str, int]]:
    """Where the service listens, in a thread, with clocks that run fast."""
    with pytest.MonkeyPatch.context() as patch, listen(service) as found:
        patch.setattr(connections, "HEAD_SECONDS", 0.5)
        patch.setattr(door, "BODY_SECONDS", 0.5)
        yield found


@contextmanager
def listen(service: Service) -> Iterator[tuple[str, int]]:
    ended: list[bool] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(create_app(service), service, lambda: None, lambda: ended.append(service.close(10)), 10)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield listening.getsockname()
        server.should_exit = True
        thread.join(20)
    assert ended == [True]


def _send(address: tuple[str, int], data: bytes) -> socket.socket:
    connection = socket.create_connection(address, timeout=10)
    connection.sendall(data)
    return connection


def _read(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    found = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            found += part
    connection.close()
    return found


HEAD = b"POST /predict/plates HTTP/1.1\r\nHost: localhost\r\n"


def test_a_hundred_slow_clients_hinder_nobody_and_are_given_up(address: tuple[str, int]) -> None:
    slow = [_send(address, HEAD) for _ in range(50)]
    slow += [_send(address, HEAD + b"Content-Length: 1000\r\n\r\nabc") for _ in range(50)]
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}") as client:
        for seed in range(5):
            assert client.post("/predict/plates", content=draw_picture(seed)).status_code == 200
        answers = [_read(connection) for connection in slow]
        assert answers[:50] == [b""] * 50
        assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers[50:])
        assert client.post("/predict/plates", content=draw_picture()).status_code == 200


def test_a_head_that_trickles_on_a_kept_connection_is_given_up(address: tuple[str, int]) -> None:
    connection = _send(address, b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answered = b""
    while not answered.endswith(b'{"live":true}'):
        answered += connection.recv(1 << 16)
    begun, closed = time.monotonic(), False
    with suppress(BrokenPipeError, ConnectionResetError):
        while time.monotonic() - begun < 10 and not closed:
            connection.sendall(b"G")
            connection.settimeout(0.1)
            with suppress(TimeoutError):
                closed = connection.recv(1) == b""
    assert time.monotonic() - begun < 5
    connection.close()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),  # TLS
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: 99999999999\r\nConnection: close\r\n\r\n", 413),
        (HEAD + b"Content-Length: 3\r\nConnection: close\r\n\r\nabcdefgh", 422),  # what is more is no second request
        (HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 422),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzzz\r\n", 400),
        (HEAD + b"X-Filler: " + b"a" * 100_000, 400),
        (b"GET /champions HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil\r\nConnection: close\r\n\r\n", 403),
    ],
)
def test_what_is_no_request_is_answered_as_every_error(address: tuple[str, int], data: bytes, status: int) -> None:
    head, _, body = _read(_send(address, data)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    ServedError.model_validate_json(body)


def test_a_refused_body_is_not_asked_for(address: tuple[str, int]) -> None:
    """A client that waits for `100 Continue` learns that its body is too large before it has sent any."""
    connection = _send(address, HEAD + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n")
    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
    connection.close()


# Processes


@pytest.fixture(scope="module")
def workspace(mlflow_workspace: Workspace, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A registry with the champions of two domains."""
    folder, backbone = tmp_path_factory.mktemp("adapters"), load_backbone("embedded", SIZE)
    for seed, (name, kind) in enumerate({"plates": "vpt", "tiles": "linear"}.items()):
        adapter = write_adapter(folder / name, backbone, {"kind": kind}, seed=seed)
        promote_adapter(mlflow_workspace, store, name, adapter)
    return mlflow_workspace


def test_sigterm_loses_no_accepted_request(workspace: Workspace, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path, 4, side=64)
    with start_server(workspace.root, OMP_NUM_THREADS="1") as running:
        answer = Served.model_validate_json(httpx.post(f"{running.url}/predict/tiles", content=draw_picture()).content)
        assert (answer.domain, answer.version) == ("tiles", 1)
        known = load_address(workspace)
        assert known is not None
        assert known.url == running.url
        assert f"curl --data-binary @IMAGE {running.url}/predict/plates" in running.log
        load = Load(running.url, ["/predict/plates", "/predict/tiles"], pictures, clients=8)
        with load.running(1500) as answers:
            deadline = time.monotonic() + 30
            while _count_answered(running.url) < 50 and time.monotonic() < deadline:
                time.sleep(0.05)
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(30) == 0
        outcomes = {one.outcome for one in answers}
        assert outcomes == {"answered", "refused"}
        assert "every accepted request was answered" in running.log
        assert not (workspace.state / "serving.json").exists()


def _count_answered(url: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("tessera_requests_total{") and "200" in line
    )


def test_a_server_that_starts_is_live_and_a_second_signal_ends_it_at_once(workspace: Workspace, tmp_path: Path) -> None:
    (token := tmp_path / "token").write_text("0123456789abcdef\n")
    with start_server(workspace.root, "--token-file", str(token), "--host=0.0.0.0", ready=False) as running:
        assert httpx.get(f"{running.url}/champions").status_code == 401
        header = {"Authorization": "Bearer 0123456789abcdef"}
        assert httpx.get(f"{running.url}/champions", headers=header).json()["ready"] is False
        head = b"POST /predict/plates HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer 0123456789abcdef\r\n"
        host, port = running.url.removeprefix("http://").split(":")
        slow = _send((host, int(port)), head + b"Content-Length: 1000\r\n\r\nabc")
        time.sleep(0.2)
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(1)  # the body that trickles was accepted
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(5) == 128 + signal.SIGTERM
        slow.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host=0.0.0.0"], "--token-file"),
        (["--token-file={short}"], "at least 16"),
        (["--token-file={missing}"], "No such file"),
        (["--port={taken}"], "one that another program uses"),
        (["--host=192.0.2.1", "--token-file={token}"], "an address to listen at"),
    ],
)
def test_what_cannot_be_served_is_one_paragraph(tmp_path: Path, options: list[str], words: str) -> None:
    (tmp_path / "short").write_text("abc")
    (tmp_path / "token").write_text("0123456789abcdef")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        files = {name: tmp_path / name for name in ("short", "token", "missing")}
        given = [option.format(taken=taken.getsockname()[1], **files) for option in options]
        done = subprocess.run(
            [sys.executable, "-m", "components.serving.server", *given],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env=clean_environment() | QUIET | {"TESSERA_WORKSPACE": str(tmp_path)},
            check=False,
            stdin=subprocess.DEVNULL,
        )
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
