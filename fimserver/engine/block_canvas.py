"""Canvas of block diffusion: slots are denoised a block at a time, after all that is finished.

Blocks lie at multiples of their length from the start of the prompt; a token sees its own block and those
before it (block diffusion, arXiv 2503.09573; SDAR, arXiv 2510.06303). So keys and values of finished blocks
are final, and a step runs one block. The end of the prompt shares its block with the first slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fimserver.engine.prefix_cache import PrefixCache
from fimserver.types import Deadline, Prefill


class BlockCanvas:
    """Slots after a context, in blocks of ``block`` tokens; each slot's own row predicts it.

    The rows of a finished block are computed once more, with the first step of the next block, and stay.
    """

    def __init__(self, cache: PrefixCache, context: Sequence[int], block: int) -> None:
        self.cache = cache
        self.block = block
        self._context = list(context[: len(context) // block * block])  # in whole blocks
        self._text = list(context)  # with the slots of finished blocks
        self._stored = len(self._context)  # tokens whose keys and values are final
        self._before = cache.forwards

    @property
    def forwards(self) -> int:
        return self.cache.forwards - self._before

    @property
    def prefilled(self) -> Prefill:
        return self.cache.prefilled

    @property
    def room(self) -> int:
        """Slots of the block that comes next."""
        return self.block - len(self._text) % self.block

    def open(self, deadline: Deadline) -> bool:
        return self.cache.prefill(self._context, deadline, want_logits=False) is not None

    def predict(self, slots: Sequence[int]) -> torch.Tensor:
        """Logits (n, V); there are as many slots as ``room``."""
        assert len(slots) == self.room
        rows = [*self._text[self._stored :], *slots]
        first = len(rows) - len(slots)
        wanted = torch.arange(first, len(rows), device=self.cache.network.device)
        mask = self.cache.causal(self._stored, len(rows))
        logits = self.cache.rows(rows, self._stored, mask, wanted)
        self._stored = len(self._text) // self.block * self.block
        return logits

    def settle(self, slots: Sequence[int]) -> None:
        self._text += slots
