"""One completion, from cursor to suggestions.

Gate → memory → context → debounce → host → post-processing → memory. Every outcome has a reason code.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

from fimserver.front.context.prompt_context import ContextSource, PromptContext
from fimserver.front.host_client import HostClient
from fimserver.front.memory import Key, Memory, RememberedMiddle
from fimserver.front.outcome import Outcome
from fimserver.front.prefetch import MAX_CHARS, prefetch
from fimserver.front.request import CompletionRequest, completion_body
from fimserver.front.running import Running
from fimserver.front.shown import filtered, fitted, parse_ahead
from fimserver.reasons import Reason
from fimserver.wire import Answer, CompletionBody

# Reasons for which asking again at the same place would give the same result.
LASTING = frozenset(
    {
        Reason.EMPTY,
        Reason.BLANK,
        Reason.CONTROL,
        Reason.DUPLICATE,
        Reason.REPETITION,
        Reason.SYNTAX,
        Reason.NO_OP,
        Reason.UNSURE,
    }
)
PARSE_AFTER_S = 0.004  # by then the request has been sent


@dataclass(frozen=True)
class Services:
    """Parts of a window that its completions use."""

    memory: Memory
    context: ContextSource
    host: HostClient
    running: Running


async def complete(request: CompletionRequest, services: Services) -> Outcome:
    """Return suggestions for a cursor, or the reason why there are none."""
    if request.refusal is not None:
        outcome = Outcome(reason=request.refusal, message=request.refusal_message)
    else:
        outcome = await services.running.run_latest(request.slot, _complete(request, services))
    return replace(outcome, uri=request.uri, total_ms=(time.monotonic() - request.received_s) * 1000)


async def _complete(request: CompletionRequest, services: Services) -> Outcome:
    text = services.context.text(request.snapshot, *request.cells)
    key = Key(request.uri, request.route, text.suffix, request.with_popup(text.prefix))
    if not request.invoked and (middles := services.memory.recall(key)):
        return _recalled(request, middles)
    context = services.context.build(text, request.snapshot, request.open_documents)
    body = completion_body(request, context)
    await _debounce(request, body, services)
    answer = await _ask(request, body, services.host)
    if not answer.middles:
        return Outcome(reason=answer.reason or Reason.FAILED, message=answer.message)
    middles, dropped = filtered(request, answer)
    if middles or dropped.reason in LASTING:
        services.memory.remember(key, middles or (RememberedMiddle("", dropped.reason),))
    usage = answer.middles[0].usage
    usage = request.turn.explained(usage) if request.turn else usage
    if request.is_stale:
        return Outcome(reason=Reason.STALE, usage=usage)
    suggestions = fitted(request, middles)
    if not suggestions:
        return Outcome((), dropped.reason, "model", dropped.by, answer.message, usage=usage)
    outcome = Outcome(suggestions, usage.reason, "model", message=answer.message, usage=usage)
    return outcome if request.popup else _followed_up(request, context, body, outcome, services)


def _recalled(request: CompletionRequest, middles: tuple[RememberedMiddle, ...]) -> Outcome:
    """Fit remembered middles to the current text."""
    left = [middle for middle in middles if middle.text and middle.text not in request.rejected]
    if not left:
        return Outcome(reason=middles[0].reason if not middles[0].text else Reason.REJECTED, source="memory")
    suggestions = fitted(request, left[:1])
    wrote = left[0]
    reason = wrote.reason if suggestions else Reason.NO_OP
    return Outcome(suggestions, reason, "memory", route=wrote.route, model=wrote.model)


async def _debounce(request: CompletionRequest, body: CompletionBody, services: Services) -> None:
    """Wait for the next key of a burst; meanwhile the host prefills the prompt."""
    wait_s = request.send_at_s - time.monotonic()
    if wait_s > 0:
        warm = body.model_copy(update={"max_tokens": 0})
        services.running.run_detached(
            services.host.complete(warm, deadline_s=request.deadline_s, asked=False)
        )
        await asyncio.sleep(wait_s)


async def _ask(request: CompletionRequest, body: CompletionBody, host: HostClient) -> Answer:
    parsing = asyncio.get_running_loop().call_later(PARSE_AFTER_S, parse_ahead, request)
    try:
        return await host.complete(
            body, deadline_s=request.deadline_s, asked=request.invoked, watch=request.watch
        )
    finally:
        parsing.cancel()


def _followed_up(
    request: CompletionRequest,
    context: PromptContext,
    body: CompletionBody,
    outcome: Outcome,
    services: Services,
) -> Outcome:
    """Prefetch what follows the suggestion, and keep the request for a comparison that repeats it."""
    shown = outcome.suggestions[0]
    if request.prefetch and len(shown.text) <= MAX_CHARS:
        services.running.run_prefetch(prefetch(request, context, shown, services.memory, services.host))
    return replace(outcome, body=body)
