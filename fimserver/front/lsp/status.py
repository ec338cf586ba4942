"""Status bar state: health of the host, then of the current document, the route and the last latency."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from lsprotocol import types as lsp
from pygls.lsp.server import LanguageServer

from fimserver.front.host_answers import Health
from fimserver.front.outcome import Outcome
from fimserver.front.session import Session
from fimserver.reasons import EXPLANATIONS, Reason

log = logging.getLogger("fimserver.front")
POLL_S = 0.25
LONGEST_POLL_S = 10.0
# Severity of a reason in the status bar; ``Normal`` for all others.
KINDS = {
    Reason.OFF: "Inactive",
    Reason.EXCLUDED: "Inactive",
    Reason.GENERATED: "Inactive",
    Reason.TOO_LARGE: "Inactive",
    Reason.NOT_OPEN: "Inactive",
    Reason.ON_DEMAND: "Inactive",
    Reason.SNOOZED: "Inactive",
    Reason.PAUSED: "Inactive",
    Reason.BATTERY: "Inactive",
    Reason.ENOUGH: "Inactive",
    Reason.LOADING: "Warning",
    Reason.NO_HOST: "Warning",
    Reason.DIRTY: "Warning",
    Reason.OUT_OF_MEMORY: "Error",
    Reason.NON_FINITE: "Error",
    Reason.NO_MODEL: "Error",
    Reason.HOST_FAILED: "Error",
    Reason.REFUSED: "Error",
    Reason.FAILED: "Error",
}


class Status:
    """Status of one window, sent as ``fimserver/status``. ``later`` runs a coroutine in the background."""

    def __init__(
        self, server: LanguageServer, session: Session, later: Callable[[Coroutine[Any, Any, None]], None]
    ) -> None:
        self._server = server
        self._session = session
        self._later = later
        self._shown: dict[str, Any] = {}
        self._health = Health(None)
        self._document: Reason | None = None  # why the current document gets no suggestions
        self._answered: dict[str, Any] = {}  # route, model and latency of the last suggestion
        self._watches = False

    def refresh(self) -> None:
        """Send ``fimserver/status`` if the editor supports it and something has changed."""
        config = self._session.config
        state = self._health.reason or self._document
        if state is None and self._session.is_snoozed:
            state = Reason.SNOOZED
        state = state if config.enabled else Reason.OFF
        message = self._health.message if config.enabled else ""
        facts = {
            "kind": KINDS.get(state, "Normal") if state else "Normal",
            "state": state or "ready",
            "busy": state is Reason.LOADING or (state is Reason.NO_HOST and not self._health.url),
            "message": message or (EXPLANATIONS[state] if state else ""),
            "setRoute": config.model,
            **({"power": self._session.energy.power} if self._session.saves_power else {}),
            **self._answered,
        }
        if config.status and facts != self._shown:
            self._shown = facts
            self._server.protocol.notify("fimserver/status", facts)

    def renew(self) -> None:
        """Send the status after a change of settings, which may enable or disable the current document."""
        self._document = None
        self.refresh()

    def after(self, outcome: Outcome) -> None:
        """Update the state after a request. The host's health changes only if the request reached it."""
        kind = KINDS.get(outcome.reason)
        self._document = outcome.reason if kind == "Inactive" else None
        if outcome.source == "model" or kind in {"Warning", "Error"}:
            self._health = replace(
                self._health, reason=outcome.reason if kind else None, message=outcome.message
            )
        if self._health.reason in {Reason.LOADING, Reason.NO_HOST}:
            self._later(self.watch())
        if outcome.suggestions and outcome.usage:
            used = outcome.usage
            self._answered = {"route": used.route, "model": used.model, "latencyMs": round(outcome.total_ms)}
            self._answered["why"] = used.decision.why if used.decision else ""
        self.refresh()

    async def watch(self) -> None:
        """Start the host and show progress until its model is loaded or has failed. One watch at a time."""
        if not self._session.config.enabled:
            self.refresh()  # an editor that starts with completions off has no status yet
            return
        if self._watches:
            return
        self._watches = True
        progress = Progress(self._server)
        try:
            await self._watch(progress)
        finally:
            self._watches = False
            progress.end(self._health.message or "ready")

    async def _watch(self, progress: Progress) -> None:
        poll_s = POLL_S
        while True:
            self._health = await self._session.host.health()
            self.refresh()
            if (
                self._health.reason not in {Reason.LOADING, Reason.NO_HOST}
                or not self._session.config.enabled
            ):
                return
            if self._health.reason is Reason.LOADING:
                await progress.begin()
            else:
                poll_s = min(LONGEST_POLL_S, 2 * poll_s)  # a remote host may be down for long
            await asyncio.sleep(poll_s)


class Progress:
    """Progress of loading the model, shown in the editor if it supports that."""

    def __init__(self, server: LanguageServer) -> None:
        self._server = server
        self._token = ""
        self._asked = False

    async def begin(self) -> None:
        window = self._server.client_capabilities.window
        if self._asked or window is None or not window.work_done_progress:
            return
        self._asked = True
        token = uuid.uuid4().hex
        try:
            async with asyncio.timeout(2):
                await self._server.window_work_done_progress_create_async(
                    lsp.WorkDoneProgressCreateParams(token)
                )
        except Exception as error:  # noqa: BLE001 - without progress everything else still works
            log.info("no progress: %s", type(error).__name__)
            return
        self._token = token
        self._report(lsp.WorkDoneProgressBegin(title="fimserver", message="loading the model"))

    def end(self, message: str) -> None:
        if self._token:
            self._report(lsp.WorkDoneProgressEnd(message=message))

    def _report(self, value: Any) -> None:
        # pygls has no public way to send a progress value.
        unstructured = self._server.protocol._converter.unstructure(value)  # noqa: SLF001
        self._server.progress(lsp.ProgressParams(self._token, unstructured))
