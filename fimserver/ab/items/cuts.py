"""Holes in a file: rests of lines, lines, runs of statements, bodies.

Offsets are in characters, the end excluded. Line ends are as in the file and never the last character of a
middle.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from random import Random

from fimserver.front.syntax import languages, parser

KINDS = ("line_rest", "line", "block", "body")
MIDDLE_CHARS = 1200
BLOCK_LINES = range(2, 9)
BODY_LINES = 60

Hole = tuple[int, int]
_TOKEN = re.compile(r"\w+|[^\w\s]")
_AFTER_STATEMENT = " \t\r,;:"


def holes(language: str, text: str, rng: Random) -> Mapping[str, list[Hole]]:
    """Return all holes of a file by kind, in random order; at most one ``line_rest`` per line.

    ``line_rest``: from a token boundary to the end of the line. ``line``: a line without its indentation.
    ``block``: 2 to 8 lines of whole statements in one block. ``body``: the body of a function or class
    without its brackets, up to 60 lines. Only a body may begin with a comment or a docstring.
    """
    file = _File(language, text)
    found: dict[str, list[Hole]] = {
        "line_rest": list(file.line_rests(rng)),
        "line": list(file.whole_lines()),
        "block": list(dict.fromkeys(hole for block in file.blocks for hole in file.runs(block))),
        "body": [hole for block in file.blocks for hole in file.body(block)],
    }
    for kind, options in found.items():
        kept = [hole for hole in options if hole[1] - hole[0] <= MIDDLE_CHARS]
        rng.shuffle(kept)
        found[kind] = kept
    return found


class _File:
    """A text, the same text with strings and comments blanked out, its lines and its blocks."""

    def __init__(self, language: str, text: str) -> None:
        self.text = text
        self.code = parser.code_only(language, text)
        self.starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self.blocks = parser.blocks(language, text)
        self.comments = tuple(mark for mark in (languages.COMMENT_MARKS.get(language), "/*", "<!--") if mark)

    def row(self, at: int) -> int:
        return bisect_right(self.starts, at) - 1

    def end(self, row: int) -> int:
        """Return where the text of a line ends, before its line end."""
        end = self.starts[row + 1] - 1 if row + 1 < len(self.starts) else len(self.text)
        return end - (self.text[end - 1 : end] == "\r")

    def first(self, row: int) -> int:
        """Return where the text of a line begins, after its indentation."""
        line = self.text[self.starts[row] : self.end(row)]
        return self.starts[row] + len(line) - len(line.lstrip())

    def whole_lines(self) -> Iterator[Hole]:
        for row in range(len(self.starts)):
            first = self.first(row)
            end = self.end(row)
            if self.code[first:end].strip() and re.search(r"\w", self.text[first:end]):
                yield first, end

    def line_rests(self, rng: Random) -> Iterator[Hole]:
        for row in range(len(self.starts)):
            first = self.first(row)
            end = self.end(row)
            tokens = _TOKEN.finditer(self.code, first, end)
            edges = sorted(
                {
                    edge
                    for token in tokens
                    for edge in token.span()
                    if edge > first and self._goes_on(edge, end)
                }
            )
            if edges:
                yield rng.choice(edges), end

    def _goes_on(self, at: int, end: int) -> bool:
        """Whether the rest of the line is more than blanks and a comment."""
        rest = self.text[at:end].lstrip()
        return bool(rest) and not rest.startswith(self.comments)

    def runs(self, block: parser.StatementRun) -> Iterator[Hole]:
        """Yield runs of consecutive statements that are whole lines."""
        units = [self._as_lines(*unit) for unit in self._units(block)]
        for at, unit in enumerate(units):
            for other in units[at : at + BLOCK_LINES.stop]:
                if unit is None or other is None or not self.code[slice(*unit)].strip():
                    break
                if self.row(other[1]) - self.row(unit[0]) + 1 in BLOCK_LINES:
                    yield unit[0], other[1]

    def _units(self, block: parser.StatementRun) -> list[Hole]:
        """Return the statements of a block; those that share a line count as one."""
        units: list[Hole] = []
        for begin, stop in block.statements:
            end = begin + len(self.text[begin:stop].rstrip())  # a C directive includes its line end
            if units and self.row(begin) == self.row(units[-1][1]):
                units[-1] = (units[-1][0], end)
            else:
                units.append((begin, end))
        return units

    def _as_lines(self, begin: int, end: int) -> Hole | None:
        """Extend a unit to whole lines, without blanks at both ends; ``None`` if they contain more code."""
        line_end = self.end(self.row(end))
        if self.first(self.row(begin)) != begin or self.code[end:line_end].strip(_AFTER_STATEMENT):
            return None
        return begin, end + len(self.text[end:line_end].rstrip())

    def body(self, block: parser.StatementRun) -> Iterator[Hole]:
        """Yield the body of a function or class, unless it begins on the line of its header."""
        begin, stop = block.span
        if block.owner is None:
            return
        if self.text[begin] == "{" and self.text[stop - 1] == "}":
            begin = begin + 1
            stop = stop - 1
        inner = self.text[begin:stop]
        begin += len(inner) - len(inner.lstrip())
        end = begin + len(inner.strip())
        fresh = self.first(self.row(begin)) == begin
        if self.code[begin:end].strip() and fresh and self.row(end) - self.row(begin) < BODY_LINES:
            yield self._as_lines(begin, end) or (begin, end)  # with a comment after the last statement
