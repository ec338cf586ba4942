"""A host as one replica of a deployment: its application, ready when the models are, and its health."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from fimserver.errors import ModelError
from fimserver.host.http.app import make_app
from fimserver.host.http.auth import allowed_name
from fimserver.host.http.state import Host
from fimserver.host.listen import load_models, make_router
from fimserver.host.scheduler import Scheduler
from fimserver.reasons import Reason
from fimserver.settings import Settings

POLL_S = 0.05


class Replica:
    """One host without a socket of its own: whatever serves its application also restarts it."""

    def __init__(self, settings: Settings, token: str, allowed_hosts: frozenset[str]) -> None:
        stats, router = make_router(settings)
        self.scheduler = Scheduler(lambda: load_models(settings), router=router)
        names = frozenset(map(allowed_name, allowed_hosts))
        self._host = Host(settings, self.scheduler, token, names, stats)

    def open(self) -> Starlette:
        """Load the models and give the application. Raises ``ModelError`` where they cannot be loaded."""
        self.scheduler.start()
        while self.scheduler.state is Reason.LOADING:
            time.sleep(POLL_S)
        self.check()
        return make_app(self._host)

    @property
    def registry(self) -> CollectorRegistry:
        """The metrics of ``/metrics``."""
        return self._host.metrics.registry

    def check(self) -> None:
        """Raise ``ModelError`` where this replica has to be replaced."""
        if self.scheduler.hangs:
            raise ModelError("the device does not answer")
        if self.scheduler.state in {Reason.NO_MODEL, Reason.FAILED}:
            raise ModelError(self.scheduler.problem)

    def close(self) -> None:
        """Cancel all jobs and keep the measured costs."""
        self.scheduler.close()
        self.scheduler.router.costs.save()
