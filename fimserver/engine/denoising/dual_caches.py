"""Caches of several canvases that their context sees, one for each request that runs beside others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from fimserver.engine.denoising.canvas import CanvasForward
from fimserver.engine.denoising.dual_cache import DualCache, DualCanvas
from fimserver.errors import NonFiniteError


class DualCaches:
    """Up to ``most`` caches, made as they are needed; ``current`` is the one that was asked for last."""

    def __init__(self, make: Callable[[], DualCache], most: int) -> None:
        self.most = most
        self.current = make()
        self._make = make
        self._all = [self.current]  # in the order of use, the last one last

    def nearest(self, left: Sequence[int], right: Sequence[int]) -> DualCache:
        """The free cache for a text with these tokens on both sides of its canvas, made current.

        It is the one that has most of the text. Otherwise another text stays as long as there is room. Where
        all are taken it is a new one: a request never waits for memory here.
        """
        free = [cache for cache in self._all if not cache.taken]
        near = max(free, key=lambda cache: cache.shared(left, right), default=None)
        if near is None or 2 * near.shared(left, right) < len(left) + len(right):
            near = self._spare(free)
        self._all = [*(cache for cache in self._all if cache is not near), near]
        self.current = near
        return near

    def clear(self) -> None:
        """Forget all texts."""
        for cache in self._all:
            cache.clear()

    def _spare(self, free: Sequence[DualCache]) -> DualCache:
        """An empty cache, a new one, or the free one that was unused for longest."""
        empty = next((cache for cache in free if cache.is_empty), None)
        if empty is not None:
            return empty
        if free and len(self._all) >= self.most:
            return free[0]
        return self._make()


@contextmanager
def holding(canvas: CanvasForward) -> Iterator[None]:
    """Keep the cache of a canvas, where it has one of its own, for one request. Wipes it after NaN."""
    cache = canvas.cache if isinstance(canvas, DualCanvas) else None
    if cache is None:
        yield
        return
    cache.taken = True
    try:
        yield
    except NonFiniteError:
        cache.wipe()
        raise
    finally:
        cache.taken = False
