"""Knows what of a request's end goes into the ledger, and what its shadow is. Knows nothing of how either is kept."""

from __future__ import annotations

from functools import partial

from fimserver.events import PROPENSITY, SuggestionEvent
from fimserver.events import AnswerRecord as Event
from fimserver.front.complete import CompletionRequest, filtered, fitted
from fimserver.front.documents.mirror import Document
from fimserver.front.feedback.acceptance import ShownSuggestion
from fimserver.front.feedback.ledger import Entry
from fimserver.front.outcome import Outcome
from fimserver.front.session import Session
from fimserver.lengths import bucket_of, lexemes
from fimserver.types import Decision, other
from fimserver.wire import Answer, CompletionBody


def account(session: Session, ask: CompletionRequest, outcome: Outcome) -> None:
    """Enter how a request ended. The rest of a suggestion that is being typed through is no new one."""
    document = session.documents.get(outcome.uri)
    offered = _offered(session, document, ask, outcome) if document else []
    if outcome.suggestions and not offered and outcome.source == "memory":
        return
    entry = session.ledger.answered(event(session, outcome), document, offered)
    wanted = session.trial.mode == "shadow" and entry.answer.shown and entry.answer.block
    if wanted and outcome.body and outcome.usage and document:
        body = _in_time(session, ask, outcome.body)
        session.shadows.put(body, other(outcome.usage.route), partial(_judge, session, document, ask, entry))


def event(session: Session, outcome: Outcome) -> Event:
    """A request's end in numbers. The route of what comes from memory is known where only one may have been asked."""
    used, document, turn = outcome.usage, session.documents.get(outcome.uri), session.turn(outcome.uri)
    decision = used.decision if used else None
    asked = session.route(outcome.uri)
    route = used.route if used and used.model else "" if asked == "auto" else asked
    text = outcome.suggestions[0].text if outcome.suggestions else ""
    known = Event(
        number=0,
        at=0,
        document=session.opaque(outcome.uri),
        language=session.language(document) or "" if document else "",
        route=route,
        model=used.model if used else "",
        source=outcome.source,
        reason=outcome.reason,
        policy=decision.policy if decision else "",
        propensity=decision.propensity if decision else 1.0,
        bucket=_bucket(decision, text),
        total_ms=outcome.total_ms,
        ttft_ms=used.ttft_ms if used else 0.0,
        chars=len(text),
        lexemes=lexemes(text),
    )
    if turn is None or turn.route != route:
        return known
    is_first = session.trial.is_first(known.document, turn)
    trial = {"policy": session.trial.mode, "propensity": PROPENSITY, "block": turn.block, "first": is_first}
    return known.model_copy(update=trial)


def _bucket(decision: Decision | None, text: str) -> int | None:
    """The bucket that the route was chosen for; where none was expected, that of the suggestion."""
    if decision and decision.expected_lexemes:
        return decision.bucket
    return bucket_of(lexemes(text)) if text else None


def _offered(session: Session, document: Document, ask: CompletionRequest, outcome: Outcome) -> list[ShownSuggestion]:
    """Suggestions that went to the editor and are not the rest of an earlier one."""
    start = ask.popup.start if ask.popup else ask.snapshot.place
    route = outcome.usage.route if outcome.usage else outcome.source
    offers = [session.acceptance.offer(s.suggestion_id, document, start, s.text, route) for s in outcome.suggestions]
    return [shown for shown in offers if shown is not None]


def _in_time(session: Session, ask: CompletionRequest, body: CompletionBody) -> CompletionBody:
    """The request with the time that the shown one had."""
    whole_ms = session.config.invoked_deadline_ms if ask.invoked else session.config.deadline_ms
    return body.model_copy(update={"fimserver": body.fimserver.model_copy(update={"deadline_ms": whole_ms})})


def _judge(session: Session, document: Document, ask: CompletionRequest, entry: Entry, answer: Answer) -> None:
    """Enter what the other route would have shown. It goes no further than the ledger."""
    used = answer.middles[0].usage
    middles, dropped = filtered(session, document, ask, answer)
    suggestions = fitted(ask, middles)
    told = SuggestionEvent(
        route=used.route,
        model=used.model,
        reason=used.reason if suggestions else dropped.reason,
        total_ms=used.queue_ms + used.total_ms,
        ttft_ms=used.ttft_ms,
    )
    session.ledger.shadowed(entry, told, suggestions[0].text if suggestions else "")
