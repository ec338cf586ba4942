"""Lengths of middles in lexemes, and length buckets.

A lexeme is a word, a number, an operator, a quotation mark, or a line end with the blanks after it: about a
token, but the same for every model, so that routes with different vocabularies can be compared.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

LIMITS = (8, 16, 32, 64)  # lexemes; the last bucket has no limit
LABELS = ("1-8", "9-16", "17-32", "33-64", "65+")
BUCKETS = range(len(LABELS))

_LEXEME = re.compile(r"\n[ \t]*|\w+|[^\w\s]+")


def lexemes(text: str) -> int:
    """Count the lexemes of a text; line ends may be of any kind.

    >>> lexemes("return a + b")
    4
    """
    return sum(1 for _ in _LEXEME.finditer(text.replace("\r\n", "\n")))


def common_prefix(left: Sequence[object], right: Sequence[object]) -> int:
    """Return the length of the common prefix of two sequences of characters, lines or tokens."""
    for place, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return place
    return min(len(left), len(right))


def bucket_of(count: float) -> int:
    """Return the bucket (index in ``LABELS``) of a number of lexemes."""
    return bisect_left(LIMITS, count)
