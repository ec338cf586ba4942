"""HTTP connection to a remote server: streamed answers that can be cancelled, errors by kind.

Requests run on an event loop in its own thread, so that the engine's thread can check deadlines and serve
other requests while the server is silent. Closing a stream closes the connection, which makes the server
stop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Generator
from functools import cache
from typing import Any

import httpx2

from fimserver.engine.remote.dialect import Call
from fimserver.engine.remote.failures import error_of
from fimserver.engine.remote.wait import Wait
from fimserver.errors import AwayError, FimError, GarbledError, OverloadedError, RemoteError, WarmingError
from fimserver.types import Deadline

CONNECT_S = 2.0
SILENCE_S = 60.0  # longest time without a byte
PROBE_S = 2.0
LINE_BYTES = 1 << 20
ANSWER_BYTES = 4 << 20
BACK_OFF_S = (0.25, 1.0, 2.0, 5.0, 15.0)  # pause after 1, 2, … consecutive failures
OK = 200
RETRIED = (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError)  # a pooled connection was closed
Item = str | Exception | None  # a line, an error, or the end
_BACKED_OFF = (AwayError, OverloadedError, WarmingError)


class RemoteConnection:
    """HTTP client of one server; thread-safe."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # trust_env=False: a proxy set in the environment must not see the user's code.
        self._client = httpx2.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=httpx2.Timeout(SILENCE_S, connect=CONNECT_S),
            trust_env=False,
            verify=url.startswith("https:"),
        )
        self.tries = 0
        self._failures = 0
        self._not_before = 0.0
        self._last: RemoteError | None = None
        weakref.finalize(self, _close, self._client).atexit = False

    def lines(self, call: Call, deadline: Deadline) -> Generator[str | Wait, None, None]:
        """Yield the lines of a streamed answer, and waits for them, until it ends or the deadline passes.

        Closing the generator closes the connection. Raises ``RemoteError``; at once if the server failed a
        moment ago (``BACK_OFF_S``).
        """
        self._check_back_off()
        items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        wait = Wait()

        def put(item: Item) -> None:
            items.put(item)
            wait.arrive()

        running = asyncio.run_coroutine_threadsafe(self._pump(call, put), _loop())
        try:
            while not deadline.spent():
                wait.clear()
                try:
                    item = items.get_nowait()
                except queue.Empty:
                    yield wait
                    continue
                if item is None:
                    self._note(None)
                    return
                if isinstance(item, RemoteError):
                    self._note(item)
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            running.cancel()

    def ask(
        self, calls: tuple[str | Call, ...], deadline: Deadline
    ) -> Generator[Wait, None, list[tuple[int, Any]]]:
        """Ask several addresses in parallel; returns status and JSON of each, ``None`` for anything else.

        Yields the waits. An address that does not answer has status 0. Raises ``AwayError`` if none answers.
        """
        self._check_back_off()
        wait = Wait()
        asking = asyncio.wait_for(self._ask_all(calls), PROBE_S)
        running = asyncio.run_coroutine_threadsafe(asking, _loop())
        running.add_done_callback(lambda _: wait.arrive())
        away = AwayError(f"{self.url} does not answer: is it running?")
        try:
            while not running.done():
                if deadline.spent():
                    raise away  # not noted as a failure: the deadline may have been too short
                yield wait
            answers = running.result()
        except TimeoutError:
            raise self._note(away) from None
        finally:
            running.cancel()
        if not any(status for status, _ in answers):
            raise self._note(AwayError(f"{self.url} cannot be reached: is it running?"))
        return answers

    def _check_back_off(self) -> None:
        if self._last is not None and time.monotonic() < self._not_before:
            raise type(self._last)(str(self._last))
        self.tries += 1

    def _note(self, error: RemoteError | None) -> RemoteError:
        """Record a failure, or with ``None`` a success."""
        if isinstance(error, _BACKED_OFF):
            wait_s = BACK_OFF_S[min(self._failures, len(BACK_OFF_S) - 1)]
            self._failures += 1
            self._not_before = time.monotonic() + wait_s
            self._last = error
        else:
            self._failures = 0
            self._last = None
        return error or RemoteError("")

    async def _pump(self, call: Call, put: Callable[[Item], None]) -> None:
        """Put the lines of an answer, then ``None`` or an error."""
        said = False  # whether a line of the answer has come
        for attempt in (1, 2):
            try:
                async with self._client.stream("POST", call.path, json=call.body) as response:
                    if response.status_code != OK:
                        raise await _refusal(response, self.url)
                    async for line in _split(response.aiter_bytes(), self.url):
                        said = True
                        put(line)
                put(None)
            except RETRIED as error:
                if attempt == 1 and not said:  # a retry cannot repeat anything
                    continue
                put(_broken(self.url, error, said=said))
            except FimError as error:
                put(error)
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
                put(_broken(self.url, error, said=said))
            return

    async def _ask_all(self, calls: tuple[str | Call, ...]) -> list[tuple[int, Any]]:
        return await asyncio.gather(*map(self._ask_one, calls))

    async def _ask_one(self, call: str | Call) -> tuple[int, Any]:
        try:
            if isinstance(call, str):
                response = await self._client.get(call)
            else:
                response = await self._client.post(call.path, json=call.body)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError):
            return 0, None
        try:
            return response.status_code, response.json()
        except ValueError:
            return response.status_code, None


def _broken(url: str, error: Exception, *, said: bool) -> AwayError:
    """Return the error of a connection that failed; ``said``: after the first line of an answer."""
    why = type(error).__name__
    if said:
        return AwayError(f"{url} closed the connection in the middle of an answer ({why})")
    return AwayError(f"{url} cannot be reached ({why}): is it running?")


async def _refusal(response: httpx2.Response, url: str) -> RemoteError:
    try:
        body = await response.aread()
    except httpx2.HTTPError:
        body = b""
    return error_of(response.status_code, body, url)


async def _split(parts: AsyncIterator[bytes], url: str) -> AsyncIterator[str]:
    """Split a body into lines at line feeds alone: JSON may contain other line ends."""
    rest = b""
    total = 0
    async for part in parts:
        total += len(part)
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield _text(line, url)
        if len(rest) > LINE_BYTES or total > ANSWER_BYTES:
            raise GarbledError(f"{url} sends an answer that does not end: is it the right server?")
    if rest:
        yield _text(rest, url)


def _text(line: bytes, url: str) -> str:
    try:
        return line.decode("utf-8").rstrip("\r")
    except UnicodeDecodeError:
        raise GarbledError(f"{url} sends an answer that is not UTF-8: is it the right server?") from None


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of all connections, in a thread that ends with the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="remote", daemon=True).start()
    return loop


def _close(client: httpx2.AsyncClient) -> None:
    """Close pooled connections without waiting."""
    asyncio.run_coroutine_threadsafe(client.aclose(), _loop())
