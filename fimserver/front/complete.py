"""Knows the way of one completion through the front, from cursor to suggestions. Knows nothing of LSP messages.

gate → memory → delay → context → host → post-processing → memory. Every way out has a reason.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from fimserver.front.context.privacy import path_of
from fimserver.front.context.prompt_context import PromptContext
from fimserver.front.documents.mirror import Document, Position, Snapshot, split_lines
from fimserver.front.host_client import Watch
from fimserver.front.memory import Key, RememberedMiddle
from fimserver.front.outcome import Outcome, Suggestion
from fimserver.front.postprocess.pipeline import Candidate, Dropped, FilterContext, distinct, fit, postprocess
from fimserver.front.session import Session
from fimserver.front.syntax import parser
from fimserver.front.syntax.features import features, indent_unit
from fimserver.reasons import Reason
from fimserver.types import Snippet
from fimserver.wire import Answer, CompletionBody, EditorHints, SnippetBody

# Reasons that would be the same if the same were asked again.
LASTING = frozenset(
    {Reason.EMPTY, Reason.BLANK, Reason.CONTROL, Reason.DUPLICATE, Reason.REPETITION, Reason.SYNTAX, Reason.NO_OP}
)
READ_AHEAD_S = 0.004  # by then the request is on its way
FOLLOW_UP_AFTER_S = 0.02  # the suggestion itself goes out first
SURROUNDINGS_CHARS = 20_000  # on each side, for the filters
FOLLOW_UP_CHARS = 400  # a longer suggestion is not followed up


class SelectedCompletion(NamedTuple):
    """What is selected in the editor's completion popup: a suggestion has to go on from there."""

    start: Position
    text: str


Surface = Literal["inline", "menu"]


@dataclass(frozen=True)
class CompletionRequest:
    """A request as it came in. ``received_s`` is of the monotonic clock. An editor may ask for two surfaces at once."""

    snapshot: Snapshot
    invoked: bool
    received_s: float
    popup: SelectedCompletion | None = None
    watch: Watch | None = None
    surface: Surface = "inline"

    @property
    def slot(self) -> str:
        """Where only one request can be on its way."""
        return f"{self.snapshot.uri}\0{self.surface}"


async def complete(session: Session, ask: CompletionRequest) -> Outcome:
    """Suggestions for a cursor, or the reason why there are none."""
    uri = ask.snapshot.uri
    refusal = refused(session, ask)
    outcome = Outcome(reason=refusal) if refusal else await session.newest(ask.slot, _complete(session, ask))
    outcome = replace(outcome, uri=uri, total_ms=(time.monotonic() - ask.received_s) * 1000)
    session.note(outcome)
    return outcome


def refused(session: Session, ask: CompletionRequest) -> Reason | None:
    """Why nothing is to be asked for this document, or at this place."""
    document = session.documents.get(ask.snapshot.uri)
    if document is None:
        return Reason.NOT_OPEN
    if not session.config.enabled or document.language in session.config.disabled_languages:
        return Reason.OFF
    if document.dirty or document.too_large:
        return Reason.DIRTY if document.dirty else Reason.TOO_LARGE
    if (verdict := session.privacy.verdict(path_of(document.uri), document.lines)) is not None:
        return verdict
    if ask.popup and not ask.popup.text.startswith(_typed_since(ask.popup.start, ask.snapshot)):
        return Reason.POPUP
    inside = re.search(r"\w$", ask.snapshot.line_before) and re.match(r"\w", ask.snapshot.line_after)
    return Reason.MID_WORD if inside and not ask.invoked else None


async def _complete(session: Session, ask: CompletionRequest) -> Outcome:
    document = session.documents[ask.snapshot.uri]
    known = session.context.text(ask.snapshot, *session.cells_around(document))
    key = key_of(session, document.uri, _with_popup(known.prefix, ask), known.suffix)
    if not ask.invoked and (middles := session.memory.recall(key)):
        return _recalled(session, ask, middles)
    context = session.context.build(known, ask.snapshot, session.documents if session.config.snippets else {})
    body = question(session, document, ask, context)
    await _wait(session, document, ask, body)
    ahead = asyncio.get_running_loop().call_later(READ_AHEAD_S, _read_ahead, session, document, ask)
    try:
        answer = await session.line.complete(_in_time(session, ask, body), asked=ask.invoked, watch=ask.watch)
    finally:
        ahead.cancel()
    if not answer.middles:
        return Outcome(reason=answer.reason or Reason.FAILED, message=answer.message)
    middles, dropped = filtered(session, document, ask, answer)
    if middles or dropped.reason in LASTING:
        session.memory.remember(key, middles or (RememberedMiddle("", dropped.reason),))
    usage = session.explained(document.uri, answer.middles[0].usage)
    if document.revision != ask.snapshot.revision or session.documents.get(document.uri) is not document:
        return Outcome(reason=Reason.STALE, usage=usage)
    suggestions = fitted(ask, middles)
    if suggestions and session.config.prefetch and not ask.popup and len(middles[0].text) <= FOLLOW_UP_CHARS:
        session.spare(_follow_up(session, document, ask, context, suggestions[0]))
    reason = usage.reason if suggestions else dropped.reason
    by = "" if suggestions else dropped.by
    return Outcome(suggestions, reason, "model", by, answer.message, usage=usage, body=None if ask.popup else body)


def _read_ahead(session: Session, document: Document, ask: CompletionRequest) -> None:
    """Parse the text around the cursor for the filters while the model works."""
    if (language := session.language(document)) is not None:
        around = surroundings(session, document, ask, Reason.END)
        parser.read_ahead(language, around.prefix, around.suffix)


def key_of(session: Session, uri: str, prefix: str, suffix: str) -> Key:
    return Key(uri, session.route(uri), suffix, prefix)


def question(session: Session, document: Document, ask: CompletionRequest, context: PromptContext) -> CompletionBody:
    """The request to the host."""
    config = session.config
    prefix = _with_popup(context.prefix, ask)
    known = features(session.language(document), prefix, context.suffix)
    return CompletionBody(
        prompt=_sound(prefix),
        suffix=_sound(context.suffix),
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        n=config.candidates if ask.invoked else 1,
        fimserver=EditorHints(
            route=session.route(document.uri),
            stop=config.stop,
            session=session.session_id,
            document=session.opaque(ask.slot),
            path=session.file_name(document.uri)[:1000],
            repo=session.repository(document.uri)[:200],
            snippets=tuple(_snippet_body(snippet) for snippet in context.snippets),
            typed_chars=0 if ask.popup else context.typed_chars,
            features=known,
        ),
    )


def _in_time(session: Session, ask: CompletionRequest, body: CompletionBody, **changes: object) -> CompletionBody:
    """The request with what is left of its time, which counts from its arrival."""
    config = session.config
    whole_ms = config.invoked_deadline_ms if ask.invoked else config.deadline_ms
    left_ms = max(1.0, whole_ms - (time.monotonic() - ask.received_s) * 1000)
    known = body.fimserver.model_copy(update={"deadline_ms": left_ms})
    return body.model_copy(update={"fimserver": known, **changes})


def _snippet_body(snippet: Snippet) -> SnippetBody:
    return SnippetBody(path=_sound(snippet.path)[:1000], text=_sound(snippet.text))


async def _wait(session: Session, document: Document, ask: CompletionRequest, body: CompletionBody) -> None:
    """Wait for the next key of a burst, less what the editor waited; the host reads the prompt meanwhile."""
    now = time.monotonic()
    delay_ms = 0.0 if ask.invoked else session.rhythm(document.uri).delay_ms(now, session.config.delay_ms)
    if delay_ms <= 0:
        return
    session.aside(session.line.complete(_in_time(session, ask, body, max_tokens=0), asked=False))
    await asyncio.sleep(delay_ms / 1000)


def filtered(
    session: Session, document: Document, ask: CompletionRequest, answer: Answer
) -> tuple[tuple[RememberedMiddle, ...], Dropped]:
    """Middles that may be shown, distinct; and why the first of the others was dropped."""
    drafts: list[Candidate] = []
    middles: list[RememberedMiddle] = []
    dropped = Dropped(Reason.EMPTY, "")
    for choice in answer.middles:
        around = surroundings(session, document, ask, choice.usage.reason)
        result = _post(choice.text, around)
        if isinstance(result, Dropped):
            dropped = result if dropped.reason is Reason.EMPTY else dropped
        elif len(distinct([*drafts, result])) > len(drafts):
            drafts.append(result)
            middles.append(RememberedMiddle(result.text, choice.usage.reason))
    return tuple(middles), dropped


def _post(text: str, around: FilterContext) -> Candidate | Dropped:
    return postprocess(text, around) if text.strip() else Dropped(_why_nothing(around.reason), "")


def _why_nothing(reason: Reason) -> Reason:
    """Why a middle without text is none: the model ended it, or something else did."""
    return Reason.EMPTY if reason in {Reason.END, Reason.LINE, Reason.BLOCK} else reason


def surroundings(session: Session, document: Document, ask: CompletionRequest, reason: Reason) -> FilterContext:
    """What a middle is filtered by: the text of the file itself, not what the model was given of it."""
    snapshot = ask.snapshot
    return FilterContext(
        prefix=_with_popup(snapshot.prefix(SURROUNDINGS_CHARS), ask),
        suffix=snapshot.suffix(SURROUNDINGS_CHARS),
        language=session.language(document),
        indent_unit=indent_unit(snapshot.lines),
        reason=reason,
        single_line=session.config.stop == "line",
        rejected=session.rejected_at(document.uri, snapshot.line_before),
    )


def _recalled(session: Session, ask: CompletionRequest, middles: tuple[RememberedMiddle, ...]) -> Outcome:
    """What was found before, fitted to the text as it is now."""
    rejected = session.rejected_at(ask.snapshot.uri, ask.snapshot.line_before)
    left = tuple(middle for middle in middles if middle.text and middle.text not in rejected)
    if not left:
        return Outcome(reason=middles[0].reason if not middles[0].text else Reason.REJECTED, source="memory")
    suggestions = fitted(ask, left[:1])
    return Outcome(suggestions, left[0].reason if suggestions else Reason.NO_OP, "memory")


def fitted(ask: CompletionRequest, middles: tuple[RememberedMiddle, ...]) -> tuple[Suggestion, ...]:
    """Suggestions with as much of the line replaced as they repeat, after the popup's text if there is one."""
    before, after = ask.snapshot.line_before, ask.snapshot.line_after
    drafts = [fit(middle.text, before, after) for middle in middles]
    lead = ask.popup.text if ask.popup else ""
    changing = (draft for draft in drafts if draft.text and draft.text != after[: draft.replace])
    return tuple(Suggestion(lead + draft.text, draft.replace) for draft in changing)


async def _follow_up(
    session: Session, document: Document, ask: CompletionRequest, context: PromptContext, shown: Suggestion
) -> None:
    """Ask for what comes after a suggestion, as if it had been accepted, while nobody else needs the model."""
    await asyncio.sleep(FOLLOW_UP_AFTER_S)
    snapshot = _accepted(ask.snapshot, shown)
    ahead = replace(ask, snapshot=snapshot, received_s=time.monotonic())
    replaced = max(0, shown.replace - len(context.stripped))  # the rest of it is not in the suffix anyway
    taken = replace(
        context,
        prefix=context.prefix + shown.text,
        suffix=context.suffix[replaced:],
        typed_chars=context.typed_chars + len(shown.text),
    )
    key = key_of(session, document.uri, taken.prefix, taken.suffix)
    if session.memory.recall(key):
        return
    body = question(session, document, ahead, taken)
    idle = body.model_copy(update={"fimserver": body.fimserver.model_copy(update={"idle": True})})
    answer = await session.line.complete(_in_time(session, ahead, idle), asked=False)
    if answer.middles and session.documents.get(document.uri) is document:
        middles, _ = filtered(session, document, ahead, answer)
        if middles:
            session.memory.remember(key, middles)


def _accepted(snapshot: Snapshot, shown: Suggestion) -> Snapshot:
    """The document as it would be with a suggestion in it."""
    row, column = snapshot.place
    line = snapshot.lines[row]
    grown = split_lines(line[:column] + shown.text + line[column + shown.replace :])
    if row + 1 < len(snapshot.lines) and grown[-1] == "":
        grown.pop()  # the line's own end
    inserted = shown.text.split("\n")
    place = Position(row + len(inserted) - 1, len(inserted[-1]) + (column if len(inserted) == 1 else 0))
    return replace(snapshot, lines=[*snapshot.lines[:row], *grown, *snapshot.lines[row + 1 :]], place=place)


def _typed_since(start: Position, snapshot: Snapshot) -> str:
    """The text between the start of what the popup would replace and the cursor."""
    same_line = start.line == snapshot.place.line
    return snapshot.line_before[start.column :] if same_line else snapshot.line_before


def _with_popup(prefix: str, ask: CompletionRequest) -> str:
    """The prefix as it would be with the popup's text in it."""
    if ask.popup is None:
        return prefix
    typed = _typed_since(ask.popup.start, ask.snapshot)
    return prefix[: len(prefix) - len(typed)] + ask.popup.text


def _sound(text: str) -> str:
    """Text that can be sent: a lone surrogate becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text
