"""Text around a cursor for the rules that end a middle: lines, open brackets and helpers for lines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, takewhile

from fimserver.stopping.scan import START, ScanState, lone_closers, scan, state_after, unanswered

WINDOW_CHARS = 8_000  # of the text before the cursor, scanned for open brackets
AFTER_CHARS = 4_000  # of the text after the cursor
BELOW_LINES = 3  # lines of the suffix that a line of the middle is compared with
LOOP_LINES = 12  # longest loop
TRY_WORDS = frozenset({"except", "finally"})
_TELLING_CHARS = 4  # word characters that a line needs to be recognised
_PERIODS = (
    (1, 10),
    (10, 30),
    (20, 45),
    (30, 60),
)  # longest period, lexemes it must have filled (Copilot's limits)
_LONG_STRINGS = frozenset({'"""', "'''"})
_CODE_LINE = re.compile(
    r"^[ \t]*(?:def|class|return|import|from|if|for|with|self|@)\b.*[:)\w]$", re.MULTILINE
)
_LEXEME = re.compile(r"\w+|[^\w\s]+")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Around:
    """Text around a cursor."""

    prefix: str
    suffix: str
    language: str

    @cached_property
    def left(self) -> str:
        """The cursor's line up to the cursor."""
        return self.prefix.rsplit("\n", 1)[-1]

    @cached_property
    def right(self) -> str:
        """The cursor's line from the cursor on, stripped."""
        return self.suffix.split("\n", 1)[0].strip()

    @cached_property
    def next_line(self) -> str:
        """The next non-blank line after the cursor's."""
        return next((line.rstrip() for line in self._after if line.strip()), "")

    @cached_property
    def below(self) -> tuple[str, ...]:
        """The next non-blank lines after the cursor's that belong to its block."""
        lines = (line.rstrip() for line in self._after if line.strip())
        same = takewhile(lambda line: columns(line) >= columns(self.left), lines)
        return tuple(islice(same, BELOW_LINES))

    @cached_property
    def _after(self) -> list[str]:
        return self.suffix[:AFTER_CHARS].split("\n")[1:]

    @cached_property
    def above(self) -> tuple[str, ...]:
        """The last ``LOOP_LINES`` lines before the cursor's."""
        return tuple(line.rstrip() for line in self.prefix[-WINDOW_CHARS:].split("\n")[-1 - LOOP_LINES : -1])

    @cached_property
    def state(self) -> ScanState:
        """String, comment and open brackets at the cursor.

        If the scanned text begins inside a long string, "strings" contain code: then it is scanned again.
        """
        start = max(0, len(self.prefix) - WINDOW_CHARS)
        text = self.prefix[self.prefix.find("\n", start) + 1 if start else 0 :]
        opened = -1
        state = START
        for mark in scan(text, self.language, state):
            opened = mark.offset if mark.state.inside else -1
            state = mark.state
        if state.inside in _LONG_STRINGS and _CODE_LINE.search(text, opened):
            return state_after(text, self.language, ScanState(state.inside))
        return state

    @cached_property
    def missing(self) -> int:
        """Brackets open at the cursor that the suffix does not close."""
        return unanswered(self.state.open, lone_closers(self.suffix[:AFTER_CHARS], self.language, self.state))

    @cached_property
    def tries(self) -> frozenset[int]:
        """Columns of the ``try`` blocks around the cursor without a handler right after the cursor."""
        found = set[int]()
        limit = columns(self.left) if self.left.strip() else columns(self.left) or 1000
        for line in reversed(self.prefix[-WINDOW_CHARS:].split("\n")[:-1]):
            if line.strip() and (width := columns(line)) < limit:
                limit = width
                found |= {width} if line.strip() == "try:" else set()
        taken = {columns(self.next_line)} if first_word(self.next_line) in TRY_WORDS else set()
        return frozenset(found - taken)


def columns(line: str) -> int:
    """Width of a line's indentation; tab stops are 4 columns."""
    return len(line[: len(line) - len(line.lstrip(" \t"))].expandtabs(4))


def first_word(line: str) -> str:
    """First word of a line, or an empty string if the line does not begin with one."""
    match = _WORD.match(line.strip())
    return match[0] if match else ""


def telling(line: str) -> bool:
    """Whether a line has enough word characters to be recognised."""
    return sum(char.isalnum() or char == "_" for char in line) >= _TELLING_CHARS


def loops(lexemes: Sequence[str]) -> bool:
    """Whether the last lexemes repeat one short sequence."""
    return any(len(lexemes) >= span and period(lexemes[-span:]) <= longest for longest, span in _PERIODS)


def lexemes_of(text: str) -> list[str]:
    """Split into words and runs of other characters."""
    return _LEXEME.findall(text)


def period(items: Sequence[object]) -> int:
    """Shortest period of a sequence (Knuth, Morris and Pratt)."""
    border = [0] * len(items)
    for i in range(1, len(items)):
        k = border[i - 1]
        while k and items[i] != items[k]:
            k = border[k - 1]
        border[i] = k + (items[i] == items[k])
    return len(items) - border[-1]


def line_at(lines: Sequence[str], index: int) -> str:
    """Return a stripped line, or an empty string if there is none."""
    return lines[index].strip() if index < len(lines) else ""
