"""Reading from a source in a thread of its own.

So silence has a limit and Ctrl-C works at any moment.
"""

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
LEAVE_S = 2.0  # what a reader gets to end its process; one that hangs in the network is left to itself


@dataclass(frozen=True)
class _End:
    """The last thing that a reader says."""

    error: BaseException | None = None


def listen(events: Iterator[Event], label: Callable[[], str]) -> Iterator[bytes | Received]:
    """What ``events`` gives, as long as it is not silent for too long. Raises ``SourceError``.

    ``ANSWER_S`` until the first byte, ``STALL_S`` after it. ``label`` is what to call the source then.
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
    """The answer to one question, or ``SourceError`` where there is none in time."""
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
    except BaseException as error:  # noqa: BLE001 - the one who listens raises it
        end = _End(error)
    finally:
        if close := getattr(events, "close", None):
            close()
    _put(found, end, left)


def _put(found: queue.Queue[Event | _End], event: Event | _End, left: threading.Event) -> bool:
    """Whether somebody listens still."""
    while not left.is_set():
        try:
            found.put(event, timeout=TICK_S)
        except queue.Full:
            continue
        return True
    return False
