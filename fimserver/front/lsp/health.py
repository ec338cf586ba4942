"""Health of a window and of its host (``fimserver/health``), for a user who checks the installation."""

from __future__ import annotations

import time
from typing import Any

from fimserver import __version__
from fimserver.front.lsp.server import Server
from fimserver.paths import log_path
from fimserver.reasons import ENDED, EXPLANATIONS, Reason
from fimserver.wire import CompletionBody, EditorHints

PROBE = CompletionBody(prompt="def add(a, b):\n    return ", suffix="\n", max_tokens=8)
PROBE_S = 3.0
DONE = ENDED | {Reason.LENGTH, Reason.EMPTY}


async def examine(server: Server) -> dict[str, Any]:
    """Return the state of this window and of its host, which is tested with a tiny completion."""
    config = server.session.config
    health = await server.session.host.health()
    facts = {
        "version": __version__,
        "state": health.reason or "ready",
        "message": health.message or (EXPLANATIONS[health.reason] if health.reason else ""),
        "enabled": config.enabled,
        "setRoute": config.model,
        "models": dict(health.models),
        "host": health.url,
        "settings": list(server.session.setting_problems),
        "log": "" if health.url else str(log_path("host.log")),
    }
    return facts if health.reason else facts | await _probed(server)


async def _probed(server: Server) -> dict[str, Any]:
    """Return the result of a tiny completion. If it fails, its reason becomes the state."""
    body = PROBE.model_copy(update={"fimserver": EditorHints(route=server.session.config.model)})
    started = time.monotonic()
    answer = await server.session.host.complete(body, deadline_s=started + PROBE_S, asked=True)
    used = answer.middles[0].usage if answer.middles else None
    if used is None or used.reason not in DONE:
        reason = used.reason if used else answer.reason or Reason.FAILED
        return {"state": reason, "message": answer.message or EXPLANATIONS[reason]}
    took_ms = (time.monotonic() - started) * 1000
    measured = {"roundTripMs": round(took_ms, 1), "engineMs": round(used.total_ms, 1), "tokens": used.tokens}
    return {"route": used.route, "model": used.model} | measured
