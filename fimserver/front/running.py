"""Running work of one editor window: the newest request of each slot, and background tasks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, NamedTuple

from fimserver.front.outcome import Outcome
from fimserver.reasons import Reason


class RunningTask(NamedTuple):
    """Task of a slot, and a future that is set when a newer request supersedes it."""

    task: asyncio.Task[Outcome]
    superseded: asyncio.Future[None]


class Running:
    """At most one request per slot (document and surface), at most one prefetch, and detached tasks."""

    def __init__(self) -> None:
        self.last_used_s = 0.0  # monotonic clock: the last key or request
        self._requests: dict[str, RunningTask] = {}
        self._prefetch: asyncio.Task[None] | None = None
        self._detached: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._requests)

    def used(self) -> None:
        """Note that the user has just typed or requested something."""
        self.last_used_s = time.monotonic()

    def quiet_s(self) -> float:
        """Return for how many seconds nobody has typed or requested anything; 0 while work is running."""
        is_busy = self._requests or (self._prefetch is not None and not self._prefetch.done())
        return 0.0 if is_busy else time.monotonic() - self.last_used_s

    async def run_latest(self, slot: str, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Run ``work``; an older request of the slot returns superseded at once and cleans up later."""
        self.stop(slot)
        self.used()
        running = RunningTask(asyncio.ensure_future(work), asyncio.get_running_loop().create_future())
        self._requests[slot] = running
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            return Outcome(reason=Reason.SUPERSEDED) if running.superseded.done() else running.task.result()
        finally:
            if not running.task.done():
                running.task.cancel()
            if self._requests.get(slot) is running:
                del self._requests[slot]

    def stop(self, uri: str = "") -> None:
        """End the request of a slot, those of a document, or all of them."""
        for slot in [
            slot for slot in self._requests if not uri or slot == uri or slot.startswith(f"{uri}\0")
        ]:
            running = self._requests.pop(slot)
            if not running.superseded.done():
                running.superseded.set_result(None)
            running.task.cancel()

    def run_detached(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a task whose result nobody waits for."""
        task = asyncio.ensure_future(work)
        self._detached.add(task)
        task.add_done_callback(self._detached.discard)

    def run_prefetch(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a prefetch instead of the previous one. Typing does not end it; the next request does."""
        self.stop_prefetch()
        self._prefetch = asyncio.ensure_future(work)

    def stop_prefetch(self) -> None:
        """End the prefetch."""
        if self._prefetch is not None:
            self._prefetch.cancel()
            self._prefetch = None

    def stop_all(self) -> None:
        """End everything."""
        self.stop()
        self.stop_prefetch()
        for task in self._detached:
            task.cancel()
