"""Local arm: engines in this process that run requests as jobs, as in a host."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fimserver import __version__
from fimserver.ab.arms.arm import ArmAnswer, answer_of, body_of
from fimserver.ab.items.spans import Span
from fimserver.ab.schema import Arm
from fimserver.commands.complete import timed
from fimserver.host.calibrate import calibrate
from fimserver.host.job import Job
from fimserver.host.jobs import run_job
from fimserver.host.request import request_of
from fimserver.host.routing.latency import LatencyModel
from fimserver.host.routing.router import Router
from fimserver.paths import latency_path
from fimserver.settings import Settings
from fimserver.types import ROUTES, Deadline, Request
from fimserver.wire import CompletionChunk

if TYPE_CHECKING:
    from fimserver.engine.engines import ModelPool


class LocalArm:
    """Engines in this process, used like in a host."""

    def __init__(self, spec: str, settings: Settings, models: ModelPool) -> None:
        self._settings = settings
        self._models = models
        self._router = Router(settings.policy, LatencyModel(latency_path(settings)), seed=settings.seed)
        routes = ROUTES if settings.model == "auto" else (settings.model,)
        served = {route: models.engine(route).card.name for route in routes}
        if settings.model == "auto":
            here = tuple(route for route in ROUTES if route not in models.elsewhere)
            for _ in calibrate(models, self._router, here):
                pass
        changed = settings.model_dump(mode="json", exclude_unset=True, exclude={"token"})
        self.arm = Arm(spec=spec, models=served, version=__version__, settings=changed)

    def fill(self, span: Span, *, warm: bool) -> ArmAnswer:
        request = self._request(span)
        self._models.clear()
        if warm:
            self._run(request, Deadline(), only_warm=True)
        return answer_of(timed(self._run(request, Deadline.of_ms(self._settings.deadline_ms))))

    def cancel_ms(self, span: Span, after_ms: float) -> float | None:
        self._models.clear()
        deadline = Deadline()
        cancelled_at = [0.0]

        def cancel() -> None:
            cancelled_at[0] = time.perf_counter()
            deadline.cancelled.set()

        timer = threading.Timer(after_ms / 1000, cancel)
        timer.start()
        for _ in self._run(self._request(span), deadline):
            pass
        ended = time.perf_counter()
        timer.cancel()
        return (ended - cancelled_at[0]) * 1000 if 0 < cancelled_at[0] < ended else None

    def close(self) -> None: ...

    def _request(self, span: Span) -> Request:
        return request_of(body_of(span, self._settings), self._settings)

    def _run(
        self, request: Request, deadline: Deadline, *, only_warm: bool = False
    ) -> Iterator[CompletionChunk]:
        job = Job(("ab", "ab"), request, self._settings.model, deadline, lambda _piece: None, warm=only_warm)
        pieces = run_job(self._models, job, self._router)
        return iter(list(pieces)) if only_warm else pieces
