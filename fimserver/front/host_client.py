"""Knows the line to the host: one question, one answer, a reason for every failure. Knows nothing of editors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from pydantic import ValidationError

from fimserver.errors import InputError
from fimserver.front.host_process import HostProcess
from fimserver.reasons import Reason
from fimserver.types import Slot
from fimserver.wire import Answer, CompletionBody, gather, read_answer, read_piece

if TYPE_CHECKING:
    import httpx2

GRACE_S = 0.5  # what the host gets after the deadline to answer
POLL_S = 0.05
TELL_S = 2.0
OK, NO_CONTENT = 200, 204


Watch = Callable[[tuple[Slot, ...]], None]  # is shown the canvas of each denoising step


@dataclass(frozen=True)
class Health:
    """Whether the host can complete; ``None`` means that it can."""

    reason: Reason | None
    message: str = ""
    models: Mapping[str, str] = field(default_factory=dict)  # by route
    url: str = ""  # of a host elsewhere


class HostClient(Protocol):
    """The way to a host: ``HttpHostClient``, or a fake."""

    async def complete(self, body: CompletionBody, *, asked: bool, watch: Watch | None = None) -> Answer:
        """The host's answer. Never fails; cancelling it stops the host's work. ``asked``: not triggered by typing."""
        ...

    async def tell(self, batch: bytes) -> bool:
        """Take events to the host: whether they arrived. Never fails, never starts a host."""
        ...

    async def health(self) -> Health:
        """Whether it could answer now, having started it where that is due."""
        ...

    def revive(self) -> None:
        """Try the host again, also after it was given up."""
        ...

    async def close(self) -> None:
        """Let connections go."""
        ...


class HttpHostClient:
    """HTTP to a host of our own over its Unix socket, or to one elsewhere.

    The client is made at its first use: the editor's first question is answered before the HTTP library is loaded.
    """

    def __init__(self, make_client: Callable[[], httpx2.AsyncClient], hosting: HostProcess | None) -> None:
        self._make_client, self._hosting = make_client, hosting

    @cached_property
    def _client(self) -> httpx2.AsyncClient:
        return self._make_client()

    async def complete(self, body: CompletionBody, *, asked: bool, watch: Watch | None = None) -> Answer:
        deadline = time.monotonic() + (body.fimserver.deadline_ms or 10_000) / 1000
        if (reason := await self._host(deadline, asked=asked)) is not None:
            return failure(reason)
        import httpx2  # noqa: PLC0415 - see above

        left = max(0.001, deadline - time.monotonic())
        known = body.fimserver.model_copy(update={"deadline_ms": left * 1000, "preview": watch is not None})
        body = body.model_copy(update={"fimserver": known, "stream": watch is not None})
        try:
            async with asyncio.timeout(left + GRACE_S):
                return await self._ask(body, watch)
        except TimeoutError:
            return failure(Reason.DEADLINE)
        except (httpx2.HTTPError, OSError) as error:
            return failure(Reason.NO_HOST, self._away(error))
        except InputError as error:
            return failure(Reason.REFUSED, str(error))

    async def _ask(self, body: CompletionBody, watch: Watch | None) -> Answer:
        """The answer, in one piece or, where someone watches, as it comes."""
        question = body.model_dump_json(exclude_defaults=True)
        if watch is None:
            return _read(await self._client.post("/v1/completions", content=question))
        async with self._client.stream("POST", "/v1/completions", content=question) as response:
            if response.status_code != OK:
                await response.aread()
                return _read(response)
            pieces = []
            async for line in response.aiter_lines():
                if (piece := read_piece(line)) is not None:
                    pieces.append(piece)
                    if piece.canvas:
                        watch(piece.canvas)
        return gather(pieces)

    async def tell(self, batch: bytes) -> bool:
        if "_client" not in self.__dict__:  # the host was never spoken to
            return False
        import httpx2  # noqa: PLC0415 - see above

        try:
            async with asyncio.timeout(TELL_S):
                response = await self._client.post("/v1/events", content=batch)
        except (TimeoutError, httpx2.HTTPError, OSError, RuntimeError):  # the last: the line is closed
            return False
        return response.status_code == NO_CONTENT

    async def health(self) -> Health:
        if self._hosting and (reason := self._hosting.state()) is not None:
            return Health(reason)
        import httpx2  # noqa: PLC0415 - see above

        try:
            response = await self._client.get("/health", timeout=2.0)
        except (httpx2.HTTPError, OSError) as error:
            return Health(Reason.NO_HOST, self._away(error), url=self._url)
        health = _well(response) if response.status_code == OK else _unwell(response)
        return replace(health, url=self._url)

    def revive(self) -> None:
        if self._hosting:
            self._hosting.state(asked=True)

    async def close(self) -> None:
        if "_client" in self.__dict__:
            await self._client.aclose()

    @property
    def _url(self) -> str:
        """Of a host elsewhere, without any password; empty for one of our own."""
        return "" if self._hosting else str(self._client.base_url.copy_with(userinfo=b""))

    def _away(self, error: Exception) -> str:
        """What to say of a host that is not there. One of our own is started again."""
        why = type(error).__name__
        return why if self._hosting else f"{self._url} does not answer ({why}): is `fimserver serve` running there?"

    async def _host(self, deadline: float, *, asked: bool) -> Reason | None:
        """Wait for the host until the deadline; ``None`` when it listens."""
        if self._hosting is None:
            return None
        reason = self._hosting.state(asked=asked)  # a rest ends once for each question, not at every look
        while reason is not None:
            if reason is Reason.RESTING or time.monotonic() + POLL_S > deadline:
                return reason
            await asyncio.sleep(POLL_S)
            reason = self._hosting.state()
        return None


def open_host_client(connect: str, token: str, own: Callable[[], HostProcess]) -> HostClient:
    """The line to ``connect``, or to this user's own host. Raises ``InputError`` for a URL that cannot be one."""
    if not connect:
        hosting = own()
        return HttpHostClient(lambda: _client("http://localhost", token, str(hosting.path)), hosting)
    url = urlsplit(connect)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise InputError(f"--connect {connect!r} is not a URL: give http://HOST:PORT")
    return HttpHostClient(lambda: _client(connect, token, None), None)


def _client(url: str, token: str, socket: str | None) -> httpx2.AsyncClient:
    import httpx2  # noqa: PLC0415 - see HttpLine

    verify = url.startswith("https:")  # else no certificates need to be loaded
    transport = httpx2.AsyncHTTPTransport(uds=socket, verify=verify) if socket else None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # trust_env=False: a proxy of the environment must not see code that was meant for this machine.
    return httpx2.AsyncClient(base_url=url, headers=headers, transport=transport, timeout=None, trust_env=False, verify=verify)


def _read(response: httpx2.Response) -> Answer:
    """Raises ``InputError`` for what no host of ours says."""
    if response.status_code in {401, 403}:
        return failure(Reason.REFUSED, message_of(response))
    if response.status_code != OK:
        return failure(Reason.BAD_INPUT, message_of(response))
    return read_answer(response.content)


def _well(response: httpx2.Response) -> Health:
    """What a host that can complete says about itself. Another server's answer is not ours."""
    try:
        return Health(None, models={str(route): str(name) for route, name in response.json()["models"].items()})
    except (ValueError, KeyError, TypeError, AttributeError):
        return Health(Reason.REFUSED, "not a host of fimserver")


def _unwell(response: httpx2.Response) -> Health:
    """What a host that cannot complete says about it."""
    if response.status_code in {401, 403}:
        return Health(Reason.REFUSED, message_of(response))
    try:
        return Health(Reason(response.json()["status"]), message_of(response))
    except (ValueError, KeyError, TypeError, ValidationError):
        return Health(Reason.REFUSED, "not a host of fimserver")


def message_of(response: httpx2.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"


def failure(reason: Reason, message: str = "") -> Answer:
    """An answer without any middle."""
    return Answer(reason=reason, message=message)
