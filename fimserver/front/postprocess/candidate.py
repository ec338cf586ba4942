"""Types that filters share.

The candidate text, the context it is filtered by, and the reason why nothing is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from fimserver.reasons import Reason

_LINES = 60  # of the text around that filters compare with


@dataclass(frozen=True)
class Candidate:
    """Text on its way to the editor.

    ``replace``: so many characters right of the cursor, on its line, make way for the text, which contains
    them.
    """

    text: str
    replace: int = 0


@dataclass(frozen=True)
class FilterContext:
    """The text around the cursor and the settings that filters need.

    Lines end in a newline, whatever the file has.

    ``special``: strings that a tokenizer writes for its special tokens. ``rejected``: texts dismissed at this
    place. ``is_cell``: the text is a cell of a notebook.
    """

    prefix: str
    suffix: str
    language: str | None = None
    indent_unit: str = "    "
    reason: Reason = Reason.END
    single_line: bool = False
    special: tuple[str, ...] = ()
    rejected: frozenset[str] = frozenset()
    is_cell: bool = False

    @cached_property
    def left(self) -> str:
        """The cursor's line, left of the cursor."""
        return self.prefix.rsplit("\n", 1)[-1]

    @cached_property
    def right(self) -> str:
        """The cursor's line, right of the cursor."""
        return self.suffix.split("\n", 1)[0]

    @cached_property
    def above(self) -> list[str]:
        """Non-blank lines above the cursor's, the nearest last."""
        lines = (
            self.prefix.rsplit("\n", _LINES)[1:]
            if self.prefix.count("\n") > _LINES
            else self.prefix.split("\n")
        )
        return [line.rstrip() for line in lines[:-1] if line.strip()]

    @cached_property
    def below(self) -> list[str]:
        """Non-blank lines below the cursor's, the nearest first."""
        return [line.rstrip() for line in self.suffix.split("\n", _LINES)[1 : _LINES + 1] if line.strip()]


@dataclass(frozen=True)
class Dropped:
    """The reason why nothing is shown, and the name of the filter that decided it."""

    reason: Reason
    by: str


# Ends that may be within a word or a line.
CUT_SHORT = frozenset({Reason.DEADLINE, Reason.LENGTH, Reason.AWAY, Reason.GARBLED, Reason.OVERLOADED})

Filter = Callable[[Candidate, FilterContext], Candidate | Reason]
