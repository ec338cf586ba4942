"""Waits for a remote server, during which other requests go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import TypeVar

T = TypeVar("T")
LOOK_S = 0.005  # between two looks at the deadline


class Wait:
    """An answer, or its next part, that is on its way.

    A loop yields it and goes on when it has arrived or time is up; the loop looks at the deadline itself.
    ``wake`` is called when it arrives, in the thread of the connections.
    """

    def __init__(self) -> None:
        self.wake: Callable[[], None] = _nothing
        self._arrived = threading.Event()

    @property
    def arrived(self) -> bool:
        return self._arrived.is_set()

    def arrive(self) -> None:
        """Mark it as arrived, and wake the waiting thread."""
        self._arrived.set()
        self.wake()

    def clear(self) -> None:
        """Wait for the next part."""
        self._arrived.clear()

    def block(self) -> None:
        """Wait in this thread until it arrives, or until the deadline is to be looked at."""
        self._arrived.wait(LOOK_S)


def blocking(steps: Generator[T | Wait, None, object]) -> Iterator[T]:
    """The steps without the waits, which are waited for here."""
    with closing(steps):
        for step in steps:
            if isinstance(step, Wait):
                step.block()
            else:
                yield step


def result_of(steps: Generator[Wait, None, T]) -> T:
    """What a loop returns, waiting here for all that it waits for."""
    while True:
        try:
            next(steps).block()
        except StopIteration as ended:
            found: T = ended.value
            return found


def _nothing() -> None:
    """Wake no thread."""
