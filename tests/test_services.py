"""`tessera up`: the servers come up, a deployment runs on the worker, and one signal ends all of it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from conftest import DOMAIN, clean_environment, free_port, run_tessera
from schemas import SCHEMAS
from servers import find_processes

from components.workspace import REPOSITORY
from flows.schedules import FLOWS

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


def test_up_runs_a_deployment_and_stops_whole(workspace: Path, tmp_path: Path) -> None:
    assert run_tessera(workspace, "check", DOMAIN).code == 0
    api, mlflow = free_port(), free_port()
    log = tmp_path / "up.log"
    command = [sys.executable, "-m", "flows.cli", "up", "--workspace", str(workspace)]
    ports = ["--prefect-port", str(api), "--mlflow-port", str(mlflow)]
    with log.open("w") as output:
        up = subprocess.Popen(
            command + ports, stdout=output, stderr=output, env=clean_environment(), cwd=REPOSITORY, text=True
        )
    try:
        _wait_for("stops all of it", 150, up, log)
        assert httpx.get(f"http://127.0.0.1:{mlflow}/health").status_code == 200
        _ask_for_many(f"http://127.0.0.1:{api}/api")
        state = _run_deployment(f"http://127.0.0.1:{api}/api", f"retrain/{DOMAIN}")
        assert state == "COMPLETED"
        _require_progress(f"http://127.0.0.1:{api}/api")
        _require_turn_and_event(f"http://127.0.0.1:{api}/api")
        _require_links(workspace)
        served = run_tessera(workspace, "history", DOMAIN, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{mlflow}")
        assert served.outcome["champion_version"] == 1
        _require_flows(workspace, f"http://127.0.0.1:{api}/api", f"http://127.0.0.1:{mlflow}")
        _require_calm(workspace, f"http://127.0.0.1:{api}/api")
        taken = run_tessera(workspace, "up", *ports, as_json=False)
        assert taken.code == 2
        assert "tessera down" in taken.stderr  # it is told before any port is tried
        children = {"mlflow": f"--port {mlflow}", "prefect": f"--port {api}", "worker-tessera": "--pool tessera"}
        for name, words in children.items():
            _kill(words, workspace)
            _wait_for(f"{name} is started again", 90, up, log)
        for address in (f"http://127.0.0.1:{mlflow}/health", f"http://127.0.0.1:{api}/api/health"):
            _wait_for_health(address)
        down = run_tessera(workspace, "down")
        jsonschema.validate(down.outcome, SCHEMAS["down"])
        assert down.outcome == {"stopped": True}
        assert up.wait(5) == 0
        assert run_tessera(workspace, "down").outcome == {"stopped": False}
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(60)
    assert "Stopping" in log.read_text()
    for port in (api, mlflow):
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/health")


def _ask_for_many(api: str) -> None:
    """Runs that are due at once, as fifty domains with one schedule have them, and no worker that takes them."""
    _post(f"{api}/work_pools/", name="nobody", type="process")
    flow = _post(f"{api}/flows/", name="many")["id"]
    deployment = _post(f"{api}/deployments/", name="many", flow_id=flow, work_pool_name="nobody")["id"]
    for _ in range(MANY):
        _post(f"{api}/deployments/{deployment}/create_flow_run", state={"type": "SCHEDULED"}, tags=["tessera"])


def _post(url: str, **facts: Any) -> dict[str, Any]:
    """SQLite has one writer: who is told that the server is busy asks again, as Prefect's own client does."""
    while (answer := httpx.post(url, json=facts, timeout=60)).status_code == httpx.codes.SERVICE_UNAVAILABLE:
        time.sleep(0.5)
    return dict(answer.raise_for_status().json())


def _require_calm(workspace: Path, api: str) -> None:
    """They lock nobody out of the server's database (twice a run and more do where Prefect marks them as late)."""
    doctor = run_tessera(workspace, "doctor", PREFECT_API_URL=api).outcome
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


def _require_progress(api: str) -> None:
    """A bar a candidate, full in the end, which said on its way what is left."""
    found = httpx.post(f"{api}/artifacts/filter", json={"artifacts": {"type": {"any_": ["progress"]}}}).json()
    assert {bar["key"]: bar["data"] for bar in found} == {"parts-linear-s0": 100.0, "parts-vpt-deep-s0": 100.0}
    assert all(bar["task_run_id"] for bar in found)
    assert {bar["description"] for bar in found} == {"linear-s0: done", "vpt-deep-s0: done"}


def _require_links(workspace: Path) -> None:
    """The page has every service and domain, and each of its links leads somewhere."""
    page = (workspace / ".tessera" / "services.html").read_text()
    links = dict(reversed(found) for found in re.findall("<a href='([^']+)'>([^<]+)</a>", page))
    assert {"runs", "deployments", "models", *FLOWS, "images", "mlflow", "prefect", "worker-tessera"} <= set(links)
    for link in links.values():
        if link.startswith("file://"):
            assert Path(link.removeprefix("file://")).exists(), link
        else:
            assert httpx.get(link, headers={"Accept": "text/html"}).status_code == 200, link  # as a browser asks


def _require_turn_and_event(api: str) -> None:
    """The promotion took the domain's slot, gave it back, and told whoever follows."""
    limit = httpx.get(f"{api}/v2/concurrency_limits/tessera-promote-{DOMAIN}").json()
    assert (limit["limit"], limit["active_slots"]) == (1, 0)
    wanted = {"filter": {"event": {"name": ["tessera.champion.promoted"]}}}
    (event,) = httpx.post(f"{api}/events/filter", json=wanted).json()["events"]
    assert (event["payload"]["version"], event["payload"]["model_uri"]) == (1, f"models:/{DOMAIN}/1")


def _require_flows(workspace: Path, api: str, mlflow: str) -> None:
    """What a person starts in Prefect, and what the command line starts, are seen there alike."""
    servers = {"PREFECT_API_URL": api, "MLFLOW_TRACKING_URI": mlflow}
    assert run_tessera(workspace, "rollback", DOMAIN, **servers).code == 2  # there is one version only
    assert _run_deployment(api, f"reproduce/{DOMAIN}", "-p", "version=1") == "COMPLETED"
    other = ("--set", "candidates=[{kind: linear, strength: 5}]")
    assert run_tessera(workspace, "retrain", DOMAIN, *other, **servers).outcome["challenger_version"] == 2
    judged = run_tessera(workspace, "promote", DOMAIN, "2", **servers)
    jsonschema.validate(judged.outcome, SCHEMAS["promote"])
    pages = {page["key"]: page for page in httpx.post(f"{api}/artifacts/filter", json={}).json()}
    assert "# parts version 1, trained again: PASS" in pages[f"reproduce-{DOMAIN}"]["data"]
    assert f"# {DOMAIN} version 2: {judged.outcome['verdict']}" in pages[f"promote-{DOMAIN}"]["data"]
    assert f"]({mlflow}/#/experiments/" in pages[f"mlflow-{DOMAIN}-1"]["data"]
    runs = {run["name"]: run["id"] for run in httpx.post(f"{api}/flow_runs/filter", json={}).json()}
    assert _list_tasks(api, runs[f"reproduce {DOMAIN} version 1"]) == [
        *("find its record", "restore code", "restore images", "train again", "compare")
    ]
    tasks = _list_tasks(api, runs[f"promote {DOMAIN}"])
    assert (tasks[:2], tasks[-4:]) == (
        ["find versions", "version images"],
        ["score challenger", "score champion", "gate and promote", "publish verdict"],
    )


def _list_tasks(api: str, flow_run: str) -> list[str]:
    wanted = {"flow_runs": {"id": {"any_": [flow_run]}}, "sort": "EXPECTED_START_TIME_ASC"}
    return [task["name"] for task in httpx.post(f"{api}/task_runs/filter", json=wanted).json()]


def _run_deployment(api: str, name: str, *parameters: str) -> str:
    """`prefect deployment run NAME --watch`, as a user would; returns the state the server gives it."""
    prefect = str(Path(sys.executable).parent / "prefect")
    env = clean_environment() | {"PREFECT_API_URL": api, "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [prefect, "deployment", "run", name, *parameters, "--watch", "--watch-interval", "1"],
        capture_output=True,
        text=True,
        env=env,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = httpx.post(f"{api}/flow_runs/filter", json={"sort": "START_TIME_DESC", "limit": 1}).json()
    return str(runs[0]["state_type"])
