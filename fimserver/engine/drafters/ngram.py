"""Knows how the text around the cursor, other texts and recent middles have gone on where they read like the middle so far.

Knows nothing of the network. The longest matches are found by suffix automata, as in SAM decoding (arXiv 2411.10666);
prefix and middle are one text, the markers between them do not exist here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import nlargest
from operator import attrgetter

from fimserver.engine.drafters.automaton import NO_TOKEN, Automaton, Reader
from fimserver.engine.drafters.evidence import DOUBTS, REACH, SPREAD, Guess, choose
from fimserver.engine.drafters.layout import Layout
from fimserver.engine.drafters.recents import Recents
from fimserver.engine.drafters.shelf import Shelf, chunks
from fimserver.engine.drafters.spelling import LONGEST, Place, followers
from fimserver.engine.drafts import Draft, Line
from fimserver.engine.prompt import unix
from fimserver.engine.vocabulary import Vocabulary
from fimserver.types import Request

MAX_SNIPPETS = 64
TAIL_TOKENS = 16  # of the prefix: what finds the first matches, and what recent middles keep of theirs
REVOCABLE_TOKENS = 8  # last ones of the prefix: typing changes no others
BUILD_TOKENS, BUILD_TOKENS_AT_END = 128, 2000  # of texts not yet read: in a pass, and when the middle is done
MATCHES, BRANCHES = 8, 3  # the longest matches are looked at, and of each the ways that it most often went on
MANY = 24  # a match that went on in more ways says nothing
SPELLED_TOKENS = 4  # first tokens of the middle that may be found as text
_length = attrgetter("length")


class NGram:
    """A drafter without a model. A ``Line`` that was not seen before is a new middle."""

    name = "ngram"

    def __init__(self, vocabulary: Vocabulary, shelf: Shelf | None = None) -> None:
        self._vocabulary = vocabulary
        self._banned, self._largest = vocabulary.marker_ids, vocabulary.largest_id
        self._texts: dict[int, str] = {}  # of tokens
        self.shelf, self._recents, self._layout = shelf or Shelf(vocabulary), Recents(), Layout(vocabulary)
        self._own, self._suffix, self._suffix_ids = Automaton(), Automaton(), list[int]()
        self._line: Line | None = None
        self._readers: list[Reader] = []
        self._places: list[Place] = []
        self._spelled: list[Guess] = []
        self._spelled_at = 0  # tokens of the middle there were
        self._seen, self._tail = 0, ""  # tokens of the middle; the last characters before and of it

    def propose(self, line: Line, size: int) -> list[Draft]:
        """At most 8 drafts of at most 24 tokens in all, that begin differently.

        A grade says how likely its token is when all tokens before it are right.
        """
        self._follow(line)
        return choose(self._guesses(), size) if size > 0 else []

    def observe(self, line: Line, *, ended: bool) -> None:
        """While there are texts to be read, the end of a middle takes some milliseconds."""
        self._follow(line)
        self.shelf.build(BUILD_TOKENS_AT_END if ended else BUILD_TOKENS)
        if ended:
            middle = self._own.ids[len(line.prefix) :]
            text = self._left_tail + "".join(map(self._text, middle))
            self._recents.remember(self._own.ids[: len(line.prefix)][-TAIL_TOKENS:], middle, text)

    def _follow(self, line: Line) -> None:
        if line is not self._line or len(line.ids) < self._seen:
            self._open(line)
        new = line.ids[self._seen :]
        if new:
            self._seen += len(new)
            self._read(self._clean(new))

    def _open(self, line: Line) -> None:
        self._line, self._seen = line, 0
        prefix, suffix = self._clean(line.prefix), self._clean(line.suffix)
        left, right = unix(line.request.prefix), unix(line.request.suffix)
        self._own = self._own.retell(prefix, REVOCABLE_TOKENS)
        if suffix != self._suffix_ids:
            self._suffix_ids, self._suffix = suffix, Automaton()
            self._suffix.extend(suffix)
        kinds = self._elsewhere(line.request, left, right, prefix, suffix)
        automata = self.shelf.want(kinds)
        self._readers = [Reader(self._suffix, "ngram.suffix")]
        self._readers += [Reader(a, "ngram.recent") for a in self._recents.automata if a.ids]
        self._readers += [Reader(a, kind) for a, kind in zip(automata, kinds.values(), strict=True)]
        for reader in self._readers:
            reader.read(prefix[-TAIL_TOKENS:])
        self._layout.open(left, right)
        self._left_tail = self._tail = left[-LONGEST:]
        snippets = [text for text, kind in kinds.items() if kind == "ngram.open"]
        self._places = [Place(t) for t in reversed(self._recents.texts)]
        self._places += [Place(left), Place(right, nearest=True), *map(Place, snippets)]
        self._spelled, self._spelled_at = [], -1

    def _elsewhere(self, request: Request, left: str, right: str, prefix: list[int], suffix: list[int]) -> dict[str, str]:
        """Texts and the kinds they are of: the rest of the file, the nearest first, and snippets."""
        head = chunks(left[: max(0, len(left) - self._chars(prefix))])[::-1]
        tail = chunks(right[self._chars(suffix) :])
        kinds = dict.fromkeys([text for pair in zip(head, tail, strict=False) for text in pair] + head + tail, "ngram.rest")
        for snippet in request.snippets[:MAX_SNIPPETS]:
            kinds.setdefault(unix(snippet.text), "ngram.open")
        kinds.pop("", None)
        return kinds

    def _read(self, tokens: list[int]) -> None:
        self._own.extend(tokens, revocable=True)
        for reader in self._readers:
            reader.read(tokens)
        for token in tokens:
            text = self._text(token)
            self._layout.read(text)
            self._tail = (self._tail + text)[-LONGEST:]
            self._spelled = [
                g._replace(at=g.at + 1, length=g.length + 1)
                for g in self._spelled
                if g.ids[g.at] == token and g.at + 1 < len(g.ids)
            ]

    def _guesses(self) -> Iterator[Guess]:
        own = self._own
        state = own.links[own.last]
        if state > 0:  # the end of the text itself is one of its places, and went on in no way
            yield from self._ways(own, state, own.lengths[state], "ngram.file", own.counts[state] - 1)
        live = [reader for reader in self._readers if reader.length]
        for reader in nlargest(MATCHES, live, key=_length) if len(live) > MATCHES else live:
            automaton, state = reader.automaton, reader.state
            while state > 0 and not automaton.nexts[state]:
                state = automaton.links[state]
            if state > 0:
                length = min(reader.length, automaton.lengths[state])
                yield from self._ways(automaton, state, length, reader.kind, automaton.counts[state])
        if not self._spelled and self._spelled_at < self._seen <= SPELLED_TOKENS:
            self._spelled_at = self._seen
            self._spelled = followers(self._tail, self._places, self._vocabulary)
        yield from self._spelled
        yield from self._layout.guesses()

    def _ways(self, automaton: Automaton, state: int, length: int, kind: str, places: int) -> list[Guess]:
        """How a text went on in the ``places`` where it ended like ``state``."""
        counts, ends, ways = automaton.counts, automaton.ends, automaton.nexts[state]
        if len(ways) > MANY:
            return []
        weight = places + DOUBTS[kind][min(length, REACH)] + SPREAD * (len(ways) - 1)
        children: Sequence[int] = list(ways.values())
        if len(children) > BRANCHES:
            children = nlargest(BRANCHES, children, key=counts.__getitem__)
        return [Guess(counts[child] / weight, kind, automaton.ids, ends[child], length) for child in children]

    def _text(self, token: int) -> str:
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self._vocabulary.decode([token]) if token >= 0 else ""
        return text

    def _chars(self, ids: list[int]) -> int:
        return len(self._vocabulary.decode([token for token in ids if token >= 0])) if ids else 0

    def _clean(self, ids: list[int]) -> list[int]:
        """``ids`` with a gap where one is no text token: nothing is matched through it, nothing is drafted from it."""
        banned, largest = self._banned, self._largest
        if ids and (min(ids) < 0 or max(ids) > largest or not banned.isdisjoint(ids)):
            return [token if 0 <= token <= largest and token not in banned else NO_TOKEN for token in ids]
        return list(ids)
