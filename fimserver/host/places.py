"""Places for jobs: how many may run here, how many may wait for remote servers, and which would be late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fimserver.host.job import Job
from fimserver.host.waiting import ServiceTimes, Waiting
from fimserver.types import ROUTES, Route


@dataclass
class Places:
    """Numbers of places on this machine and at remote servers. ``routes``: those of remote servers."""

    here: int = 1
    elsewhere: int = 1
    routes: frozenset[Route] = frozenset()

    def leaves(self, job: Job) -> bool:
        """Whether every route that a job may take is at a remote server."""
        return all(route in self.routes for route in (ROUTES if job.pin == "auto" else (job.pin,)))

    def has_room(self, job: Job, running: Sequence[Job]) -> bool:
        """Whether a job can start beside the running ones."""
        away = sum(each.away for each in running)
        leaves = self.leaves(job)
        if away >= self.elsewhere and (leaves or (job.pin == "auto" and self.routes)):
            return False
        return leaves or len(running) - away < self.here

    def late(self, waiting: Waiting, times: ServiceTimes, running: Sequence[Job]) -> list[Job]:
        """Waiting jobs that would start too late, on this machine and at remote servers."""
        order = waiting.order()
        here = [job for job in running if not job.away]
        full = here if len(here) >= self.here else []
        first = min(full, key=times.left_s, default=None)
        staying = [job for job in order if not self.leaves(job)]
        found = waiting.late(staying, first, max(1, len(full)))
        away = [job for job in running if job.away]
        room = max(0, self.elsewhere - len(away))
        first = None if room else min(away, key=times.left_s, default=None)
        leaving = [job for job in order if self.leaves(job)]
        return found + waiting.late(leaving[room:], first, at_once=self.elsewhere)
