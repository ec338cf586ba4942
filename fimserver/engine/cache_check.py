"""Comparison of a cached canvas with an uncached one: decodes the same middle with both."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, replace

from fimserver.engine.denoising.canvas import CanvasForward
from fimserver.engine.denoising.dual_cache import DualCanvas
from fimserver.engine.device import wait_for
from fimserver.engine.diffusion import Diffusion
from fimserver.errors import InputError
from fimserver.types import Chunk, Deadline, Request, ms_since


@dataclass(frozen=True)
class DecodedCanvas:
    """Tokens of one middle, as text each, and what they cost."""

    tokens: tuple[str, ...]
    rows: int
    ms: float


@dataclass(frozen=True)
class CacheCheck:
    """One middle with a cache and without.

    ``cached`` is what comes before a veto, its last exact pass included. ``drift``: how much likelier the
    cache makes a middle than an exact pass does, nats a token, the largest of its blocks.
    """

    cached: DecodedCanvas
    exact: DecodedCanvas
    drift: float = 0.0

    @property
    def tokens(self) -> int:
        """Number of slots of the longer middle."""
        return max(len(self.cached.tokens), len(self.exact.tokens))

    @property
    def equal(self) -> int:
        """Slots that have the same token in both."""
        pairs = itertools.zip_longest(self.cached.tokens, self.exact.tokens)
        return sum(a == b for a, b in pairs)

    def spent(self, bound: float) -> tuple[int, float]:
        """Rows and milliseconds of the middle that a veto at ``bound`` lets through."""
        if self.drift <= bound:
            return self.cached.rows, self.cached.ms
        return self.cached.rows + self.exact.rows, self.cached.ms + self.exact.ms


def check_cache(engine: Diffusion, request: Request) -> CacheCheck:
    """Decode a middle with a cold cache and a last exact pass that has no veto, then without cache.

    Raises ``InputError`` where the engine's canvas has no cache that approximates.
    """
    canvas = engine.open_canvas(request)
    if not isinstance(canvas, DualCanvas):
        raise InputError(f"{engine.card.name}: its canvas has no approximate cache")
    return check_canvas(engine, canvas, request)


def check_canvas(
    engine: Diffusion, canvas: DualCanvas, request: Request, exact: DecodedCanvas | None = None
) -> CacheCheck:
    """Like ``check_cache``, on an open canvas. ``exact``: the uncached middle, where it is known."""
    cache = canvas.cache
    cache.clear()
    canvas.rules = replace(canvas.rules, bound=math.inf)
    before = cache.rows
    tokens, ms = _decode(engine, canvas, request)
    cached = DecodedCanvas(tokens, cache.rows - before, ms)
    drift = max(canvas.drifts, default=0.0)
    if exact is None:
        full = canvas.uncached()
        tokens, ms = _decode(engine, full, request)
        exact = DecodedCanvas(tokens, full.rows, ms)
    return CacheCheck(cached, exact, drift)


def check_prompt_cache(engine: Diffusion, request: Request) -> CacheCheck:
    """Decode a middle with its prompt in the cache, then with an empty one: equal where a cache is exact.

    Rows are those of the prompt alone.
    """
    cache = engine.cache
    if cache is None:
        raise InputError(f"{engine.card.name}: its canvas has no exact cache")
    engine.warm(request, Deadline())
    warm = _decode_prompt(engine, request)
    cache.clear()
    return CacheCheck(warm, _decode_prompt(engine, request))


def _decode_prompt(engine: Diffusion, request: Request) -> DecodedCanvas:
    canvas = engine.open_canvas(request)
    tokens, ms = _decode(engine, canvas, request)
    return DecodedCanvas(tokens, canvas.prefilled.rows, ms)


def _decode(engine: Diffusion, canvas: CanvasForward, request: Request) -> tuple[tuple[str, ...], float]:
    """Tokens of the last canvas, and milliseconds."""
    wait_for(engine.network.device)
    started = time.perf_counter()
    slots: tuple[str, ...] = ()
    for step in engine.decode(canvas, request, Deadline()):
        if isinstance(step, Chunk):
            slots = tuple(slot.text for slot in step.canvas) or slots
    wait_for(engine.network.device)
    return slots, ms_since(started)
