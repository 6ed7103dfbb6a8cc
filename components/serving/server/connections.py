"""uvicorn with what a server on an open port needs: a clock for slow clients, and an orderly end.

uvicorn itself waits for ever for the head of a request, closes a kept connection at its end even while a request
arrives on it, and ends by the signal that it got.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from components.errors import TesseraError
from components.serving.server.answers import create_error, write_answer
from components.serving.server.service import Service

HEAD_SECONDS = 10.0  # for a client to send the head of a request, or the rest of a body that was refused
KEEP_SECONDS = 30  # a connection may idle between two requests: longer than most clients pause, and cheap
LAST_SECONDS = 0.5  # a kept connection may still bring a request, which 503 answers, when the server ends
NOT_HTTP = TesseraError(
    "the request", expected="HTTP/1.1", found="something else", hint="Use an HTTP client, and http:// without TLS."
)


class Wire(H11Protocol):
    """A connection. While no request is in progress a clock runs from the first byte that comes."""

    _clock: asyncio.TimerHandle | None = None

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._clock = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._busy:
            self._stop_clock()
        elif self._clock is None and self.timeout_keep_alive_task is None:
            self._clock = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP as every error is answered, where an answer may still be sent."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = write_answer(create_error("", NOT_HTTP))
            headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            events = (h11.Response(status_code=400, headers=[*headers.items()]), h11.Data(body), h11.EndOfMessage())
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def shutdown(self) -> None:
        """Close the connection after the request in progress, or after one that arrives at this moment."""
        if self._busy:
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(LAST_SECONDS, self._close)

    def _close(self) -> None:
        if self._busy:
            self.cycle.keep_alive = False
        elif not self.transport.is_closing():
            super().shutdown()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


class Server(uvicorn.Server):
    """Serves until a signal; then it refuses new requests, finishes the accepted ones and returns. A second signal ends
    the process at once.

    opened, closed: called when it listens and when it has ended.
    """

    def __init__(
        self, app: Any, service: Service, opened: Callable[[], None], closed: Callable[[], None], seconds: float
    ) -> None:
        config = uvicorn.Config(
            app,
            http=Wire,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_SECONDS,
            timeout_graceful_shutdown=round(seconds),
        )
        super().__init__(config)
        self.service, self.opened, self.closed = service, opened, closed

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        self.service.draining = self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.opened()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.draining = True
        await super().shutdown(sockets)
        self.closed()
