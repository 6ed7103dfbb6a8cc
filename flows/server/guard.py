"""Access control of the Prefect and MLflow servers, as ASGI middleware.

Every account of a machine can reach its loopback addresses, and so can every web page in a browser there. A client that
may create flow runs can run programs as the owner of the server. Therefore a request is accepted only

    with a Host of this machine            otherwise a foreign DNS name may point here
    with no Origin but the server's own    otherwise another page sends it, with a login that the browser adds
    with the workspace's login             HTTP basic, or the cookie that the home page sets in a browser

Only the health check needs no login.
"""

import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qs, quote

from components.serving.server.access import Scope, find_stranger, is_same

HEALTH = ("/health", "/api/health")
OPEN = "/tessera/open"  # sets the cookie and redirects to a page
COOKIE = "tessera"
HINT = "A login is needed: open the home page that `tessera up` names, or use the login in .tessera/login."

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """`Guard(app, login="NAME:PASSWORD", key=...)`. key: the key in the links of the home page, "" for none."""

    def __init__(self, app: App, login: str, key: str = "") -> None:
        if ":" not in login or login.endswith(":"):
            raise ValueError("a server without a password")
        self.app, self.login, self.key = app, login, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if (reason := find_stranger(scope, headers)) is not None:
            return await _refuse(scope, send, 403, reason)
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == OPEN:
            return await self._open(scope, send)
        if self._knows(scope, headers):
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket" and "prefect" in headers.get("sec-websocket-protocol", ""):
            return await self.app(scope, self._ask_first(receive, send), send)
        challenge = headers.get("sec-fetch-mode") == "navigate" or "text/html" in headers.get("accept", "")
        return await _refuse(scope, send, 401, HINT, {"www-authenticate": 'Basic realm="tessera"'} if challenge else {})

    def _knows(self, scope: Scope, headers: Mapping[str, str]) -> bool:
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and scope["path"] in HEALTH:
            return True
        scheme, _, text = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic" and is_same(_decode(text.strip()), self.login):
            return True
        cookies = [part.strip().partition("=") for part in headers.get("cookie", "").split(";")]
        return bool(self.key) and any(name == COOKIE and is_same(value, self.key) for name, _, value in cookies)

    async def _open(self, scope: Scope, send: Send) -> None:
        """Answer a link of the home page: store the key in a cookie and redirect, within this server only."""
        asked = parse_qs(scope["query_string"].decode("latin-1"))
        key, page = asked.get("key", [""])[0], asked.get("to", ["/"])[0]
        if not self.key or not is_same(key, self.key):
            return await _refuse(
                scope, send, 401, "This link belongs to another `tessera up`: open its home page again."
            )
        if not page.startswith("/") or page.startswith(("//", "/\\")):
            page = "/"
        cookie = f"{COOKIE}={self.key}; Path=/; HttpOnly; SameSite=Lax"
        where = {"location": quote(page, safe="/#?&=%:,.~+-_"), "set-cookie": cookie, "cache-control": "no-store"}
        return await _refuse(scope, send, 303, "", where)

    def _ask_first(self, receive: Receive, send: Send) -> Receive:
        """Check a websocket's first message, with which Prefect's clients log in; nothing is passed on before it."""
        known = False

        async def ask() -> Message:
            nonlocal known
            message = await receive()
            if not known and message["type"] == "websocket.receive":
                known = is_same(_read_token(message), self.login)
                if not known:
                    await send({"type": "websocket.close", "code": 1008, "reason": "login"})
                    return {"type": "websocket.disconnect", "code": 1008}
            return message

        return ask


def _decode(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""


def _read_token(message: Message) -> str:
    try:
        found = json.loads(message.get("text") or message.get("bytes") or b"")
    except ValueError:
        return ""
    token = found.get("token") if isinstance(found, dict) and found.get("type") == "auth" else None
    return token if isinstance(token, str) else ""


async def _refuse(scope: Scope, send: Send, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
    """Send an answer of the guard itself; a websocket is closed before it is accepted."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": text})
        return
    sent = {"content-type": "text/plain; charset=utf-8", **(headers or {})}
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in sent.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": text.encode()})
