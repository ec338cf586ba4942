"""Prompts that a prefix cache keeps, each in a KV buffer of its own: those that were used last.

A request holds one while it runs, so that several requests can run side by side. Whatever reads the cache
(passes, drafters) uses the current one; ``within`` makes a request's own current whenever the request goes
on.
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
    """A KV buffer and the prompt tokens in it. ``used``: number of its last use; the lowest is evicted."""

    number: int
    kv: KVBuffer
    ids: list[int] = field(default_factory=list)
    prefilled: Prefill = field(default_factory=Prefill)  # what the last prefill ran; without its time
    forwards: int = 0
    taken: bool = False
    used: int = 0


class CachedPrompts:
    """Up to ``most`` prompts and their buffers, made as they are needed; one is current."""

    def __init__(self, make: Callable[[], KVBuffer], most: int) -> None:
        self.most = most
        self._make = make
        self._uses = 0
        self.current = CachedPrompt(0, make())
        self._all = [self.current]

    @property
    def forwards(self) -> int:
        """Passes made in all buffers."""
        return sum(kept.forwards for kept in self._all)

    def clear(self) -> None:
        """Forget all prompts."""
        for kept in self._all:
            kept.ids = []

    def nearest(self, ids: Sequence[int]) -> CachedPrompt:
        """The prompt with the longest common beginning; the current one of equals."""
        return max(self._all, key=lambda kept: (common_prefix(ids, kept.ids), kept is self.current))

    def take(self, ids: Sequence[int]) -> CachedPrompt:
        """The buffer for a prompt, made current; nobody else gets it until it is given back.

        It is the one that has most of the prompt, where that is the same text typed on. Otherwise another
        text's prompt stays, and what both begin with is copied into the buffer unused for longest.
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
        """Hold the buffer of a prompt for work that is done without a break."""
        kept = self.take(ids)
        try:
            yield kept
        finally:
            kept.taken = False

    def within(self, ids: Sequence[int], steps: Generator[T, None, Any]) -> Generator[T, None, None]:
        """Run ``steps`` of one request in a buffer of its own."""
        with self.held(ids) as kept, closing(steps):
            for step in steps:
                yield step
                self.current = kept

    def _spare(self) -> CachedPrompt:
        """An empty buffer, a new one, or the free one that was unused for longest.

        Where all are taken, a new one: a request never waits for memory here.
        """
        free = [kept for kept in self._all if not kept.taken]
        empty = next((kept for kept in free if not kept.ids), None)
        if empty is not None:
            return empty
        if free and len(self._all) >= self.most:
            return min(free, key=lambda kept: kept.used)
        self._all.append(CachedPrompt(len(self._all), self._make()))
        return self._all[-1]
