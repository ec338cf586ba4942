"""Queue of jobs: one per document, fair between users, without those that would come too late.

The order is start-time fair queuing (Goyal, Vin and Cheng, SIGCOMM 1996) with measured times: the user
with the least engine time is next, and a user who returns starts at the level of the others.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator

from fimserver.host.job import Job, Key

MAX_WAITING = 64
LEAST_S = 1e-9  # of a job while none was measured: users take turns then, too
SHARE = 0.1  # of a new job in the mean time of a job


class ServiceTimes:
    """Mean engine time of a job, and the engine time that each user has had."""

    def __init__(self) -> None:
        self.mean_s = 0.0  # 0: nothing was measured yet
        self._count = 0
        self._used_s: dict[str, float] = {}  # of users with more than ``_clock_s``
        self._clock_s = 0.0  # engine seconds of the user who was served last

    def used_s(self, user: str) -> float:
        """Engine seconds of a user; of one who was away, as many as the user served last."""
        return max(self._clock_s, self._used_s.get(user, 0.0))

    def start(self, job: Job) -> None:
        """A job begins: its user is charged the mean until its time is known."""
        if not job.low:
            self._clock_s = self.used_s(job.user)
        job.charged_s = max(self.mean_s, LEAST_S)
        self._used_s[job.user] = self.used_s(job.user) + job.charged_s
        job.started = time.monotonic()

    def end(self, job: Job) -> None:
        """A job has ended, however it ended: its time is charged and enters the mean."""
        took_s = time.monotonic() - job.started - job.others_s
        self._used_s[job.user] = self._used_s.get(job.user, 0.0) + took_s - job.charged_s
        if not job.low:
            self._count += 1
            self.mean_s += max(SHARE, 1 / self._count) * (took_s - self.mean_s)

    def settle(self) -> None:
        """Reset the times of all users: nobody waits."""
        self._used_s.clear()
        self._clock_s = 0.0

    def left_s(self, running: Job) -> float:
        """Engine seconds that a running job still takes, by the mean."""
        if running.deadline.spent():
            return 0.0
        return max(0.0, self.mean_s - (time.monotonic() - running.started - running.others_s))


class Waiting:
    """The queue. Not thread-safe: the scheduler holds its lock."""

    def __init__(self, times: ServiceTimes) -> None:
        self._times = times
        self._jobs: dict[Key, Job] = {}  # in order of arrival

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def get(self, key: Key) -> Job | None:
        return self._jobs.get(key)

    def put(self, job: Job) -> None:
        self._jobs[job.key] = job

    def remove(self, job: Job) -> bool:
        """Take a job out; false where it does not wait."""
        if self._jobs.get(job.key) is not job:
            return False
        del self._jobs[job.key]
        return True

    def clear(self) -> list[Job]:
        """Take all jobs out."""
        jobs = list(self._jobs.values())
        self._jobs.clear()
        return jobs

    def order(self) -> list[Job]:
        """The jobs, next first: requests, then warm-ups, then idle work, each fair between users."""
        ahead: defaultdict[str, int] = defaultdict(int)  # jobs of the same user
        rank: dict[Key, tuple[int, float]] = {}
        for job in sorted(self, key=lambda job: job.low):
            used_s = self._times.used_s(job.user) + ahead[job.user] * max(self._times.mean_s, LEAST_S)
            rank[job.key] = (job.low, used_s)
            ahead[job.user] += 1
        return sorted(self, key=lambda job: rank[job.key])

    def pointless(self, job: Job) -> list[Job]:
        """Return the waiting jobs that ``job`` replaces: those of its document, and idle ones.

        Where the queue is full, also the oldest of the user with the most; an idle job pushes out none but
        idle ones.
        """
        gone = [old for old in self if old.key == job.key or old.idle]
        left = [old for old in self if old not in gone]
        if job.idle or len(left) < MAX_WAITING:
            return gone
        counts: defaultdict[str, int] = defaultdict(int)
        for old in left:
            counts[old.user] += 1
        return [*gone, max(left, key=lambda old: counts[old.user])]  # the first of equals is the oldest

    def late(self, jobs: Iterable[Job], running: Job | None, beside: int = 1, at_once: int = 1) -> list[Job]:
        """Those of ``jobs`` (next first) that would not start in time, by the measured times.

        A new job needs the mean time of a job before its deadline, unless the engine is free. A job that was
        taken already is kept as long as it starts before its deadline. ``running``: the job that ends first
        of ``beside`` that run side by side, each of which takes as many times its engine time; ``None``
        where there is room for another. ``at_once``: so many run side by side in their own time.
        """
        wait_s = beside * self._times.left_s(running) if running else 0.0
        found = list[Job]()
        for job in (job for job in jobs if not job.low):
            need_s = 0.0 if job.admitted else beside * self._times.mean_s
            if wait_s > 0 and wait_s + need_s > job.deadline.left_s():
                found.append(job)
            else:
                wait_s += self._times.mean_s / at_once
        return found
