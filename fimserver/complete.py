"""Knows one completion from request to answer, timed. Knows nothing of terminals or of engines' insides."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fimserver.cursor import line_end
from fimserver.host.routing.latency import LatencyModel
from fimserver.host.routing.router import NO_DEADLINE_MS, Router, RoutingRequest
from fimserver.paths import latency_path
from fimserver.settings import Settings
from fimserver.types import Chunk, Completion, Deadline, Decision, Request, ms_since

if TYPE_CHECKING:
    from fimserver.engine.engines import ModelPool

CHARS_PER_ROW = 3  # of a prompt that nothing was read of yet
Watch = Callable[[Chunk], None]


def complete(models: ModelPool, request: Request, settings: Settings, watch: Watch | None = None) -> Completion:
    """Fill one middle. ``watch`` sees every chunk as it comes. Raises ``FimError``."""
    decision = _decision(models, request, settings)
    engine = models.engine(decision.route)
    budget, started = Deadline.of_ms(settings.deadline_ms), time.perf_counter()
    text, first_ms, chunk = "", 0.0, None
    for chunk in engine.complete(request, budget):
        first_ms = first_ms or (ms_since(started) if chunk.text else 0.0)
        text += chunk.text
        if watch:
            watch(chunk)
    assert chunk is not None  # engines end with a chunk that has the reason
    assert chunk.reason is not None
    total_ms = ms_since(started)
    middle = text.replace("\n", line_end(request))
    return Completion(
        middle,
        decision.route,
        engine.card.name,
        chunk.tokens,
        chunk.forwards,
        first_ms or total_ms,
        total_ms,
        chunk.reason,
        chunk.drafting,
        decision.why,
    )


def _decision(models: ModelPool, request: Request, settings: Settings) -> Decision:
    """As the host would choose, from what it has learned; a model that is not chosen is not loaded."""
    router = Router(settings.policy, LatencyModel(latency_path(settings)), seed=settings.seed)
    left = settings.deadline_ms or NO_DEADLINE_MS
    served = models.served() if settings.model == "auto" else {settings.model: ""}
    chars = len(request.prefix) + len(request.suffix)
    rows = {route: min(chars // CHARS_PER_ROW, models.card(route).prompt_tokens) for route in served}
    return router.decide(RoutingRequest(request, settings.model, left, served, rows))
