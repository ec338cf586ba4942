"""Prompt context: prefix, suffix and snippets for a cursor.

While the user types, as much of the prompt as possible stays the same, so that the KV cache stays valid:
prefix and suffix are cut at the same places, auto-inserted closers are left out of the suffix, and snippets
keep their places, the most stable ones first.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from fimserver.front.context.auto_closers import paired_closers
from fimserver.front.context.definitions import Definitions
from fimserver.front.context.privacy import Privacy, by_content
from fimserver.front.context.secrets import mask_secrets
from fimserver.front.context.similar_windows import MAX_FILES, OpenFile, SimilarWindows
from fimserver.front.context.whole_files import WholeFiles
from fimserver.front.documents.mirror import Document, Snapshot, split_lines
from fimserver.front.documents.recent_edits import RecentEdits
from fimserver.front.documents.uris import path_of
from fimserver.reasons import Reason
from fimserver.types import Snippet, unix_lines

PREFIX_CHARS = 24_000
SUFFIX_CHARS = 12_000
STEP = PREFIX_CHARS // 4  # by which the start of the prefix moves
TYPED_CHARS = 400
TYPED_LINES = 3  # typing more than this moves the anchor
# Limits per kind of snippet, fixed so that one kind does not move the cuts of another.
DEFINITION_CHARS = 1800
WINDOW_CHARS = 3000
EDIT_CHARS = 1200
MAX_STATES = 64


@dataclass(frozen=True)
class PromptContext:
    """Text around a cursor.

    ``stripped``: closers between the cursor and ``suffix`` in the file, left out of the prompt; answers must
    be fitted to them. ``typed_chars``: how many characters at the end of ``prefix`` were typed since the
    anchor.
    """

    prefix: str
    suffix: str
    typed_chars: int = 0
    snippets: tuple[Snippet, ...] = ()
    stripped: str = ""
    lookup: tuple[Snippet, ...] = ()  # whole open files, for drafts


@dataclass
class _State:
    """Parts of the context that stay the same while the user types in a document."""

    start: tuple[int, int] = (0, 0)  # line and column where the prefix begins
    anchor: str | None = None  # the prefix before the typing began
    suffix: str = ""


@dataclass
class _Clock:
    """Time limit for building a context."""

    now: Callable[[], float]
    end_s: float = field(default=0.0)

    def is_late(self) -> bool:
        return self.now() >= self.end_s


class ContextSource:
    """Builds contexts and keeps what must not change between two of them. One per editor window."""

    def __init__(
        self,
        roots: Sequence[Path],
        privacy: Privacy,
        definitions: Definitions | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._privacy = privacy
        self._clock = clock
        self._edits = RecentEdits()
        self._definitions = definitions or Definitions(roots, privacy)
        self._windows = SimilarWindows()
        self._states: OrderedDict[str, _State] = OrderedDict()
        self._used: dict[str, None] = {}  # documents, the most recently used one last
        self._contents: dict[str, tuple[int, Reason | None]] = {}  # version, verdict on the content
        self._masked = lru_cache(maxsize=256)(mask_secrets)
        self._whole = WholeFiles(mask_secrets)

    def text(self, snapshot: Snapshot, before: str = "", after: str = "") -> PromptContext:
        """Return prefix and suffix without snippets. ``before``, ``after``: a notebook's other cells."""
        state = self._states.setdefault(snapshot.uri, _State())
        self._states.move_to_end(snapshot.uri)
        while len(self._states) > MAX_STATES:
            self._states.popitem(last=False)
        prefix = unix_lines(_prefix(snapshot, before, state))
        closers = paired_closers(snapshot.line_before[-400:], snapshot.line_after[:64])
        suffix, stripped = _suffix(snapshot, after, closers, state.suffix)
        if state.anchor is None or suffix != state.suffix or not _continues(prefix, state.anchor):
            state.anchor = prefix
            state.suffix = suffix
        return PromptContext(prefix, suffix, len(prefix) - len(state.anchor), stripped=stripped)

    def build(
        self,
        known: PromptContext,
        snapshot: Snapshot,
        open_documents: Mapping[str, Document],
        *,
        budget_ms: float = 20.0,
    ) -> PromptContext:
        """Return ``known`` with the snippets of open documents that are ready within ``budget_ms``."""
        if not open_documents:
            return known
        clock = _Clock(self._clock, self._clock() + budget_ms / 1000)
        self._use(snapshot.uri)
        path = path_of(snapshot.uri)
        if self._privacy.verdict(path, snapshot.lines) is not None:
            return known
        definitions = self._definitions.lookup(snapshot, path) if path is not None else ()
        windows = self._windows.choose(snapshot, self._sources(snapshot.uri, open_documents), clock.is_late)
        edits: tuple[Snippet, ...] = ()
        if not clock.is_late():
            names = self._names(open_documents)
            edits = self._edits.snippets(snapshot.uri, _seen(snapshot, known), names)
        edits = tuple(
            edit
            for edit in edits
            if not any(edit.text in other.text for other in windows if other.path == edit.path)
        )
        snippets = [
            *self._fitted(definitions, DEFINITION_CHARS),
            *self._fitted(windows, WINDOW_CHARS),
            *self._fitted(edits[::-1], EDIT_CHARS)[::-1],
        ]
        whole = self._whole.choose(self._sources(snapshot.uri, open_documents), clock.is_late)
        return replace(known, snippets=tuple(snippets), lookup=whole)

    def edited(self, document: Document, line: int) -> None:
        """Note a change of an open document at ``line``."""
        self._edits.observe(document, line)
        self._use(document.uri)

    def forget(self, uri: str) -> None:
        """Forget a document that was closed."""
        self._edits.forget(uri)
        self._windows.forget(uri)
        self._whole.forget(uri)
        self._definitions.forget(uri)
        self._masked.cache_clear()
        for kept in (self._states, self._used, self._contents):
            kept.pop(uri, None)

    def _use(self, uri: str) -> None:
        self._used.pop(uri, None)
        self._used[uri] = None

    def _name(self, document: Document) -> str | None:
        """Return a document's path as shown to the model; ``None`` for a document that it must not see."""
        path = path_of(document.uri)
        if document.dirty or document.too_large or self._privacy.by_name(path) is not None:
            return None
        if path is None:
            return re.split(r"[\\/:]", document.uri)[-1]  # untitled: only the name
        version, verdict = self._contents.get(document.uri, (None, None))
        if version != document.version:
            verdict = by_content(document.lines)
            self._contents[document.uri] = (document.version, verdict)
        return self._privacy.shown(path) if verdict is None else None

    def _names(self, documents: Mapping[str, Document]) -> Callable[[str], str | None]:
        return lambda uri: self._name(documents[uri]) if uri in documents else None

    def _sources(self, uri: str, documents: Mapping[str, Document]) -> Iterator[OpenFile]:
        """Yield the other open documents that may be read, the most recently used first."""
        used = [known for known in reversed(self._used) if known in documents]
        order = [*used, *(known for known in reversed(list(documents)) if known not in self._used)]
        for other in [known for known in order if known != uri][: 2 * MAX_FILES]:
            document = documents[other]
            if (name := self._name(document)) is not None:
                yield OpenFile(other, name, document.version, document.lines)

    def _fitted(self, snippets: Sequence[Snippet], limit: int) -> list[Snippet]:
        """Return snippets without secrets, up to ``limit`` characters in all; the last is cut at a line."""
        fitted: list[Snippet] = []
        for snippet in snippets:
            text = self._masked(_cut(snippet.text, limit))
            if text.strip():
                fitted.append(Snippet(snippet.path, text))
            limit -= len(text)
        return fitted


def _prefix(snapshot: Snapshot, before: str, state: _State) -> str:
    """Text from ``state.start`` to the cursor. The start moves only if the text is too long or too short."""
    above = (
        split_lines(before)[:-1]
        if before.endswith("\n")
        else split_lines(before + "\n")[:-1]
        if before
        else []
    )
    lines, row = (
        (above + list(snapshot.lines), len(above) + snapshot.place.line)
        if above
        else (snapshot.lines, snapshot.place.line)
    )
    last = snapshot.line_before
    text = _between(lines, state.start, row, last)
    if text is None or len(text) > PREFIX_CHARS or (len(text) < STEP and state.start != (0, 0)):
        state.start = _start(lines, row, last)
        text = _between(lines, state.start, row, last)
    return text or ""


def _between(lines: Sequence[str], start: tuple[int, int], row: int, last: str) -> str | None:
    """Text from ``start`` to the cursor, at the end of ``last`` in line ``row``.

    ``None`` if the cursor is before ``start``.
    """
    line, column = start
    if line > row or (line == row and column > len(last)):
        return None
    # The file may have grown a lot since: never join more than can be used.
    if row - line > PREFIX_CHARS:
        return None
    return last[column:] if line == row else (lines[line] + "".join(lines[line + 1 : row]) + last)[column:]


def _start(lines: Sequence[str], row: int, last: str) -> tuple[int, int]:
    """First line start from which the prefix is at least one step shorter than the limit.

    A place within the last line if that alone is too long.
    """
    if len(last) > PREFIX_CHARS - STEP:
        return row, -(-(len(last) - PREFIX_CHARS + STEP) // STEP) * STEP
    size = len(last)
    while row > 0 and size + len(lines[row - 1]) <= PREFIX_CHARS - STEP:
        row -= 1
        size += len(lines[row])
    return row, 0


def _suffix(snapshot: Snapshot, after: str, closers: str, before: str) -> tuple[str, str]:
    """Suffix, and the closers left out of it: as many as keep it equal to ``before``, else all."""
    rest = snapshot.suffix(SUFFIX_CHARS + 64)
    if after and len(rest) < SUFFIX_CHARS:
        rest += ("" if rest.endswith("\n") or after.startswith("\n") else "\n") + after
    rest = unix_lines(rest)
    cuts = [_line_cut(rest[count:]) for count in range(len(closers), -1, -1)]
    suffix = before if before in cuts else cuts[0]
    return suffix, closers[: len(closers) - cuts.index(suffix)]


def _line_cut(text: str) -> str:
    """At most ``SUFFIX_CHARS`` characters of ``text``, cut after a line if there is one."""
    return (
        text if len(text) <= SUFFIX_CHARS else text[: text.rfind("\n", 0, SUFFIX_CHARS) + 1 or SUFFIX_CHARS]
    )


def _continues(prefix: str, anchor: str) -> bool:
    """Whether ``prefix`` is the anchor and a few more characters."""
    typed = len(prefix) - len(anchor)
    return (
        0 <= typed <= TYPED_CHARS
        and prefix.startswith(anchor)
        and prefix.count("\n", len(anchor)) <= TYPED_LINES
    )


def _seen(snapshot: Snapshot, known: PromptContext) -> range:
    """Lines of the document that are in the prefix or the suffix."""
    row = snapshot.place.line
    return range(row - known.prefix.count("\n"), row + known.suffix.count("\n") + 1)


def _cut(text: str, limit: int) -> str:
    """Whole lines of ``text``, at most ``limit`` characters."""
    return text if len(text) <= limit else text[: text.rfind("\n", 0, max(0, limit)) + 1]
