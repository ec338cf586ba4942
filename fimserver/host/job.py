"""A job: one request on its way through the host, and the source of its engines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from fimserver.reasons import Reason
from fimserver.types import Deadline, Request, Route, RoutePin
from fimserver.wire import CompletionChunk

if TYPE_CHECKING:
    from fimserver.engine.engines import Engine

Key = tuple[str, str]  # session and document
Sink = Callable[[CompletionChunk | None], None]  # ``None`` is the end


class EngineSource(Protocol):
    """Source of engines: ``ModelPool``, or a fake."""

    def engine(self, route: Route) -> Engine:
        """The engine of a route, loaded. Raises ``FimError``."""
        ...

    def served(self) -> Mapping[Route, str]:
        """The name of each route's model."""
        ...


@dataclass
class Job:
    """A request in the queue or running. ``superseded`` is set when a newer one replaced it."""

    key: Key
    request: Request
    pin: RoutePin
    deadline: Deadline
    sink: Sink
    choices: int = 1
    stops: tuple[str, ...] = ()
    warm: bool = False
    idle: bool = False
    explicit: bool = False  # the user asked for it, so it ends a pause
    preview: bool = False  # the canvas of each step is wanted, too
    user: str = ""  # for turns that are fair between users
    superseded: bool = False
    away: bool = False  # it waits for a remote server
    admitted: bool = False  # it was expected to start in time when it arrived
    others_s: float = 0.0  # engine time of others since it began
    charged_s: float = 0.0  # engine time that its user was charged before it was known
    started: float = 0.0  # monotonic seconds
    overdue_since: float | None = None  # monotonic seconds at which it was first seen running on
    received: float = field(default_factory=time.perf_counter)

    @property
    def route(self) -> Literal["", "dllm", "ar"]:
        """The route that was asked for; empty where it is the policy's choice."""
        return "" if self.pin == "auto" else self.pin

    @property
    def low(self) -> int:
        """Priority, lower first: 0 for a request, 1 for a warm-up, 2 for idle work."""
        return 2 if self.idle else int(self.warm)

    def cancel(self, *, superseded: bool = False) -> None:
        """Stop within one forward pass."""
        self.superseded = self.superseded or superseded
        self.deadline.cancelled.set()

    def hangs(self, limit_s: float) -> bool:
        """Whether it still runs ``limit_s`` seconds after it was first seen past its end."""
        if not self.deadline.spent():
            return False
        if self.overdue_since is None:
            self.overdue_since = time.monotonic()
            return False
        return time.monotonic() - self.overdue_since > limit_s

    def named(self, reason: Reason | None) -> Reason | None:
        """``reason``, with SUPERSEDED for a cancellation by a newer request."""
        return Reason.SUPERSEDED if reason is Reason.CANCELLED and self.superseded else reason


class DeviceLostError(Exception):
    """The device cannot be used any more in this process."""
