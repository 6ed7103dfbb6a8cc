"""`tessera up`: the servers come up behind a login, a deployment runs on the worker, and all of it ends together."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import DOMAIN, clean_environment, free_port, run_tessera
from servers import find_processes, wait_until

from components.records.history import Promotion
from components.records.operations import Stopped
from components.workspace import REPOSITORY, Workspace
from flows.server.address import load_login, load_services
from flows.server.schedules import FLOWS

pytestmark = pytest.mark.slow
MANY = 50


def _wait_for(what: str, seconds: float, process: subprocess.Popen[str], log: Path) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        text = log.read_text()
        if what in text:
            return text
        assert process.poll() is None, text
        time.sleep(0.3)
    raise AssertionError(f"{what!r} not seen in {seconds} s: {log.read_text()}")


@pytest.mark.timeout(1200)
def test_up_runs_a_deployment_and_stops_whole(workspace: Path, tmp_path: Path) -> None:
    assert run_tessera(workspace, "check", DOMAIN).code == 0
    api, mlflow = f"http://127.0.0.1:{free_port()}/api", f"http://127.0.0.1:{free_port()}"
    ports = ["--prefect-port", api.removesuffix("/api").rpartition(":")[2], "--mlflow-port", mlflow.rpartition(":")[2]]
    serve = f"http://127.0.0.1:{free_port()}"
    ports += ["--serve-port", serve.rpartition(":")[2]]
    log = tmp_path / "up.log"
    up = _start_up(workspace, ports, log)
    try:
        wait_until(lambda: load_services(Workspace(workspace)), 60, "the word of a starting `tessera up`")
        status = run_tessera(workspace, "status").outcome  # waits for the servers that start
        assert (status["prefect"], status["mlflow"]) == (api, mlflow)
        _wait_for("stops all of it", 150, up, log)
        client = httpx.Client(auth=_login(workspace), timeout=60)
        _require_closed(workspace, client, api, mlflow)
        _ask_for_many(client, api)
        assert _run_deployment(workspace, client, api, f"retrain/{DOMAIN}") == "COMPLETED"
        _require_progress(client, api)
        _require_turn_and_event(client, api)
        assert run_tessera(workspace, "history", DOMAIN).outcome["champion_version"] == 1
        _require_served(workspace, serve)
        _require_flows(workspace, client, api, mlflow)
        _require_links(workspace)
        _require_calm(workspace)
        taken = run_tessera(workspace, "up", *ports, as_json=False)
        assert taken.code == 2
        assert "tessera down" in taken.stderr  # it is told before any port is tried
        for name in ("mlflow", "prefect", "worker-tessera"):
            _kill(f"flows.server.child {name.partition('-')[0]}", workspace)
            _wait_for(f"{name} is restarted", 90, up, log)
        _kill("components.serving.server", workspace)
        _wait_for("serve is restarted", 30, up, log)
        for address in (f"{mlflow}/health", f"{api}/health", f"{serve}/v2/health/ready"):
            _wait_for_health(address)
        _require_no_secret(workspace, log.read_text())
        down = run_tessera(workspace, "down")
        down.read(Stopped)
        assert down.outcome == {"stopped": True}
        assert up.wait(5) == 0
        assert run_tessera(workspace, "down").outcome == {"stopped": False}
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(60)
    assert "Stopping" in log.read_text()
    for address in (api, mlflow, serve):
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")
    assert not list((workspace / ".tessera").glob("services.*"))
    assert not find_processes("flows.server.child", workspace)
    assert not find_processes("components.serving.server", workspace)


def _start_up(workspace: Path, ports: list[str], log: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "flows.commands.cli", "up", "--workspace", str(workspace), *ports]
    with log.open("w") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=output, env=clean_environment(), cwd=REPOSITORY, text=True
        )


def _login(workspace: Path) -> tuple[str, str]:
    name, _, password = load_login(Workspace(workspace)).partition(":")
    return name, password


def _require_closed(workspace: Path, client: httpx.Client, api: str, mlflow: str) -> None:
    """What other users of the machine and other web pages try."""
    found = client.post(f"{api}/deployments/filter", json={}).json()
    (deployment,) = [row["id"] for row in found if row["entrypoint"] == "flows.retrain.retrain"]
    run, experiment = f"{api}/deployments/{deployment}/create_flow_run", f"{mlflow}/api/2.0/mlflow/experiments/create"
    command = {"job_variables": {"command": f"touch {workspace / 'attacked'}"}}
    assert httpx.post(run, json={}).status_code == 401
    assert httpx.patch(f"{api}/deployments/{deployment}", json=command).status_code == 401
    assert httpx.post(experiment, json={"name": "attacked"}).status_code == 401
    assert httpx.post(f"{mlflow}/graphql", json={}).status_code == 401
    for variables in (
        command,
        {"job_variables": {"env": {"LD_PRELOAD": "x"}}},
        {"job_variables": {"working_dir": "/"}},
    ):
        assert client.post(run, json=variables).status_code == 422
    for stranger in ({"Origin": "http://evil.example"}, {"Origin": mlflow + "0"}, {"Host": "evil.example"}):
        for url, body in ((run, command), (experiment, {"name": "attacked"})):
            for asks in (httpx, client):
                answer = asks.post(url, json=body, headers=stranger)
                assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (403, False)
    state = workspace / ".tessera"
    for path in (state, *(state / name for name in ("login", "services.json", "services.html", "dvc-site"))):
        assert path.stat().st_mode & 0o077 == 0, path
    for path in (*state.glob("logs/*"), *state.glob("mlflow/*.db*"), *state.glob("prefect/*.db*")):
        assert path.stat().st_mode & 0o077 == 0, path
    assert not (workspace / "attacked").exists()


def _require_served(workspace: Path, serve: str) -> None:
    """The champion of a moment ago answers, and `tessera doctor` knows that it is the registry's."""
    image = next((workspace / "data" / DOMAIN / "raw").rglob("*.png")).read_bytes()

    def answers() -> bool:
        return httpx.post(f"{serve}/predict/{DOMAIN}", content=image).status_code == httpx.codes.OK

    wait_until(answers, 30, "the answer of the first champion")
    assert httpx.post(f"{serve}/predict/{DOMAIN}", content=image).json()["version"] == 1
    checks = {check["name"]: check for check in run_tessera(workspace, "doctor").outcome["checks"]}
    assert checks["serving"]["found"] == f"{serve} serves 1 of 1 champions, all current"


def _require_no_secret(workspace: Path, told: str) -> None:
    """Login and key are in their two files and the home page: in no log, no database, on no command line."""
    services = load_services(Workspace(workspace))
    assert services is not None
    secrets = [services.login.partition(":")[2].encode(), services.key.encode()]
    places = {str(path): path.read_bytes() for path in (workspace / ".tessera").rglob("*") if path.is_file()}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            places[str(path)] = path.read_bytes()
    found = {
        name for name, content in (places | {"terminal": told.encode()}).items() if any(s in content for s in secrets)
    }
    assert {Path(name).name for name in found} == {"login", "services.json", "services.html"}


def _ask_for_many(client: httpx.Client, api: str) -> None:
    """Runs that are due at once, as fifty domains with one schedule have them, and no worker that takes them."""
    _post(client, f"{api}/work_pools/", name="nobody", type="process")
    flow = _post(client, f"{api}/flows/", name="many")["id"]
    deployment = _post(client, f"{api}/deployments/", name="many", flow_id=flow, work_pool_name="nobody")["id"]
    for _ in range(MANY):
        _post(client, f"{api}/deployments/{deployment}/create_flow_run", state={"type": "SCHEDULED"}, tags=["tessera"])


def _post(client: httpx.Client, url: str, **facts: Any) -> dict[str, Any]:
    """SQLite has one writer: who is told that the server is busy asks again, as Prefect's own client does."""
    while (answer := client.post(url, json=facts)).status_code == httpx.codes.SERVICE_UNAVAILABLE:
        time.sleep(0.5)
    return dict(answer.raise_for_status().json())


def _require_calm(workspace: Path) -> None:
    """They lock nobody out of the server's database (twice a run and more do where Prefect marks them as late)."""
    doctor = run_tessera(workspace, "doctor").outcome
    found = next(check["found"] for check in doctor["checks"] if check["name"] == "prefect")
    assert f"{MANY} late runs on pool nobody, which has 0 workers" in found
    log = (workspace / ".tessera" / "logs" / "prefect.log").read_text()
    assert log.count("OperationalError: database is locked") < MANY / 2


def _kill(words: str, workspace: Path) -> None:
    """What works for the workspace with these words on its command line, outright."""
    found = find_processes(words, workspace)
    assert found, words
    for pid in found:
        os.kill(pid, signal.SIGKILL)


def _wait_for_health(url: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=2).status_code == 200:
                return
        time.sleep(0.5)
    raise AssertionError(f"{url} did not answer again")


def _require_progress(client: httpx.Client, api: str) -> None:
    """A bar a candidate, full in the end, which said on its way what is left."""
    found = client.post(f"{api}/artifacts/filter", json={"artifacts": {"type": {"any_": ["progress"]}}}).json()
    assert {bar["key"]: bar["data"] for bar in found} == {"parts-linear-s0": 100.0, "parts-vpt-deep-s0": 100.0}
    assert all(bar["task_run_id"] for bar in found)
    assert {bar["description"] for bar in found} == {"linear-s0: done", "vpt-deep-s0: done"}


def _require_links(workspace: Path) -> None:
    """The page has every service and domain, and each of its links leads somewhere in a browser that knows no login."""
    page = workspace / ".tessera" / "services.html"
    wait_until(lambda: "none yet" not in page.read_text(), 60, "a page with all there is")
    links = {text: unescape(link) for link, text in re.findall("<a href='([^']+)'>([^<]+)</a>", page.read_text())}
    wanted = {"runs", "deployments", "model", "models", *FLOWS, "images", "last report", "model card"}
    assert wanted | {"mlflow", "prefect", "worker-tessera"} <= set(links)
    for link in links.values():
        if link.startswith("file://"):
            assert Path(link.removeprefix("file://")).exists(), link
            continue
        with httpx.Client(headers={"Accept": "text/html"}, follow_redirects=True) as browser:
            answer = browser.get(link)
        assert (answer.status_code, "<script" in answer.text) == (200, True), link
        assert "key=" not in str(answer.url)


def _require_turn_and_event(client: httpx.Client, api: str) -> None:
    """The promotion took the domain's slot, gave it back, and told whoever follows."""
    limit = client.get(f"{api}/v2/concurrency_limits/tessera-promote-{DOMAIN}").json()
    assert (limit["limit"], limit["active_slots"]) == (1, 0)
    wanted = {"filter": {"event": {"name": ["tessera.champion.promoted"]}}}
    (event,) = client.post(f"{api}/events/filter", json=wanted).json()["events"]
    assert (event["payload"]["version"], event["payload"]["model_uri"]) == (1, f"models:/{DOMAIN}/1")


def _require_flows(workspace: Path, client: httpx.Client, api: str, mlflow: str) -> None:
    """What a person starts in Prefect, and what the command line starts, are seen there alike."""
    assert run_tessera(workspace, "rollback", DOMAIN).code == 2  # there is one version only
    assert _run_deployment(workspace, client, api, f"reproduce/{DOMAIN}", "-p", "version=1") == "COMPLETED"
    other = ("--set", "candidates=[{kind: linear, strength: 5}]")
    assert run_tessera(workspace, "retrain", DOMAIN, *other).outcome["challenger_version"] == 2
    judged = run_tessera(workspace, "promote", DOMAIN, "2")
    judged.read(Promotion)
    pages = {page["key"]: page for page in client.post(f"{api}/artifacts/filter", json={}).json()}
    assert "# parts version 1, trained again: PASS" in pages[f"reproduce-{DOMAIN}"]["data"]
    assert f"# {DOMAIN} version 2: {judged.outcome['verdict']}" in pages[f"promote-{DOMAIN}"]["data"]
    assert f"]({mlflow}/#/experiments/" in pages[f"mlflow-{DOMAIN}-1"]["data"]
    runs = {run["name"]: run["id"] for run in client.post(f"{api}/flow_runs/filter", json={}).json()}
    assert _list_tasks(client, api, runs[f"reproduce {DOMAIN} version 1"]) == [
        *("find its record", "restore code", "restore images", "train again", "compare")
    ]
    tasks = _list_tasks(client, api, runs[f"promote {DOMAIN}"])
    assert (tasks[:2], tasks[-4:]) == (
        ["find versions", "version images"],
        ["score challenger", "score champion", "gate and promote", "publish verdict"],
    )


def _list_tasks(client: httpx.Client, api: str, flow_run: str) -> list[str]:
    wanted = {"flow_runs": {"id": {"any_": [flow_run]}}, "sort": "EXPECTED_START_TIME_ASC"}
    return [task["name"] for task in client.post(f"{api}/task_runs/filter", json=wanted).json()]


def _run_deployment(workspace: Path, client: httpx.Client, api: str, name: str, *parameters: str) -> str:
    """`prefect deployment run NAME --watch`, as a user would; returns the state the server gives it."""
    prefect = str(Path(sys.executable).parent / "prefect")
    env = clean_environment() | {"PREFECT_API_URL": api, "PATH": os.environ["PATH"]}
    env["PREFECT_API_AUTH_STRING"] = ":".join(_login(workspace))
    done = subprocess.run(
        [prefect, "deployment", "run", name, *parameters, "--watch", "--watch-interval", "1"],
        capture_output=True,
        text=True,
        env=env,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = client.post(f"{api}/flow_runs/filter", json={"sort": "START_TIME_DESC", "limit": 1}).json()
    return str(runs[0]["state_type"])
