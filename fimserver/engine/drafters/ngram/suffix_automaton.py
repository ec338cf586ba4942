"""Suffix automaton over token ids: finds earlier occurrences of the end of a text (Blumer et al. 1985).

It grows token by token. Each state represents the substrings that end at the same positions; its link leads
to the longest of their suffixes that ends at more positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from operator import eq
from typing import NamedTuple

NO_TOKEN = -1  # a gap that no match may cross
CHAIN = 32  # states above the newest one that learn of it: exact for the 32 longest repeats, bounds "aaaa..."


class _Undo(NamedTuple):
    """What is needed to undo the appending of one token."""

    last: int  # the state before
    split: int  # the state that was cloned, or -1
    ends: list[int]  # of the states above, before


class SuffixAutomaton:
    """Suffix automaton of ``ids``, which may grow in amortised O(1) per token.

    For each state s: ``nexts[s]`` is the state after each token that may follow, ``links[s]`` its suffix
    link, ``lengths[s]`` the length of its longest substring, ``ends[s]`` the index of the last token of the
    most recent occurrence, ``counts[s]`` the number of occurrences.
    """

    __slots__ = ("_undo", "counts", "ends", "ids", "last", "lengths", "links", "nexts")

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.nexts: list[dict[int, int]] = [{}]
        self.links = [-1]
        self.lengths = [0]
        self.ends = [-1]
        self.counts = [0]
        self.last = 0
        self._undo: list[_Undo] = []  # for the last tokens of ``ids``

    @property
    def floor(self) -> int:
        """The shortest length that ``rewind`` can go back to."""
        return len(self.ids) - len(self._undo)

    def extend(self, tokens: Sequence[int], *, revocable: bool = False) -> None:
        """Append ``tokens``. Those that are not ``revocable``, and all before them, cannot be rewound."""
        nexts = self.nexts
        links = self.links
        lengths = self.lengths
        ends = self.ends
        counts = self.counts
        last = self.last
        for at, token in enumerate(tokens, len(self.ids)):
            state = last
            new = len(nexts)
            split = -1
            nexts.append({})
            lengths.append(at + 1)
            ends.append(at)
            counts.append(1)
            while state >= 0 and token not in nexts[state]:
                nexts[state][token] = new
                state = links[state]
            above = 0 if state < 0 else nexts[state][token]
            if state >= 0 and lengths[state] + 1 != lengths[above]:
                split = above
                above = new + 1
                links.append(above)
                self._clone(split, state, token)
            else:
                links.append(above)
            before: list[int] = []
            while above > 0 and len(before) < CHAIN:
                before.append(ends[above])
                ends[above] = at
                counts[above] += 1
                above = links[above]
            if revocable:
                self._undo.append(_Undo(last, split, before))
            last = new
        self.last = last
        self.ids.extend(tokens)
        if not revocable:
            self._undo.clear()

    def _clone(self, split: int, state: int, token: int) -> None:
        """Split state ``split``: move its short substrings, which extend ``state``, to a new state."""
        nexts = self.nexts
        links = self.links
        clone = len(nexts)
        nexts.append(nexts[split].copy())
        self.lengths.append(self.lengths[state] + 1)
        self.ends.append(self.ends[split])
        self.counts.append(self.counts[split])
        links.append(links[split])
        links[split] = clone
        self._redirect(state, token, split, clone)

    def _redirect(self, state: int, token: int, old: int, new: int) -> int:
        """Redirect ``token`` from ``old`` to ``new`` in ``state`` and along its suffix links.

        Returns the first state that was not changed.
        """
        nexts = self.nexts
        links = self.links
        while state >= 0 and nexts[state].get(token) == old:
            nexts[state][token] = new
            state = links[state]
        return state

    def rewind(self, length: int) -> None:
        """Forget all tokens from ``length`` on. Raises ``ValueError`` below ``floor``."""
        if length < self.floor:
            raise ValueError(f"cannot rewind to {length}: the first {self.floor} tokens are not revocable")
        while len(self.ids) > length:
            self._forget(self.ids.pop(), self._undo.pop())

    def _forget(self, token: int, undo: _Undo) -> None:
        nexts = self.nexts
        links = self.links
        state = undo.last
        above = self.links[self.last]
        for end in undo.ends:
            self.ends[above] = end
            self.counts[above] -= 1
            above = links[above]
        while state >= 0 and nexts[state].get(token) == self.last:
            del nexts[state][token]
            state = links[state]
        if undo.split >= 0:
            self._redirect(state, token, links[self.last], undo.split)
            links[undo.split] = links[links[self.last]]
        for column in (nexts, links, self.lengths, self.ends, self.counts):
            del column[self.last :]  # its clone, too
        self.last = undo.last

    def updated_to(self, ids: list[int], revocable: int) -> SuffixAutomaton:
        """Rewind and extend this automaton to ``ids``, or return a new one if little of it can be kept.

        The last ``revocable`` tokens can be rewound.
        """
        floor = self.floor
        if not floor or self.ids[:floor] != ids[:floor]:
            fresh = SuffixAutomaton()
            fresh.extend(ids[: max(0, len(ids) - revocable)])
            fresh.extend(ids[len(fresh.ids) :], revocable=True)
            return fresh
        same = floor + sum(1 for _ in takewhile(bool, map(eq, self.ids[floor:], ids[floor:])))
        self.rewind(same)
        self.extend(ids[same:], revocable=True)
        return self


class AutomatonCursor:
    """Follows a text: its longest suffix that occurs in the text of an automaton."""

    __slots__ = ("automaton", "kind", "length", "state")

    def __init__(self, automaton: SuffixAutomaton, kind: str) -> None:
        self.automaton = automaton
        self.kind = kind
        self.state = self.length = 0

    def read(self, tokens: Sequence[int]) -> None:
        """Append ``tokens`` to the followed text. The automaton may have grown as well."""
        nexts = self.automaton.nexts
        links = self.automaton.links
        lengths = self.automaton.lengths
        state = self.state
        length = self.length
        for token in tokens:
            while state and (token not in nexts[state] or lengths[links[state]] >= length):
                state = links[
                    state
                ]  # the text does not go on like this, or the state was split below the match
                length = min(length, lengths[state])
            if token >= 0 and token in nexts[state]:
                state = nexts[state][token]
                length += 1
            else:
                state = length = 0
        self.state = state
        self.length = length
