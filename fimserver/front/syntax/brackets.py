"""Pairs of brackets and quotes in a text whose strings and comments are blanked out."""

import re
from typing import Literal

from fimserver.stopping.scan import CLOSES, OPENS, unanswered

QUOTES = frozenset("\"'`")
_BRACKET = re.compile(r"[()\[\]{}]")
_STRINGS = re.compile(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|`(?:\\.|[^`\\])*`")


def partners(text: str) -> tuple[dict[int, int], list[int]]:
    """Offset of each closing bracket's partner (-1: none in ``text``), and the openers left unclosed."""
    pairs: dict[int, int] = {}
    open_: list[int] = []
    for match in _BRACKET.finditer(text):
        i = match.start()
        char = match[0]
        if char in OPENS:
            open_.append(i)
        else:
            pairs[i] = open_.pop() if open_ and text[open_[-1]] == CLOSES[char] else -1
    return pairs, open_


def unclosed(text: str) -> str:
    """Opening brackets that ``text`` leaves open, outermost first."""
    return "".join(text[i] for i in partners(text)[1])


def closers_for(text: str) -> str:
    """Closing brackets for those that ``text`` leaves open."""
    return "".join(OPENS[char] for char in reversed(unclosed(text)))


def unmatched(text: str) -> list[int]:
    """Offsets of closing brackets without a partner, and of the last quote of each kind with an odd count."""
    lone = [i for i, partner in partners(text)[0].items() if partner < 0]
    return sorted(lone + [text.rindex(quote) for quote in QUOTES if text.count(quote) % 2])


def debt(before: str, after: str) -> int:
    """Number of brackets that ``before`` leaves open and ``after`` does not close."""
    open_ = unclosed(before)
    lone = [after[i] for i, partner in partners(after)[0].items() if partner < 0]
    return unanswered(open_, lone)


def place_in_line(line: str, comment_mark: str | None) -> Literal["code", "string", "comment"]:
    """Whether the end of a line is in code, a string or a comment, judged by its quotes alone."""
    rest = _STRINGS.sub("", line)
    quote = re.search(r"[\"'`]", rest)
    comment = rest.find(comment_mark) if comment_mark else -1
    if comment >= 0 and (quote is None or comment < quote.start()):
        return "comment"
    return "string" if quote else "code"
