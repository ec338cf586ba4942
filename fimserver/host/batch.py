"""Jobs that run side by side: each goes on until its next forward pass, and those passes run as one.

A job whose engine does not yield its passes runs to its end as soon as it is started. One chunk of a prompt
at most runs in a round, so that whoever is being answered waits for no more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fimserver.host.failures import where
from fimserver.host.job import EngineSource, Job
from fimserver.host.jobs import job_steps
from fimserver.host.routing.router import Router
from fimserver.wire import CompletionChunk

if TYPE_CHECKING:
    from fimserver.engine.forward.passes import Pass

log = logging.getLogger("fimserver.host")


@dataclass(eq=False)
class RunningJob:
    """A job, the rest of its steps, and the pass that it waits for."""

    job: Job
    steps: Iterator[CompletionChunk | Pass]
    waits_for: Pass | None = None


class JobBatch:
    """Running jobs, in the order in which they began. ``current``: the one that goes on just now."""

    def __init__(self, engines: EngineSource) -> None:
        self.current: Job | None = None
        self._engines = engines
        self._running: list[RunningJob] = []
        self._ended: list[Job] = []

    def __len__(self) -> int:
        return len(self._running)

    def start(self, job: Job, router: Router) -> None:
        """Add a job, and run it until its first pass. Raises ``DeviceLostError``, as the others do."""
        running = RunningJob(job, job_steps(self._engines, job, router))
        self._running.append(running)
        self._go_on(running)

    def leave(self) -> None:
        """End the jobs that were stopped, or whose time is up, without the passes that they wait for."""
        for running in [each for each in self._running if each.job.deadline.spent()]:
            self._go_on(running)

    def step(self) -> None:
        """Run one round: the pass of every job that is being answered, and one chunk of a prompt."""
        # The host listens before torch is imported.
        from fimserver.engine.forward.passes import run_together  # noqa: PLC0415

        chosen = self._round()
        began = time.monotonic()
        try:
            run_together([running.waits_for for running in chosen if running.waits_for])
        except RuntimeError as error:  # such as no memory for so many: then each runs alone, and fails alone
            log.warning("a pass of %d jobs failed: %s", len(chosen), where(error))
        self._share(time.monotonic() - began, [running.job for running in chosen])
        for running in chosen:
            self._go_on(running)

    def ended(self) -> list[Job]:
        """The jobs that have ended since the last call."""
        ended = self._ended
        self._ended = []
        return ended

    def _round(self) -> list[RunningJob]:
        reading = [each for each in self._running if each.waits_for and each.waits_for.reads_prompt]
        first = min(reading, key=lambda each: each.job.low, default=None)
        return [each for each in self._running if each is first or each not in reading]

    def _go_on(self, running: RunningJob) -> None:
        """Run a job until its next pass that can run with others, or to its end."""
        began = time.monotonic()
        self.current = running.job
        running.waits_for = None
        for step in running.steps:
            if isinstance(step, CompletionChunk):
                running.job.sink(step)
            elif step.joins:
                running.waits_for = step
                break
        self._share(time.monotonic() - began, [running.job])
        if running.waits_for is None:
            running.job.sink(None)
            self._running.remove(running)
            self._ended.append(running.job)

    def _share(self, took_s: float, jobs: list[Job]) -> None:
        """Charge engine time to jobs in equal parts, and to the others none of it."""
        for running in self._running:
            own_s = took_s / len(jobs) if running.job in jobs else 0.0
            running.job.others_s += took_s - own_s
