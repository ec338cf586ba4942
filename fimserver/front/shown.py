"""Shown suggestions: filters the middles of an answer and fits them to the text around the cursor."""

from __future__ import annotations

from collections.abc import Sequence

from fimserver.front.documents.mirror import Position
from fimserver.front.memory import RememberedMiddle
from fimserver.front.outcome import Suggestion
from fimserver.front.postprocess import syntax_gate
from fimserver.front.postprocess.pipeline import Candidate, Dropped, FilterContext, distinct, fit, postprocess
from fimserver.front.request import CompletionRequest
from fimserver.front.syntax.features import indent_unit
from fimserver.front.syntax.languages import is_makefile
from fimserver.reasons import ENDED, Reason
from fimserver.wire import Answer

SURROUNDINGS_CHARS = 20_000  # on each side, for the filters


def filtered(request: CompletionRequest, answer: Answer) -> tuple[tuple[RememberedMiddle, ...], Dropped]:
    """Return the distinct middles that pass the filters, and why the first of the others was dropped."""
    candidates: list[Candidate] = []
    middles: list[RememberedMiddle] = []
    dropped = Dropped(Reason.EMPTY, "")
    for choice in answer.middles:
        result = _filter(choice.text, filter_context(request, choice.usage.reason))
        if isinstance(result, Candidate) and _is_unsure(request, choice.usage.chance):
            result = Dropped(Reason.UNSURE, "min_acceptance")
        if isinstance(result, Dropped):
            dropped = result if dropped.reason is Reason.EMPTY else dropped
        elif len(distinct([*candidates, result])) > len(candidates):
            candidates.append(result)
            used = choice.usage
            middles.append(RememberedMiddle(result.text, used.reason, used.route, used.model))
    return tuple(middles), dropped


def _is_unsure(request: CompletionRequest, chance: float | None) -> bool:
    """Whether acceptance is too unlikely. A middle without a known chance is never unsure."""
    return chance is not None and chance < request.limits.min_acceptance


def _filter(text: str, context: FilterContext) -> Candidate | Dropped:
    if text.strip():
        return postprocess(text, context)
    # If the model itself ended an empty middle, nothing belongs there; otherwise something cut it off.
    return Dropped(Reason.EMPTY if context.reason in ENDED else context.reason, "")


def filter_context(request: CompletionRequest, reason: Reason) -> FilterContext:
    """Return the file's text around the cursor: more than the prompt shows, and without its changes."""
    snapshot = request.snapshot
    return FilterContext(
        prefix=request.with_popup(snapshot.prefix(SURROUNDINGS_CHARS)),
        suffix=snapshot.suffix(SURROUNDINGS_CHARS),
        language=request.language,
        indent_unit=_indent_unit(request),
        reason=reason,
        single_line=request.limits.stop == "line",
        rejected=request.rejected,
        is_cell=request.is_cell,
    )


def _indent_unit(request: CompletionRequest) -> str:
    """Return the file's indentation unit, empty if it has none yet. Makefiles always need tabs."""
    if is_makefile(request.document.language, request.path):
        return "\t"
    return indent_unit(request.snapshot.lines, default="")


def parse_ahead(request: CompletionRequest) -> None:
    """Parse the text around the cursor for the filters while the model works."""
    syntax_gate.parse_ahead(filter_context(request, Reason.END))


def fitted(request: CompletionRequest, middles: Sequence[RememberedMiddle]) -> tuple[Suggestion, ...]:
    """Return suggestions as edits, which begin with the selected menu item.

    They replace the text after the cursor that they repeat.
    """
    before = request.snapshot.line_before
    after = request.snapshot.line_after
    lead = request.popup.text if request.popup else ""
    line, column = request.snapshot.place
    candidates = [fit(middle.text, before, after) for middle in middles]
    return tuple(
        Suggestion(request.start, Position(line, column + candidate.replace), lead + candidate.text)
        for candidate in candidates
        if candidate.text and candidate.text != after[: candidate.replace]
    )
