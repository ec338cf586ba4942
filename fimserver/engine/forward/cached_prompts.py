"""The most recently used prompts of a prefix cache, each in its own KV buffer.

A request holds one buffer while it runs, so that several requests can interleave. Passes and drafters read
the current buffer; ``within`` makes a request's buffer current each time the request resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fimserver.engine.forward.kv import KVBuffer
from fimserver.lengths import common_prefix
from fimserver.types import Prefill

T = TypeVar("T")


@dataclass(eq=False)
class CachedPrompt:
    """A KV buffer and the prompt tokens in it. ``used``: when it was used last; the lowest is evicted."""

    number: int
    kv: KVBuffer
    ids: list[int] = field(default_factory=list)
    prefilled: Prefill = field(default_factory=Prefill)  # rows and passes of the last prefill, not its time
    forwards: int = 0
    taken: bool = False
    used: int = 0


class CachedPrompts:
    """Up to ``most`` prompts with their buffers, allocated on demand; one of them is current."""

    def __init__(self, make: Callable[[], KVBuffer], most: int) -> None:
        self.most = most
        self._make = make
        self._uses = 0
        self.current = CachedPrompt(0, make())
        self._all = [self.current]

    @property
    def forwards(self) -> int:
        """Number of passes over all buffers."""
        return sum(kept.forwards for kept in self._all)

    def clear(self) -> None:
        """Forget all prompts."""
        for kept in self._all:
            kept.ids = []

    def nearest(self, ids: Sequence[int]) -> CachedPrompt:
        """Return the prompt with the longest common prefix; of equals, the current one."""
        return max(self._all, key=lambda kept: (common_prefix(ids, kept.ids), kept is self.current))

    def take(self, ids: Sequence[int]) -> CachedPrompt:
        """Reserve a buffer for a prompt and make it current.

        If the nearest prompt shares at least half of its tokens, its buffer is reused: it is an earlier state
        of the same text. Otherwise that prompt stays, and the common prefix is copied into the least recently
        used buffer.
        """
        near = self.nearest(ids)
        shared = common_prefix(ids, near.ids)
        kept = near
        if near.taken or 2 * shared < min(len(near.ids), len(ids)):
            kept = self._spare()
        if kept is not near and shared:
            kept.kv.copy_text(near.kv, shared)
            kept.ids = list(near.ids[:shared])
        self._uses += 1
        kept.used = self._uses
        kept.taken = True
        self.current = kept
        return kept

    @contextmanager
    def held(self, ids: Sequence[int]) -> Iterator[CachedPrompt]:
        """Reserve the buffer of a prompt within a ``with`` block."""
        kept = self.take(ids)
        try:
            yield kept
        finally:
            kept.taken = False

    def within(self, ids: Sequence[int], steps: Generator[T, None, Any]) -> Generator[T, None, None]:
        """Run the ``steps`` of one request in its own buffer."""
        with self.held(ids) as kept, closing(steps):
            for step in steps:
                yield step
                self.current = kept

    def _spare(self) -> CachedPrompt:
        """Return an empty buffer, a new one, or the least recently used free one.

        If all are taken, it allocates one more than ``most``: a request never waits here.
        """
        free = [kept for kept in self._all if not kept.taken]
        empty = next((kept for kept in free if not kept.ids), None)
        if empty is not None:
            return empty
        if free and len(self._all) >= self.most:
            return min(free, key=lambda kept: kept.used)
        self._all.append(CachedPrompt(len(self._all), self._make()))
        return self._all[-1]
