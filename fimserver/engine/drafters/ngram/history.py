"""Recent middles: finds the rest of one that the user typed over, or that was cut off or requested again.

A middle is found by the text before it, in any file.
"""

from __future__ import annotations

from collections import deque

from fimserver.engine.drafters.ngram.suffix_automaton import NO_TOKEN, SuffixAutomaton

RECENT = 32  # middles that are remembered at least; twice as many at most
_MAX_TOKENS = 1024  # of a middle


class MiddleHistory:
    """Middles in two automata, so that old ones can be dropped: a full young one replaces the old one."""

    def __init__(self) -> None:
        self.automata = (SuffixAutomaton(), SuffixAutomaton())  # young, old
        self.texts: deque[str] = deque(maxlen=RECENT)  # the newest last
        self._known: deque[tuple[int, ...]] = deque(maxlen=RECENT)
        self._count = 0  # in the young automaton

    def remember(self, tail: list[int], middle: list[int], text: str) -> None:
        """Record that ``middle`` followed ``tail``; ``text`` is the text of both."""
        ids = (*tail, *middle[:_MAX_TOKENS], NO_TOKEN)
        if not middle or ids in self._known:
            return
        if self._count == RECENT:
            self.automata = (SuffixAutomaton(), self.automata[0])
            self._count = 0
        self.automata[0].extend(ids)
        self._count += 1
        self._known.append(ids)
        self.texts.append(text)
