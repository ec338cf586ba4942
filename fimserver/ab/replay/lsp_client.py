"""LSP client: starts a language server and talks JSON-RPC to it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fimserver.errors import FimError, InputError
from fimserver.front.lsp.transport import Decoder, FramingError, encode

END_S = 2.0  # time limit for a server to shut down
_TAIL_BYTES = 4096
_BAD_COMMAND = 2  # exit code of a fimserver that cannot use its flags


@dataclass(frozen=True)
class LspResponse:
    """Response to a request. ``at_s``: time of arrival (``time.perf_counter``)."""

    result: Any
    error: Mapping[str, Any] | None
    at_s: float


class LspClient:
    """One server process. Calls ``heard`` with the method and parameters of every notification."""

    def __init__(
        self, process: asyncio.subprocess.Process, heard: Callable[[str, Any], None], limit_s: float
    ) -> None:
        self._process = process
        self._heard = heard
        self._limit_s = limit_s
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[LspResponse]] = {}
        self._errors = b""
        self._problem: FimError | None = None
        self._tasks = [asyncio.ensure_future(self._read()), asyncio.ensure_future(self._read_errors())]

    @classmethod
    async def start(
        cls, command: Sequence[str], env: Mapping[str, str], heard: Callable[[str, Any], None], limit_s: float
    ) -> LspClient:
        """Start a server. Raises ``InputError`` if the program cannot be started."""
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, stderr=pipe, env=dict(env)
            )
        except OSError as error:
            raise InputError(f"{command[0]} cannot be started: {error.strerror or error}") from None
        return cls(process, heard, limit_s)

    def post(self, method: str, params: Any) -> tuple[int, asyncio.Future[LspResponse]]:
        """Send a request and return its id and a future. Raises ``FimError`` if the server is gone."""
        number = next(self._ids)
        answer = self._pending[number] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_looked_at)
        self._send({"id": number, "method": method, "params": params})
        return number, answer

    def notify(self, method: str, params: Any) -> None:
        """Send a notification. Raises ``FimError`` if the server is gone."""
        self._send({"method": method, "params": params})

    async def answer(self, future: asyncio.Future[LspResponse], limit_s: float | None = None) -> LspResponse:
        """Wait for an answer. Raises ``FimError`` after ``limit_s`` (default: the client's limit)."""
        limit_s = self._limit_s if limit_s is None else limit_s
        try:
            async with asyncio.timeout(limit_s):
                return await future
        except TimeoutError:
            raise FimError(f"the server did not answer within {limit_s:g} s: it hangs, see its log") from None

    async def call(self, method: str, params: Any, limit_s: float | None = None) -> Any:
        """Return the result of a request. Raises ``FimError`` for an error or after ``limit_s``."""
        got = await self.answer(self.post(method, params)[1], limit_s)
        if got.error is not None:
            raise FimError(f"the server refused {method}: {got.error.get('message', '')}")
        return got.result

    async def drain(self) -> None:
        """Wait until the server has read what was sent. Raises ``FimError`` if it does not."""
        if self._process.stdin is None:
            return
        try:
            async with asyncio.timeout(self._limit_s):
                await self._process.stdin.drain()
        except TimeoutError:
            raise FimError(
                f"the server has read nothing for {self._limit_s:g} s: it hangs, see its log"
            ) from None
        except OSError:
            await self._tasks[0]  # raises the reader's error

    async def close(self) -> None:
        """End the process, by ``shutdown`` and ``exit`` if it answers in time."""
        with contextlib.suppress(FimError, TimeoutError):
            async with asyncio.timeout(END_S):
                await self.call("shutdown", None)
                self.notify("exit", None)
                await self._process.wait()
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _send(self, message: dict[str, Any]) -> None:
        if self._problem is not None:
            raise self._problem
        if self._process.stdin is not None:
            self._process.stdin.write(encode(json.dumps({"jsonrpc": "2.0", **message}).encode()))

    async def _read(self) -> None:
        decoder = Decoder()
        stream = self._process.stdout
        why = ""
        try:
            while stream is not None and (data := await stream.read(1 << 16)):
                now = time.perf_counter()
                for body in decoder.feed(data):
                    self._take(dict(json.loads(body)), now)
        except (FramingError, ValueError, TypeError):
            why = "the program is not a language server: is the command right?"
        self._fail(InputError(why) if why else await self._death())

    def _take(self, message: dict[str, Any], now: float) -> None:
        if "method" in message and "id" in message:
            self._send({"id": message["id"], "result": None})  # no configuration, no progress
        elif "method" in message:
            self._heard(message["method"], message.get("params"))
        else:
            future = self._pending.pop(message.get("id", 0), None)
            if future is not None and not future.done():
                future.set_result(LspResponse(message.get("result"), message.get("error"), now))

    async def _read_errors(self) -> None:
        while self._process.stderr is not None and (data := await self._process.stderr.read(1 << 12)):
            self._errors = (self._errors + data)[-_TAIL_BYTES:]

    async def _death(self) -> FimError:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await asyncio.gather(self._process.wait(), self._tasks[1])
        lines = self._errors.decode("utf-8", "replace").strip().splitlines()
        message = (
            f"the server ended, exit code {self._process.returncode}:"
            f" {lines[-1] if lines else 'it wrote nothing to stderr'}"
        )
        return InputError(message) if self._process.returncode == _BAD_COMMAND else FimError(message)

    def _fail(self, problem: FimError) -> None:
        self._problem = problem
        for future in self._pending.values():
            if not future.done():
                future.set_exception(problem)


def _looked_at(future: asyncio.Future[LspResponse]) -> None:
    """Retrieve the error of an answer that nobody waits for, so that asyncio does not log it."""
    if not future.cancelled():
        future.exception()
