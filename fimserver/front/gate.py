"""Gate of a completion: resolves the facts of a request on arrival and decides whether it is refused."""

from __future__ import annotations

import re
import time
from dataclasses import replace

from fimserver.front.documents.mirror import Document, Position, Snapshot
from fimserver.front.documents.uris import path_of
from fimserver.front.request import CompletionRequest, Limits, SelectedCompletion, Surface, typed_since
from fimserver.front.session import Session
from fimserver.reasons import Reason

POWER_SAVING_DELAY_MS = 300.0


def arrive(
    session: Session,
    document: Document,
    place: Position,
    *,
    invoked: bool,
    surface: Surface = "inline",
    popup: SelectedCompletion | None = None,
    waits: bool = True,
) -> CompletionRequest:
    """Resolve a request: later steps see the document and the settings as they are on arrival.

    ``waits``: whether an automatic request is debounced.
    """
    uri = document.uri
    snapshot = document.snapshot(place)
    turn = session.turn(uri)
    reason, message = refusal(session, document, snapshot, popup, invoked=invoked)
    if reason is None and not invoked:
        reason = unasked_refusal(session, document)
    request = CompletionRequest(
        document=document,
        snapshot=snapshot,
        surface=surface,
        invoked=invoked,
        received_s=time.monotonic(),
        limits=limits(session, invoked=invoked),
        refusal=reason,
        refusal_message=message,
        language=session.language(document),
        route=turn.route if turn else session.wanted(uri),
        turn=turn,
        popup=popup,
        session_id=session.session_id,
        document_id=session.opaque(uri),
    )
    return request if request.refusal is not None else _resolved(session, request, waits=waits)


def _resolved(session: Session, request: CompletionRequest, *, waits: bool) -> CompletionRequest:
    """Add the facts that only an accepted request needs."""
    config = session.config
    uri = request.uri
    snapshot = request.snapshot
    delay_ms = 0.0 if request.invoked or not waits else _delay_ms(session, request)
    return replace(
        request,
        path=session.file_name(uri),
        repo=session.repository(uri),
        rejected=session.rejected_at(uri, snapshot.line_before),
        is_cell=session.notebooks.holds(uri) or session.file_name(uri).endswith(".ipynb"),
        cells=session.cells_around(request.document),
        open_documents=session.documents if config.snippets else {},
        send_at_s=request.received_s + delay_ms / 1000,
        prefetch=config.prefetch and not session.saves_power,
        saves_power=session.saves_power,
        slot_id=session.opaque(request.slot),
    )


def _delay_ms(session: Session, request: CompletionRequest) -> float:
    """Return how long an automatic request waits for the next key: longer if suggestions seem unwanted."""
    config = session.config
    place = request.snapshot.place
    delay_ms = session.rhythm(request.uri).delay_ms(request.received_s, config.delay_ms)
    if session.calm.why_wait(request.uri, request.snapshot.revision, place, request.received_s):
        delay_ms += config.calm_delay_ms
    return delay_ms + (POWER_SAVING_DELAY_MS if session.saves_power else 0.0)


def unasked_refusal(session: Session, document: Document) -> Reason | None:
    """Return why automatic requests are refused, or ``None`` if they are not."""
    if session.trigger(document) == "onDemand":
        return Reason.ON_DEMAND
    if session.is_snoozed:
        return Reason.SNOOZED
    if session.config.battery == "off" and session.saves_power:
        return Reason.BATTERY
    return Reason.ENOUGH if session.calm.is_full(session.config.shown_per_minute, time.monotonic()) else None


def limits(session: Session, *, invoked: bool) -> Limits:
    """Return the limits of a request: an explicit one may take longer and gets several candidates."""
    config = session.config
    return Limits(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        stop=config.stop,
        candidates=config.candidates if invoked else 1,
        deadline_ms=config.invoked_deadline_ms if invoked else config.deadline_ms,
        min_acceptance=0.0 if invoked else config.min_acceptance,
    )


def refusal(
    session: Session,
    document: Document,
    snapshot: Snapshot,
    popup: SelectedCompletion | None,
    *,
    invoked: bool,
) -> tuple[Reason | None, str]:
    """Return why a request in this document or at this place is refused, or ``None``, and a message.

    The message is more specific than the reason's default one, or empty.
    """
    path = path_of(document.uri)
    if not session.config.enabled or document.language in session.config.disabled_languages:
        return Reason.OFF, ""
    if document.dirty or document.too_large:
        return Reason.DIRTY if document.dirty else Reason.TOO_LARGE, ""
    if (verdict := session.privacy.verdict(path, document.lines)) is not None:
        return verdict, session.privacy.why(path)
    if popup and not popup.text.startswith(typed_since(popup.start, snapshot)):
        return Reason.POPUP, ""
    is_mid_word = re.search(r"\w$", snapshot.line_before) and re.match(r"\w", snapshot.line_after)
    return Reason.MID_WORD if is_mid_word and not invoked else None, ""
