"""Rules that decide, while a middle is written, where it ends: by suffix, brackets, indentation and lines.

``Endings`` reads the middle line by line as it grows, so a token costs microseconds. It works on text alone;
``scan`` finds strings and comments. Rules that need the rest of a line to decide hold that line back.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fimserver.languages import CLOSING_WORDS, CONTINUING_WORDS, SEMICOLONS
from fimserver.reasons import Reason
from fimserver.stopping.around import (
    LOOP_LINES,
    TRY_WORDS,
    Around,
    columns,
    first_word,
    lexemes_of,
    line_at,
    loops,
    telling,
)
from fimserver.stopping.beyond import (
    FENCE,
    again_at,
    code_end,
    has_defined,
    held_back,
    is_fence,
    is_next_definition,
)
from fimserver.stopping.middle_state import MiddleState, advance, begin, content_of
from fimserver.stopping.scan import CLOSES, ScanState, SyntaxMark, scan, state_after
from fimserver.types import StopRule

RULES = frozenset({"suffix", "scope", "statement", "repetition"})
LONG_CHARS = 20  # a line this long does not repeat by chance
_LOOP_CHARS = 60  # minimum length of a line that is searched for loops
_WORD = re.compile(r"\w+")
_FINAL = frozenset({"return", "raise", "break", "continue", "pass", "throw", "goto", "yield"})


class End(NamedTuple):
    """End of a middle: its length in characters, and the reason."""

    chars: int
    reason: Reason


class Endings:
    """Finds the end of one middle. Call ``end`` with the whole text each time it has grown."""

    def __init__(self, around: Around, stop: StopRule, rules: frozenset[str] = RULES) -> None:
        """``stop``: ``line`` for one line, ``block`` and ``none`` for several. ``rules``: enabled rules."""
        self.around = around
        self.one_line = stop == "line"
        self.rules = rules
        self._scope_reason = Reason.BLOCK if stop == "block" else Reason.SCOPE
        self._progress = begin(around)

    def end(self, text: str) -> End | None:
        """Return where the middle ends, if known yet. ``text`` must begin with the previous text."""
        self._progress, end = self._read(text)
        return end

    def peek(self, text: str) -> End | None:
        """Return the same as ``end`` for a possible continuation, without changing the state."""
        return self._read(text)[1]

    def settled(self, text: str) -> int:
        """Return how many characters of the last ``text`` no rule can still remove."""
        progress = self._progress
        line = text[progress.start :]
        if progress.joined:
            return len(text[: progress.joined_at].rstrip())
        if self._may_go(progress, line):
            return len(text[: progress.start].rstrip())
        scoped = "scope" in self.rules and columns(line) <= (progress.limit or 0)
        if scoped and has_defined(progress, self.around):
            return code_end(progress, self.around)
        if held := held_back(progress, self.around, line, self.rules):
            return len(text) - held
        rest = text.rstrip()
        return len(rest) if "\n" in text[len(rest) :] else len(text)

    def _may_go(self, progress: MiddleState, line: str) -> bool:
        """Whether a rule may still remove the line, as written so far."""
        content = line.strip()
        fresh = progress.start > 0 or not self.around.left.strip()
        below = self.around.below if "suffix" in self.rules and fresh and content else ()
        above = progress.lines[-1:] if "repetition" in self.rules and content else ()
        fences = (FENCE,) if "scope" in self.rules and content else ()
        if any(other.strip().startswith(content) for other in (*below, *above, *fences)):
            return True
        return "scope" in self.rules and self._is_outside(progress, line) and self._is_begun(progress, line)

    def _read(self, text: str) -> tuple[MiddleState, End | None]:
        progress = self._progress
        while True:
            newline = text.find("\n", progress.start)
            line = text[progress.start : newline if newline >= 0 else len(text)]
            if end := self._line(progress, text, line, whole=newline >= 0):
                return progress, end
            if newline < 0:
                return progress, None
            progress = advance(progress, self.around, line, self.rules)

    def _line(self, progress: MiddleState, text: str, line: str, *, whole: bool) -> End | None:
        """Return the earliest end that the rules find in one line."""
        if progress.closing and not line.strip():
            return End(len(text[: progress.start].rstrip()), self._scope_reason) if whole else None
        found = [
            self._goes_beyond(progress, text, line) if "scope" in self.rules else None,
            self._leaves(progress, text, line, whole=whole) if "scope" in self.rules else None,
            self._marks(progress, line),
            self._joins(progress, text, line, whole=whole) if "suffix" in self.rules else None,
            self._repeats(progress, text, line, whole=whole) if "repetition" in self.rules else None,
            self._one_line(progress, text, line, whole=whole) if self.one_line else None,
        ]
        return min((end for end in found if end), default=None, key=lambda end: end.chars)

    # --- the middle repeats the suffix

    def _joins(self, progress: MiddleState, text: str, line: str, *, whole: bool) -> End | None:
        """End where the line repeats the rest of the cursor's line or the next line of the suffix."""
        around = self.around
        content = line.strip()
        if not content:
            return None
        if not progress.lines and around.left.strip():
            return self._joins_right(line, whole=whole)
        end = End(len(text[: progress.start].rstrip()), Reason.SUFFIX)
        if progress.joined and whole and content == line_at(around.below, progress.joined):
            return End(len(text[: progress.joined_at].rstrip()), Reason.SUFFIX)
        if not around.below or len(progress.state.open) > len(around.state.open) - progress.closed:
            return None
        if len(content) >= LONG_CHARS and telling(content):
            others = around.below if whole else around.below[:1]
            return end if any(content == other.strip() for other in others) else None
        same = whole and content == around.below[0].strip()
        return end if same and self._cannot_be_twice(progress, line) else None

    def _cannot_be_twice(self, progress: MiddleState, line: str) -> bool:
        """Whether a short line of the suffix cannot occur twice: it ends a block or continues a statement."""
        word = first_word(line)
        below = self.around.below
        last = len(below) == 1 or word in _FINAL or word in CONTINUING_WORDS
        return last and (columns(line) == columns(below[0]) or not progress.lines)

    def _joins_right(self, line: str, *, whole: bool) -> End | None:
        """End before all of the text after the cursor, unless it is in a bracket that the middle opened."""
        around = self.around
        right = self.around.right
        if not right or (not whole and not telling(right)):
            return None
        at = line.find(right) if telling(right) else len(line.rstrip()) - len(right)
        if at < 0 or not line.startswith(right, at) or (at and (line[at - 1] + right[0]).isidentifier()):
            return None
        kept = line[:at].rstrip() if around.suffix[0].isspace() else line[:at]
        opened = state_after(kept, around.language, around.state).open
        return End(len(kept), Reason.SUFFIX) if opened == around.state.open else None

    # --- the scope has closed

    def _goes_beyond(self, progress: MiddleState, text: str, line: str) -> End | None:
        """End before a second definition, or where a model closes the code block of its answer."""
        if is_next_definition(progress, self.around, line):
            return End(code_end(progress, self.around), self._scope_reason)
        if is_fence(progress, self.around, line):
            return End(len(text[: progress.start].rstrip()), self._scope_reason)
        return None

    def _leaves(self, progress: MiddleState, text: str, line: str, *, whole: bool) -> End | None:
        """End before a line outside the cursor's block."""
        content = line.strip()
        if not self._is_outside(progress, line) or content[0] in CLOSES:  # ``_marks`` looks at brackets
            return None
        if not whole and self._is_begun(progress, line):
            return None
        word = first_word(content)
        stays = bool(word) and self._stays(word, columns(line), outside=self._is_left_of(progress, line))
        return None if stays else End(len(text[: progress.start].rstrip()), self._scope_reason)

    def _is_outside(self, progress: MiddleState, line: str) -> bool:
        """Whether a line is outside the block by its indentation, or as the line before closed the block."""
        if not line.strip() or not progress.lines or progress.state.inside or progress.limit is None:
            return False
        if len(progress.state.open) > len(self.around.state.open) - progress.closed:
            return False  # within a bracket of the middle
        follows = progress.deeper and columns(line) == progress.limit and bool(self.around.left.strip())
        return self._is_left_of(progress, line) or follows

    def _is_left_of(self, progress: MiddleState, line: str) -> bool:
        return progress.closing or (progress.limit is not None and columns(line) < progress.limit)

    def _is_begun(self, progress: MiddleState, line: str) -> bool:
        """Whether the line, as written so far, may become a word that continues the block."""
        outside = self._is_left_of(progress, line)
        words = CLOSING_WORDS.get(self.around.language, ())
        if not outside:
            words = (*words, *CONTINUING_WORDS)
        elif columns(line) in self.around.tries:
            words = (*words, *TRY_WORDS)
        return any(word.startswith(line.strip()) for word in words)

    def _stays(self, word: str, width: int, *, outside: bool) -> bool:
        """Whether a line starting with ``word`` continues the block, or closes it if the suffix does not."""
        if word in CLOSING_WORDS.get(self.around.language, ()):
            return first_word(self.around.next_line) != word
        if outside:
            return word in TRY_WORDS and width in self.around.tries
        return word in CONTINUING_WORDS

    def _marks(self, progress: MiddleState, line: str) -> End | None:
        """End before a bracket or quote of the suffix, or after the one statement that is wanted."""
        around = self.around
        closed = progress.closed
        state = progress.state
        for mark in scan(line, around.language, state):
            base = len(around.state.open) - closed
            if mark.char in CLOSES and len(state.open) <= base:
                if "scope" in self.rules and self._is_suffixs(mark, state, closed, line):
                    return self._before(progress, line, mark.offset)
                closed += len(mark.state.open) < base
            elif state.inside and state.inside == around.state.inside == mark.char and not progress.lines:
                if "suffix" in self.rules and around.right.startswith(mark.char):
                    return End(progress.start + mark.offset, Reason.SUFFIX)
            elif mark.char == ";" and "statement" in self.rules and self._completes(progress, mark):
                return End(progress.start + mark.offset + 1, Reason.STATEMENT)
            state = mark.state
        return None

    def _is_suffixs(self, mark: SyntaxMark, state: ScanState, closed: int, line: str) -> bool:
        """Whether a closing bracket without an opener in the middle duplicates one of the suffix."""
        around = self.around
        following = self.around.next_line
        if line.lstrip()[:1] == mark.char and columns(line) == columns(following):
            return following.lstrip().startswith(mark.char)  # whatever ``missing`` counts in a limited window
        if closed < around.missing:
            return False
        if state.open and state.open[-1] == CLOSES[mark.char]:
            return True
        return (around.right or following.strip()).startswith(mark.char)

    def _before(self, progress: MiddleState, line: str, at: int) -> End:
        """End before a bracket of the suffix, or before its line if the bracket comes first in it."""
        reason = (
            Reason.SUFFIX
            if self.around.right.startswith(line[at]) and not progress.lines
            else self._scope_reason
        )
        before = line[:at]
        lone = progress.lines and not before.strip()
        return End(
            progress.start - 1 if lone else progress.start + len(before.rstrip(" \t") or before), reason
        )

    def _completes(self, progress: MiddleState, mark: SyntaxMark) -> bool:
        """Whether a semicolon ends the one statement that is wanted."""
        around = self.around
        return (
            self.one_line
            and around.language in SEMICOLONS
            and not around.right
            and not progress.lines
            and mark.state.open == around.state.open
            and "(" not in mark.state.open[-1:]
        )

    # --- repeated lines, one line

    def _repeats(self, progress: MiddleState, text: str, line: str, *, whole: bool) -> End | None:
        if len(line) >= _LOOP_CHARS and loops(lexemes_of(line[-400:])):
            return End(len(text), Reason.REPEATED)
        if (at := again_at(progress, self.around, line, whole=True)) is not None:
            return End(at, Reason.REPEATED)
        if not whole or not line.strip():
            return None
        lines = [*progress.lines, content_of(progress, self.around, line)]
        for size in range(1, min(LOOP_LINES, len(lines)) + 1):
            every = [*self.around.above, *lines] if size > 1 else lines
            block = every[-size:]
            if (
                block == every[-2 * size : -size]
                and len(set(block)) >= min(2, size)
                and all(map(telling, set(block) - {""}))
            ):
                chars = sum(len(each) + 1 for each in lines[: len(lines) - size]) - len(self.around.left)
                return End(len(text[: max(0, chars)].rstrip()), Reason.REPEATED)
        return None

    def _one_line(self, progress: MiddleState, text: str, line: str, *, whole: bool) -> End | None:
        """End after the first non-blank line, or before a blank line below the cursor's code."""
        if not whole:
            return None
        if (text[: progress.start] + line).strip():
            return End(progress.start + len(line), Reason.LINE)
        return End(0, Reason.LINE) if progress.lines and self.around.left.strip() else None
