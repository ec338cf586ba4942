"""Similarity of a suggestion to the text that was really written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

from fimserver.lengths import common_prefix
from fimserver.types import unix_lines

_BLANK_LINES = re.compile(r"(?:[^\S\n]*\n)+")


@dataclass(frozen=True)
class Scores:
    """A suggestion beside the gold text; the fields mean what they mean in ``schema.Result``."""

    exact: bool
    first_line: bool
    prefix_chars: int
    similarity: float  # 0 to 1
    saved_keys: float


def score(text: str, gold: str) -> Scores:
    """A suggestion against the gold text. Line ends may be of any kind; both empty is exact.

    ``first_line`` compares the first lines that are not blank, as a middle may begin with a line end.
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
    """Keys that a suggestion saves someone who types the gold text; a character is a key.

    It is accepted, with one key, where it is right to its end or its whole first line is right; what is wrong
    after that is deleted, a key a character. Nobody accepts at a loss. White space at the end is never wrong.
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
