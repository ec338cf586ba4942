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
class _IndexedText:
    """A text, and how much of it is in its automaton."""

    text: str
    automaton: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    chars: int = 0


class IndexCache:
    """Suffix automata by text; the least recently requested are dropped first."""

    def __init__(self, vocabulary: Vocabulary, max_tokens: int = MAX_TOKENS) -> None:
        self._vocabulary = vocabulary
        self._max_tokens = max_tokens
        self._entries: OrderedDict[str, _IndexedText] = OrderedDict()
        self._wanted = 0  # so many of the last entries
        self._unread: deque[_IndexedText] = deque()  # of the wanted ones
        self.tokens = 0  # in all automata

    def want(self, texts: Iterable[str]) -> list[SuffixAutomaton]:
        """Return the automata of ``texts``, as far as they are built; ``build`` extends them in this order.

        Texts of earlier calls may be dropped.
        """
        entries = [self._entries.get(text) or _IndexedText(text) for text in dict.fromkeys(texts) if text]
        for entry in entries:
            self._entries[entry.text] = entry
            self._entries.move_to_end(entry.text)
        self._wanted = len(entries)
        self._unread = deque(entry for entry in entries if entry.chars < len(entry.text))
        while len(self._entries) > max(MAX_TEXTS, self._wanted):
            self._forget_one()
        return [entry.automaton for entry in entries]

    def build(self, tokens: int) -> bool:
        """Read about ``tokens`` more tokens of the requested texts; returns whether any are left."""
        while tokens > 0 and self._unread and self._has_room():
            entry = self._unread[0]
            ids = self._vocabulary.encode(_piece(entry, tokens * _TOKEN_CHARS))
            entry.automaton.extend(ids)
            tokens -= len(ids)
            self.tokens += len(ids)
            if entry.chars >= len(entry.text):
                self._unread.popleft()
        return bool(self._unread) and self._has_room()

    def _has_room(self) -> bool:
        while self.tokens >= self._max_tokens and len(self._entries) > self._wanted:
            self._forget_one()
        return self.tokens < self._max_tokens

    def _forget_one(self) -> None:
        _, entry = self._entries.popitem(last=False)
        self.tokens -= len(entry.automaton.ids)


def _piece(entry: _IndexedText, chars: int) -> str:
    """Return the next ``chars`` characters or fewer, up to a line end if there is one."""
    start = entry.chars
    end = entry.chars + chars
    if end < len(entry.text):
        line_end = entry.text.rfind("\n", start + 1, end)
        end = line_end if line_end > 0 else end
    entry.chars = end
    return entry.text[start:end]
