"""What a second terminal finds of a `tessera up`, and what it must not take for one; the state folder; proxies."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from components.errors import WorkspaceError
from components.files import open_private
from components.processes import STARTER, find_orphans, identify, lives
from components.workspace import Workspace, close_state, set_proxies_right
from flows.server.address import (
    Services,
    hold_database,
    join_services,
    load_login,
    save_services,
    use_services,
)
from flows.server.prefect_boot import OWN, EmbeddedPrefect, require_named_server
from flows.server.services import end_leftovers, stop_services

VARIABLES = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    for name in (*VARIABLES, "MLFLOW_TRACKING_PASSWORD", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY", STARTER):
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards
        monkeypatch.delenv(name)
    found = Workspace(tmp_path / "workspace")
    close_state(found.state)
    return found


@pytest.fixture
def server() -> Iterator[str]:
    """Something that answers 200."""

    class Well(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    httpd = HTTPServer(("127.0.0.1", 0), Well)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def _up(server: str, process: str | None = None) -> Services:
    return Services(identify() if process is None else process, f"{server}/api", server, "tessera:secret", "key")


def test_a_running_up_is_used_with_its_login(place: Workspace, server: str) -> None:
    save_services(place, _up(server))
    join_services(place)
    assert {name: os.environ[name] for name in VARIABLES} == {
        "PREFECT_API_URL": f"{server}/api",
        "PREFECT_API_AUTH_STRING": "tessera:secret",
        "MLFLOW_TRACKING_URI": server,
        "MLFLOW_TRACKING_USERNAME": "tessera",
    }
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "secret"
    assert os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"  # else it is called crashed after 90 s


def test_a_variable_that_is_set_wins(server: str) -> None:
    other = {"PREFECT_API_URL": "http://team:4200/api", "MLFLOW_TRACKING_URI": "http://team:5000"}
    env = dict(other)
    use_services(_up(server), env)
    assert env == other
    same = {"PREFECT_API_URL": f"{server}/api/", "MLFLOW_TRACKING_URI": server.replace("127.0.0.1", "localhost")}
    use_services(_up(server), same)  # the same servers: they want the login
    assert (same["PREFECT_API_AUTH_STRING"], same["MLFLOW_TRACKING_PASSWORD"]) == ("tessera:secret", "secret")


def _sleeper(**env: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)", "flows.server.child"], env=os.environ | env
    )


def test_what_is_no_running_up_is_left_alone(place: Workspace, server: str) -> None:
    """A dead process, another one under its number, no answer, and files that are damaged or of another time: they are
    not used, and `down` ends nobody for them."""
    stranger = _sleeper()
    try:
        number = identify(stranger.pid).split(":")[0]
        dead = subprocess.Popen(["true"])
        gone = identify(dead.pid)
        dead.wait()
        silent = Services(identify(), "http://127.0.0.1:9/api", "http://127.0.0.1:9", "a:b", "key")
        records: list[Any] = [vars(_up(server, f"{number}:another-boot:1")), vars(_up(server, gone)), vars(silent)]
        records += [{"pid": stranger.pid, "prefect": f"{server}/api", "mlflow": server}, [], "text", 7, {"process": 1}]
        texts = [json.dumps(record) for record in records] + ["", "{", "\0"]
        for text in texts:
            (place.state / "services.json").write_text(text)
            join_services(place)
            assert not set(VARIABLES) & set(os.environ), text
            assert stop_services(place) is False
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_an_up_that_starts_is_waited_for(place: Workspace, server: str) -> None:
    save_services(place, Services(identify()))
    threading.Timer(0.5, save_services, (place, _up(server))).start()
    join_services(place)
    assert os.environ["MLFLOW_TRACKING_URI"] == server


def test_a_process_is_distinguished_from_another_one_with_its_pid() -> None:
    assert lives(identify())
    for text in ("", "x", "0@h:1", f"{os.getpid()}@other:1", identify() + "1", "-1@h:gone", identify(2**22 + 1)):
        assert not lives(text), text
    child = subprocess.Popen(["true"])
    known = identify(child.pid)
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert not lives(known)  # a zombie has ended
    child.wait()


def test_the_login_is_for_its_owner_alone(place: Workspace) -> None:
    login, path = load_login(place), place.state / "login"
    assert load_login(place) == login
    assert len(login.removeprefix("tessera:")) > 20
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert load_login(place) != login  # somebody may have read it
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    save_services(place, Services(identify()))
    assert stat.S_IMODE((place.state / "services.json").stat().st_mode) == 0o600


def test_one_server_has_the_database(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedded ones beside one another, that of `tessera up` alone, whoever came first."""
    monkeypatch.setattr("flows.server.prefect_boot.LEAVE_SECONDS", 0.0)
    first, second = hold_database(place, alone=False), hold_database(place, alone=False)
    with pytest.raises(WorkspaceError, match="a command that uses it with its own server"):
        hold_database(place, alone=True)
    os.close(first)
    os.close(second)
    alone = hold_database(place, alone=True)
    with pytest.raises(WorkspaceError, match="`tessera up`, which does not answer"):
        EmbeddedPrefect(place)
    os.close(alone)
    os.close(hold_database(place, alone=False))


def test_what_a_dead_up_left_is_found_and_ended(place: Workspace) -> None:
    """By the process that started it, for what has inherited it need not be process 1."""
    (dead := subprocess.Popen(["true"])).wait()
    env = {"TESSERA_WORKSPACE": str(place.root)}
    left = _sleeper(**env, **{STARTER: f"{dead.pid}@{identify().partition('@')[2]}"})
    ours = _sleeper(**env, **{STARTER: identify()})
    try:
        deadline = time.monotonic() + 10
        while find_orphans(place.root, ("flows.server.child",)) != [left.pid] and time.monotonic() < deadline:
            time.sleep(0.05)  # until it is the program it is to be
        assert find_orphans(place.root, ("flows.server.child",)) == [left.pid]
        threading.Thread(target=left.wait).start()  # as an init does
        assert stop_services(place) is True
        assert ours.poll() is None
        assert left.wait(5) == -signal.SIGTERM
        assert end_leftovers(place) is False
    finally:
        for process in (left, ours):
            process.kill()
            process.wait()


def test_a_child_ends_with_its_starter(place: Workspace, tmp_path: Path) -> None:
    """Outright, and with those it started itself."""
    code = "import os, time, subprocess; subprocess.Popen(['sleep', '600']); import flows.server.child as c; "
    code += "c.watch_starter(1.0).set(); print('ready', flush=True); time.sleep(600)"
    starter = "import subprocess, sys, time\np = subprocess.Popen([sys.executable, '-c', sys.argv[1]], "
    starter += "stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)\np.stdout.readline()\n"
    starter += "print(p.pid, flush=True)\ntime.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", starter, code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    group = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while _list_group(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _list_group(group) == []


def _list_group(group: int) -> list[str]:
    """Of a process group, what has not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, number = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(number) == group and state not in "ZX":
            found.append(path.parent.name)
    return found


def test_the_state_is_for_its_owner_alone(tmp_path: Path) -> None:
    """From the start under any umask, and again where it was found open, with a word."""
    before = os.umask(0)
    try:
        place = Workspace(tmp_path / "new")
        assert place.activate() == []
        open_private(place.state / "logs" / "prefect.log").close()
        assert _open_paths(place.state) == []
        assert place.state.stat().st_mode & 0o777 == 0o700
        (place.state / "mlflow" / "mlflow.db").touch()
        (place.state / "logs" / "old.log").touch()
        (place.state / "dvc-site").chmod(0o777)
        place.state.chmod(0o755)
        (note,) = place.activate()
        assert "open to other users (mode 755)" in note
        assert _open_paths(place.state) == []
    finally:
        os.umask(before)


def _open_paths(state: Path) -> list[str]:
    """Folders, databases and logs that others may read or write; locks hold nothing."""
    paths = [path for path in (state, *state.rglob("*")) if path.is_dir() or path.suffix in (".db", ".log")]
    return [str(path) for path in paths if path.stat().st_mode & 0o077]


@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_no_proxy_stands_before_this_machine(name: str) -> None:
    for there, wanted in (
        ({}, "127.0.0.1,localhost,::1"),
        ({"no_proxy": "corp.example"}, "corp.example,127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "a, b", "no_proxy": "b,localhost"}, "b,localhost,a,127.0.0.1,::1"),
    ):
        env = {name: "http://127.0.0.1:9", **there}
        assert set_proxies_right(env) == []
        assert env == {name: "http://127.0.0.1:9", "no_proxy": wanted, "NO_PROXY": wanted}
    every = {"NO_PROXY": "*"}
    set_proxies_right(every)
    assert every == {"NO_PROXY": "*"}


def test_an_unsupported_proxy_is_left_out_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    for name in ("all_proxy", "http_proxy", "https_proxy", "no_proxy"):  # whatever this machine has
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr("components.workspace.find_spec", lambda name: None)
    for value in ("socks5://127.0.0.1:9", "socks5h://u:p@127.0.0.1:9", "socks4://x", "ftp://x"):
        env = {"ALL_PROXY": value, "HTTPS_PROXY": "http://proxy:3128"}
        (note,) = set_proxies_right(env)
        assert "ALL_PROXY" not in env
        assert (env["HTTPS_PROXY"], note.startswith("ALL_PROXY is not used")) == ("http://proxy:3128", True)
        assert "u:p" not in note
        for key, text in env.items():
            monkeypatch.setenv(key, text)
        httpx.Client().close()  # what Prefect's client is made of


def test_a_dead_server_is_one_paragraph_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("http://127.0.0.1:9/api", "nonsense", "http://[bad/api"):
        monkeypatch.setenv("PREFECT_API_URL", url)
        with pytest.raises(WorkspaceError, match="PREFECT_API_URL"):
            require_named_server()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(OWN, url)  # one of our own, which is still coming up
            require_named_server()
