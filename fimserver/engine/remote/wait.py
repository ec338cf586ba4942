"""Waits for a remote server, during which other requests can go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import TypeVar

T = TypeVar("T")
LOOK_S = 0.005  # between two checks of the deadline


class Wait:
    """An answer, or its next part, that has not arrived yet.

    A generator yields it, and is resumed when it has arrived or a moment later, to check the deadline.
    ``wake`` is called when it arrives, in the thread of the connections.
    """

    def __init__(self) -> None:
        self.wake: Callable[[], None] = _nothing
        self._arrived = threading.Event()

    @property
    def arrived(self) -> bool:
        return self._arrived.is_set()

    def arrive(self) -> None:
        """Mark the answer as arrived, and wake the waiting thread."""
        self._arrived.set()
        self.wake()

    def clear(self) -> None:
        """Wait for the next part."""
        self._arrived.clear()

    def block(self) -> None:
        """Block this thread until the answer arrives, at most ``LOOK_S``."""
        self._arrived.wait(LOOK_S)


def blocking(steps: Generator[T | Wait, None, object]) -> Iterator[T]:
    """Yield the steps without the waits, blocking this thread for them."""
    with closing(steps):
        for step in steps:
            if isinstance(step, Wait):
                step.block()
            else:
                yield step


def result_of(steps: Generator[Wait, None, T]) -> T:
    """Run ``steps`` to its end, blocking this thread for its waits, and return its result."""
    while True:
        try:
            next(steps).block()
        except StopIteration as ended:
            found: T = ended.value
            return found


def _nothing() -> None:
    """Wake no thread."""
