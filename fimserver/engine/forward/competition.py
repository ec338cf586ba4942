"""Competition for the processors: found by how long our threads wait for one, and met with a brief spin.

Forward passes call ``look`` between layers. It only reads what the system counts for this process, so that
it is right in containers, too.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from fimserver.engine.forward.openmp import BlocktimeSpin, Spin, find_spin
from fimserver.threads import LONG_SPINS, SPINS, is_prepared

TASKS = Path("/proc/self/task")
LOOK_S = 0.05  # between two readings, which take some 10 µs a thread
# Shares of waiting in the time that threads ran or waited, and how much of that time is looked at.
BUSY = 0.2
BUSY_S = 0.02
CALM = 0.15
CALM_S = 0.25


class ThreadTimes(NamedTuple):
    """Seconds of all threads of this process together: on a processor, and ready but waiting for one."""

    ran_s: float
    waited_s: float


def read_times(tasks: Path = TASKS) -> ThreadTimes:
    """Linux's scheduler statistics. Raises ``OSError`` where there are none."""
    ran_ns = waited_ns = 0
    for task in os.listdir(tasks):  # noqa: PTH208 - names alone, 50 times a second
        try:
            with open(f"{tasks}/{task}/schedstat", "rb") as file:  # noqa: PTH123
                ran, waited, _ = file.read().split()
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended
            continue
        ran_ns += int(ran)
        waited_ns += int(waited)
    return ThreadTimes(ran_ns / 1e9, waited_ns / 1e9)


class Competition:
    """Makes OpenMP's spin brief when others compete, and long again when they have gone for a while."""

    def __init__(
        self,
        spin: Spin,
        read: Callable[[], ThreadTimes] = read_times,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.brief = False
        self._spin = spin
        self._read = read
        self._clock = clock
        self._next_s = 0.0
        self._before = read()
        spin.set_brief(False)

    def look(self) -> None:
        """Switch the spin if the readings since the last decision show that it should be."""
        if self._clock() < self._next_s:
            return
        share = self._waiting_share(CALM_S if self.brief else BUSY_S)
        self._next_s = self._clock() + LOOK_S
        if share is not None and (share < CALM if self.brief else share > BUSY):
            self._switch(brief=not self.brief)

    def _waiting_share(self, enough_s: float) -> float | None:
        """Of the time since the last decision in which threads ran or waited, the part that they waited.

        ``None``: too little time to tell. Idle time between requests does not count.
        """
        now = self._read()
        ran_s, waited_s = now.ran_s - self._before.ran_s, now.waited_s - self._before.waited_s
        ended = min(ran_s, waited_s) < 0  # a thread has, and took its own away
        if ran_s + waited_s < enough_s and not ended:
            return None
        self._before = now
        return None if ended else waited_s / (ran_s + waited_s)

    def _switch(self, *, brief: bool) -> None:
        self.brief = brief
        self._spin.set_brief(brief)


def _none() -> None:
    """Nothing is watched."""


def watch(environ: Mapping[str, str] = os.environ) -> Callable[[], None]:
    """``look`` of this process; it does nothing where the user chose the spin or it cannot be switched."""
    is_long, is_bounded = (is_prepared(environ, spins) for spins in (LONG_SPINS, SPINS))
    spin = find_spin() if is_long or is_bounded else None
    if spin is None or not (is_long or isinstance(spin, BlocktimeSpin)):
        return _none
    try:
        return Competition(spin).look
    except (OSError, ValueError):
        return _none


@functools.cache
def _look() -> Callable[[], None]:
    return watch()


def look() -> None:
    """Between two layers of a pass: switch the spin of this process if it should be."""
    _look()()
