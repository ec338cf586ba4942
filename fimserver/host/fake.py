"""Scripted engines, for tests of everything around engines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from fimserver.reasons import Reason
from fimserver.types import Chunk, Deadline, Drafting, Request, Route, Slot

Script = Callable[[Request, Route], Iterator[str | float | tuple[Slot, ...] | BaseException]]


class FakeEngine:
    """Yields the steps of a script: text, a canvas, a pause in seconds, or an error to raise.

    It checks its deadline after each step. On the ar route each text is a round in which one of two drafted
    tokens was accepted.
    """

    def __init__(self, host: FakeEngines, route: Route) -> None:
        self.card: Any = SimpleNamespace(name="fake")
        self._host = host
        self._route = route

    def warm(self, request: Request, deadline: Deadline) -> None:  # noqa: ARG002 - the shape of an engine
        self._host.warmed.append(request)

    def num_uncached_tokens(self, request: Request) -> int:
        return len(request.prefix) // 4

    def complete(self, request: Request, deadline: Deadline) -> Iterator[Chunk]:
        self._host.asked.append(request)
        tokens = 0
        for step in self._host.script(request, self._route):
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, float):
                time.sleep(step)
            elif isinstance(step, tuple):
                yield Chunk("", tokens, tokens, None, canvas=step)
            elif step:
                tokens += 1
                yield Chunk(step, tokens, tokens, None)
            if (reason := deadline.spent()) is not None:
                self._host.stopped.append((reason, time.monotonic()))
                yield Chunk("", tokens, tokens, reason)
                return
        drafting = Drafting(tokens, 2 * tokens, (tokens,)) if self._route == "ar" else None
        reason = Reason.END if tokens else Reason.EMPTY
        sure = self._host.confidence
        yield Chunk("", tokens, tokens, reason, drafting=drafting, confidence=sure)


class FakeEngines:
    """Both routes on one script, with a record of the requests."""

    def __init__(self, script: Script | None = None) -> None:
        self.script: Script = script or (lambda _request, _route: iter(()))
        self.confidence: float | None = None
        self.asked: list[Request] = []
        self.warmed: list[Request] = []
        self.stopped: list[tuple[Reason, float]] = []

    def engine(self, route: Route) -> FakeEngine:
        return FakeEngine(self, route)

    def served(self) -> Mapping[Route, str]:
        return {"dllm": "fake", "ar": "fake"}
