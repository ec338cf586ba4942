"""Knows what a status bar shows: the state of the host, the route, the last latency. Knows nothing of completions."""

from __future__ import annotations

import asyncio
import logging
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lsprotocol import types as lsp

from fimserver.front.host_client import Health
from fimserver.front.outcome import Outcome
from fimserver.reasons import EXPLANATIONS, Reason

if TYPE_CHECKING:
    from fimserver.front.lsp.server import Server

log = logging.getLogger("fimserver.front")
POLL_S = 0.25
LONGEST_POLL_S = 10.0
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
    """What an editor's status bar shows: of the host what was heard last, then of the document that was asked for."""

    def __init__(self) -> None:
        self._shown: dict[str, Any] = {}
        self._health = Health(None)
        self._document: Reason | None = None  # why the document in hand gets nothing
        self._answered: dict[str, Any] = {}  # route, model and latency of the last suggestion
        self._watches = False

    def refresh(self, server: Server) -> None:
        """Send ``fimserver/status``, where it is understood and says something new."""
        config = server.session.config
        state = (self._health.reason or self._document) if config.enabled else Reason.OFF
        message = self._health.message if config.enabled else ""
        facts = {
            "kind": KINDS.get(state, "Normal") if state else "Normal",
            "state": state or "ready",
            "busy": state is Reason.LOADING or (state is Reason.NO_HOST and not self._health.url),
            "message": message or (EXPLANATIONS[state] if state else ""),
            "setRoute": config.model,
            **self._answered,
        }
        if config.status and facts != self._shown:
            self._shown = facts
            server.protocol.notify("fimserver/status", facts)

    def forget_document(self) -> None:
        """What the document in hand gets has to be seen anew."""
        self._document = None

    def after(self, server: Server, outcome: Outcome) -> None:
        """The state after a request. One that did not get to the model says nothing of it."""
        kind = KINDS.get(outcome.reason)
        self._document = outcome.reason if kind == "Inactive" else None
        if outcome.source == "model" or kind in {"Warning", "Error"}:
            self._health = replace(self._health, reason=outcome.reason if kind else None, message=outcome.message)
        if self._health.reason in {Reason.LOADING, Reason.NO_HOST}:
            server.later(self.watch(server))
        if outcome.suggestions and outcome.usage:
            used = outcome.usage
            self._answered = {"route": used.route, "model": used.model, "latencyMs": round(outcome.total_ms)}
            self._answered["why"] = used.decision.why if used.decision else ""
        self.refresh(server)

    async def watch(self, server: Server) -> None:
        """Start the host and show progress until its model is there, or cannot be. Once at a time is enough."""
        if self._watches or not server.session.config.enabled:
            return
        self._watches = True
        progress = Progress(server)
        try:
            await self._watch(server, progress)
        finally:
            self._watches = False
            progress.end(self._health.message or "ready")

    async def _watch(self, server: Server, progress: Progress) -> None:
        poll_s = POLL_S
        while True:
            self._health = await server.session.line.health()
            self.refresh(server)
            if self._health.reason not in {Reason.LOADING, Reason.NO_HOST} or not server.session.config.enabled:
                return
            if self._health.reason is Reason.LOADING:
                await progress.begin()
            else:
                poll_s = min(LONGEST_POLL_S, 2 * poll_s)  # a host elsewhere may be away for long
            await asyncio.sleep(poll_s)


class Progress:
    """One progress in the editor, where it can show one."""

    def __init__(self, server: Server) -> None:
        self._server, self._token, self._asked = server, "", False

    async def begin(self) -> None:
        window = self._server.client_capabilities.window
        if self._asked or window is None or not window.work_done_progress:
            return
        self._asked, token = True, uuid.uuid4().hex
        try:
            async with asyncio.timeout(2):
                await self._server.window_work_done_progress_create_async(lsp.WorkDoneProgressCreateParams(token))
        except Exception as error:  # noqa: BLE001 - no progress, then
            log.info("no progress: %s", type(error).__name__)
            return
        self._token = token
        self._report(lsp.WorkDoneProgressBegin(title="fimserver", message="loading the model"))

    def end(self, message: str) -> None:
        if self._token:
            self._report(lsp.WorkDoneProgressEnd(message=message))

    def _report(self, value: Any) -> None:
        unstructured = self._server.protocol._converter.unstructure(value)  # noqa: SLF001 - pygls has no other way
        self._server.progress(lsp.ProgressParams(self._token, unstructured))
