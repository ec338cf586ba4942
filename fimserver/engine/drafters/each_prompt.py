"""Keeps one drafter per prompt of the target's cache, so that no drafter sees two texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.speculation.drafts import DecodeState, Draft, Drafter


class EachPrompt:
    """Forwards calls to the drafter of the current prompt, which is made at the first call."""

    inline = True
    keeps_text = False

    def __init__(self, name: str, cache: PrefixCache | None, make: Callable[[], Drafter]) -> None:
        """``cache``: the target's; ``None``: there is one prompt."""
        self.name = name
        self._cache = cache
        self._drafters: defaultdict[int, Drafter] = defaultdict(make)

    @property
    def drafter(self) -> Drafter:
        """The drafter of the current prompt."""
        return self._drafters[self._cache.prompts.current.number if self._cache else 0]

    def propose(self, state: DecodeState, size: int) -> list[Draft]:
        return self.drafter.propose(state, size)

    def observe(self, state: DecodeState, *, ended: bool) -> None:
        self.drafter.observe(state, ended=ended)
