"""What every request passes, whatever its protocol, as ASGI middleware around the application.

an id              the client's X-Request-Id or a new one; in `scope["state"]["id"]` and in the response
access             401 or 403 before anything of the body is read
the body, whole    413 over the limit whatever Content-Length says, 408 for one that trickles, 429 where bodies of
                   all requests together take too much memory
departures         a client that leaves cancels its request
errors             a Refusal becomes its response; anything unexpected is logged with the id and answered with 500
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from starlette.requests import Request

from components.errors import TesseraError
from components.serving.server import access
from components.serving.server.answers import JSON
from components.serving.server.failures import write_failure
from components.serving.server.service import Refusal, Service, refuse_full

MOST_BODY = 128 << 20  # bytes of one request
MOST_HELD = 512 << 20  # bytes of all requests that are not answered yet
BODY_SECONDS = 10.0  # for a body to come, and a second more for every RATE bytes
RATE = 16_000
SHOWN = 40  # characters of a header in an error
LEFT = 499  # what metrics count for a client that left, as nginx does
ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
#: What a page may load: nothing from elsewhere. Images may be pasted ones.
POLICY = (
    b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", POLICY),
)

LOG = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Left(Exception):  # noqa: N818  an event rather than a fault
    """The client left before its answer."""


class Door:
    """`Door(app, service, token)`. token: "" admits requests of this machine alone."""

    def __init__(self, app: App, service: Service, token: str = "") -> None:
        self.app, self.service, self.token = app, service, token
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        await _Visit(self, scope, receive, send).run()

    def check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Raise Refusal unless this client may ask this."""
        if not self.token:
            if (reason := access.find_stranger(scope, headers)) is not None:
                hint = "Ask from this machine, by 127.0.0.1 or localhost; other hosts need `--token-file`."
                raise Refusal(
                    403, TesseraError("access", expected="a request of this machine", found=reason, hint=hint)
                )
        elif not access.is_open(scope) and not access.has_token(headers, self.token):
            found = "another one" if "authorization" in headers else "none"
            hint = "Send the header `Authorization: Bearer TOKEN`, with the token in the server's token file."
            error = TesseraError("access", expected="the server's token", found=found, hint=hint)
            raise Refusal(401, error, {"WWW-Authenticate": "Bearer"})

    def hold(self, size: int) -> None:
        """Count bytes of a body. Raises Refusal (429) where all bodies together take too much memory."""
        self._held += size
        if size > 0 and self._held > MOST_HELD:
            raise refuse_full(f"{MOST_HELD >> 20} MiB for all requests at a time", 1)


class _Visit:
    """One request."""

    def __init__(self, door: Door, scope: Scope, receive: Receive, send: Send) -> None:
        self.door, self.scope, self.receive, self._send = door, scope, receive, send
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = self.headers.get("x-request-id", "")
        self.id = given if ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["id"] = self.id
        self.status, self.over, self.held = 0, False, 0

    async def run(self) -> None:
        begun, metrics, path = time.perf_counter(), self.door.service.metrics, self.scope["path"]
        try:
            await self._answer()
        except Refusal as refusal:
            await self._refuse(refusal)
        except Left:
            self.status = LEFT
        except Exception:  # the server lives on, whatever one request meets
            LOG.exception("request %s failed: %s %s", self.id, self.scope["method"], path)
            metrics.count_errors(path.strip("/").split("/")[-1], "internal")
            await self._refuse(_describe_defect(self.id))
        finally:
            self.door.hold(-self.held)
            metrics.count_request(path, self.status, time.perf_counter() - begun)

    async def _answer(self) -> None:
        self.door.check(self.scope, self.headers)
        if (coding := self.headers.get("content-encoding", "identity")) != "identity":
            raise _refuse_coding(coding)
        body = await self._read_body()
        me, left = asyncio.current_task(), False
        assert me is not None

        def leave(watching: "asyncio.Task[Message]") -> None:
            nonlocal left
            if not watching.cancelled() and not self.over:
                left = me.cancel()

        async def replay() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        watcher = asyncio.create_task(self._watch())  # after the body only a departure can come
        watcher.add_done_callback(leave)
        try:
            await self.door.app(self.scope, replay, self.send)
        except asyncio.CancelledError:
            if not left or me.uncancel():
                raise  # the server's own end
            raise Left from None
        finally:
            watcher.cancel()

    async def _watch(self) -> Message:
        return await self.receive()

    async def _read_body(self) -> bytes:
        """The whole body. Raises Refusal 408, 413 or 429, and Left."""
        declared = self.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > MOST_BODY:
            raise _refuse_size(f"{int(declared):,} bytes")
        parts, begun = list[bytes](), time.monotonic()
        while True:
            left = begun + BODY_SECONDS + self.held / RATE - time.monotonic()
            try:
                async with asyncio.timeout(max(left, 0)):
                    message = await self.receive()
            except TimeoutError:
                hint = "Send it again, without a pause."
                found = f"{self.held:,} bytes of it in {time.monotonic() - begun:.0f} s"
                error = TesseraError("the body", expected="all of it", found=found, hint=hint)
                raise Refusal(408, error, {"Connection": "close"}) from None
            if message["type"] == "http.disconnect":
                raise Left
            if part := message.get("body", b""):
                self.held += len(part)
                self.door.hold(len(part))
                parts.append(part)
                if self.held > MOST_BODY:
                    raise _refuse_size("more")
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def send(self, message: Message) -> None:
        """Send a part of the response, with the headers that all have."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [*SECURITY, (b"x-request-id", self.id.encode())]
            if self.door.service.draining:
                own.append((b"connection", b"close"))
            named = {name for name, _ in message.get("headers", ())}
            message["headers"] = [*message.get("headers", ()), *(pair for pair in own if pair[0] not in named)]
        self.over = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def _refuse(self, refusal: Refusal) -> None:
        if self.status:
            raise RuntimeError(f"request {self.id} failed in the middle of its response")
        body = write_failure(self.scope["path"], refusal.status, self.id, refusal.error)
        headers = {"content-type": JSON, "content-length": str(len(body))} | refusal.headers
        pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})


def _refuse_coding(coding: str) -> Refusal:
    hint = "Send it without compression: images are compressed already."
    error = TesseraError("the body", expected="no Content-Encoding", found=coding[:SHOWN], hint=hint)
    return Refusal(415, error)


def _refuse_size(found: str) -> Refusal:
    hint = "Send a smaller or better compressed image, or fewer in one request."
    expected = f"at most {MOST_BODY >> 20} MiB"
    return Refusal(413, TesseraError("the body", expected=expected, found=found, hint=hint))


def _describe_defect(request_id: str) -> Refusal:
    hint = f"This is a defect of the server; its log has the details under {request_id}."
    return Refusal(500, TesseraError("the request", expected="an answer", found="an unexpected error", hint=hint))


def read_id(request: Request) -> str:
    """The id of a request, as its response names it."""
    return str(request.state.id)
