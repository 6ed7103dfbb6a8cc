"""Who may talk to the servers of `tessera`: strangers' requests, one a row, and what a login opens."""

import asyncio
import base64
import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from flows.server.guard import OPEN, Guard
from flows.server.schedules import close_template

LOGIN, KEY = "tessera:secret", "key-of-this-up"
SERVER = "http://127.0.0.1:4200"
OWN = {"Authorization": f"Basic {base64.b64encode(LOGIN.encode()).decode()}"}
COOKIE = {"Cookie": f"other=1; tessera={KEY}"}
EVIL = {"Origin": "http://evil.example"}
IMAGE = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


async def _app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": (await receive()).get("text", "nothing")})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def _ask(method: str, path: str, headers: Mapping[str, str], key: str = KEY) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=Guard(_app, LOGIN, key))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url=SERVER) as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/api/health", {}, 200),
        ("GET", "/health", {}, 200),
        ("GET", "/", OWN, 200),
        ("POST", "/api/deployments/1/create_flow_run", OWN, 200),
        ("POST", "/api/flow_runs/filter", COOKIE | {"Origin": SERVER, "Sec-Fetch-Site": "same-origin"}, 200),
        ("GET", "/runs", COOKIE | LINK, 200),  # from a mail, from MLflow's page
        ("GET", "/", OWN | {"Host": "localhost:8080"}, 200),  # through a tunnel
        ("GET", "/", OWN | {"Host": "[::1]:4200"}, 200),
        # without a login
        ("POST", "/api/deployments/1/create_flow_run", {}, 401),
        ("PATCH", "/api/deployments/1", {}, 401),
        ("GET", "/api/admin/settings", {}, 401),
        ("POST", "/api/health", {}, 401),
        ("GET", "/api/health/../deployments", {}, 401),
        ("GET", "/api/variables/name/health", {}, 401),
        ("GET", "/", {"Authorization": "Basic dGVzc2VyYTp3cm9uZw=="}, 401),
        ("GET", "/", {"Authorization": "Basic ???"}, 401),
        ("GET", "/", {"Authorization": "Bearer " + KEY}, 401),
        ("GET", "/", {"Cookie": "tessera="}, 401),
        ("GET", "/", {"Cookie": f"xtessera={KEY}"}, 401),
        # another page of the browser that has the login
        ("POST", "/", OWN | EVIL, 403),
        ("POST", "/", COOKIE | EVIL, 403),
        ("OPTIONS", "/", EVIL | {"Access-Control-Request-Method": "POST"}, 403),
        ("POST", "/", COOKIE | {"Origin": "null"}, 403),
        ("POST", "/", COOKIE | {"Origin": "http://127.0.0.1:9999"}, 403),
        ("POST", "/", COOKIE | {"Origin": "http://localhost:4200"}, 403),
        ("POST", "/", COOKIE | {"Origin": "https://127.0.0.1:4200"}, 403),
        ("GET", "/", COOKIE | IMAGE, 403),
        ("GET", "/", COOKIE | IMAGE | {"Sec-Fetch-Site": "same-site"}, 403),
        ("GET", "/", COOKIE | LINK | {"Sec-Fetch-Dest": "iframe"}, 403),
        ("POST", "/", COOKIE | LINK, 403),
        # a name that somebody else's DNS points here
        ("GET", "/", OWN | {"Host": "evil.example:4200"}, 403),
        ("GET", "/api/health", {"Host": "evil.example"}, 403),
        ("GET", "/", OWN | {"Host": "127.0.0.1.evil.example"}, 403),
        ("GET", "/", OWN | {"Host": "evil@[bad"}, 403),
        ("GET", "/", OWN | {"Host": ""}, 403),
    ],
)
def test_a_request_passes_by_its_host_its_origin_and_its_login(
    method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = _ask(method, path, headers)
    assert answer.status_code == status
    assert (answer.text == "inside") == (status == 200)


def test_a_link_of_the_page_leaves_a_cookie_and_goes_on_within_the_server() -> None:
    answer = _ask("GET", f"{OPEN}?key={KEY}&to=%2F%23%2Fmodels%2Fparts%3Fa%3Db", LINK)
    assert (answer.status_code, answer.headers["location"]) == (303, "/#/models/parts?a=b")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"tessera={KEY};")
    assert {"HttpOnly", "SameSite=Lax"} <= {part.strip() for part in cookie.split(";")}
    for elsewhere in ("//evil.example", "http://evil.example", "/\\evil.example", "/%0d%0aSet-Cookie: a=b"):
        answer = _ask("GET", f"{OPEN}?key={KEY}&to={elsewhere}", LINK)
        assert answer.headers["location"].startswith("/")
        assert not answer.headers["location"].startswith(("//", "/\\"))
        assert "\n" not in answer.headers["location"]
    for wrong in ("", "key=", "key=old"):
        answer = _ask("GET", f"{OPEN}?{wrong}", LINK)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
    assert _ask("GET", f"{OPEN}?key=", LINK, key="").status_code == 401


def test_a_browser_without_a_login_is_asked_for_one() -> None:
    assert "www-authenticate" in _ask("GET", "/", {"Accept": "text/html"}).headers
    assert "www-authenticate" not in _ask("GET", "/api/flows", {}).headers  # no dialog over a page that asks


def test_a_server_without_a_password_does_not_start() -> None:
    for login in ("", "name", "name:"):
        with pytest.raises(ValueError, match="without a password"):
            Guard(_app, login)


def _connect(headers: Mapping[str, str], first: object) -> list[Any]:
    """What a websocket's client sees."""
    seen: list[Any] = []
    waiting = [{"type": "websocket.receive", "text": json.dumps(first)}]

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        seen.append(message)

    pairs = [(k.lower().encode(), v.encode()) for k, v in ({"Host": "127.0.0.1:4200"} | dict(headers)).items()]
    asyncio.run(
        Guard(_app, LOGIN, KEY)({"type": "websocket", "path": "/api/events/out", "headers": pairs}, receive, send)
    )
    return seen


@pytest.mark.parametrize(
    ("headers", "first", "passes"),
    [
        ({"Sec-WebSocket-Protocol": "prefect"}, {"type": "auth", "token": LOGIN}, True),
        (COOKIE, {"type": "auth", "token": None}, True),
        (OWN, {"type": "filter"}, True),
        ({"Sec-WebSocket-Protocol": "prefect"}, {"type": "auth", "token": "wrong"}, False),
        ({"Sec-WebSocket-Protocol": "prefect"}, {"type": "auth"}, False),
        ({"Sec-WebSocket-Protocol": "prefect"}, {"type": "filter", "token": LOGIN}, False),
        ({"Sec-WebSocket-Protocol": "prefect"}, [LOGIN], False),
        ({}, {"type": "auth", "token": LOGIN}, False),
        (COOKIE | EVIL, {"type": "auth", "token": None}, False),
        (COOKIE | {"Host": "evil.example"}, {"type": "auth", "token": None}, False),
    ],
)
def test_a_websocket_is_asked_like_a_request(headers: dict[str, str], first: object, passes: bool) -> None:
    seen = _connect(headers, first)
    assert ({"type": "websocket.send", "text": json.dumps(first)} in seen) == passes
    assert any(message["type"] == "websocket.close" for message in seen) != passes


def test_no_run_replaces_what_a_process_pool_executes() -> None:
    """By Prefect's own template, one that is closed already, and one with the administrator's command."""
    from prefect.utilities.templating import find_placeholders
    from prefect.workers.process import ProcessWorker

    usual = ProcessWorker.get_default_base_job_template()
    closed = close_template(usual)
    assert close_template(closed) == closed
    assert not {"command", "env", "working_dir"} & set(closed["variables"]["properties"])
    assert closed["variables"]["additionalProperties"] is False
    named = {mark.name for mark in find_placeholders(closed["job_configuration"])}
    assert named == {"labels", "name", "stream_output"}
    assert closed["job_configuration"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    own = usual | {"job_configuration": usual["job_configuration"] | {"command": "nice tessera-run", "env": {"A": "b"}}}
    kept = close_template(own)["job_configuration"]
    assert (kept["command"], kept["env"]["A"]) == ("nice tessera-run", "b")
