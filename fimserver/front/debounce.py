"""Knows how fast someone types, and so how long it pays to wait for the next key. Knows nothing of documents' text."""

from __future__ import annotations

BURST_MS = 400.0  # keys further apart are no burst
SHARE = 0.7  # of the usual distance: most next keys of a burst come later than that and would be wasted work if not waited for


class TypingRhythm:
    """The keys of one document."""

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._interval_ms = BURST_MS

    def key(self, now_s: float) -> None:
        """A key was pressed. ``now_s`` is of a monotonic clock."""
        if self._last_s is not None:
            interval_ms = min(BURST_MS, (now_s - self._last_s) * 1000)
            self._interval_ms += 0.3 * (interval_ms - self._interval_ms)
        self._last_s = now_s

    def delay_ms(self, now_s: float, longest_ms: float) -> float:
        """What is left to wait at ``now_s``: the editor's own wait since the last key counts."""
        if self._last_s is None or self._interval_ms >= 0.9 * BURST_MS:
            return 0.0
        wanted_ms = min(longest_ms, SHARE * self._interval_ms)
        return max(0.0, wanted_ms - (now_s - self._last_s) * 1000)
