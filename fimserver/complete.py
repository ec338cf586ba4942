"""Knows one completion from request to answer, timed. Knows nothing of terminals or of engines' insides."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fimserver.host.route import choose_route
from fimserver.settings import Settings
from fimserver.source import line_end
from fimserver.types import Budget, Chunk, Completion, Request, ms_since

if TYPE_CHECKING:
    from fimserver.engine.engines import Models

Watch = Callable[[Chunk], None]


def complete(models: Models, request: Request, settings: Settings, watch: Watch | None = None) -> Completion:
    """Fill one middle. ``watch`` sees every chunk as it comes. Raises ``FimError``."""
    route = choose_route(request, settings.model).route
    engine = models.engine(route)
    budget, started = Budget.of_ms(settings.deadline_ms), time.perf_counter()
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
        route,
        engine.card.name,
        chunk.tokens,
        chunk.forwards,
        first_ms or total_ms,
        total_ms,
        chunk.reason,
        chunk.drafting,
    )
