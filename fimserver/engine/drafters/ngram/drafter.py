"""N-gram drafter: finds earlier occurrences of the last tokens and proposes what followed them.

It searches the text around the cursor, other texts of the request and recent middles. Suffix automata find
the longest matches, as in SAM decoding (arXiv 2411.10666). Prefix and middle are one text to it, without
markers.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import nlargest
from operator import attrgetter

from fimserver.engine.drafters.ngram.history import MiddleHistory
from fimserver.engine.drafters.ngram.index_cache import IndexCache
from fimserver.engine.drafters.ngram.scoring import DOUBTS, MAX_NODES, REACH, SPREAD, Match, choose
from fimserver.engine.drafters.ngram.sources import RequestSources
from fimserver.engine.drafters.ngram.suffix_automaton import NO_TOKEN, AutomatonCursor, SuffixAutomaton
from fimserver.engine.drafters.ngram.text_match import LONGEST, followers
from fimserver.engine.drafters.ngram.whitespace import Layout
from fimserver.engine.prompts.vocabulary import Vocabulary
from fimserver.engine.speculation.drafts import DecodeState, Draft
from fimserver.types import unix_lines

TAIL_TOKENS = 16  # of the prefix: what finds the first matches, and what recent middles keep of theirs
REVOCABLE_TOKENS = 8  # last ones of the prefix: typing changes no others
BUILD_TOKENS = 24
BUILD_TOKENS_AT_END = 2000  # of texts not yet read: in a pass, and when the middle is done
MATCHES = 8
BRANCHES = 3  # the longest matches are looked at, and of each the ways that it most often, then last, went on
MANY = 24  # a match with more different continuations is not used
POOR = 0.03
SURE = 0.98  # chance of what followed no more than white space; and of anything, at most
SPELLED_TOKENS = 4  # first tokens of the middle that may be found as text
_length = attrgetter("length")


class NGramDrafter:
    """Drafts from texts, without a network. A new ``DecodeState`` begins a new middle."""

    name = "ngram"
    inline = True  # no call reads more than so many tokens, and nothing goes back over what was read
    keeps_text = False

    def __init__(
        self,
        vocabulary: Vocabulary,
        index_cache: IndexCache | None = None,
        window: int = MAX_NODES,
        recents: MiddleHistory | None = None,
    ) -> None:
        """``index_cache``, ``recents``: shared by all prompts; ``window``: most tokens of a draft."""
        self.window = window
        self._vocabulary = vocabulary
        self._banned = vocabulary.marker_ids
        self._largest = vocabulary.largest_id
        self._texts: dict[int, str] = {}  # of tokens
        self.index_cache = index_cache or IndexCache(vocabulary)
        self._recents = recents or MiddleHistory()
        self._layout = Layout(vocabulary)
        self._elsewhere = RequestSources(vocabulary)
        self._own = SuffixAutomaton()
        self._suffix = SuffixAutomaton()
        self._suffix_ids = list[int]()
        self._state: DecodeState | None = None
        self._readers: list[AutomatonCursor] = []
        self._spelled: list[Match] = []
        self._spelled_at = 0  # tokens of the middle there were
        self._seen = 0
        self._tail = ""  # tokens of the middle; the last characters before and of it
        self._blank = True  # the last token is white space

    def propose(self, state: DecodeState, size: int) -> list[Draft]:
        """Return at most 8 drafts of at most 24 tokens in all, none a prefix of another.

        A grade is the probability of its token in tenths, given that all tokens before it are right.
        """
        self._follow(state)
        return choose(self._guesses(), min(size, self.window)) if size > 0 else []

    def observe(self, state: DecodeState, *, ended: bool) -> None:
        """Index more text.

        At the end of a middle this takes some milliseconds, so the answer should be sent before.
        """
        if ended:
            self._remember(state)
        else:
            self._follow(state)
        self.index_cache.build(BUILD_TOKENS_AT_END if ended else BUILD_TOKENS)

    def _remember(self, state: DecodeState) -> None:
        middle = self._clean(state.ids)  # shorter than what was followed, where a token ended it
        text = unix_lines(state.request.prefix[-LONGEST:]) + "".join(map(self._text, middle))
        self._recents.remember(self._clean(state.prefix[-TAIL_TOKENS:]), middle, text)

    def _follow(self, state: DecodeState) -> None:
        if state is not self._state or len(state.ids) < self._seen:
            self._open(state)
        new = state.ids[self._seen :]
        if new:
            self._seen += len(new)
            self._read(self._clean(new))

    def _open(self, state: DecodeState) -> None:
        self._state = state
        self._seen = 0
        prefix = self._clean(state.prefix)
        suffix = self._clean(state.suffix)
        before = self._own
        same_suffix = suffix == self._suffix_ids
        self._own = before.updated_to(prefix, REVOCABLE_TOKENS)
        if not same_suffix:
            self._suffix_ids = suffix
            self._suffix = SuffixAutomaton()
            self._suffix.extend(suffix)
        self._elsewhere.open(
            state.request, prefix, suffix, same_start=self._own is before, same_suffix=same_suffix
        )
        texts = self._elsewhere.texts()
        sources = [
            (self._suffix, "ngram.suffix"),
            *((automaton, "ngram.recent") for automaton in self._recents.automata),
        ]
        sources += zip(self.index_cache.want(texts), texts.values(), strict=True)
        self._readers = [AutomatonCursor(automaton, kind) for automaton, kind in sources]
        for reader in self._readers:
            reader.read(prefix[-TAIL_TOKENS:])
        self._layout.open(state.request.prefix, state.request.suffix)
        self._tail = unix_lines(state.request.prefix[-LONGEST:])
        self._spelled = []
        self._spelled_at = -1

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

    def _guesses(self) -> Iterator[Match]:
        own = self._own
        self._blank = not (own.ids and self._text(own.ids[-1]).strip())
        state = own.links[own.last]
        if state > 0:  # the end of the text itself is one of its places, and went on in no way
            yield from self._ways(own, state, own.lengths[state], "ngram.file", own.counts[state] - 1)
        live = [reader for reader in self._readers if reader.length]
        for reader in nlargest(MATCHES, live, key=_length) if len(live) > MATCHES else live:
            automaton = reader.automaton
            state = reader.state
            while state > 0 and not automaton.nexts[state]:
                state = automaton.links[state]
            if state > 0:
                length = min(reader.length, automaton.lengths[state])
                yield from self._ways(automaton, state, length, reader.kind, automaton.counts[state])
        if not self._spelled and self._spelled_at < self._seen <= SPELLED_TOKENS:
            self._spelled_at = self._seen
            places = self._elsewhere.places(reversed(self._recents.texts))
            self._spelled = followers(self._tail, places, self._vocabulary)
        yield from self._spelled
        yield from self._layout.guesses()

    def _ways(
        self, automaton: SuffixAutomaton, state: int, length: int, kind: str, places: int
    ) -> list[Match]:
        """Return the likeliest continuations of ``state``, which occurs ``places`` times in its text."""
        counts = automaton.counts
        ends = automaton.ends
        ways = automaton.nexts[state]
        if len(ways) > MANY:
            return []
        weight = places + DOUBTS[kind][min(length, REACH)] + SPREAD * (len(ways) - 1)
        children = list(ways.values())
        if len(children) > 1:
            children = sorted(children, key=lambda child: (counts[child], ends[child]), reverse=True)[
                :BRANCHES
            ]
        if length == 1 and self._blank:
            weight = max(weight, places / POOR)
        # Counts are a little off where a state has more than ``CHAIN`` above it.
        return [
            Match(min(SURE, counts[child] / weight), kind, automaton.ids, ends[child], length)
            for child in children
        ]

    def _text(self, token: int) -> str:
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self._vocabulary.decode([token]) if token >= 0 else ""
        return text

    def _clean(self, ids: list[int]) -> list[int]:
        """Replace special tokens in ``ids`` by ``NO_TOKEN``, which no match crosses and no draft contains."""
        banned = self._banned
        largest = self._largest
        if ids and (min(ids) < 0 or max(ids) > largest or not banned.isdisjoint(ids)):
            return [token if 0 <= token <= largest and token not in banned else NO_TOKEN for token in ids]
        return list(ids)
