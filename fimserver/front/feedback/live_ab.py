"""Live A/B comparison of the routes: assigns each document a route for five minutes at a time.

The route depends only on the seed, the document and the time, not on what happened before. With shadow
requests the other route is asked later, while the user is idle.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from typing import Literal, NamedTuple

from fimserver.events import PROPENSITY
from fimserver.reasons import Reason
from fimserver.types import Decision, Route
from fimserver.wire import Answer, CompletionBody, Usage

Mode = Literal["off", "blocks", "shadow"]
BLOCK_S = 300
MAX_SHADOWS = 4  # waiting ones
SHADOW_S = 55.0  # maximum age: later the shadow would miss the last look at the answer (60 s)
QUIET_S = 1.0  # without a key or a request: the user reads or thinks
AGAIN = frozenset({Reason.SUPERSEDED, Reason.CANCELLED})


class RouteTurn(NamedTuple):
    """Route of a document until ``until`` (Unix seconds). ``block``: five-minute blocks since 1970."""

    route: Route
    block: int
    until: float
    mode: Mode = "blocks"

    def explained(self, usage: Usage) -> Usage:
        """Return ``usage`` with the comparison as the reason for its route, if that route served it."""
        if usage.route != self.route:
            return usage
        until = datetime.fromtimestamp(self.until).astimezone()
        why = f"A/B: this document has {self.route} until {until:%H:%M}"
        decision = usage.decision or Decision(self.route, "")
        decision = replace(decision, why=why, policy=self.mode, propensity=PROPENSITY)
        return usage.model_copy(update={"decision": decision})


class LiveComparison:
    """Comparison in one window. ``clock`` returns Unix seconds."""

    def __init__(self, mode: Mode = "off", seed: int = 0, clock: Callable[[], float] = time.time) -> None:
        self.mode = mode
        self._seed = seed
        self._clock = clock
        self._asked: dict[str, int] = {}  # the block of each document's last request

    def turn(self, document: str) -> RouteTurn | None:
        """Return the turn of a document, by its opaque id; ``None`` while no comparison runs."""
        if self.mode == "off":
            return None
        block = int(self._clock() // BLOCK_S)
        coin = hashlib.sha256(f"{self._seed} {document} {block}".encode()).digest()[0] & 1
        return RouteTurn("ar" if coin else "dllm", block, (block + 1) * BLOCK_S, self.mode)

    def is_first(self, document: str, turn: RouteTurn) -> bool:
        """Return whether this is the first request of its block, and note it.

        Its caches were filled by the previous block, so its latency is not comparable.
        """
        is_first = self._asked.get(document) != turn.block
        self._asked[document] = turn.block
        return is_first

    def forget(self, document: str) -> None:
        """Forget a document that was closed."""
        self._asked.pop(document, None)


class Shadow(NamedTuple):
    """A request for the other route, and the function that takes its answer."""

    body: CompletionBody
    judge: Callable[[Answer], None]
    deadline_ms: float  # counted from when it is sent
    asked_s: float  # monotonic clock


class Shadows:
    """Requests for the other route, sent while the user is idle. At most four wait; the oldest is dropped.

    ``ask(body, deadline_ms)`` sends a request to the host; ``quiet_s`` returns for how many seconds the user
    has been idle.
    """

    def __init__(
        self,
        ask: Callable[[CompletionBody, float], Awaitable[Answer]],
        quiet_s: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._quiet_s = quiet_s
        self._sleep = sleep
        self._clock = clock
        self._waiting: deque[Shadow] = deque(maxlen=MAX_SHADOWS)
        self._task: asyncio.Task[None] | None = None

    def put(
        self, body: CompletionBody, route: Route, judge: Callable[[Answer], None], deadline_ms: float
    ) -> None:
        """Queue the same request for ``route``, as idle work that any other request cancels."""
        known = body.fimserver.model_copy(update={"route": route, "idle": True})
        only = body.model_copy(update={"fimserver": known, "n": 1})
        self._waiting.append(Shadow(only, judge, deadline_ms, self._clock()))
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())

    def stop(self) -> None:
        """Drop all waiting requests and cancel the running one."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        while self._waiting:
            if (left_s := QUIET_S - self._quiet_s()) > 0:
                await self._sleep(left_s)
                continue
            shadow = self._waiting.popleft()
            if self._clock() - shadow.asked_s > SHADOW_S:
                continue
            answer = await self._ask(shadow.body, shadow.deadline_ms)
            if answer.middles and answer.middles[0].usage.reason in AGAIN:
                if len(self._waiting) < MAX_SHADOWS:
                    self._waiting.appendleft(shadow)
                await self._sleep(QUIET_S)  # another window is using the host
            elif answer.middles:
                shadow.judge(answer)
