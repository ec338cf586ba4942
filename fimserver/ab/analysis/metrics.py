"""Similarity of a suggestion to the gold text: what was actually written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

from fimserver.lengths import common_prefix
from fimserver.types import unix_lines

_BLANK_LINES = re.compile(r"(?:[^\S\n]*\n)+")


@dataclass(frozen=True)
class Scores:
    """Scores of a suggestion against the gold text; fields as in ``schema.Result``."""

    exact: bool
    first_line: bool
    prefix_chars: int
    similarity: float  # 0 to 1
    saved_keys: float


def score(text: str, gold: str) -> Scores:
    """Score a suggestion against the gold text. Line ends may be of any kind; two empty texts are exact.

    ``first_line`` compares the first non-blank lines, as a middle may begin with a line end.
    """
    text = unix_lines(text)
    gold = unix_lines(gold)
    return Scores(
        exact=text.rstrip() == gold.rstrip(),
        first_line=_first_line(text) == _first_line(gold),
        prefix_chars=common_prefix(text, gold),
        similarity=SequenceMatcher(None, text.strip(), gold.strip(), autojunk=False).ratio(),
        saved_keys=saved_keys(text, gold),
    )


def saved_keys(text: str, gold: str) -> float:
    """Number of keys that a suggestion saves a user who types the gold text; a character is a key.

    The user accepts it with one key if all of it or its whole first line is correct, then deletes wrong
    characters with a key each, and never accepts at a loss. White space at the end is never wrong.
    """
    if gold.startswith(text):
        return max(0.0, len(text) - 1.0)
    body = text.rstrip()
    right = common_prefix(body, gold)
    wrong = len(body) - right
    if wrong and not (_first_line(body) and _first_line(body) == _first_line(gold)):
        return 0.0
    return max(0.0, right - 1.0 - wrong)


def _first_line(text: str) -> str:
    begin = _BLANK_LINES.match(text)
    return text[begin.end() if begin else 0 :].split("\n", 1)[0].rstrip()
