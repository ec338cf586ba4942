"""Calibration: sample requests that measure what each model costs on this device.

They are holes in this package's own source: a call's arguments, the rest of a line, a line, a body.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

from fimserver.host.job import EngineSource, Job
from fimserver.host.jobs import run_job
from fimserver.host.routing.router import Router, cost_name
from fimserver.host.scheduler import Scheduler
from fimserver.types import ROUTES, Deadline, Request, Route, Sampling, StopRule

SOURCES = ("wire.py", "settings.py", "types.py")
CUTS = (0.25, 0.5, 0.75)  # of a source
TOKENS = {"line": 24, "block": 64, "none": 64}  # at most, by stop rule
TIME_MS = 20_000.0  # for one answer
IDLE_S = 3.0


@cache
def samples() -> tuple[Request, ...]:
    """Return short and long requests, each with its own prompt."""
    folder = Path(__file__).parent.parent
    texts = [(folder / name).read_text("utf-8") for name in SOURCES]
    return tuple(_request(text, cut, stop) for text, stop in zip(texts, TOKENS, strict=True) for cut in CUTS)


def jobs(pins: tuple[Route, ...] = ROUTES) -> Iterator[Job]:
    """A job for every sample on every route, to run while nothing else waits."""
    for number, request in enumerate(samples()):
        for pin in pins:
            key = ("fimserver", f"calibration {number} {pin}")
            yield Job(key, request, pin, Deadline.of_ms(TIME_MS), lambda _piece: None, idle=True)


def calibrate(engines: EngineSource, router: Router, pins: tuple[Route, ...] = ROUTES) -> Iterator[Job]:
    """Run the samples now; yields each job when it is done."""
    for job in jobs(pins):
        for _ in run_job(engines, job, router):
            pass
        yield job


class Background:
    """Samples for a host without measured costs, one whenever it is idle.

    Remote servers get none, as they may charge for them: their costs are learned from requests.
    """

    def __init__(self, scheduler: Scheduler, pins: tuple[Route, ...]) -> None:
        self._scheduler = scheduler
        self._pins = pins
        self._left: list[Job] | None = None

    def step(self, idle_s: float) -> None:
        """Submit the next sample if the models are loaded and no request came for a while."""
        if self._scheduler.state is not None or any(self._scheduler.depth) or idle_s < IDLE_S:
            return
        if self._left is None:
            self._left = list(jobs(tuple(pin for pin in self._pins if self._is_wanted(pin))))
        if self._left:
            self._scheduler.submit(replace(self._left.pop(), deadline=Deadline.of_ms(TIME_MS)))

    def _is_wanted(self, route: Route) -> bool:
        """Whether the costs of a local model are unknown."""
        name = cost_name(route, self._scheduler.served[route])
        return route not in self._scheduler.elsewhere and not self._scheduler.router.costs.cost(name).known


def _request(text: str, cut: float, stop: str) -> Request:
    """Return a request for a hole within a statement; ``stop`` decides whether a line or more is meant."""
    assert stop in get_args(StopRule)
    start = text.find("\n", int(len(text) * cut)) + 1
    start += len(text[start:]) - len(text[start:].lstrip())
    end = text.find("\n", start)
    kept = start + (end - start) // 3
    rule: StopRule = "line" if stop == "line" else "block" if stop == "block" else "none"
    return Request(text[:kept], text[end:], sampling=Sampling(max_tokens=TOKENS[stop], stop=rule))
