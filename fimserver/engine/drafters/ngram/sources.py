"""Texts outside the prompt that are searched: the rest of the file, snippets and open files.

While the user types they stay the same objects, so that their hashes are not computed again.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, chain, zip_longest

from fimserver.engine.drafters.ngram.text_match import SearchText
from fimserver.engine.prompts.vocabulary import Vocabulary
from fimserver.types import Request, Snippet, unix_lines

MAX_SNIPPETS = 64
CHUNK_CHARS = 4000  # of the rest of the file
SEARCH_CHARS = 100_000  # of all texts that are searched for characters


class RequestSources:
    """The texts of the current request."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._left = ""
        self._right = ""
        self._head = ""
        self._before = list[str]()
        self._after = list[str]()  # chunks of the file left and right of the prompt, nearest first
        self._snippets: tuple[Snippet, ...] = ()
        self._snippet_texts: list[str] = []
        self._files: tuple[Snippet, ...] = ()
        self._file_chunks: list[str] = []

    def open(
        self, request: Request, prefix: list[int], suffix: list[int], *, same_start: bool, same_suffix: bool
    ) -> None:
        """A new request.

        The prompt shows ``prefix`` and ``suffix`` of it; whether they begin like those before.
        """
        self._left = unix_lines(request.prefix)
        right = unix_lines(request.suffix)
        if not same_start or not self._left.startswith(self._head):
            self._head = self._left[: max(0, len(self._left) - self._chars(prefix))]
            self._before = chunks(self._head)[::-1]
        if not same_suffix or right != self._right:
            self._right, self._after = right, chunks(right[self._chars(suffix) :])
        if request.snippets != self._snippets:
            self._snippets = request.snippets
            self._snippet_texts = [unix_lines(snippet.text) for snippet in request.snippets[:MAX_SNIPPETS]]
        if request.lookup != self._files:
            self._files = request.lookup
            self._file_chunks = [chunk for file in self._files for chunk in chunks(unix_lines(file.text))]

    def texts(self) -> dict[str, str]:
        """Return texts that are not in the prompt, with their source, the nearest first."""
        rest = chain.from_iterable(zip_longest(self._before, self._after, fillvalue=""))
        elsewhere = chain(self._snippet_texts, self._file_chunks)
        kinds = dict.fromkeys(rest, "ngram.rest") | dict.fromkeys(elsewhere, "ngram.open")
        kinds.pop("", None)
        return kinds

    def places(self, recent: Iterable[str]) -> list[SearchText]:
        """Return the texts for matches by characters: ``recent`` ones, the file, snippets, up to a limit."""
        first = [*map(SearchText, recent), SearchText(self._left), SearchText(self._right, nearest=True)]
        places = [*first, *map(SearchText, self._snippet_texts)]
        chars = accumulate(len(place.text) for place in places)
        return [place for place, so_far in zip(places, chars, strict=True) if so_far <= SEARCH_CHARS]

    def _chars(self, ids: list[int]) -> int:
        return len(self._vocabulary.decode([token for token in ids if token >= 0])) if ids else 0


def chunks(text: str) -> list[str]:
    """Cut ``text`` into pieces of whole lines that stay the same while ``text`` grows at its end."""
    cuts = [0]
    while len(text) - cuts[-1] > CHUNK_CHARS:
        line_end = text.rfind("\n", cuts[-1] + 1, cuts[-1] + CHUNK_CHARS)
        cuts.append(line_end if line_end > 0 else cuts[-1] + CHUNK_CHARS)
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
