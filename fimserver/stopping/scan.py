"""Scanner of strings, comments and brackets that can pause and resume at any line, for any language.

It knows only the marks of a language, so it can misread a regular expression or a heredoc; one-line strings
end with their line at the latest, so that such an error does not spread.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fimserver.languages import COMMENT_MARKS

CLOSES = {")": "(", "]": "[", "}": "{"}
OPENS = {opener: closer for closer, opener in CLOSES.items()}
_BLOCK_COMMENTS = frozenset(
    {"javascript", "typescript", "tsx", "go", "rust", "java", "c", "cpp", "c_sharp", "css"}
)
_BACKTICKS = frozenset({"javascript", "typescript", "tsx", "go"})
_RUST_CHARACTER = r"'(?:\\[^']*|[^'\\\n])'"
_INSIDE = {
    '"': re.compile(r'\\.|\n|"', re.DOTALL),
    "'": re.compile(r"\\.|\n|'", re.DOTALL),
    '"""': re.compile(r'\\.|"""', re.DOTALL),
    "'''": re.compile(r"\\.|'''", re.DOTALL),
    "`": re.compile(r"\\.|`", re.DOTALL),
    "/*": re.compile(r"\*/"),
    "//": re.compile(r"\n"),
}


class ScanState(NamedTuple):
    """State of the scanner.

    ``inside``: the opening mark of the string or comment, empty in code. ``open``: open brackets, outermost
    first.
    """

    inside: str = ""
    open: tuple[str, ...] = ()


START = ScanState()


class SyntaxMark(NamedTuple):
    """A bracket, a semicolon, or the begin or end of a string or comment, with the state after it."""

    offset: int
    char: str
    state: ScanState


def scan(text: str, language: str, state: ScanState) -> Iterator[SyntaxMark]:
    """Yield the marks of ``text``, which begins in ``state``. The last mark has the final state."""
    code = _code(language)
    comment = COMMENT_MARKS.get(language, "")
    start = 0
    while start < len(text):
        match = (_INSIDE[state.inside] if state.inside else code).search(text, start)
        if match is None:
            return
        start = match.end()
        char = match[0]
        if char[0] == "\\" or (len(char) > 1 and char[0] == "'" != char[1]):
            continue  # an escaped character, or a Rust character literal
        state = (
            ScanState("", state.open)
            if state.inside
            else _entered("//" if char == comment else char, state.open)
        )
        yield SyntaxMark(match.start(), char, state)


def _entered(mark: str, open_: tuple[str, ...]) -> ScanState:
    """Return the state after a mark in code."""
    if mark in OPENS:
        return ScanState("", (*open_, mark))
    if mark in CLOSES:
        return ScanState("", open_[:-1] if open_[-1:] == (CLOSES[mark],) else open_)
    return ScanState(mark if mark in _INSIDE else "", open_)


def state_after(text: str, language: str, state: ScanState = START) -> ScanState:
    """Return the state at the end of ``text``."""
    for mark in scan(text, language, state):
        state = mark.state
    return state


def lone_closers(text: str, language: str, state: ScanState) -> list[str]:
    """Return the closing brackets without an opener in ``text``, in order. ``state.open`` is ignored."""
    lone: list[str] = []
    depth = 0
    for mark in scan(text, language, ScanState(state.inside)):
        if mark.char in CLOSES and len(mark.state.open) == depth:
            lone.append(mark.char)
        depth = len(mark.state.open)
    return lone


def unanswered(open_: Sequence[str], lone: Sequence[str]) -> int:
    """Return how many of the brackets ``open_`` the lone closers after them leave open."""
    closed = 0
    for opener, closer in zip(reversed(open_), lone, strict=False):
        if OPENS[opener] != closer:
            break
        closed += 1
    return len(open_) - closed


@functools.cache
def _code(language: str) -> re.Pattern[str]:
    """Return the pattern of marks that the scanner looks for in code."""
    marks = [r"[()\[\]{};]"]
    if comment := COMMENT_MARKS.get(language):
        marks.insert(0, r"(?<![$\w])#" if comment == "#" else re.escape(comment))
    if language in _BLOCK_COMMENTS:
        marks.insert(0, r"/\*")
    if language == "python":
        marks += ['"""', "'''"]
    if language in _BACKTICKS:
        marks.append("`")
    marks += [_RUST_CHARACTER] if language == "rust" else ["'"]
    return re.compile("|".join([*marks, '"']))
