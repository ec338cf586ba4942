"""Knows the requests for suggestions, for ghost text and for the completion menu. Knows nothing of how they are made.

The snapshot is taken when the message comes, before the first await. No failure becomes a popup: the answer is an empty
list, and the reason is there for ``fimserver/explain``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lsprotocol import types as lsp

from fimserver.errors import FimError
from fimserver.front.complete import CompletionRequest, SelectedCompletion, Surface, complete
from fimserver.front.lsp import items
from fimserver.front.lsp.canvas_preview import preview
from fimserver.front.outcome import Outcome, Suggestion
from fimserver.front.record import account
from fimserver.reasons import Reason

if TYPE_CHECKING:
    from fimserver.front.lsp.server import Server

log = logging.getLogger("fimserver.front")
OUT_OF_DATE = frozenset({Reason.SUPERSEDED, Reason.STALE})


def inline_completion(server: Server, params: lsp.InlineCompletionParams) -> Any:
    """A coroutine, made after the snapshot was taken."""
    invoked = params.context.trigger_kind == lsp.InlineCompletionTriggerKind.Invoked
    ask = _ask(server, params, "inline", invoked=invoked, popup=params.context.selected_completion_info)
    if ask is None:
        server.session.note(Outcome(reason=Reason.NOT_OPEN, uri=params.text_document.uri))
        return lsp.InlineCompletionList(items=[])
    return _inline(server, replace(ask, watch=preview(server, ask.snapshot)))


async def _inline(server: Server, ask: CompletionRequest) -> lsp.InlineCompletionList | None:
    """``None`` for what is out of date: an empty list would hide what a newer request has shown meanwhile (Neovim)."""
    try:
        suggestions = await suggest(server, ask)
    finally:
        if ask.watch:
            ask.watch(())
    if suggestions is None:
        return None
    start = ask.popup.start if ask.popup else None
    return items.inline_list(ask.snapshot, suggestions, server.session.encoding, start, from_line_start=server.from_line_start)


def menu_completion(server: Server, params: lsp.CompletionParams) -> Any:
    """The same for the completion menu, which opens by itself as often as not, and does not say which."""
    ask = _ask(server, params, "menu", invoked=False)
    return _menu(server, ask) if ask else lsp.CompletionList(is_incomplete=False, items=[])


async def _menu(server: Server, ask: CompletionRequest) -> lsp.CompletionList:
    suggestions = await suggest(server, ask) or ()
    return items.menu_list(ask.snapshot, suggestions, server.session.encoding, insert_replace=server.insert_replace)


def _ask(
    server: Server, params: Any, surface: Surface, *, invoked: bool, popup: lsp.SelectedCompletionInfo | None = None
) -> CompletionRequest | None:
    """The request with the document as it is now; ``None`` where the document is not open."""
    document = server.session.documents.get(params.text_document.uri)
    if document is None:
        return None
    encoding = server.session.encoding
    place = document.place((params.position.line, params.position.character), encoding)
    if server.session.recorder:
        server.session.recorder.ask(document, place, invoked=invoked)
    selected = None
    if popup is not None:
        start = popup.range.start
        selected = SelectedCompletion(document.place((start.line, start.character), encoding), popup.text)
    return CompletionRequest(document.snapshot(place), invoked, time.monotonic(), selected, surface=surface)


async def suggest(server: Server, ask: CompletionRequest) -> tuple[Suggestion, ...] | None:
    """Suggestions for a request, ``None`` where it is out of date. Whatever fails is a reason, never an error."""
    session, uri = server.session, ask.snapshot.uri
    try:
        outcome = await complete(session, ask)
    except asyncio.CancelledError:
        account(session, ask, Outcome(reason=Reason.CANCELLED, uri=uri))
        raise
    except FimError as error:
        outcome = Outcome(reason=Reason.FAILED, message=str(error), uri=uri)
        session.note(outcome)
    except Exception as error:  # noqa: BLE001 - a fault of ours must not reach the editor
        log.error("a completion failed: %s", type(error).__name__)  # noqa: TRY400 - a traceback may quote text
        outcome = Outcome(reason=Reason.FAILED, message=type(error).__name__, uri=uri)
        session.note(outcome)
    account(session, ask, outcome)
    server.status.after(server, outcome)
    return None if outcome.reason in OUT_OF_DATE else outcome.suggestions
