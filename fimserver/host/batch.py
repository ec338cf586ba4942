"""Jobs that run side by side: each goes on until its next forward pass, and those passes run as one.

A job that waits for a remote server does not hold up the others. Passes that cannot run with others take
turns. A round runs one of them and one chunk of a prompt at most, so that jobs that are decoding wait for no
more than that. A job whose engine yields neither passes nor waits runs to its end as soon as it is started.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fimserver.engine.remote.wait import Wait
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
    """A job, the rest of its steps, and the pass or the remote server that it waits for."""

    job: Job
    steps: Iterator[CompletionChunk | Pass | Wait]
    waits_for: Pass | Wait | None = None
    turn: int = 0  # number of the round in which it last ran a pass by itself

    @property
    def pass_(self) -> Pass | None:
        """The pass that it waits for."""
        return None if isinstance(self.waits_for, Wait) else self.waits_for

    @property
    def goes_on(self) -> bool:
        """Whether its pass can be run, its remote server has answered, or its time is up."""
        waits_for = self.waits_for
        return not isinstance(waits_for, Wait) or waits_for.arrived or self.job.deadline.spent() is not None


class JobBatch:
    """Running jobs, in the order in which they began. ``current``: the one whose steps run now."""

    def __init__(self, engines: EngineSource, wake: Callable[[], None] = lambda: None) -> None:
        """``wake``: called in another thread when a remote server has answered one of the jobs."""
        self.current: Job | None = None
        self._wake = wake
        self._engines = engines
        self._running: list[RunningJob] = []
        self._ended: list[Job] = []
        self._rounds = 0

    def __len__(self) -> int:
        return len(self._running)

    @property
    def goes_on(self) -> bool:
        """Whether a round would run anything."""
        return any(running.goes_on for running in self._running)

    def start(self, job: Job, router: Router) -> None:
        """Add a job and run it until its first pass. Raises ``DeviceLostError``, as the other methods do."""
        running = RunningJob(job, job_steps(self._engines, job, router))
        self._running.append(running)
        self._go_on(running)

    def leave(self) -> None:
        """End jobs that were cancelled or are out of time, without running the passes that they wait for."""
        for running in [each for each in self._running if each.job.deadline.spent()]:
            self._go_on(running)

    def step(self) -> None:
        """Run one round: answers of remote servers, and the passes of the other jobs."""
        for running in [each for each in self._running if each.pass_ is None and each.goes_on]:
            self._go_on(running)
        if chosen := self._round():
            self._run(chosen)

    def _run(self, chosen: list[RunningJob]) -> None:
        # The host listens before torch is imported.
        from fimserver.engine.forward.passes import run_together  # noqa: PLC0415

        began = time.monotonic()
        try:
            run_together([running.pass_ for running in chosen if running.pass_])
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
        """The jobs of the next round: all whose passes can join, and one each of two other kinds.

        These are those that read a chunk of a prompt, of which the first reads on, and those whose passes run
        by themselves, of which the one is next that has waited longest.
        """
        self._rounds += 1
        passes = [each for each in self._running if each.pass_]
        reading = [each for each in passes if each.pass_ and each.pass_.reads_prompt]
        apart = [each for each in passes if each.pass_ and not each.pass_.joins and each not in reading]
        first = min(reading, key=lambda each: each.job.low, default=None)
        next_ = min(apart, key=lambda each: (each.job.low, each.turn), default=None)
        if next_:
            next_.turn = self._rounds
        return [each for each in passes if each in (first, next_) or each not in (*reading, *apart)]

    def _go_on(self, running: RunningJob) -> None:
        """Run a job until its next pass, its next wait, or to its end."""
        began = time.monotonic()
        self.current = running.job
        running.waits_for = None
        for step in running.steps:
            if isinstance(step, CompletionChunk):
                running.job.sink(step)
            elif isinstance(step, Wait):
                step.wake = self._wake
                running.waits_for = step
                break
            else:
                running.waits_for = step
                break
        running.job.away = isinstance(running.waits_for, Wait)
        self._share(time.monotonic() - began, [running.job])
        if running.waits_for is None:
            running.job.sink(None)
            self._running.remove(running)
            self._ended.append(running.job)

    def _share(self, took_s: float, jobs: list[Job]) -> None:
        """Charge engine time to ``jobs`` in equal parts, and nothing to the other jobs of this machine.

        A job that waits for a remote server is charged all time until it ends.
        """
        for running in [each for each in self._running if each.job in jobs or not each.job.away]:
            own_s = took_s / len(jobs) if running.job in jobs else 0.0
            running.job.others_s += took_s - own_s
