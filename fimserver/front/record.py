"""Record of a request: enters its outcome in the ledger and may ask the other route the same question."""

from __future__ import annotations

from functools import partial

from fimserver.events import PROPENSITY, AnswerRecord, SuggestionEvent
from fimserver.front.feedback.acceptance import ShownSuggestion
from fimserver.front.feedback.ledger import Entry
from fimserver.front.outcome import Outcome
from fimserver.front.request import CompletionRequest
from fimserver.front.session import Session
from fimserver.front.shown import filtered, fitted
from fimserver.lengths import bucket_of, lexemes
from fimserver.types import Decision, other
from fimserver.wire import Answer


def account(session: Session, request: CompletionRequest, outcome: Outcome) -> None:
    """Enter the outcome of a request. The rest of a suggestion being typed does not count as a new one."""
    is_open = session.documents.get(request.uri) is request.document
    offered = _offered(session, request, outcome) if is_open else []
    if outcome.suggestions and not offered and outcome.source == "memory":
        return
    record = answer_record(session, request, outcome)
    entry = session.ledger.answered(record, request.document if is_open else None, offered)
    may_shadow = session.trial.mode == "shadow" and not request.saves_power
    wants_shadow = may_shadow and entry.answer.shown and entry.answer.block
    if wants_shadow and outcome.body and outcome.usage and outcome.usage.route and is_open:
        judge = partial(_judge, session, request, entry)
        session.shadows.put(outcome.body, other(outcome.usage.route), judge, request.limits.deadline_ms)


def answer_record(session: Session, request: CompletionRequest, outcome: Outcome) -> AnswerRecord:
    """Return the outcome of a request as a record. A suggestion from memory has the route that wrote it."""
    used = outcome.usage
    turn = request.turn
    decision = used.decision if used else None
    wanted = "" if request.route == "auto" else request.route
    route = used.route if used and used.model else outcome.route or wanted
    text = outcome.suggestions[0].text if outcome.suggestions else ""
    record = AnswerRecord(
        number=0,
        at=0,
        document=request.document_id,
        language=request.language or "",
        route=route,
        model=used.model if used else outcome.model,
        source=outcome.source,
        reason=outcome.reason,
        policy=decision.policy if decision else "",
        propensity=decision.propensity if decision else 1.0,
        bucket=_bucket(decision, text),
        total_ms=outcome.total_ms,
        ttft_ms=used.ttft_ms if used else 0.0,
        confidence=used.confidence if used else None,
        chars=len(text),
        lexemes=lexemes(text),
    )
    if turn is None or turn.route != route:
        return record
    is_first = session.trial.is_first(request.document_id, turn)
    return record.model_copy(
        update={"policy": turn.mode, "propensity": PROPENSITY, "block": turn.block, "first": is_first}
    )


def _bucket(decision: Decision | None, text: str) -> int | None:
    """Return the length bucket that the route was chosen for, else that of the suggestion."""
    if decision and decision.expected_lexemes:
        return decision.bucket
    return bucket_of(lexemes(text)) if text else None


def _offered(session: Session, request: CompletionRequest, outcome: Outcome) -> list[ShownSuggestion]:
    """Return the suggestions sent to the editor, except the rests of earlier ones."""
    route = outcome.usage.route if outcome.usage else outcome.route or outcome.source
    offer = session.acceptance.offer
    offers = [offer(s.suggestion_id, request.document, s.start, s.text, route) for s in outcome.suggestions]
    return [shown for shown in offers if shown is not None]


def _judge(session: Session, request: CompletionRequest, entry: Entry, answer: Answer) -> None:
    """Enter what the other route would have shown. The editor never sees it."""
    used = answer.middles[0].usage
    middles, dropped = filtered(request, answer)
    suggestions = fitted(request, middles)
    event = SuggestionEvent(
        route=used.route,
        model=used.model,
        reason=used.reason if suggestions else dropped.reason,
        total_ms=used.queue_ms + used.total_ms,
        ttft_ms=used.ttft_ms,
    )
    session.ledger.shadowed(entry, event, suggestions[0].text if suggestions else "")
