"""Drafts line ends, indentation and closing brackets by rule.

The rule is the same for all languages that indent: after a line that leaves a bracket or block open, the next
one is deeper; after a line that leaves the block it is shallower; else it is equal. A bracket that a line
opens is closed on that line.
"""

from __future__ import annotations

import re

from fimserver.engine.drafters.ngram.scoring import Match
from fimserver.engine.prompts.vocabulary import Vocabulary
from fimserver.types import unix_lines

SOURCE = "ngram.layout"
SEEN_CHARS = 2000  # of the prefix, at most
_CLOSERS = {"(": ")", "[": "]", "{": "}"}
_BRACKET = re.compile(r"[()\[\]{}]")
_LEAVES = re.compile(r"\s*(return|raise|break|continue|pass)\b")
# How often a line ends after this character, fitted with the evidence; any other: seldom.
_ENDS = {
    ":": 0.56,
    ")": 0.38,
    "}": 0.4,
    '"': 0.09,
    ",": 0.3,
    ";": 0.6,
    "{": 0.6,
    "]": 0.26,
    "'": 0.06,
    ".": 0.2,
}
_SELDOM = 0.03
_DOCSTRING = 0.65
_CLOSES = 0.13
_OPENS = 0.2  # a name inside of brackets is the last thing in them; a line ends after an opener
_INDENTS = 0.6  # an empty line begins where the rule says


class Layout:
    """State of the line being written that the rule needs."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._known: dict[str, tuple[int, ...]] = {}  # ids of white space and closers, by their text
        # Where a line end and the white space after it are one token, a line end by itself comes before
        # another one.
        self._joined = len(vocabulary.encode("\n    x")) == len(vocabulary.encode("\nx"))
        self.open("", "")

    def open(self, prefix: str, suffix: str) -> None:
        """Begin a new middle."""
        lines = unix_lines(prefix[-SEEN_CHARS:]).split("\n")
        self._unit = _unit(lines)
        self._right = suffix[:1]
        self._line = ""
        self._before = next((line for line in reversed(lines[:-1]) if line.strip()), "")
        self._open: list[str] = []  # closers of the brackets that the line opened, innermost last
        self.read(lines[-1])

    def read(self, text: str) -> None:
        """Append ``text`` to the middle."""
        *whole, rest = text.split("\n")
        for line in whole:
            self._before = self._line + line if (self._line + line).strip() else self._before
            self._line = ""
            self._open = []
        self._line += rest
        for bracket in _BRACKET.findall(rest):
            if bracket in _CLOSERS:
                self._open.append(_CLOSERS[bracket])
            elif self._open:
                self._open.pop()

    def guesses(self) -> list[Match]:
        """Return white space and closers that may come next."""
        if not self._line:
            return self._white(_INDENTS, "\n" * self._joined + self._indent(self._before, []))
        last = self._line[-1]
        below = "\n" + self._indent(self._line, self._open)
        if not self._open:
            chance = (
                _DOCSTRING
                if self._line.endswith(('"""', "'''"))
                else _SELDOM
                if last.isalnum()
                else _ENDS.get(last, 0.0)
            )
            return self._white(chance, below) if chance else []
        if last in _CLOSERS:
            return self._white(_OPENS, below)
        if self._right == self._open[-1] or not (last.isalnum() or last in "_)]}"):
            return []
        closers = "".join(reversed(self._open))
        return self._white(_CLOSES, closers + "\n" + self._indent(self._line, []))

    def _white(self, chance: float, text: str) -> list[Match]:
        if text not in self._known:
            if len(self._known) > 1000:
                self._known.clear()
            # White space is cut otherwise before a word than at an end, so there is a word, which is cut off
            # again.
            self._known[text] = tuple(self._vocabulary.encode(text + "x")[:-1])
        ids = self._known[text]
        return [Match(chance, SOURCE, ids, 0, 0)] if ids else []

    def _indent(self, line: str, open_: list[str]) -> str:
        """Return the indentation of the line after ``line``."""
        indent = line[: len(line) - len(line.lstrip())]
        if open_ or line.rstrip().endswith((":", "{", "(", "[")):
            return indent + self._unit
        if _LEAVES.match(line):
            return indent[: -len(self._unit)]
        return indent


def _unit(lines: list[str]) -> str:
    """Return one level of indentation: a tab, or 2, 4 or 3 spaces if a line begins with so many, else 4."""
    if any(line.startswith("\t") for line in lines):
        return "\t"
    widths = {len(line) - len(line.lstrip(" ")) for line in lines if line.strip()}
    return " " * next((width for width in (2, 4, 3) if width in widths), 4)
