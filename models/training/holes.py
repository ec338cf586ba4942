"""Holes for training: cuts a prefix, a middle and a suffix out of a file, as a person's cursor would."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

_WORD_EDGE = re.compile(r"(?<=\W)(?=\w)|(?<=\w)(?=\W)")


class Hole(NamedTuple):
    """A file cut at ``start`` and ``end`` (character offsets).

    The middle is what a completion must give back.
    """

    text: str
    start: int
    end: int
    kind: str

    @property
    def middle(self) -> str:
        return self.text[self.start : self.end]


def line_tail(text: str, rng: random.Random) -> tuple[int, int]:
    """From a random place in a line to its end."""
    start, end = _random_line(text, rng)
    return _cursor(text, start, end, rng), end


def in_line(text: str, rng: random.Random) -> tuple[int, int]:
    """A piece within one line, as between a bracket and its auto-inserted closer."""
    line_start, line_end = _random_line(text, rng)
    start = _cursor(text, line_start, line_end, rng)
    closers = [i for i in range(start, line_end) if text[i] in ")]}\"':,"]
    return start, rng.choice(closers) if closers else line_end


def lines(text: str, rng: random.Random) -> tuple[int, int]:
    """From a cursor to the end of a line one to six lines further."""
    line_start, line_end = _random_line(text, rng)
    start = _cursor(text, line_start, line_end, rng) if rng.random() < 0.5 else _indent_end(text, line_start)
    end = line_end
    for _ in range(rng.randint(1, 6)):
        following = text.find("\n", end + 1)
        end = following if following > 0 else len(text)
    return start, end


def block(text: str, rng: random.Random) -> tuple[int, int]:
    """The body under a line that ends with a colon, or as much of it as is ordinary for a suggestion."""
    headers = [m.end() for m in re.finditer(r":\n", text)]
    if not headers:
        return lines(text, rng)
    header_end = rng.choice(headers) - 1
    header_indent = _indent(text, text.rfind("\n", 0, header_end) + 1)
    end = header_end
    while end < len(text):
        following = text.find("\n", end + 1)
        following = following if following > 0 else len(text)
        line = text[end + 1 : following]
        if line.strip() and _indent(line, 0) <= header_indent:
            break
        end = following
    start = header_end if rng.random() < 0.5 else _indent_end(text, header_end + 1)
    body = text[header_end:end].rstrip()
    return (start, header_end + len(body)) if header_end + len(body) > start else lines(text, rng)


def characters(text: str, rng: random.Random) -> tuple[int, int]:
    """Any span of up to 120 characters, so that both edges may fall inside a token."""
    start = rng.randrange(len(text))
    return start, min(len(text), start + 1 + int(rng.expovariate(1 / 30)) % 120)


Cut = Callable[[str, random.Random], tuple[int, int]]
KINDS: Mapping[str, tuple[Cut, float]] = {
    "line_tail": (line_tail, 0.42),
    "in_line": (in_line, 0.16),
    "lines": (lines, 0.20),
    "block": (block, 0.12),
    "characters": (characters, 0.10),
}


def cut(text: str, rng: random.Random) -> Hole:
    """One random hole; never empty."""
    names, weights = list(KINDS), [weight for _, weight in KINDS.values()]
    while True:
        kind = rng.choices(names, weights)[0]
        start, end = KINDS[kind][0](text, rng)
        if start < end:
            return Hole(text, start, end, kind)


def _random_line(text: str, rng: random.Random) -> tuple[int, int]:
    """Start and end (before the newline) of a line that is not blank, if one is soon found."""
    for _ in range(20):
        at = rng.randrange(len(text))
        start, end = text.rfind("\n", 0, at) + 1, text.find("\n", at)
        end = end if end >= 0 else len(text)
        if text[start:end].strip():
            return start, end
    return start, end


def _cursor(text: str, start: int, end: int, rng: random.Random) -> int:
    """A place in a line: its first character, an edge of a word, or anywhere."""
    first = _indent_end(text, start)
    if first >= end:
        return start
    choice = rng.random()
    if choice < 0.2:
        return first
    edges = [first + m.start() for m in _WORD_EDGE.finditer(text[first:end])] if choice < 0.75 else []
    return rng.choice(edges) if edges else rng.randint(first, end - 1)


def _indent(text: str, at: int) -> int:
    return _indent_end(text, at) - at


def _indent_end(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t":
        at += 1
    return at
