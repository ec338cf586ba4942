"""Reads from a source in a separate thread, so that waits are limited and Ctrl-C always works."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from fimserver.errors import SourceError
from fimserver.store.sources import ANSWER_S, STALL_S, Event, Received

Answer = TypeVar("Answer")
TICK_S = 0.1
LEAVE_S = 2.0  # for a reader to end its process; one that hangs in the network is abandoned


@dataclass(frozen=True)
class _End:
    """Last item from a reader, with its exception if it failed."""

    error: BaseException | None = None


def listen(events: Iterator[Event], label: Callable[[], str]) -> Iterator[bytes | Received]:
    """Yield the data of ``events``. Raises ``SourceError`` with ``label`` if it is silent for too long.

    The limit is ``ANSWER_S`` before the first byte, ``STALL_S`` after it.
    """
    found: queue.Queue[Event | _End] = queue.Queue(maxsize=4)
    left = threading.Event()
    reader = threading.Thread(target=_read, args=(events, found, left), daemon=True)
    reader.start()
    try:
        yield from _heard(found, label)
    finally:
        left.set()
        reader.join(LEAVE_S)


def ask(question: Callable[[], Answer], label: Callable[[], str]) -> Answer:
    """Return the result of one call. Raises ``SourceError`` if it takes too long."""
    answers: list[Answer] = []

    def events() -> Iterator[Event]:
        answers.append(question())
        yield Received()

    for _ in listen(events(), label):
        pass
    return answers[0]


def _heard(found: queue.Queue[Event | _End], label: Callable[[], str]) -> Iterator[bytes | Received]:
    limit_s = ANSWER_S
    since = time.monotonic()
    while True:
        try:
            event = found.get(timeout=TICK_S)
        except queue.Empty:
            event = None
        if isinstance(event, _End):
            if event.error:
                raise event.error
            return
        if isinstance(event, bytes | Received):
            limit_s = STALL_S
            yield event
        if event is not None:
            since = time.monotonic()
        elif time.monotonic() - since > limit_s:
            raise SourceError(f"{label()} has not answered for {limit_s:.0f} s")


def _read(events: Iterator[Event], found: queue.Queue[Event | _End], left: threading.Event) -> None:
    end = _End()
    try:
        for event in events:
            if not _put(found, event, left):
                break
    except BaseException as error:  # noqa: BLE001 - raised again in the reading thread's caller
        end = _End(error)
    finally:
        if close := getattr(events, "close", None):
            close()
    _put(found, end, left)


def _put(found: queue.Queue[Event | _End], event: Event | _End, left: threading.Event) -> bool:
    """Hand over an event. Returns whether the caller is still listening."""
    while not left.is_set():
        try:
            found.put(event, timeout=TICK_S)
        except queue.Full:
            continue
        return True
    return False
