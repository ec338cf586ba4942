"""The text around a cursor as the rules that end a middle need it.

Lines, open brackets, and small facts about lines.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, takewhile

from fimserver.stopping.scan import START, ScanState, lone_closers, scan, state_after, unanswered

WINDOW_CHARS = 8_000  # of the text before the cursor that is scanned for open brackets
AFTER_CHARS = 4_000  # of the text after it
BELOW_LINES = 3  # of the suffix that a line of the middle is compared with
LOOP_LINES = 12  # of a loop at most
TRY_WORDS = frozenset({"except", "finally"})
_TELLING_CHARS = 4  # word characters without which a line says nothing
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
    """The text around a cursor, as the rules need it."""

    prefix: str
    suffix: str
    language: str

    @cached_property
    def left(self) -> str:
        """The cursor's line before the cursor."""
        return self.prefix.rsplit("\n", 1)[-1]

    @cached_property
    def right(self) -> str:
        """The cursor's line after the cursor, without blanks around it."""
        return self.suffix.split("\n", 1)[0].strip()

    @cached_property
    def next_line(self) -> str:
        """The next line after the cursor's that is not blank."""
        return next((line.rstrip() for line in self._after if line.strip()), "")

    @cached_property
    def below(self) -> tuple[str, ...]:
        """The next lines after the cursor's that are not blank and belong to the cursor's block."""
        lines = (line.rstrip() for line in self._after if line.strip())
        same = takewhile(lambda line: columns(line) >= columns(self.left), lines)
        return tuple(islice(same, BELOW_LINES))

    @cached_property
    def _after(self) -> list[str]:
        return self.suffix[:AFTER_CHARS].split("\n")[1:]

    @cached_property
    def above(self) -> tuple[str, ...]:
        """The last lines before the cursor's."""
        return tuple(line.rstrip() for line in self.prefix[-WINDOW_CHARS:].split("\n")[-1 - LOOP_LINES : -1])

    @cached_property
    def state(self) -> ScanState:
        """String, comment and brackets at the cursor.

        Text that begins within a string is noticed by code in strings.
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
        """Columns of the ``try`` blocks that the cursor is in and that the suffix does not go on with."""
        found = set[int]()
        limit = columns(self.left) if self.left.strip() else columns(self.left) or 1000
        for line in reversed(self.prefix[-WINDOW_CHARS:].split("\n")[:-1]):
            if line.strip() and (width := columns(line)) < limit:
                limit = width
                found |= {width} if line.strip() == "try:" else set()
        taken = {columns(self.next_line)} if first_word(self.next_line) in TRY_WORDS else set()
        return frozenset(found - taken)


def columns(line: str) -> int:
    """Width of the blanks that a line starts with; a tab is up to 4."""
    return len(line[: len(line) - len(line.lstrip(" \t"))].expandtabs(4))


def first_word(line: str) -> str:
    """The word that a line begins with, if it begins with one."""
    match = _WORD.match(line.strip())
    return match[0] if match else ""


def telling(line: str) -> bool:
    """Whether a line has enough word characters to be recognised by."""
    return sum(char.isalnum() or char == "_" for char in line) >= _TELLING_CHARS


def loops(lexemes: Sequence[str]) -> bool:
    """Whether the last lexemes are one short sequence over and over."""
    return any(len(lexemes) >= span and period(lexemes[-span:]) <= longest for longest, span in _PERIODS)


def lexemes_of(text: str) -> list[str]:
    """Words and runs of other characters."""
    return _LEXEME.findall(text)


def period(items: Sequence[object]) -> int:
    """The shortest period of a sequence, by Knuth, Morris and Pratt."""
    border = [0] * len(items)
    for i in range(1, len(items)):
        k = border[i - 1]
        while k and items[i] != items[k]:
            k = border[k - 1]
        border[i] = k + (items[i] == items[k])
    return len(items) - border[-1]


def line_at(lines: Sequence[str], index: int) -> str:
    """A line without blanks around it, empty where there is none."""
    return lines[index].strip() if index < len(lines) else ""
