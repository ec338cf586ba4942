"""Calm: how much longer an automatic request waits after dismissals and while only deleting or moving.

It also bounds how many suggestions a minute are shown without being asked for.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

AFTER_DISMISSAL_S = 30.0  # how long a dismissal has an effect
LEFT_IN_A_ROW = 4  # requests wait longer after this many suggestions that were neither accepted nor typed
MINUTE_S = 60.0


@dataclass
class _Place:
    """Where the last automatic request of a document was made."""

    revision: int
    line: int
    column: int


class Calm:
    """How the user treated the suggestions of one window. Times are seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._dismissed_s: float | None = None
        self._left_in_a_row = 0
        self._shown_s: deque[float] = deque()
        self._deleting: set[str] = set()
        self._places: dict[str, _Place] = {}

    def dismissed(self, now_s: float) -> None:
        """Note that the user dismissed a suggestion."""
        self._dismissed_s = now_s

    def settled(self, *, was_used: bool) -> None:
        """Note that a suggestion left the screen. One that was used also ends the effect of a dismissal."""
        self._left_in_a_row = 0 if was_used else self._left_in_a_row + 1
        if was_used:
            self._dismissed_s = None

    def shown(self, now_s: float) -> None:
        """Note that a suggestion was shown."""
        self._shown_s.append(now_s)

    def edited(self, uri: str, *, only_deleted: bool) -> None:
        """Note an edit of a document."""
        (self._deleting.add if only_deleted else self._deleting.discard)(uri)

    def forget(self, uri: str) -> None:
        """Forget a document that was closed."""
        self._deleting.discard(uri)
        self._places.pop(uri, None)

    def why_wait(self, uri: str, revision: int, place: tuple[int, int], now_s: float) -> str:
        """Return why a request at ``place`` waits longer, or an empty string. Remembers the place."""
        last = self._places.get(uri)
        here = _Place(revision, *place)
        self._places[uri] = here
        if self._dismissed_s is not None and now_s - self._dismissed_s < AFTER_DISMISSAL_S:
            return "after a dismissal"
        if self._left_in_a_row >= LEFT_IN_A_ROW:
            return f"after {self._left_in_a_row} suggestions that were not used"
        if uri in self._deleting:
            return "while deleting"
        return "while moving" if last and last.revision == revision and last != here else ""

    def is_full(self, limit: int, now_s: float) -> bool:
        """Whether ``limit`` suggestions were shown in the last minute; 0 means no limit."""
        while self._shown_s and now_s - self._shown_s[0] >= MINUTE_S:
            self._shown_s.popleft()
        return 0 < limit <= len(self._shown_s)
