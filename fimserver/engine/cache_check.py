"""Comparison of a cached canvas with an uncached one on the same middle."""

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
    """Tokens of one middle, each as text, and their cost."""

    tokens: tuple[str, ...]
    rows: int
    ms: float


@dataclass(frozen=True)
class CacheCheck:
    """One middle with a cache and without.

    ``cached``: the middle before any veto; its cost includes the last exact pass. ``drift``: nats per token
    by which the middle is likelier with the cache than in an exact pass, the largest of its blocks.
    """

    cached: DecodedCanvas
    exact: DecodedCanvas
    drift: float = 0.0

    @property
    def tokens(self) -> int:
        """Number of slots in the longer middle."""
        return max(len(self.cached.tokens), len(self.exact.tokens))

    @property
    def equal(self) -> int:
        """Number of slots that have the same token in both."""
        pairs = itertools.zip_longest(self.cached.tokens, self.exact.tokens)
        return sum(a == b for a, b in pairs)

    def spent(self, bound: float) -> tuple[int, float]:
        """Return the rows and milliseconds spent on the middle if a drift above ``bound`` is vetoed."""
        if self.drift <= bound:
            return self.cached.rows, self.cached.ms
        return self.cached.rows + self.exact.rows, self.cached.ms + self.exact.ms


def check_cache(engine: Diffusion, request: Request) -> CacheCheck:
    """Decode a middle with a cold cache and a last exact pass without veto, then without cache.

    Raises ``InputError`` if the engine's canvas has no approximate cache.
    """
    canvas = engine.open_canvas(request)
    if not isinstance(canvas, DualCanvas):
        raise InputError(f"{engine.card.name}: its canvas has no approximate cache")
    return check_canvas(engine, canvas, request)


def check_canvas(
    engine: Diffusion, canvas: DualCanvas, request: Request, exact: DecodedCanvas | None = None
) -> CacheCheck:
    """Do what ``check_cache`` does on an open canvas. ``exact``: the uncached middle, if it is known."""
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
    """Decode a middle with its prompt in the cache, then with an empty cache; equal if the cache is exact.

    Rows are those of the prompt alone. Raises ``InputError`` if the engine's canvas has no exact cache.
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
    """Decode a middle; returns the tokens of the last canvas, and milliseconds."""
    wait_for(engine.network.device)
    started = time.perf_counter()
    slots: tuple[str, ...] = ()
    for step in engine.decode(canvas, request, Deadline()):
        if isinstance(step, Chunk):
            slots = tuple(slot.text for slot in step.canvas) or slots
    wait_for(engine.network.device)
    return slots, ms_since(started)
