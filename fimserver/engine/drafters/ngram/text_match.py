"""Matches by characters, for the first tokens of a middle.

At the cursor, token boundaries differ from those of a whole file: in a file ``self`` is followed by
``.name``, but after the prefix ``self.`` a middle begins with ``name``. So its first tokens are searched for
as text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fimserver.engine.drafters.ngram.scoring import Match
from fimserver.engine.prompts.vocabulary import Vocabulary

SOURCE = "ngram.text"
LONGEST = 32  # characters
_CHANCES = {
    LONGEST: 0.75,
    24: 0.6,
    16: 0.45,
    12: 0.42,
    8: 0.3,
    5: 0.25,
    3: 0.25,
}  # by characters found, fitted
_SHOWN_CHARS = 40
_MAX_GUESSES = 3
_TOKEN_CHARS = 3


class SearchText(NamedTuple):
    """A text to search. ``nearest``: its first occurrence is the nearest to the cursor, else its last."""

    text: str
    nearest: bool = False


def followers(tail: str, places: Iterable[SearchText], vocabulary: Vocabulary) -> list[Match]:
    """Return what followed the longest match of the end of ``tail``, at most one guess for each place."""
    found: dict[tuple[int, ...], Match] = {}
    left = list(places) if tail.strip() else []
    for length, chance in _CHANCES.items():
        if length > len(tail):
            continue
        missed = []
        for place in left:
            at = _find(place, tail[-length:])
            if at < 0:
                missed.append(place)
            elif ids := _ids(place.text[at : at + _SHOWN_CHARS + 1], vocabulary):
                found.setdefault(ids, Match(chance, SOURCE, ids, 0, length // _TOKEN_CHARS))
                if len(found) == _MAX_GUESSES:
                    return list(found.values())
        left = missed
    return list(found.values())


def _find(place: SearchText, tail: str) -> int:
    """Return the offset after ``tail`` in the text, other than the end of the text; -1 if there is none."""
    text = place.text
    start = text.find(tail) if place.nearest else text.rfind(tail, 0, len(text) - 1)
    return -1 if start < 0 else start + len(tail)


def _ids(text: str, vocabulary: Vocabulary) -> tuple[int, ...]:
    """Return the tokens of ``text``, without those that its end may have cut."""
    ids = vocabulary.encode(text[:_SHOWN_CHARS])
    return tuple(ids[:-1] if len(text) > _SHOWN_CHARS else ids)
