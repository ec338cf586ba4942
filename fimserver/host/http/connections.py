"""Connections of a host: a deadline for request headers, and a limit on open connections.

uvicorn has neither: clients that connect and send nothing would use up the file descriptors, even without a
token.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = logging.getLogger("fimserver.host")
HEADER_S = 10.0  # from the connection (or the first byte of a later request) to the end of the headers
MAX_CONNECTIONS = 1000
BACKLOG = 128  # connections that the system completes before the event loop takes them
LOG_EVERY_S = 10.0


def max_connections() -> int:
    """Half of the files that this process may open: models, sockets and databases need the rest."""
    return max(8, min(MAX_CONNECTIONS, _max_files() // 2))


def accepted_at_once() -> int:
    """Connections accepted in one turn of the event loop.

    Those over the limit are closed two turns later and need their files until then.
    """
    return max(1, min(BACKLOG, _max_files() // 16))


def _max_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


class HttpServer(uvicorn.Server):
    """uvicorn's server, with a queue of the system that is longer than what is accepted at once.

    asyncio has one number for both, uvicorn's ``backlog``.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(BACKLOG)


class Connection(HttpToolsProtocol):
    """uvicorn's connection with these limits. Over the limit, the one that was idle longest is closed."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle_since = time.monotonic()
        self._header_timer: asyncio.TimerHandle | None = None
        self._expect_headers()
        if len(self.connections) > max_connections():
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_arrived()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_headers()

    def on_headers_complete(self) -> None:
        self._headers_arrived()
        if self.url.startswith(b"//"):  # httptools would parse the rest as a host name
            self.url = b"/" + self.url.lstrip(b"/")
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        self._idle_since = time.monotonic()
        super().on_response_complete()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _expect_headers(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_S, self.transport.abort)

    def _headers_arrived(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _make_room(self) -> None:
        idle = [each for each in self.connections if isinstance(each, Connection) and each.is_idle]
        oldest = min(idle, key=lambda each: each._idle_since)  # noqa: SLF001 - another of this class
        self.connections.discard(oldest)  # aborting takes effect in a later iteration of the loop
        oldest.transport.abort()


def quiet_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Log errors of the event loop at most every ten seconds, by type, instead of a traceback for each."""
    last = 0.0

    def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal last
        if time.monotonic() - last < LOG_EVERY_S:
            return
        last = time.monotonic()
        error = context.get("exception")
        log.error(
            "event loop: %s (%s)",
            context.get("message", ""),
            type(error).__name__ if error else "no exception",
        )

    loop.set_exception_handler(handle)
