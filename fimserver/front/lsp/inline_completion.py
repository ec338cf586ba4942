"""Handlers of inline completion (ghost text) and of the completion menu.

The snapshot is taken when the message arrives, before the first await. A failure never becomes a popup: the
answer is an empty list, and ``fimserver/explain`` returns the reason.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

from lsprotocol import types as lsp

from fimserver.errors import FimError
from fimserver.front.complete import Services, complete
from fimserver.front.gate import arrive
from fimserver.front.lsp import items
from fimserver.front.lsp.canvas_preview import preview
from fimserver.front.lsp.server import Server
from fimserver.front.outcome import Outcome, Suggestion
from fimserver.front.record import account
from fimserver.front.request import CompletionRequest, SelectedCompletion, Surface
from fimserver.reasons import Reason

log = logging.getLogger("fimserver.front")
OUT_OF_DATE = frozenset({Reason.SUPERSEDED, Reason.STALE})


def inline_completion(server: Server, params: lsp.InlineCompletionParams) -> Any:
    """Take the snapshot, and return a coroutine that answers the request."""
    context = params.context
    invoked = context.trigger_kind == lsp.InlineCompletionTriggerKind.Invoked
    request = _arrived(server, params, "inline", invoked=invoked, popup=context.selected_completion_info)
    if request is None:
        server.session.note(Outcome(reason=Reason.NOT_OPEN, uri=params.text_document.uri))
        return lsp.InlineCompletionList(items=[])
    return _inline(server, replace(request, watch=preview(server, request.snapshot)))


async def _inline(server: Server, request: CompletionRequest) -> lsp.InlineCompletionList | None:
    """Answer ``None`` when out of date: an empty list would hide a newer request's suggestion (Neovim)."""
    try:
        suggestions = await suggest(server, request)
    finally:
        if request.watch:
            request.watch(())
    if suggestions is None:
        return None
    encoding = server.session.encoding
    return items.inline_list(request.snapshot, suggestions, encoding, from_line_start=server.from_line_start)


def menu_completion(server: Server, params: lsp.CompletionParams) -> Any:
    """Answer for the completion menu, which does not tell whether the user invoked it."""
    request = _arrived(server, params, "menu", invoked=False)
    return _menu(server, request) if request else lsp.CompletionList(is_incomplete=False, items=[])


async def _menu(server: Server, request: CompletionRequest) -> lsp.CompletionList:
    suggestions = await suggest(server, request) or ()
    encoding = server.session.encoding
    return items.menu_list(request.snapshot, suggestions, encoding, insert_replace=server.insert_replace)


def _arrived(
    server: Server,
    params: Any,
    surface: Surface,
    *,
    invoked: bool,
    popup: lsp.SelectedCompletionInfo | None = None,
) -> CompletionRequest | None:
    """Resolve the request with the current document; ``None`` if the document is not open."""
    session = server.session
    document = session.documents.get(params.text_document.uri)
    if document is None:
        return None
    place = document.place((params.position.line, params.position.character), session.encoding)
    if session.recorder:
        session.recorder.ask(document, place, invoked=invoked)
    selected = None
    if popup is not None:
        start = popup.range.start
        selected = SelectedCompletion(
            document.place((start.line, start.character), session.encoding), popup.text
        )
    request = arrive(session, document, place, invoked=invoked, surface=surface, popup=selected)
    server.reading.asked(request)
    return request


async def suggest(server: Server, request: CompletionRequest) -> tuple[Suggestion, ...] | None:
    """Return suggestions, or ``None`` if the request is out of date. A failure is a reason, not an error."""
    session = server.session
    uri = request.uri
    try:
        services = Services(session.memory, session.context, session.host, session.running)
        outcome = await complete(request, services)
    except asyncio.CancelledError:
        account(session, request, Outcome(reason=Reason.CANCELLED, uri=uri))
        raise
    except FimError as error:
        outcome = Outcome(reason=Reason.FAILED, message=str(error), uri=uri)
    except Exception as error:  # noqa: BLE001 - a bug of ours must not reach the editor
        # A traceback may quote text.
        log.error("a completion failed: %s", type(error).__name__)  # noqa: TRY400
        outcome = Outcome(reason=Reason.FAILED, message=type(error).__name__, uri=uri)
    session.note(outcome)
    account(session, request, outcome)
    server.status.after(outcome)
    return None if outcome.reason in OUT_OF_DATE else outcome.suggestions
