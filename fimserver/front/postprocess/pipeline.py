"""Post-processing: applies the filters in order, until a text would pass them unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fimserver.front.postprocess import filters, indentation, repetition
from fimserver.front.postprocess.candidate import CUT_SHORT, Candidate, Dropped, Filter, FilterContext
from fimserver.front.postprocess.repetition import fit
from fimserver.front.postprocess.syntax_gate import syntax_gate
from fimserver.reasons import Reason
from fimserver.types import unix_lines

__all__ = ["FILTERS", "Candidate", "Dropped", "Filter", "FilterContext", "distinct", "fit", "postprocess"]

FILTERS: Mapping[str, Filter] = {
    "special_tokens": filters.special_tokens,
    "broken_characters": filters.broken_characters,
    "line_ends": filters.line_ends,
    "control": filters.control,
    # before blanks are trimmed: a newline at the end says that the line is whole
    "unfinished": filters.unfinished,
    "leading": indentation.leading,
    "trailing": filters.trailing,
    "indentation": indentation.indentation,  # before lines are compared with those around
    "one_line": filters.one_line,
    "comment": filters.comment,  # before the text is compared with the rest of the line
    "suffix_overlap": repetition.suffix_overlap,
    "duplicate": repetition.duplicate,
    "repetition": repetition.repetition,
    "scope": filters.scope,
    "syntax_gate": syntax_gate,
    "no_op": filters.no_op,
    "rejected": filters.rejected,
}
_ROUNDS = 8


def postprocess(text: str, context: FilterContext) -> Candidate | Dropped:
    """Return the suggestion made of ``text``, or why nothing is shown.

    A cut may give an earlier filter something to do, so the filters run again until nothing changes: the text
    that comes out passes all of them unchanged.
    """
    context = replace(context, prefix=unix_lines(context.prefix), suffix=unix_lines(context.suffix))
    for _ in range(_ROUNDS):
        result = _round(text, context)
        if isinstance(result, Dropped) or result.text == text:
            return result
        text = result.text
        if context.reason in CUT_SHORT:  # what was kept is whole
            context = replace(context, reason=Reason.END)
    return result


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates in order, without those that are an earlier one up to blanks."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        first.setdefault("".join(candidate.text.split()), candidate)
    return list(first.values())


def _round(text: str, context: FilterContext) -> Candidate | Dropped:
    candidate = Candidate(text)
    for name, filter_ in FILTERS.items():
        result = filter_(candidate, context)
        if isinstance(result, Reason):
            return Dropped(result, name)
        candidate = result
    return candidate
