"""Faults around a running server, on real processes: MLflow away or broken, a damaged champion, a full disk, kills.

Champions are promoted on one machine and served on another, as far as either can tell: two workspaces that share
nothing but an MLflow server, to which the serving one has a line that can be cut.
"""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn
from fleets import promote_adapter, write_adapter
from served import Running, draw_picture, start_server, wait_for
from servers import wait_until

from components.models.backbones import Backbone, load_backbone
from components.promotion import contest
from components.promotion.versions import Version
from components.tracking.store import Store
from components.workspace import Workspace
from flows.commands.served import check_serving
from flows.server.child import create_mlflow

PICTURE = draw_picture()
LIVE = 20  # seconds within which a promotion is live, on a machine that does other things as well
OLD, NEW = ("good", "crack", "pit"), ("good", "hole")  # classes that tell whose answer one is
HOURS = pytest.mark.skipif("TESSERA_FAULTS" not in os.environ, reason="minutes of waiting: set TESSERA_FAULTS=1")


class Line:
    """The network between a server and MLflow. state: `up`, `refused`, `silent`, or `broken`: every answer is a 500."""

    def __init__(self, target: int) -> None:
        self.target, self.state, self._open = target, "up", list[socket.socket]()
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def put(self, state: str) -> None:
        """Connections that are open end with this state."""
        self.state = state
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self) -> None:
        while True:
            client, _ = self._door.accept()
            self._open.append(client)
            if self.state == "up":
                server = socket.create_connection(("127.0.0.1", self.target))
                self._open.append(server)
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=_copy, args=ends, daemon=True).start()
            elif self.state == "broken":
                client.recv(65536)
                client.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                client.close()
            elif self.state == "refused":
                client.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@dataclass
class Site:
    """A machine that promotes and one that serves; `running` is the server on the second."""

    home: Workspace
    place: Workspace
    store: Store
    backbone: Backbone
    line: Line
    env: dict[str, str]
    stack: ExitStack
    running: Running = field(init=False)
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30))

    def start(self, **options: Any) -> None:
        self.running = self.stack.enter_context(start_server(self.place.root, **options, **self.env))

    def promote(self, domain: str, seed: int = 0, classes: tuple[str, ...] = OLD) -> Version:
        adapter = self.home.root / f"{domain}-{seed}"
        write_adapter(adapter, self.backbone, {"kind": "vpt", "num_prompts": 2}, seed, classes)
        return promote_adapter(self.home, self.store, domain, adapter)

    def ask(self, domain: str) -> dict[str, Any]:
        """The answer, whose parts are all of one version."""
        response = self.predict(domain)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def predict(self, domain: str) -> httpx.Response:
        return self.client.post(f"{self.running.url}/predict/{domain}", content=PICTURE)

    def get(self, path: str) -> httpx.Response:
        return self.client.get(f"{self.running.url}/{path}")

    def listed(self) -> dict[str, Any]:
        return dict(self.get("champions").json())

    def trouble(self, domain: str) -> str:
        return next((str(row["trouble"]) for row in self.listed()["domains"] if row["domain"] == domain), "")

    def wait_for(self, domain: str, version: int, seconds: float = LIVE) -> None:
        def serves() -> bool:
            rows = {row["domain"]: row["version"] for row in self.listed()["domains"]}
            return rows.get(domain) == version

        wait_until(serves, seconds, f"{domain} version {version}")

    def measure(self, name: str, **labels: str) -> float:
        text = self.get("metrics").text
        key = name + ("{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}" if labels else "")
        return float(next(line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{key} ")))


@contextmanager
def run_mlflow(workspace: Workspace) -> Iterator[int]:
    """MLflow's own application on the workspace's store, at a port of this machine."""
    door = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_mlflow(workspace), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
    thread.start()
    yield int(door.getsockname()[1])
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home, place = (Workspace(tmp_path_factory.mktemp(name)) for name in ("home", "place"))
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        before = dict(os.environ)
        stack.callback(lambda: (os.environ.clear(), os.environ.update(before)))
        home.activate()
        port = stack.enter_context(run_mlflow(home))
        os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
        line = Line(port)
        env = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{line.port}", "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}
        made = Site(home, place, Store.open(home), load_backbone("embedded", 32), line, env, stack)
        made.promote("plates")
        made.promote("tiles")
        made.start()
        yield made


def test_promotion_and_rollback_under_load(site: Site) -> None:
    """No request fails, and each answer is one version's."""
    asked, stopped = list[dict[str, Any]](), threading.Event()

    def work() -> None:
        while not stopped.is_set():
            asked.append(site.ask("plates"))
            time.sleep(0.02)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        site.promote("plates", 1, NEW)
        site.wait_for("plates", 2)
        contest.rollback(site.home, "plates", "it was better")
        site.wait_for("plates", 1)
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    hashes = {row["domain"]: row["adapter_sha256"] for row in site.listed()["domains"]}
    whose = {(one["version"], *one["probabilities"]) for one in asked}
    assert whose == {(1, *OLD), (2, *NEW)}
    assert {one["adapter_sha256"] == hashes["plates"] for one in asked if one["version"] == 1} == {True}
    assert {one["adapter_sha256"] == hashes["plates"] for one in asked if one["version"] == 2} == {False}
    assert [one["version"] for one in asked[-4:]] == [1] * 4


@pytest.mark.parametrize("seconds", [0, pytest.param(60, marks=HOURS)])
@pytest.mark.parametrize("state", ["refused", "silent", "broken"])
def test_mlflow_is_away(site: Site, state: str, seconds: float) -> None:
    """The server answers as before, says why it may be old, and catches up when MLflow is back."""
    before = site.ask("tiles")["version"]
    site.line.put(state)
    try:
        wait_until(lambda: site.listed()["stale"], LIVE, "the reason")
        site.promote("tiles", 10 * before + ["refused", "silent", "broken"].index(state))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert site.ask("tiles")["version"] == before
            time.sleep(0.2)
        assert site.ask("tiles")["version"] == before
        assert site.get("v2/health/ready").status_code == 200
        assert "MLflow" in site.listed()["stale"]
        assert site.measure("tessera_registry_seconds") > 0
    finally:
        site.line.put("up")
    site.wait_for("tiles", before + 1)
    assert site.listed()["stale"] == ""


def test_a_damaged_champion_leaves_the_old_one(site: Site) -> None:
    """It is red in metrics and for `tessera doctor`, and is served as soon as the artifact is whole again."""
    before = site.ask("plates")["version"]
    site.line.put("refused")
    version = site.promote("plates", 5)
    (stored,) = (
        path
        for path in site.home.state.glob(
            f"mlflow/artifacts/**/{version.source.rpartition('/')[2]}/**/adapter.safetensors"
        )
    )
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    site.line.put("up")
    wait_until(lambda: site.trouble("plates"), LIVE, "the trouble")
    assert "sha256" in site.trouble("plates")
    assert site.ask("plates")["version"] == before
    assert site.measure("tessera_champion_stale", domain="plates") == 1
    check = check_serving(site.place)
    assert (check.state, f"plates version {version.version}: expected" in check.found) == ("error", True)
    stored.write_bytes(whole)
    site.wait_for("plates", version.version, 60)
    assert site.trouble("plates") == ""
    assert site.measure("tessera_champion_stale", domain="plates") == 0
    assert check_serving(site.place).state == "ok"


def test_a_full_disk_leaves_the_old_one(site: Site) -> None:
    cache = site.place.adapters
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tessera", str(cache)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no small disk to be had here: mounting one needs root")
    try:
        (cache / "ballast").write_bytes(bytes(60_000))
        before = site.ask("tiles")["version"]
        site.promote("tiles", 1000)
        wait_until(lambda: site.trouble("tiles"), LIVE, "the trouble")
        assert "No space left on device" in site.trouble("tiles")
        assert "Free some space" in site.trouble("tiles")
        assert site.ask("tiles")["version"] == before
        (cache / "ballast").unlink()
        site.wait_for("tiles", before + 1, 60)
    finally:
        subprocess.run(["umount", "--lazy", str(cache)], check=True)


def test_a_killed_server_starts_again_and_waits_for_mlflow(site: Site) -> None:
    served = {row["domain"]: row["version"] for row in site.listed()["domains"]}
    site.running.process.send_signal(signal.SIGKILL)
    site.running.process.wait()
    assert check_serving(site.place).found == "no `tessera serve` runs here"
    site.line.put("refused")
    site.start(ready=False)
    wait_until(lambda: site.listed()["stale"], 60, "the first look")
    assert site.get("v2/health/ready").status_code == 503
    assert site.predict("plates").status_code == 503
    site.line.put("up")
    wait_for(site.running, "ready")
    assert {row["domain"]: row["version"] for row in site.listed()["domains"]} == served
