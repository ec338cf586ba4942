"""Knows in which order the filters make a shown text of what a model wrote. Knows nothing of what a filter does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fimserver.front.postprocess import filters, indentation, repetition
from fimserver.front.postprocess.candidate import Candidate, Dropped, Filter, FilterContext
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
    "unfinished": filters.unfinished,  # before blanks are trimmed: a newline at the end says that the line is whole
    "leading": indentation.leading,
    "trailing": filters.trailing,
    "indentation": indentation.indentation,  # before lines are compared with those around
    "one_line": filters.one_line,
    "suffix_overlap": repetition.suffix_overlap,
    "duplicate": repetition.duplicate,
    "repetition": repetition.repetition,
    "scope": filters.scope,
    "syntax_gate": syntax_gate,
    "no_op": filters.no_op,
    "rejected": filters.rejected,
}
_ROUNDS = 8
_CUT_SHORT = frozenset({Reason.DEADLINE, Reason.LENGTH})


def postprocess(text: str, around: FilterContext) -> Candidate | Dropped:
    """What is shown of ``text``, or why nothing is.

    A filter may cut so that an earlier one has something to say: they go round until nothing changes. So the text that
    comes out would pass unchanged.
    """
    around = replace(around, prefix=unix_lines(around.prefix), suffix=unix_lines(around.suffix))
    for _ in range(_ROUNDS):
        result = _round(text, around)
        if isinstance(result, Dropped) or result.text == text:
            return result
        text = result.text
        if around.reason in _CUT_SHORT:  # what was kept is whole
            around = replace(around, reason=Reason.END)
    return result


def distinct(drafts: Sequence[Candidate]) -> list[Candidate]:
    """The drafts in order, without those that are an earlier one up to blanks."""
    first: dict[str, Candidate] = {}
    for draft in drafts:
        first.setdefault("".join(draft.text.split()), draft)
    return list(first.values())


def _round(text: str, around: FilterContext) -> Candidate | Dropped:
    draft = Candidate(text)
    for name, filter_ in FILTERS.items():
        result = filter_(draft, around)
        if isinstance(result, Reason):
            return Dropped(result, name)
        draft = result
    return draft
