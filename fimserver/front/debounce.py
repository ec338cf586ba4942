"""Debounce: how long to wait for the next key, estimated from the user's typing speed."""

from __future__ import annotations

BURST_MS = 400.0  # keys further apart do not belong to one burst
SHARE = 0.7  # of the usual interval: after a shorter wait most requests would be superseded by the next key


class TypingRhythm:
    """Intervals between the keys of one document."""

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._interval_ms = BURST_MS

    def key(self, now_s: float) -> None:
        """Note a key. ``now_s``: time on a monotonic clock."""
        if self._last_s is not None:
            interval_ms = min(BURST_MS, (now_s - self._last_s) * 1000)
            self._interval_ms += 0.3 * (interval_ms - self._interval_ms)
        self._last_s = now_s

    def delay_ms(self, now_s: float, longest_ms: float) -> float:
        """Return how long to wait from ``now_s`` on, less the time that has passed since the last key."""
        if self._last_s is None or self._interval_ms >= 0.9 * BURST_MS:
            return 0.0
        wanted_ms = min(longest_ms, SHARE * self._interval_ms)
        return max(0.0, wanted_ms - (now_s - self._last_s) * 1000)
