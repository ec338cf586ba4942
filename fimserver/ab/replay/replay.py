"""Replay of a keystroke trace against a real server, as an editor would send it.

Keys keep their timing, with pauses limited to two seconds and all times divided by ``speed``: 2 simulates a
machine that is half as fast. The editor's delays are scaled as well, the server's are not. Without a speed
each request is answered before the next key is sent.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fimserver.ab.items.client_model import Editor, PlannedRequest, Step, plan
from fimserver.ab.items.traces import Change, Close, Open, Patch, Trace
from fimserver.ab.replay.lsp_client import LspClient, LspResponse
from fimserver.ab.replay.outcome import Ending, Replayed, ReplayedText, RequestOutcome
from fimserver.errors import FimError, InputError

WARM_UP = "def add(a, b):\n    return \n\n\nvalue = \n"
WARM_UP_PLACES = ((1, 11), (4, 8))  # of requests before the first key, which are not counted
POLL_S = 0.05
FOLDER = "file:///fimserver-trace"


def replay(
    trace: Trace,
    command: Sequence[str],
    *,
    speed: float | None = 1.0,
    client: Editor = "vscode",
    env: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    ready_s: float = 300.0,
    limit_s: float = 15.0,
) -> Replayed:
    """Start the server of one arm, replay a trace, and end the server.

    ``command``: the server's command line. ``env``: additional environment variables; a host started by the
    server outlives it, as it does for an editor. ``options``: additional initializationOptions. ``ready_s``:
    time limit for starting server and model; ``limit_s``: for each answer. Raises ``InputError`` if the
    command cannot be started, ``FimError`` if the server dies, hangs or cannot use its model.
    """
    if speed is not None and not speed > 0:
        raise InputError(f"speed {speed:g}: give a number above 0")
    whole_env = os.environ | dict(env or {}) | {"FIMSERVER_RECORD": ""}  # a replay must not be recorded
    try:
        return asyncio.run(
            _replay(trace, command, speed, client, whole_env, dict(options or {}), ready_s, limit_s)
        )
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def _replay(
    trace: Trace,
    command: Sequence[str],
    speed: float | None,
    client: Editor,
    env: Mapping[str, str],
    options: Mapping[str, Any],
    ready_s: float,
    limit_s: float,
) -> Replayed:
    states: list[Mapping[str, Any]] = [{}]
    server = await LspClient.start(
        command, env, lambda method, params: _on_notification(states, method, params), limit_s
    )
    try:
        # Several servers that start at once on a busy machine are slow but do not hang.
        start_s = max(ready_s, limit_s)
        await server.call("initialize", _greeting(options), start_s)
        server.notify("initialized", {})
        await _ready(server, states, ready_s)
        await _warm_up(server, start_s)
        _complain(states[-1])
        player = _Player(server, speed, client)
        async with asyncio.TaskGroup() as group:
            await player.play(plan(trace, client), group)
        shots = tuple(task.result() for task in player.tasks)
        seconds = time.perf_counter() - player.start_s
        route = str(states[-1].get("setRoute", "auto"))
        return Replayed(trace, shots, tuple(player.keys), seconds, player.lag_ms, speed, client, route)
    finally:
        await server.close()


def _on_notification(states: list[Mapping[str, Any]], method: str, params: Any) -> None:
    if method == "fimserver/status" and isinstance(params, dict):
        states.append(params)


def _greeting(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return initialize parameters of an LSP 3.18 client with ghost text and UTF-32 positions."""
    return {
        "processId": os.getpid(),
        "clientInfo": {"name": "fimserver ab"},
        "rootUri": None,
        "workspaceFolders": None,
        "capabilities": {
            "general": {"positionEncodings": ["utf-32"]},
            "textDocument": {"inlineCompletion": {}},
        },
        "initializationOptions": {**options, "status": True},
    }


async def _ready(server: LspClient, states: Sequence[Mapping[str, Any]], ready_s: float) -> None:
    """Wait for the model. Raises ``FimError`` if it cannot be loaded in time."""
    end = time.monotonic() + ready_s
    while states[-1].get("state") != "ready":
        _complain(states[-1])
        if time.monotonic() >= end:
            message = states[-1].get("message") or "it sent no status"
            raise FimError(f"the model was not ready after {ready_s:g} s: {message}")
        await server.call("fimserver/stats", None)  # raises if the server has died
        await asyncio.sleep(POLL_S)


def _complain(state: Mapping[str, Any]) -> None:
    if state.get("kind") == "Error":
        raise FimError(f"the server cannot complete: {state.get('message')}")


async def _warm_up(server: LspClient, limit_s: float) -> None:
    """Send first requests, so that one-time costs are not measured."""
    document = {"uri": f"{FOLDER}/0/warm_up.py", "languageId": "python", "version": 0, "text": WARM_UP}
    server.notify("textDocument/didOpen", {"textDocument": document})
    for line, char in WARM_UP_PLACES:
        place = _ask(document["uri"], line, char, invoked=False)
        await server.call("textDocument/inlineCompletion", place, limit_s)
    server.notify("textDocument/didClose", {"textDocument": {"uri": document["uri"]}})


def _ask(uri: Any, line: int, char: int, *, invoked: bool) -> dict[str, Any]:
    place = {"line": line, "character": char}
    kind = 1 if invoked else 2
    return {"textDocument": {"uri": uri}, "position": place, "context": {"triggerKind": kind}}


@dataclass
class _Waiting:
    """A request without an answer yet."""

    request: PlannedRequest
    key_ms: float
    asked_ms: float
    message_id: int
    answer: asyncio.Future[LspResponse]
    next_key_ms: float | None = None
    cancelled: bool = False


class _Player:
    """Plays the steps of one replay and follows its requests."""

    def __init__(self, server: LspClient, speed: float | None, client: Editor) -> None:
        self._server = server
        self._speed = speed
        self._client = client
        self._uris: dict[int, str] = {}
        self._versions: Counter[int] = Counter()
        self._waiting: list[_Waiting] = []
        self.tasks: list[asyncio.Task[RequestOutcome]] = []
        self.keys: list[tuple[float, int]] = []
        self.lag_ms = 0.0
        self.start_s = time.perf_counter()

    async def play(self, steps: Sequence[Step], group: asyncio.TaskGroup) -> None:
        """Run each step when it is due. Answers are awaited in ``group``."""
        self.start_s = time.perf_counter()
        for step in steps:
            if self._speed is not None:
                due_ms = step.due_ms / self._speed
                await asyncio.sleep(max(0.0, due_ms - self._now_ms()) / 1000)
                self.lag_ms = max(self.lag_ms, self._now_ms() - due_ms)
            self._do(step.what, group)
            await self._server.drain()
            if self._speed is None and self.tasks:
                await asyncio.wait(self.tasks[-1:])

    def _do(self, what: Open | Change | Close | PlannedRequest, group: asyncio.TaskGroup) -> None:
        if isinstance(what, PlannedRequest):
            self._request(what, group)
        elif isinstance(what, Change):
            self._key(what)
        elif isinstance(what, Open):
            self._uris[what.doc] = (
                f"{FOLDER}/{what.doc}/{quote(what.name)}" if what.name else f"untitled:{what.doc}"
            )
            document = {
                "uri": self._uris[what.doc],
                "languageId": what.language,
                "version": 0,
                "text": what.text,
            }
            self._server.notify("textDocument/didOpen", {"textDocument": document})
        else:
            self._next_key()
            self._server.notify("textDocument/didClose", {"textDocument": {"uri": self._uris[what.doc]}})

    def _key(self, change: Change) -> None:
        self._versions[change.doc] += 1
        document = {"uri": self._uris[change.doc], "version": self._versions[change.doc]}
        changes = [{"range": _range(patch), "text": patch.text} for patch in change.edits]
        self._server.notify("textDocument/didChange", {"textDocument": document, "contentChanges": changes})
        self._next_key()
        self.keys.append((self._now_ms(), sum(len(patch.text) for patch in change.edits)))

    def _next_key(self) -> None:
        """Mark requests without an answer as late, and cancel them as VS Code does."""
        for waiting in self._waiting:
            if not waiting.answer.done() and waiting.next_key_ms is None:
                waiting.next_key_ms = self._now_ms()
                waiting.cancelled = self._client == "vscode"
                if waiting.cancelled:
                    self._server.notify("$/cancelRequest", {"id": waiting.message_id})
        self._waiting = [waiting for waiting in self._waiting if not waiting.answer.done()]

    def _request(self, request: PlannedRequest, group: asyncio.TaskGroup) -> None:
        params = _ask(self._uris[request.doc], request.line, request.char, invoked=request.invoked)
        message_id, answer = self._server.post("textDocument/inlineCompletion", params)
        now_ms = self._now_ms()
        waiting = _Waiting(request, self.keys[-1][0] if self.keys else now_ms, now_ms, message_id, answer)
        self._waiting.append(waiting)
        self.tasks.append(group.create_task(self._follow(waiting)))

    async def _follow(self, waiting: _Waiting) -> RequestOutcome:
        answer = await self._server.answer(waiting.answer)
        at_ms = (answer.at_s - self.start_s) * 1000
        texts = _texts(answer.result, waiting.request.char)
        facts: Mapping[str, Any] = {}
        if isinstance(answer.result, dict) and not waiting.cancelled:
            explained = await self._server.call("fimserver/explain", None)
            facts = explained if isinstance(explained, dict) and explained.get("shown") == len(texts) else {}
        is_late = waiting.next_key_ms is not None
        ending = _ending(answer, texts, cancelled=waiting.cancelled, late=is_late)
        return RequestOutcome(waiting.request, waiting.key_ms, waiting.asked_ms, at_ms, ending, texts, facts)

    def _now_ms(self) -> float:
        return (time.perf_counter() - self.start_s) * 1000


def _range(patch: Patch) -> dict[str, Any]:
    ends = {"start": (patch.line, patch.char), "end": (patch.end_line, patch.end_char)}
    return {name: {"line": line, "character": char} for name, (line, char) in ends.items()}


def _texts(result: Any, char: int) -> tuple[ReplayedText, ...]:
    """Return the suggestions of an answer."""
    items = result.get("items", []) if isinstance(result, dict) else []
    return tuple(ReplayedText(item["insertText"], item["range"]["end"]["character"] - char) for item in items)


def _ending(answer: LspResponse, texts: Sequence[ReplayedText], *, cancelled: bool, late: bool) -> Ending:
    if cancelled:
        return "cancelled"
    if answer.error is not None:
        return "failed"
    if answer.result is None:
        return "superseded"
    if not texts:
        return "empty"
    return "late" if late else "shown"
