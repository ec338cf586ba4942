"""Acceptance of suggestions: accepted in full, in part, typed, or left.

Editors report full acceptance at most. The rest is inferred from later edits: text that appears where a
suggestion was shown and equals its start was typed (one character at a time) or accepted (more at once).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass

from fimserver.events import Fate
from fimserver.front.documents.mirror import Document, Position
from fimserver.lengths import common_prefix
from fimserver.types import unix_lines

MAX_IDS = 512


@dataclass
class Counts:
    """Counts of what the user did with the suggestions of one route."""

    shown: int = 0
    accepted: int = 0
    partly: int = 0
    left: int = 0
    accepted_chars: int = 0
    typed_chars: int = 0


@dataclass
class ShownSuggestion:
    """Suggestion on the screen; its first ``seen`` characters are already in the document."""

    suggestion_id: str
    uri: str
    place: Position
    before: str  # of its line
    text: str
    route: str
    there: int  # characters of it that were in the document before
    seen: int = 0
    accepted: int = 0
    typed: int = 0
    settled: bool = False
    on_screen: bool = False  # it is, or was
    by_key: bool = False  # its last character came alone: typed, unless the editor says that it was accepted

    @property
    def is_whole(self) -> bool:
        """Whether all of it is in the document."""
        return self.seen >= len(self.text)

    @property
    def fate(self) -> Fate:
        """What became of it; final once it is settled."""
        if self.accepted == 0:
            return "left"
        return "full" if self.is_whole else "partly"

    @property
    def kept(self) -> tuple[int, int]:
        """Number of characters accepted, and number typed."""
        return min(self.accepted, len(self.text)), min(self.typed, len(self.text))


def _nothing(_: ShownSuggestion) -> None: ...


class Acceptance:
    """Suggestions of one window; the newest of each document is open until the next one.

    Calls ``on_show`` with each suggestion that is shown, ``on_settle`` with each that leaves the screen.
    """

    def __init__(
        self,
        on_show: Callable[[ShownSuggestion], None] = _nothing,
        on_settle: Callable[[ShownSuggestion], None] = _nothing,
    ) -> None:
        self._on_show = on_show
        self._on_settle = on_settle
        self.counts: dict[str, Counts] = {}
        self._open: dict[str, ShownSuggestion] = {}
        self._by_id: OrderedDict[str, ShownSuggestion] = OrderedDict()
        self._editor_reports = False

    def offer(
        self, suggestion_id: str, document: Document, place: Position, text: str, route: str
    ) -> ShownSuggestion | None:
        """Note a suggestion sent to the editor. It counts as shown unless the editor reports what it shows.

        Returns ``None`` for the rest of a suggestion being typed through: that is still the same one.
        """
        old = self._open.get(document.uri)
        if (
            old
            and not old.settled
            and not old.is_whole
            and old.text.endswith(text)
            and _follows(old, document, place)
        ):
            self._know(suggestion_id, old)
            return None
        before = document.lines[place.line][: place.column]
        new = ShownSuggestion(
            suggestion_id, document.uri, place, before, text, route, _matched(document, place, text)
        )
        self._know(suggestion_id, new)
        is_old = (
            old is not None
            and not old.settled
            and not old.is_whole
            and (old.place, old.before) == (place, before)
        )
        if not self._editor_reports and not is_old:
            self._show(new)
        return new

    def _know(self, suggestion_id: str, shown: ShownSuggestion) -> None:
        self._by_id[suggestion_id] = shown
        while len(self._by_id) > MAX_IDS:
            self._by_id.popitem(last=False)

    def reported_shown(self, suggestion_id: str) -> None:
        """Note that the editor reports a suggestion as shown. From then on only reported ones count."""
        self._editor_reports = True
        shown = self._by_id.get(suggestion_id)
        if shown is not None and self._open.get(shown.uri) is not shown:
            self._show(shown)

    def _show(self, shown: ShownSuggestion, *, instead_of: ShownSuggestion | None = None) -> None:
        """Mark a suggestion as shown, possibly ``instead_of`` another candidate of the same answer."""
        old = self._open.get(shown.uri)
        self._open[shown.uri] = shown
        shown.on_screen = True
        if (
            old
            and instead_of is old
            and not old.settled
            and (old.place, old.before) == (shown.place, shown.before)
        ):
            self._on_settle(old)
        else:
            if old:
                self._settle(old)
            self._of(shown.route).shown += 1
        self._on_show(shown)

    def edited(self, document: Document, inserted_chars: int) -> None:
        """Update how much of the suggestion is in the document, after an edit of ``inserted_chars``."""
        shown = self._open.get(document.uri)
        if shown is None or shown.settled:
            return
        if (
            shown.is_whole
            or shown.place.line >= len(document.lines)
            or not document.lines[shown.place.line].startswith(shown.before)
        ):
            self._settle(shown)
            return
        matched = _matched(document, shown.place, shown.text)
        # Text after the cursor may equal the suggestion by chance: an edit adds at most what it inserts.
        grown = min(matched - max(shown.seen, shown.there), inserted_chars)
        if grown == 1:
            shown.typed += 1
        elif grown > 1:
            shown.accepted += grown
        shown.seen = min(matched, max(shown.seen, shown.there) + max(0, grown))
        shown.by_key = grown == 1
        if shown.is_whole and not shown.by_key:
            self._settle(shown)

    def accept(self, suggestion_id: str, chars: int | None = None) -> bool:
        """Note that a suggestion, or its first ``chars``, was accepted. Returns whether the id is known."""
        shown = self._by_id.get(suggestion_id)
        if shown is None:
            return False
        if not shown.settled:
            if (old := self._open.get(shown.uri)) is not shown:
                self._show(shown, instead_of=old)
            shown.typed -= shown.is_whole and shown.by_key
            gained = len(shown.text) - shown.typed if chars is None else chars
            shown.accepted = max(shown.accepted, gained)
            if chars is None:
                shown.seen = len(shown.text)
                self._settle(shown)
        return True

    def find(self, suggestion_id: str) -> ShownSuggestion | None:
        """Return a suggestion that may still be on the screen."""
        return self._by_id.get(suggestion_id)

    def forget(self, uri: str) -> None:
        """Settle the open suggestion of a document that is closed."""
        if (shown := self._open.pop(uri, None)) is not None:
            self._settle(shown)

    def report(self) -> dict[str, dict[str, int]]:
        """Return the counts by route."""
        return {route: asdict(counts) for route, counts in self.counts.items()}

    def _of(self, route: str) -> Counts:
        return self.counts.setdefault(route, Counts())

    def _settle(self, shown: ShownSuggestion) -> None:
        if shown.settled:
            return
        shown.settled = True
        counts = self._of(shown.route)
        accepted, typed = shown.kept
        counts.accepted += shown.fate == "full"
        counts.partly += shown.fate == "partly"
        counts.left += shown.fate == "left"
        counts.accepted_chars += accepted
        counts.typed_chars += typed
        self._on_settle(shown)


def _follows(old: ShownSuggestion, document: Document, place: Position) -> bool:
    """Whether ``place`` is at or after the start of ``old`` and the line before that is unchanged."""
    if old.place.line >= len(document.lines) or not document.lines[old.place.line].startswith(old.before):
        return False
    return place >= old.place


def _matched(document: Document, place: Position, text: str) -> int:
    """Return how many characters at the start of ``text`` are at ``place`` in the document."""
    lines = document.lines[place.line : place.line + text.count("\n") + 2]
    there = unix_lines("".join(lines)[place.column :])
    return common_prefix(there, text)
