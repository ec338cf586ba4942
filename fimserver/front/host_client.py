"""Host client: sends one request to the host and returns one answer, with a reason for every failure."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from fimserver.base_url import base_url
from fimserver.errors import InputError
from fimserver.front.host_answers import OK, Health, failure, message_of, read_response, unwell, well
from fimserver.front.host_process import HostProcess, is_serving
from fimserver.reasons import Reason
from fimserver.types import Slot
from fimserver.wire import Answer, CompletionBody, EditorHints, gather, read_piece

if TYPE_CHECKING:
    import httpx2

GRACE_S = 0.5  # how long the host may take to answer after the deadline
POLL_S = 0.05
EVENTS_S = 2.0
PAUSE_S = 30.0  # someone asked for it, and the machine may be busy
NO_CONTENT = 204


Watch = Callable[[tuple[Slot, ...]], None]  # takes the canvas of each denoising step


class HostClient(Protocol):
    """Client of a host: ``HttpHostClient``, or a fake."""

    async def complete(
        self, body: CompletionBody, *, deadline_s: float, asked: bool, watch: Watch | None = None
    ) -> Answer:
        """Return the host's answer. Never raises; cancelling it stops the host's work.

        ``deadline_s``: time on the monotonic clock; the body is sent with the time left until then.
        ``asked``: whether the user asked for it explicitly.
        """
        ...

    async def send_events(self, batch: bytes) -> bool:
        """Send events to the host and return whether they arrived. Never raises, never starts a host."""
        ...

    async def health(self) -> Health:
        """Return whether the host could answer now; start it if necessary."""
        ...

    async def pause(self, minutes: float) -> str:
        """Have the host release its memory for at most ``minutes``; 0 ends the pause.

        Returns why that failed, or an empty string.
        """
        ...

    def revive(self) -> None:
        """Start the host again even after repeated crashes."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class HttpHostClient:
    """HTTP client of this user's own host (over its Unix socket) or of a remote one.

    The HTTP library is imported on first use, so that ``initialize`` is answered without waiting for it.
    """

    def __init__(self, make_client: Callable[[], httpx2.AsyncClient], process: HostProcess | None) -> None:
        self._make_client = make_client
        self._process = process

    @cached_property
    def _client(self) -> httpx2.AsyncClient:
        return self._make_client()

    async def complete(
        self, body: CompletionBody, *, deadline_s: float, asked: bool, watch: Watch | None = None
    ) -> Answer:
        if (reason := await self._wait_for_host(deadline_s, asked=asked)) is not None:
            return failure(reason, self._problem(reason))
        import httpx2  # noqa: PLC0415 - see above

        try:
            async with asyncio.timeout(_left_s(deadline_s) + GRACE_S):
                return await self._answered(body, deadline_s, watch)
        except TimeoutError:
            return failure(Reason.DEADLINE)
        except (httpx2.HTTPError, OSError) as error:
            return failure(Reason.NO_HOST, self._unreachable(error))
        except InputError as error:
            return failure(Reason.REFUSED, str(error))

    async def _answered(self, body: CompletionBody, deadline_s: float, watch: Watch | None) -> Answer:
        """Post a request; to a remote host again, once, if the connection broke before anything was shown.

        A machine of several may have died, or closed an idle connection at that moment.
        """
        import httpx2  # noqa: PLC0415 - see above

        shown = False

        def watched(canvas: tuple[Slot, ...]) -> None:
            nonlocal shown
            shown = True
            assert watch
            watch(canvas)

        watching = watched if watch else None
        try:
            return await self._post(self._body(body, deadline_s, watch), watching)
        except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
            if self._process or shown:
                raise
        return await self._post(self._body(body, deadline_s, watch), watching)

    def _body(self, body: CompletionBody, deadline_s: float, watch: Watch | None) -> CompletionBody:
        """Return the body to send now, with the time that is left."""
        update: dict[str, object] = {"deadline_ms": _left_s(deadline_s) * 1000, "preview": watch is not None}
        # Whole files are too large to send over a network, and a warm-up drafts nothing.
        if self._process is None or body.max_tokens == 0:
            update["lookup"] = ()
        hints = body.fimserver.model_copy(update=update)
        return body.model_copy(update={"fimserver": hints, "stream": watch is not None})

    async def _post(self, body: CompletionBody, watch: Watch | None) -> Answer:
        """Return the answer, read in one piece or, with a watch, as a stream."""
        content = body.model_dump_json(exclude_defaults=True)
        headers = {"x-session-id": routing_id(body.fimserver)}
        if watch is None:
            return read_response(await self._client.post("/v1/completions", content=content, headers=headers))
        post = self._client.stream("POST", "/v1/completions", content=content, headers=headers)
        async with post as response:
            if response.status_code != OK:
                await response.aread()
                return read_response(response)
            pieces = []
            async for line in response.aiter_lines():
                if (piece := read_piece(line)) is not None:
                    pieces.append(piece)
                    if piece.canvas:
                        watch(piece.canvas)
        return gather(pieces)

    async def send_events(self, batch: bytes) -> bool:
        if "_client" not in self.__dict__:  # no request was sent yet
            return False
        import httpx2  # noqa: PLC0415 - see above

        try:
            async with asyncio.timeout(EVENTS_S):
                response = await self._client.post("/v1/events", content=batch)
        except (TimeoutError, httpx2.HTTPError, OSError, RuntimeError):  # the last: the client is closed
            return False
        return response.status_code == NO_CONTENT

    async def health(self) -> Health:
        if self._process and (reason := self._process.state()) is not None:
            return Health(reason, self._problem(reason))
        import httpx2  # noqa: PLC0415 - see above

        try:
            response = await self._client.get("/health", timeout=2.0)
        except (httpx2.HTTPError, OSError) as error:
            return Health(Reason.NO_HOST, self._unreachable(error), url=self._url)
        health = well(response) if response.status_code == OK else unwell(response)
        return replace(health, url=self._url)

    async def pause(self, minutes: float) -> str:
        if self._process and not is_serving(self._process.path):
            return "the model host does not run"
        import httpx2  # noqa: PLC0415 - see above

        body = {"minutes": minutes} if minutes else {}
        try:
            async with asyncio.timeout(PAUSE_S):
                response = await self._client.post("/v1/pause" if minutes else "/v1/resume", json=body)
        except (TimeoutError, httpx2.HTTPError, OSError) as error:
            return self._unreachable(error)
        return "" if response.status_code == OK else message_of(response)

    def revive(self) -> None:
        if self._process:
            self._process.state(asked=True)

    async def close(self) -> None:
        if "_client" in self.__dict__:
            await self._client.aclose()

    def _problem(self, reason: Reason) -> str:
        """Return why the host could not be started, or an empty string."""
        problem = self._process.problem if self._process else ""
        if reason is Reason.LOADING or not problem:
            return ""
        return f"{problem}; ask explicitly to try again" if reason is Reason.HOST_FAILED else problem

    @property
    def _url(self) -> str:
        """URL of a remote host without credentials; empty for this user's own host."""
        return "" if self._process else str(self._client.base_url.copy_with(userinfo=b""))

    def _unreachable(self, error: Exception) -> str:
        """Return a message for a host that cannot be reached: only a remote one needs the user's help."""
        why = type(error).__name__
        return (
            why
            if self._process
            else f"{self._url} does not answer ({why}): is `fimserver serve` running there?"
        )

    async def _wait_for_host(self, deadline_s: float, *, asked: bool) -> Reason | None:
        """Wait until the host listens and return ``None``, or return the reason at the deadline."""
        if self._process is None:
            return None
        reason = self._process.state(
            asked=asked
        )  # an explicit request resets the circuit breaker once, not at every poll
        while reason is not None:
            if reason is Reason.HOST_FAILED or time.monotonic() + POLL_S > deadline_s:
                return reason
            await asyncio.sleep(POLL_S)
            reason = self._process.state()
        return None


def open_host_client(connect: str, token: str, own: Callable[[], HostProcess]) -> HostClient:
    """Return a client of the host at ``connect``, or of this user's own host if that is empty.

    Raises ``InputError`` for an invalid URL.
    """
    if not connect:
        process = own()
        return HttpHostClient(lambda: _client("http://localhost", token, str(process.path)), process)
    try:
        url = base_url(connect)
    except ValueError:
        raise InputError(f"--connect {connect!r} is not a URL: give http://HOST:PORT") from None
    return HttpHostClient(lambda: _client(url, token, None), None)


def _client(url: str, token: str, socket: str | None) -> httpx2.AsyncClient:
    import httpx2  # noqa: PLC0415 - see HttpHostClient

    verify = url.startswith("https:")  # else no certificates need to be loaded
    transport = httpx2.AsyncHTTPTransport(uds=socket, verify=verify) if socket else None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # trust_env=False: a proxy from the environment must not see code that was meant for this machine.
    return httpx2.AsyncClient(
        base_url=url, headers=headers, transport=transport, timeout=None, trust_env=False, verify=verify
    )


def _left_s(deadline_s: float) -> float:
    """Return the seconds until a time on the monotonic clock, at least a millisecond."""
    return max(0.001, deadline_s - time.monotonic())


def routing_id(hints: EditorHints) -> str:
    """Return an id of a document in a window, by which a router keeps its requests on one replica."""
    return hashlib.blake2s(f"{hints.session}\0{hints.document}".encode(), digest_size=8).hexdigest()
