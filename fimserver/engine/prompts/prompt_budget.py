"""Prompt budget: how many tokens of text are read around a cursor, from the measured speed of prefill.

A prompt of that size is read from an empty cache within the time that is given for it. Sizes are coarse
steps, so that a little more or less time does not move the cuts, which would cost the whole KV cache.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fimserver.engine.device import wait_for
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.types import Deadline

STEPS = (512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)  # tokens
CPU_TOKENS = 2048  # longest prompt on a CPU, unless the user wants another
DEADLINE_SHARE = 0.75  # of a request's time, for reading at most: the answer has to be written, too
_TIMINGS = 2


class PrefillSpeed(NamedTuple):
    """Milliseconds of a row at the start of a prompt, and of one at position ``at``.

    In between they grow evenly, with the keys that attention reads.
    """

    first_ms: float
    last_ms: float
    at: int

    def ms(self, tokens: int) -> float:
        """Milliseconds that a prompt of so many tokens takes from an empty cache."""
        growth = max(0.0, self.last_ms - self.first_ms) / max(1, self.at)
        return tokens * (self.first_ms + growth * tokens / 2)

    def faster(self, other: PrefillSpeed) -> PrefillSpeed:
        """The better of two measurements: other work on the machine only ever slows one down."""
        return PrefillSpeed(
            min(self.first_ms, other.first_ms), min(self.last_ms, other.last_ms), max(self.at, other.at)
        )


@dataclass(frozen=True)
class PromptBudget:
    """Tokens of a prompt: ``limit``, or as many steps as ``speed`` allows within ``prompt_ms``."""

    limit: int
    speed: PrefillSpeed | None = None
    prompt_ms: float = 0.0

    def tokens(self, deadline_ms: float | None = None) -> int:
        """How long a prompt may be. ``deadline_ms``: the time that the whole request has, if it has one."""
        if self.speed is None:
            return self.limit
        allowed_ms = min(self.prompt_ms, DEADLINE_SHARE * (deadline_ms or self.prompt_ms / DEADLINE_SHARE))
        fitting = [n for n in (*STEPS, self.limit) if n <= self.limit and self.speed.ms(n) <= allowed_ms]
        return max([min(STEPS[0], self.limit), *fitting])


def measure_speed(cache: PrefixCache) -> PrefillSpeed:
    """Time a pass at the start of the buffer and one at its end. Forgets what the cache held."""
    last = max(0, cache.capacity - cache.longest_pass)
    speed = PrefillSpeed(_row_ms(cache, 0), _row_ms(cache, last), last)
    cache.clear()
    return speed


def _row_ms(cache: PrefixCache, start: int) -> float:
    """Milliseconds a row of a prefill pass at ``start``, the faster of two."""
    ids = [0] * min(start + cache.longest_pass, cache.capacity)
    times = []
    for _ in range(_TIMINGS):
        cache.prompts.current.ids = ids[:start]
        started = time.perf_counter()
        cache.prefill(ids, Deadline(), want_logits=False)
        wait_for(cache.network.device)
        times.append(time.perf_counter() - started)
    return 1000 * min(times) / (len(ids) - start)


def as_kept(speed: PrefillSpeed) -> dict[str, float]:
    """A speed as it is kept in a file."""
    return speed._asdict()


def from_kept(value: object) -> PrefillSpeed | None:
    """A kept speed; ``None`` where the file holds something else."""
    if not isinstance(value, Mapping):
        return None
    try:
        speed = PrefillSpeed(float(value["first_ms"]), float(value["last_ms"]), int(value["at"]))
    except (KeyError, TypeError, ValueError):
        return None
    return speed if speed.first_ms > 0 and speed.last_ms > 0 and speed.at > 0 else None
