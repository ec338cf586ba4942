"""A drafter for each prompt that the target's cache keeps, so that no drafter sees two texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.speculation.drafts import DecodeState, Draft, Drafter


class EachPrompt:
    """Passes each call to the drafter of the current prompt, which is made when it is first needed."""

    inline = True
    keeps_text = False

    def __init__(self, name: str, cache: PrefixCache | None, make: Callable[[], Drafter]) -> None:
        """``cache``: of the target; ``None``: there is one."""
        self.name = name
        self._cache = cache
        self._drafters: defaultdict[int, Drafter] = defaultdict(make)

    @property
    def drafter(self) -> Drafter:
        """The one of the current prompt."""
        return self._drafters[self._cache.prompts.current.number if self._cache else 0]

    def propose(self, state: DecodeState, size: int) -> list[Draft]:
        return self.drafter.propose(state, size)

    def observe(self, state: DecodeState, *, ended: bool) -> None:
        self.drafter.observe(state, ended=ended)
