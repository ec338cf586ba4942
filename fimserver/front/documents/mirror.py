r"""Document mirror: the text of every open document, exactly as the editor has it.

A document is a list of lines with their ends; only ``\n``, ``\r\n`` and ``\r`` end a line (LSP 3.18). A
keystroke costs the same in a file of ten lines and one of fifty thousand. An edit that cannot be applied
makes the document dirty: it gets no suggestions until its whole text is sent again.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fimserver.types import CONTEXT_CHARS

Encoding = Literal["utf-8", "utf-16", "utf-32"]

MAX_CHARS = 8 * 1024 * 1024
MAX_LINE_CHARS = 256 * 1024

_LINE_END = re.compile(r"\r\n?|\n")


class Position(NamedTuple):
    """A cursor. ``column`` counts code points."""

    line: int
    column: int


class Edit(NamedTuple):
    """A replacement of the text between two wire positions; ``start`` is ``None`` for the whole document."""

    start: tuple[int, int] | None
    end: tuple[int, int] | None
    text: str


@dataclass(frozen=True)
class Snapshot:
    """A document and a cursor at the moment of a request: what a completion is computed from.

    ``lines`` include their line ends.
    """

    uri: str
    version: int
    language: str  # LSP language id
    lines: Sequence[str]
    place: Position
    revision: int = 0  # our own count of changes: an editor may repeat a version

    @property
    def line_before(self) -> str:
        """The cursor's line up to the cursor."""
        return self.lines[self.place.line][: self.place.column]

    @property
    def line_after(self) -> str:
        """The cursor's line from the cursor on, without its line end."""
        return self.lines[self.place.line][self.place.column :].rstrip("\r\n")

    def prefix(self, limit: int = CONTEXT_CHARS) -> str:
        """At most ``limit`` characters before the cursor."""
        return self._gather(range(self.place.line - 1, -1, -1), self.line_before, limit, before=True)

    def suffix(self, limit: int = CONTEXT_CHARS) -> str:
        """At most ``limit`` characters after the cursor."""
        rest = self.lines[self.place.line][self.place.column :]
        return self._gather(range(self.place.line + 1, len(self.lines)), rest, limit, before=False)

    def _gather(self, rows: range, first: str, limit: int, *, before: bool) -> str:
        pieces = [first]
        size = len(first)
        for row in rows:
            if size >= limit:
                break
            pieces.append(self.lines[row])
            size += len(self.lines[row])
        return "".join(reversed(pieces))[-limit:] if before else "".join(pieces)[:limit]


class Document:
    """One open document."""

    def __init__(self, uri: str, language: str, version: int, text: str) -> None:
        self.uri = uri
        self.language = language
        self.version = version
        self.revision = 0
        self._load(text)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    @property
    def too_large(self) -> bool:
        """Whether working on the document would cost too much."""
        return self.chars > MAX_CHARS or self._long_lines > 0

    def change(self, version: int, edits: Sequence[Edit], encoding: Encoding) -> None:
        """Apply edits in order. An invalid edit or an older version makes the document dirty."""
        if version < self.version:
            self.dirty = True
        self.version = version
        self.revision += 1
        for edit in edits:
            if edit.start is None or edit.end is None:
                self._load(edit.text)
            else:
                self._replace(self.place(edit.start, encoding), self.place(edit.end, encoding), edit.text)

    def place(self, position: tuple[int, int], encoding: Encoding) -> Position:
        """Convert a wire position. One beyond the end of a line or of the document moves to that end."""
        line, units = position
        if line >= len(self.lines):
            return Position(len(self.lines) - 1, len(self.lines[-1]))
        body = self.lines[line].rstrip("\r\n")
        return Position(line, column_of(body, units, encoding))

    def snapshot(self, place: Position) -> Snapshot:
        """Return a copy that later edits do not change."""
        return Snapshot(self.uri, self.version, self.language, self.lines.copy(), place, self.revision)

    def _load(self, text: str) -> None:
        """Replace the whole text: the document is no longer dirty."""
        self.dirty = False
        self.lines = split_lines(text)
        self.chars = len(text)
        self._long_lines = sum(len(line) > MAX_LINE_CHARS for line in self.lines)

    def _replace(self, start: Position, end: Position, text: str) -> None:
        if end < start:
            self.dirty = True
            return
        # The edit may create or break a line end where it meets the old text, so that its neighbours have to
        # be split again with it.
        first = start.line
        last = end.line
        middle = self.lines[first][: start.column] + text + self.lines[last][end.column :]
        if first > 0 and middle.startswith("\n") and self.lines[first - 1].endswith("\r"):
            first -= 1
            middle = self.lines[first] + middle
        if (last + 1 < len(self.lines) and not middle.endswith(("\n", "\r"))) or (
            last + 1 < len(self.lines) and middle.endswith("\r") and self.lines[last + 1].startswith("\n")
        ):
            last += 1
            middle += self.lines[last]
        old = self.lines[first : last + 1]
        new = split_lines(middle)
        if last + 1 < len(self.lines) and new[-1] == "":
            new.pop()  # only the last line of a document may lack a line end
        self.lines[first : last + 1] = new
        self.chars += sum(map(len, new)) - sum(map(len, old))
        self._long_lines += sum(len(n) > MAX_LINE_CHARS for n in new) - sum(
            len(o) > MAX_LINE_CHARS for o in old
        )


def split_lines(text: str) -> list[str]:
    """Split into lines with their ends; the last one has none and may be empty."""
    ends = [0, *(match.end() for match in _LINE_END.finditer(text)), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(ends)]


def column_of(body: str, units: int, encoding: Encoding) -> int:
    """Convert ``units`` of the wire encoding to code points. Inside a character, return its start."""
    if encoding == "utf-32" or body.isascii():
        return min(units, len(body))
    used = 0
    for column, char in enumerate(body):
        used += width(char, encoding)
        if used > units:
            return column
    return len(body)


def units_of(text: str, encoding: Encoding) -> int:
    """Length of ``text`` in units of the wire encoding."""
    if encoding == "utf-32" or text.isascii():
        return len(text)
    return sum(width(char, encoding) for char in text)


def width(char: str, encoding: Encoding) -> int:
    """Length of one character in units. A lone surrogate is one UTF-16 unit, or three bytes of UTF-8."""
    code = ord(char)
    if encoding == "utf-16":
        return 1 + (code > 0xFFFF)
    return 1 + (code > 0x7F) + (code > 0x7FF) + (code > 0xFFFF) if encoding == "utf-8" else 1
