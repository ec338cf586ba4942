"""Scheduler of a host: the newest request of a document wins, users take turns, a pause frees memory.

Requests run side by side where their engines can, and while they wait for remote servers (``batch.py``).
One thread owns the engines. All other threads only put jobs in and take them out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from fimserver.engine.remote.wait import LOOK_S
from fimserver.errors import FimError
from fimserver.host.batch import JobBatch
from fimserver.host.failures import where
from fimserver.host.job import DeviceLostError, EngineSource, Job
from fimserver.host.places import Places
from fimserver.host.routing.router import Router
from fimserver.host.waiting import ServiceTimes, Waiting
from fimserver.reasons import EXPLANATIONS, Reason
from fimserver.types import Route
from fimserver.wire import CompletionChunk, Usage

log = logging.getLogger("fimserver.host")
HANG_S = 30.0


class Scheduler:
    """A queue with at most one waiting and one running job for each document.

    ``load`` runs on the engine thread before the first job, and again after a pause; until it returns, jobs
    wait. ``on_device_lost`` is called on the engine thread when the process has to end; requests until then
    are answered at once.
    """

    def __init__(
        self,
        load: Callable[[], EngineSource],
        on_device_lost: Callable[[], None] = lambda: None,
        router: Router | None = None,
    ) -> None:
        self.router = router or Router()
        self.state: Reason | None = Reason.LOADING  # why nothing can run; ``None``: jobs run
        self.problem = ""
        self.served: Mapping[Route, str] = {}  # the models' names, once they are loaded
        self._load = load
        self._on_device_lost = on_device_lost
        self._times = ServiceTimes()
        self._waiting = Waiting(self._times)
        self._running: list[Job] = []
        self._places = Places()
        self._changed = threading.Condition()
        self._closed = False
        self._paused_until: float | None = None  # monotonic seconds
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float = 2.0) -> None:
        """Cancel everything, now and from now on, and wait for the engine to stop."""
        with self._changed:
            self._closed = True
            waiting = self._waiting.clear()
            for job in self._running:
                job.cancel()
            self._changed.notify()
        for job in waiting:
            job.cancel()
            answer(job, Reason.CANCELLED)
        self._thread.join(timeout_s)

    @property
    def elsewhere(self) -> frozenset[Route]:
        """Routes of remote servers."""
        return self._places.routes

    @property
    def hangs(self) -> bool:
        """Whether a job still runs long after it had to stop: no forward pass takes so long."""
        return any(job.hangs(HANG_S) for job in list(self._running))

    @property
    def depth(self) -> tuple[int, int]:
        """Numbers of running and waiting jobs."""
        return len(self._running), len(self._waiting)

    def submit(self, job: Job) -> None:
        """Queue a job. Jobs that it replaces are answered at once, or stop within one forward pass.

        A job that could not start in time, or would make another start too late, is answered at once, too.
        """
        with self._changed:
            refusal = self._refusal(job)
            dropped = [] if refusal else self._waiting.pointless(job)
            late = [] if refusal else self._take(job, dropped)
        if refusal:
            answer(job, refusal, EXPLANATIONS[refusal] if refusal is Reason.PAUSED else "")
        for old in dropped:
            pushed_out = not (old.key == job.key or old.idle)
            old.cancel(superseded=True)
            reason = Reason.OVERLOADED if pushed_out else Reason.SUPERSEDED
            answer(old, reason, EXPLANATIONS[reason] if pushed_out else "")
        for each in late:
            each.cancel()
            answer(each, Reason.OVERLOADED, EXPLANATIONS[Reason.OVERLOADED])

    def _take(self, job: Job, dropped: list[Job]) -> list[Job]:
        """Queue a job in place of others; removes and returns those that would now start too late."""
        for old in dropped:
            self._waiting.remove(old)
        for running in self._running:
            if running.key == job.key or running.idle:
                running.cancel(superseded=True)
        self._waiting.put(job)
        late = self._places.late(self._waiting, self._times, self._running)
        for each in late:
            self._waiting.remove(each)
        job.admitted = True
        self._changed.notify()
        return late

    def withdraw(self, job: Job) -> None:
        """Cancel a job whose caller hung up."""
        job.cancel()
        with self._changed:
            waits = self._waiting.remove(job)
            self._changed.notify()
        if waits:
            answer(job, Reason.CANCELLED)

    def pause(self, seconds: float) -> None:
        """Unload the models after the running job, until an explicit job or the limit; answer the rest."""
        with self._changed:
            self._paused_until = time.monotonic() + seconds
            waiting = self._waiting.clear()
            self._changed.notify()
        for job in waiting:
            answer(job, Reason.PAUSED, EXPLANATIONS[Reason.PAUSED])

    def resume(self) -> None:
        """End a pause: the models are loaded again."""
        with self._changed:
            self._paused_until = None
            self._changed.notify()

    @property
    def paused_s(self) -> float:
        """Seconds until the pause ends by itself; 0 without a pause."""
        return 0.0 if self._paused_until is None else max(0.0, self._paused_until - time.monotonic())

    def _refusal(self, job: Job) -> Reason | None:
        """Why a job is refused; ``None`` if it is taken.

        The host closes or is paused, or a warm-up comes after the request that it was for.
        """
        if self._closed:
            return Reason.CANCELLED
        if self.paused_s:
            if not job.explicit:
                return Reason.PAUSED
            self._paused_until = None
        rivals = (self._waiting.get(job.key), *self._running)
        late = job.warm and any(
            rival is not None and rival.key == job.key and not rival.warm for rival in rivals
        )
        return Reason.SUPERSEDED if late else None

    def _run(self) -> None:
        while self._served_until_pause():
            self._unload()
            self._wait_for_resume()
        while (job := self._next(lambda: False)) is not None:
            answer(job, self.state or Reason.FAILED, self.problem)
            self._done(job)

    def _served_until_pause(self) -> bool:
        """Load the models and work until a pause (true), or until no job can run any more."""
        try:
            engines = self._load()
        except FimError as error:
            self._fail(Reason.NO_MODEL, str(error))
        # Whatever went wrong, the host has to report that it has no model.
        except BaseException as error:  # noqa: BLE001
            log.error("loading failed: %s", where(error))  # noqa: TRY400
            self._fail(Reason.NO_MODEL, f"{type(error).__name__}: see the log of the host")
        else:
            self.served = engines.served()
            self._places.routes = getattr(engines, "elsewhere", frozenset())
            self._places.elsewhere = getattr(engines, "width_elsewhere", 1)
            self.state = None
            return self._work(engines)
        return False

    def _unload(self) -> None:
        """Free memory; nothing refers to the engines any more."""
        # The host listens before torch is imported.
        from fimserver.engine.faults import free_memory  # noqa: PLC0415

        self.state = Reason.PAUSED
        free_memory()

    def _wait_for_resume(self) -> None:
        with self._changed:
            while self.paused_s and not self._closed:
                self._changed.wait(self.paused_s)
            self._paused_until = None
            self.state = Reason.LOADING

    def _work(self, engines: EngineSource) -> bool:
        """Run jobs until a pause (true), the end of the host, or the loss of the device."""
        batch = JobBatch(engines, self._wake)
        try:
            while True:
                batch.leave()
                self._done(*batch.ended())
                self._places.here = getattr(engines, "width", 1)  # another model may have been loaded
                job = self._next(lambda: batch.goes_on)
                if job is not None:
                    batch.start(job, self.router)
                elif len(batch):
                    batch.step()
                else:
                    return not self._closed
                self._done(*batch.ended())
        # The device is lost, or an unexpected error.
        except BaseException as error:  # noqa: BLE001
            self._lose(error, batch.current)
            return False

    def _lose(self, error: BaseException, current: Job | None) -> None:
        """End the running jobs and set the state in which every request fails."""
        self._fail(Reason.FAILED, "the device was lost; the host has to be started again")
        lost = isinstance(error, DeviceLostError)
        if not lost:
            log.error("%s", where(error))
        for job in self._running:
            if lost and job is current:  # its choice has ended with a reason
                job.sink(None)
            else:
                answer(job, Reason.FAILED, self.problem)
        self._on_device_lost()
        self._done(*self._running)

    def _fail(self, state: Reason, problem: str) -> None:
        self.problem = problem
        self.state = state

    def _wake(self) -> None:
        """Wake the engine thread: a remote server has answered."""
        with self._changed:
            self._changed.notify()

    def _next(self, goes_on: Callable[[], bool]) -> Job | None:
        """The next job that can start; waits for one while no running job ``goes_on``.

        ``None`` when a running job goes on, or the host closes or pauses.
        """
        with self._changed:
            while (job := self._startable()) is None and not goes_on():
                if self._stops and not self._running:
                    return None
                self._changed.wait(LOOK_S if self._running else None)
            if job is not None:
                self._waiting.remove(job)
                self._running.append(job)
                self._times.start(job)
            return job

    def _startable(self) -> Job | None:
        """The next waiting job that there is room for; idle work runs alone."""
        if self._stops or any(job.idle for job in self._running):
            return None
        job = next((job for job in self._waiting.order() if self._places.has_room(job, self._running)), None)
        return None if job and job.idle and self._running else job

    @property
    def _stops(self) -> bool:
        """Whether no further job is started."""
        return self._closed or (self.paused_s > 0 and self.state is None)

    def _done(self, *jobs: Job) -> None:
        with self._changed:
            for job in jobs:
                self._times.end(job)
                self._running.remove(job)
            if jobs and not self._running and not len(self._waiting):
                self._times.settle()


def answer(job: Job, reason: Reason, error: str = "") -> None:
    """End a job that never ran."""
    job.sink(CompletionChunk(usage=Usage(route=job.route, reason=reason), error=error))
    job.sink(None)
