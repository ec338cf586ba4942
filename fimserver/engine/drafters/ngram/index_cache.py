"""Cache of suffix automata over texts that drafts may be copied from, built piece by piece.

A text of 120,000 tokens takes a quarter of a second to read, so each call reads a limited number of tokens.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from fimserver.engine.drafters.ngram.suffix_automaton import SuffixAutomaton
from fimserver.engine.prompts.vocabulary import Vocabulary

MAX_TOKENS = 200_000  # in the cache; half a kilobyte each
MAX_TEXTS = 512
_TOKEN_CHARS = 3  # of code, on average, at least


@dataclass(slots=True)
class _Volume:
    """A text, and how much of it is in its automaton."""

    text: str
    automaton: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    chars: int = 0


class IndexCache:
    """Suffix automata by text; the least recently requested are dropped first."""

    def __init__(self, vocabulary: Vocabulary, max_tokens: int = MAX_TOKENS) -> None:
        self._vocabulary = vocabulary
        self._max_tokens = max_tokens
        self._volumes: OrderedDict[str, _Volume] = OrderedDict()
        self._wanted = 0  # so many of the last volumes
        self._unread: deque[_Volume] = deque()  # of the wanted ones
        self.tokens = 0  # in all automata

    def want(self, texts: Iterable[str]) -> list[SuffixAutomaton]:
        """Return the automata of ``texts``, as far as they are built; ``build`` extends them in this order.

        Texts of earlier calls may be dropped.
        """
        volumes = [self._volumes.get(text) or _Volume(text) for text in dict.fromkeys(texts) if text]
        for volume in volumes:
            self._volumes[volume.text] = volume
            self._volumes.move_to_end(volume.text)
        self._wanted = len(volumes)
        self._unread = deque(volume for volume in volumes if volume.chars < len(volume.text))
        while len(self._volumes) > max(MAX_TEXTS, self._wanted):
            self._forget_one()
        return [volume.automaton for volume in volumes]

    def build(self, tokens: int) -> bool:
        """Read about ``tokens`` more tokens of the requested texts; returns whether any are left."""
        while tokens > 0 and self._unread and self._has_room():
            volume = self._unread[0]
            ids = self._vocabulary.encode(_piece(volume, tokens * _TOKEN_CHARS))
            volume.automaton.extend(ids)
            tokens -= len(ids)
            self.tokens += len(ids)
            if volume.chars >= len(volume.text):
                self._unread.popleft()
        return bool(self._unread) and self._has_room()

    def _has_room(self) -> bool:
        while self.tokens >= self._max_tokens and len(self._volumes) > self._wanted:
            self._forget_one()
        return self.tokens < self._max_tokens

    def _forget_one(self) -> None:
        _, volume = self._volumes.popitem(last=False)
        self.tokens -= len(volume.automaton.ids)


def _piece(volume: _Volume, chars: int) -> str:
    """Return the next ``chars`` characters or fewer, up to a line end if there is one."""
    start = volume.chars
    end = volume.chars + chars
    if end < len(volume.text):
        line_end = volume.text.rfind("\n", start + 1, end)
        end = line_end if line_end > 0 else end
    volume.chars = end
    return volume.text[start:end]
