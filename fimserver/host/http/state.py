"""State that the endpoints of a host share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fimserver.host.http.token_file import TokenFile
from fimserver.host.scheduler import Scheduler
from fimserver.host.stats.prometheus import Metrics
from fimserver.host.stats.store import Stats
from fimserver.settings import Settings


@dataclass
class Host:
    """State of a host. On TCP ``allowed_hosts`` and either ``token`` or ``token_file`` are set."""

    settings: Settings
    scheduler: Scheduler
    token: str = ""
    allowed_hosts: frozenset[str] = frozenset()
    stats: Stats = field(default_factory=Stats)
    token_file: TokenFile | None = None
    clock: Callable[[], float] = time.monotonic  # seconds; of idleness alone
    metrics: Metrics = field(init=False)
    last_used: float = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.scheduler)
        self.last_used = self.clock()
