"""Failsafe drafter: a wrapper with which decoding goes on when a drafter raises or hangs.

A drafter that raises proposes nothing, and is switched off after three failures. One that hangs is switched
off and left in its own thread. Drafters with ``inline`` run in the target's thread, which is faster: their
work is bounded by construction.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from fimserver.engine.speculation.drafts import DecodeState, Draft, Drafter

log = logging.getLogger("fimserver.engine")
T = TypeVar("T")
FAILURES = 3
LIMIT_S = 0.25


class FailsafeDrafter:
    """Wraps a drafter so that it never raises, and never blocks for longer than ``limit_s``."""

    def __init__(self, drafter: Drafter, name: str = "", limit_s: float = LIMIT_S) -> None:
        self.name = name or drafter.name
        self.drafter = drafter
        self.limit_s = limit_s
        self.failures = 0
        self.inline = drafter.inline
        self.keeps_text = drafter.keeps_text
        self._worker = _Worker(self.name)

    @property
    def off(self) -> bool:
        return self.failures >= FAILURES

    def propose(self, state: DecodeState, size: int) -> list[Draft]:
        return self._run(lambda: self.drafter.propose(state, size)) or []

    def observe(self, state: DecodeState, *, ended: bool) -> None:
        self._run(lambda: self.drafter.observe(state, ended=ended))

    def _run(self, work: Callable[[], T]) -> T | None:
        if self.off:
            return None
        try:
            return work() if self.inline else self._worker.run(work, self.limit_s)
        except concurrent.futures.TimeoutError:
            self.failures = FAILURES  # its thread may never return
            log.warning("drafter %s did not answer in %.2f s and is switched off", self.name, self.limit_s)
        except Exception as error:  # noqa: BLE001 - no failure of a drafter may fail the request
            self.failures += 1
            log.warning("drafter %s failed (%s)", self.name, type(error).__name__)
        return None


class _Worker:
    """A daemon thread that runs one call at a time; started at the first call."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._asked = threading.Semaphore(0)
        self._done = threading.Semaphore(0)
        self._work: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[], T], limit_s: float) -> T:
        """Run ``work``.

        Raises what it raises, and ``TimeoutError``, after which the worker must not be used again.
        """
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def fill() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                future.set_exception(error)

        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name=f"drafter-{self.name}", daemon=True)
            self._thread.start()
        self._work = fill
        self._asked.release()
        if not self._done.acquire(timeout=limit_s):
            raise concurrent.futures.TimeoutError
        return future.result()

    def _loop(self) -> None:
        while True:
            self._asked.acquire()
            self._work()
            self._done.release()
