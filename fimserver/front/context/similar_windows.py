"""Similar windows: pieces of other open files that share identifiers with the text at the cursor.

The score is the Jaccard index of two sets of identifiers. To keep the KV cache valid, windows begin at
multiples of ``WINDOW_LINES``, and a chosen window keeps its place until another one scores much better.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from fimserver.front.documents.mirror import Snapshot
from fimserver.types import Snippet

WINDOW_LINES = 24
MAX_WINDOWS = 64  # of one file; the lines below them are ignored
MAX_FILES = 20
MAX_SNIPPETS = 4
BEFORE_LINES = 32
AFTER_LINES = 16  # lines around the cursor that are compared
MIN_SCORE = 0.08
STAY = 0.7  # a window is replaced when its score is below this share of the replacement's
_MAX_LINE = 400
_MAX_STATES = 64

_IDENTIFIER = re.compile(r"[^\W\d]\w{2,63}")
# Words common to many languages, which do not tell what a text is about.
_COMMON = """
abstract and any array assert async await bool boolean break byte case catch char class const constexpr
continue def default defer del delete dict double elif else end enum error except export extends extern
false False final finally float fmt for from func function get global goto if impl implements import include
init int interface is lambda len let list long loop match mod module mut namespace new nil None nonlocal not
null object operator or override package pass pub print private protected public raise range readonly ref
require return self set short signed sizeof static std str string struct super switch template test then
this throw throws trait true True try tuple type typedef typename typeof union unsafe unsigned use using val
value var virtual void where while with yield
"""
COMMON = frozenset(_COMMON.split())


class OpenFile(NamedTuple):
    """Another open file that may be read. ``name`` is what the model sees of its path."""

    uri: str
    name: str
    version: int
    lines: Sequence[str]


class LineWindow(NamedTuple):
    """``WINDOW_LINES`` lines of a file, from ``block * WINDOW_LINES`` on."""

    uri: str
    block: int


class _Read(NamedTuple):
    """Identifiers of a window, and the lines that they were read from."""

    lines: Sequence[str]
    identifiers: frozenset[str]


@dataclass(frozen=True)
class _Chosen:
    """Windows chosen for a document, and the question (identifiers, files) that they were chosen for."""

    question: tuple[frozenset[str], tuple[tuple[str, int], ...]] | None
    windows: tuple[LineWindow, ...]


class SimilarWindows:
    """Chooses windows, and prefers those that it chose before for a document."""

    def __init__(self) -> None:
        self._read: OrderedDict[str, dict[int, _Read]] = OrderedDict()
        self._chosen: OrderedDict[str, _Chosen] = OrderedDict()

    def choose(
        self, snapshot: Snapshot, sources: Iterable[OpenFile], is_late: Callable[[], bool] = lambda: False
    ) -> tuple[Snippet, ...]:
        """Return at most ``MAX_SNIPPETS`` windows of ``sources``, which are ordered by most recent use.

        Once it is late, only windows that were read before are compared.
        """
        files = {source.uri: source for source in islice(sources, MAX_FILES) if source.uri != snapshot.uri}
        wanted = identifiers_around(snapshot)
        question = (wanted, tuple((source.uri, source.version) for source in files.values()))
        last = self._chosen.get(snapshot.uri, _Chosen(None, ()))
        if last.question != question:
            scores, is_complete = self._scores(wanted, files.values(), is_late)
            last = _Chosen(question if is_complete else None, settled(last.windows, scores))
            self._chosen[snapshot.uri] = last
        _bound(self._chosen, snapshot.uri, _MAX_STATES)
        return tuple(_snippet(files[window.uri], window) for window in last.windows)

    def forget(self, uri: str) -> None:
        """Forget a document that was closed."""
        self._read.pop(uri, None)
        self._chosen.pop(uri, None)

    def _scores(
        self, wanted: frozenset[str], files: Iterable[OpenFile], is_late: Callable[[], bool]
    ) -> tuple[dict[LineWindow, float], bool]:
        """Return the scores of all windows that share identifiers, and whether all windows were read."""
        scores: dict[LineWindow, float] = {}
        is_complete = True
        for source in files:
            for index, identifiers in self._windows(source, is_late):
                if identifiers is None:
                    is_complete = False
                elif score := jaccard(wanted, identifiers):
                    scores[LineWindow(source.uri, index)] = score
        return scores, is_complete

    def _windows(
        self, source: OpenFile, is_late: Callable[[], bool]
    ) -> Iterator[tuple[int, frozenset[str] | None]]:
        """Yield the identifiers of every window of a file; ``None`` if there was no time to read it."""
        known = self._read.setdefault(source.uri, {})
        _bound(self._read, source.uri, 2 * MAX_FILES)
        count = min(MAX_WINDOWS, -(-len(source.lines) // WINDOW_LINES))
        for index in range(count):
            lines = source.lines[index * WINDOW_LINES : (index + 1) * WINDOW_LINES]
            # An edit elsewhere in the file keeps these string objects, so comparing them is cheap.
            if index not in known or known[index].lines != lines:
                if is_late():
                    yield index, None
                    continue
                known[index] = _Read(lines, identifiers_of(lines))
            yield index, known[index].identifiers
        for index in [index for index in known if index >= count]:
            del known[index]


def settled(before: Sequence[LineWindow], scores: Mapping[LineWindow, float]) -> tuple[LineWindow, ...]:
    """Return the windows to show: previous ones keep their places unless others score much better.

    Equal scores keep the order of ``scores``.
    """
    chosen = [window for window in before if scores.get(window, 0.0) >= MIN_SCORE * STAY]
    for window in sorted((w for w in scores if w not in chosen), key=lambda w: -scores[w]):  # stable
        if scores[window] < MIN_SCORE:
            break
        if len(chosen) < MAX_SNIPPETS:
            chosen.append(window)
            continue
        weakest = min(chosen, key=scores.__getitem__)
        if scores[weakest] >= STAY * scores[window]:
            break
        chosen[chosen.index(weakest)] = window
    return tuple(chosen)


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Size of the intersection divided by the size of the union."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared) if shared else 0.0


def identifiers_of(lines: Iterable[str]) -> frozenset[str]:
    """Identifiers in ``lines`` without common words. Very long lines are cut."""
    return frozenset(_IDENTIFIER.findall("\n".join(line[:_MAX_LINE] for line in lines))) - COMMON


def identifiers_around(snapshot: Snapshot) -> frozenset[str]:
    """Identifiers near the cursor, without the word being typed."""
    row = snapshot.place.line
    left = re.sub(r"\w{1,64}$", "", snapshot.line_before[-_MAX_LINE:])
    above = snapshot.lines[max(0, row - BEFORE_LINES) : row]
    below = snapshot.lines[row + 1 : row + 1 + AFTER_LINES]
    return identifiers_of([*above, left, snapshot.line_after, *below])


def _snippet(source: OpenFile, window: LineWindow) -> Snippet:
    start = window.block * WINDOW_LINES
    return Snippet(source.name, "".join(source.lines[start : start + WINDOW_LINES]))


def _bound(
    kept: OrderedDict[str, _Chosen] | OrderedDict[str, dict[int, _Read]], used: str, limit: int
) -> None:
    """Mark an entry as most recently used, and drop the oldest beyond the limit."""
    kept.move_to_end(used)
    while len(kept) > limit:
        kept.popitem(last=False)
