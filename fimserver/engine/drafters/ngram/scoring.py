"""Scores of matches by length, and the choice of draft tokens by score.

The numbers were fitted on Python packages that are not evaluation packages (``bench/oracle.py``). They only
order drafts: the acceptance rate of a grade is measured while serving.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from fimserver.engine.drafters.ngram.suffix_automaton import NO_TOKEN
from fimserver.engine.speculation.drafts import Draft

MAX_NODES = 24
MAX_DRAFTS = 8  # most are a token or two long
FLOOR = 0.01  # a token that is less likely than this to be reached is not drafted
SPREAD = 3.0  # doubt that each further continuation adds
REACH = 48  # longer matches are worth no more
TWIN = 0.25  # chance that the second best way to go on from a token is the right one, that token granted
# The doubt about a match of 1, 2, ... tokens, in occurrences: one continuation seen once is right with 1 / (1
# + doubt).
_DOUBTS = {
    "ngram.file": (2.5, 1.35, 0.95, 0.6, 0.55, 0.47, 0.4, 0.28, 0.25, 0.25, 0.25, 0.25, 0.2, 0.2, 0.18, 0.12),
    "ngram.suffix": (3.6, 1.25, 0.87, 0.5, 0.5, 0.45, 0.3, 0.27, 0.22, 0.2, 0.2, 0.2, 0.2, 0.2, 0.18, 0.12),
    "ngram.rest": (5.0, 1.9, 1.1, 0.75, 0.58, 0.55, 0.45, 0.37, 0.3, 0.24, 0.22, 0.2, 0.16, 0.15, 0.15, 0.1),
    "ngram.open": (8.0, 3.3, 1.75, 1.15, 0.85, 0.55, 0.5, 0.45, 0.38, 0.3, 0.27, 0.23, 0.2, 0.15, 0.1, 0.05),
    "ngram.recent": (3.2, 1.6, 0.9, 0.7, 0.5, 0.4, 0.35, 0.25, 0.2, 0.1),
    "ngram.text": (1.0, 0.75, 0.7, 0.7, 0.65, 0.5, 0.45, 0.35, 0.3, 0.22, 0.17),
    "ngram.layout": (1.5,),
}
DOUBTS = {source: (9.0, *d, *d[-1:] * (REACH + MAX_NODES - len(d))) for source, d in _DOUBTS.items()}


class Match(NamedTuple):
    """``ids[at:]`` may follow, because it followed the same ``length`` tokens before.

    ``chance``: of its first token.
    """

    chance: float
    source: str
    ids: Sequence[int]
    at: int
    length: int


_chance = attrgetter("chance")
_strength = attrgetter("length", "chance")


def grade(chance: float) -> int:
    """Return the chance in tenths, 0 to 9."""
    return min(9, int(10 * chance))


# [source][n]: chance and grade of the one token that followed the same n tokens, those before it granted.
_CHANCES = {source: tuple(1 / (1 + doubt) for doubt in doubts) for source, doubts in DOUBTS.items()}
_GRADES = {source: tuple(map(grade, chances)) for source, chances in _CHANCES.items()}


def choose(guesses: Iterable[Match], size: int) -> list[Draft]:
    """Make drafts of at most ``size`` tokens from the ``MAX_NODES`` likeliest tokens of all guesses.

    The likeliest draft comes first; none is a prefix of another.
    """
    by_token: dict[int, list[Match]] = {}
    for guess in guesses:
        by_token.setdefault(guess.ids[guess.at], []).append(guess)
    by_token.pop(NO_TOKEN, None)
    chosen = [guess for same in by_token.values() for guess in (same if len(same) == 1 else _merged(same))]
    chosen.sort(key=_chance, reverse=True)
    del chosen[MAX_DRAFTS:]
    rows = [_tokens(guess, min(size, MAX_NODES)) for guess in chosen]
    rows = [row[:n] for row, n in zip(rows, _share(chosen, rows), strict=True)]
    return [
        _draft(guess, row)
        for i, (guess, row) in enumerate(zip(chosen, rows, strict=True))
        if row and not _covered(i, rows)
    ]


def _merged(same: list[Match]) -> list[Match]:
    """Merge guesses of the same first token, which support each other.

    The longest match is kept, and the longest one with another second token.
    """
    miss = 1.0
    for guess in same:
        miss *= 1.0 - guess.chance
    same.sort(key=_strength, reverse=True)
    first = same[0]
    twins = (
        guess._replace(chance=TWIN * (1.0 - miss)) for guess in same[1:] if _second(guess) != _second(first)
    )
    return [first._replace(chance=1.0 - miss), *islice(twins, 1)]


def _second(guess: Match) -> int:
    return guess.ids[guess.at + 1] if guess.at + 1 < len(guess.ids) else NO_TOKEN


def _covered(i: int, rows: list[tuple[int, ...]]) -> bool:
    """Whether a row is a prefix of another one, or the same as an earlier one."""
    row = rows[i]
    length = len(rows[i])
    return any(
        other[:length] == row and (len(other) > length or j < i) for j, other in enumerate(rows) if j != i
    )


def _tokens(guess: Match, size: int) -> tuple[int, ...]:
    tokens = tuple(guess.ids[guess.at : guess.at + size])
    return tokens[: tokens.index(NO_TOKEN)] if NO_TOKEN in tokens else tokens


def _draft(guess: Match, tokens: tuple[int, ...]) -> Draft:
    known = min(guess.length, REACH)
    return Draft(
        guess.source, tokens, (grade(guess.chance), *_GRADES[guess.source][known + 1 : known + len(tokens)])
    )


def _share(guesses: list[Match], rows: list[tuple[int, ...]]) -> list[int]:
    """Return how many tokens of each row to keep, choosing those that are likeliest to be reached."""
    heap = [(-guess.chance, i) for i, guess in enumerate(guesses)]
    lengths = [0] * len(heap)
    left = MAX_NODES
    while heap and left:
        minus, i = heappop(heap)
        rival = min(heap[0][0], -FLOOR) if heap else -FLOOR
        chances = _CHANCES[guesses[i].source]
        known = min(guesses[i].length, REACH)
        length = lengths[i]
        room = len(rows[i])
        while left and length < room and minus <= rival:
            length += 1
            left -= 1
            minus *= chances[known + length]
        lengths[i] = length
        if length < room and minus <= -FLOOR:
            heappush(heap, (minus, i))
    return lengths
