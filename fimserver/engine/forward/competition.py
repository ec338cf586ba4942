"""Use of fewer threads while other processes compete for the CPUs.

Competition shows in the time that our threads are ready but wait for a CPU. Forward passes call
``adapt_threads`` between layers. It reads only the kernel's counters of this process, which are also right in
containers. The number of threads changes no bit of a result.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import torch

from fimserver.engine.forward.openmp import BlocktimeSpin, Spin, find_spin
from fimserver.threads import LONG_SPINS, SPINS, is_prepared

TASKS = Path("/proc/self/task")
LOOK_S = 0.05  # between two readings, which take some 10 µs a thread
# Shares of waiting time in the time that threads ran or waited, and the least such time for a decision.
BUSY = 0.2
BUSY_S = 0.05
CALM = 0.15
TRIAL_S = 0.1
CALM_S = 0.1  # before the first trial; twice as long after each one that failed
MOST_CALM_S = 1.6
PAUSE_S = 2.0  # without a pass: the competitors may have ended meanwhile


class Sharing(Enum):
    """How the threads of a pass use the CPUs."""

    ALONE = "all threads, with a long spin while they wait for each other"
    SHARED = "few threads, as one that waits for a CPU holds up all others"
    TRIAL = "all threads with a brief spin, to find out whether they get CPUs"


class ThreadTimes(NamedTuple):
    """Seconds summed over all threads of this process: on a CPU, and ready but waiting for one."""

    ran_s: float
    waited_s: float


def read_times(tasks: Path = TASKS) -> ThreadTimes:
    """Read Linux's scheduler statistics. Raises ``OSError`` if the system has none."""
    ran_ns = waited_ns = 0
    for task in os.listdir(tasks):  # noqa: PTH208 - faster, and this runs 20 times a second
        try:
            with open(f"{tasks}/{task}/schedstat", "rb") as file:  # noqa: PTH123
                ran, waited, _ = file.read().split()
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended
            continue
        ran_ns += int(ran)
        waited_ns += int(waited)
    return ThreadTimes(ran_ns / 1e9, waited_ns / 1e9)


class Competition:
    """Chooses how to share the CPUs, by the time that our threads wait for one.

    ``use`` is called in the thread that computes.
    """

    def __init__(
        self,
        use: Callable[[Sharing], None],
        read: Callable[[], ThreadTimes] = read_times,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sharing = Sharing.ALONE
        self._use = use
        self._read = read
        self._clock = clock
        self._looked_s = 0.0
        self._calm_s = CALM_S
        self._before = read()
        use(self.sharing)

    def look(self) -> None:
        """Change the sharing if the counters since the last decision call for it."""
        since_s = self._clock() - self._looked_s
        if since_s < LOOK_S:
            return
        self._looked_s += since_s
        if self.sharing is Sharing.SHARED and since_s > PAUSE_S:
            self._before = self._read()
            self._change(Sharing.TRIAL)
            return
        enough_s = {Sharing.ALONE: BUSY_S, Sharing.SHARED: self._calm_s, Sharing.TRIAL: TRIAL_S}
        share = self._waiting_share(enough_s[self.sharing])
        if share is not None and (next_ := self._after(share)) is not self.sharing:
            self._change(next_)

    def _after(self, share: float) -> Sharing:
        """Return the next sharing. Few threads may get CPUs where all would not, so a trial comes first."""
        if share > BUSY:
            return Sharing.SHARED
        if self.sharing is Sharing.SHARED:
            return Sharing.TRIAL
        return Sharing.ALONE if share < CALM else self.sharing

    def _change(self, sharing: Sharing) -> None:
        if sharing is Sharing.ALONE:
            self._calm_s = CALM_S
        elif self.sharing is Sharing.TRIAL:
            self._calm_s = min(2 * self._calm_s, MOST_CALM_S)
        self.sharing = sharing
        self._use(sharing)

    def _waiting_share(self, enough_s: float) -> float | None:
        """Return the share of waiting in the time that threads ran or waited since the last decision.

        ``None``: too little time to tell. Idle time between requests does not count.
        """
        now = self._read()
        ran_s, waited_s = now.ran_s - self._before.ran_s, now.waited_s - self._before.waited_s
        ended = min(ran_s, waited_s) < 0  # a thread has ended, and its time is no longer in the sums
        if ran_s + waited_s < enough_s and not ended:
            return None
        self._before = now
        return None if ended else waited_s / (ran_s + waited_s)


class Threads:
    """Sets the spin and the number of the calling thread's OpenMP threads.

    With two CPUs and a competitor, one thread is faster than two (measured). With more CPUs the number stays:
    that case was not measured.
    """

    def __init__(self, spin: Spin) -> None:
        self._spin = spin
        self._all = 0

    def use(self, sharing: Sharing) -> None:
        self._spin.set_brief(sharing is not Sharing.ALONE)
        if sharing is not Sharing.SHARED and self._all:
            torch.set_num_threads(self._all)
            self._all = 0
        elif sharing is Sharing.SHARED and torch.get_num_threads() == 2:
            self._all = torch.get_num_threads()
            torch.set_num_threads(1)


def _none() -> None:
    """Do nothing: no competition can be detected or met."""


def watch(environ: Mapping[str, str] = os.environ) -> Callable[[], None]:
    """Return this process's ``look``; it does nothing if the user set the spin or it cannot be changed."""
    is_long, is_bounded = (is_prepared(environ, spins) for spins in (LONG_SPINS, SPINS))
    spin = find_spin() if is_long or is_bounded else None
    if spin is None or not (is_long or isinstance(spin, BlocktimeSpin)):
        return _none
    try:
        return Competition(Threads(spin).use).look
    except (OSError, ValueError):
        return _none


@functools.cache
def _watched() -> Callable[[], None]:
    return watch()


def adapt_threads() -> None:
    """Adapt the threads if competitors came or went; called between two layers of a pass."""
    _watched()()
