"""Knows what a status bar shows: the state of the host, the route, the last latency. Knows nothing of completions."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

from lsprotocol import types as lsp

from fimserver.front.client import Health
from fimserver.front.session import Outcome
from fimserver.reasons import EXPLANATIONS, Reason

if TYPE_CHECKING:
    from fimserver.front.server import Server

POLL_S = 0.25
# What a status bar may colour. Reasons that are not here are ordinary.
KINDS = {
    Reason.OFF: "Inactive",
    Reason.EXCLUDED: "Inactive",
    Reason.GENERATED: "Inactive",
    Reason.TOO_LARGE: "Inactive",
    Reason.NOT_OPEN: "Inactive",
    Reason.LOADING: "Warning",
    Reason.NO_HOST: "Warning",
    Reason.DIRTY: "Warning",
    Reason.OUT_OF_MEMORY: "Error",
    Reason.NON_FINITE: "Error",
    Reason.NO_MODEL: "Error",
    Reason.RESTING: "Error",
    Reason.REFUSED: "Error",
    Reason.FAILED: "Error",
}


class Status:
    """What was shown last, so that nothing is sent twice."""

    def __init__(self) -> None:
        self._shown: dict[str, Any] = {}

    def show(self, server: Server, facts: dict[str, Any]) -> None:
        """Send ``fimserver/status`` to an editor that understands it."""
        if server.session.config.status and facts != self._shown:
            self._shown = facts
            server.protocol.notify("fimserver/status", facts)

    async def watch(self, server: Server) -> None:
        """Start the host and show progress until its model is there, or cannot be."""
        line = server.session.line
        token: str | None = None
        while (health := await line.health()).reason in {Reason.LOADING, Reason.NO_HOST}:
            self.show(server, _facts(server, health))
            token = token or await _begin(server)
            await asyncio.sleep(POLL_S)
        if token:
            _report(server, token, lsp.WorkDoneProgressEnd(message=health.message or "ready"))
        self.show(server, _facts(server, health))


def show_status(server: Server, outcome: Outcome) -> None:
    """The state after a request."""
    facts = _facts(server, Health(outcome.reason if outcome.reason in KINDS else None, outcome.message))
    if outcome.suggestions and outcome.usage:
        facts |= {"route": outcome.usage.route, "model": outcome.usage.model, "latencyMs": round(outcome.total_ms)}
    server.status.show(server, facts)


def _facts(server: Server, health: Health) -> dict[str, Any]:
    config = server.session.config
    state = health.reason if config.enabled else Reason.OFF
    message = health.message or (EXPLANATIONS[state] if state else "")
    kind = KINDS.get(state, "Normal") if state else "Normal"
    busy = state in {Reason.LOADING, Reason.NO_HOST}
    return {"kind": kind, "state": state or "ready", "busy": busy, "message": message, "setRoute": config.model}


async def _begin(server: Server) -> str | None:
    """A progress in the editor, where it can show one."""
    window = server.client_capabilities.window
    if window is None or not window.work_done_progress:
        return ""
    token = uuid.uuid4().hex
    try:
        async with asyncio.timeout(2):
            await server.window_work_done_progress_create_async(lsp.WorkDoneProgressCreateParams(token))
    except Exception:  # noqa: BLE001 - no progress, then
        return ""
    _report(server, token, lsp.WorkDoneProgressBegin(title="fimserver", message="loading the model"))
    return token


def _report(server: Server, token: str, value: Any) -> None:
    server.progress(lsp.ProgressParams(token, server.protocol._converter.unstructure(value)))  # noqa: SLF001
