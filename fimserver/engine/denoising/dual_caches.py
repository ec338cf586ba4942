"""Caches of full-attention canvases, one for each request in progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from fimserver.engine.denoising.canvas import CanvasForward
from fimserver.engine.denoising.dual_cache import DualCache, DualCanvas
from fimserver.errors import NonFiniteError


class DualCaches:
    """Up to ``most`` caches, allocated on demand; ``current`` is the one used last."""

    def __init__(self, make: Callable[[], DualCache], most: int) -> None:
        self.most = most
        self.current = make()
        self._make = make
        self._all = [self.current]  # in the order of use, the last one last

    def nearest(self, left: Sequence[int], right: Sequence[int]) -> DualCache:
        """Choose a free cache for a text with these sides of its canvas, and make it current.

        It is the one with most reusable tokens, if they are half of the text; otherwise other texts stay as
        long as there is room. If all caches are taken, it is a new one: a request never waits here.
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
        """Return an empty cache, a new one, or the least recently used free one."""
        empty = next((cache for cache in free if cache.is_empty), None)
        if empty is not None:
            return empty
        if free and len(self._all) >= self.most:
            return free[0]
        return self._make()


@contextmanager
def holding(canvas: CanvasForward) -> Iterator[None]:
    """Reserve the cache of a canvas, if it has one, for one request; wipes it after NaN."""
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
