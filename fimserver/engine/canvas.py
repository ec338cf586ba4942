"""Canvases: how the slots of the dllm route see their context and get their logits.

``CachedCanvas``: the context is causal and stays in the KV cache; each step runs the canvas rows alone (exact).
``ShiftedCanvas``: the same for networks whose rows predict the next position. ``FullCanvas``: every position sees every
other, so each step runs the whole sequence (the Dream family).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from fimserver.engine.network import Network
from fimserver.engine.prefix_cache import PrefixCache
from fimserver.types import Deadline, Prefill


class CanvasForward(Protocol):
    """Gives logits for the slots of a canvas."""

    @property
    def forwards(self) -> int:
        """Passes run so far, prefill included."""
        ...

    @property
    def prefilled(self) -> Prefill:
        """What ``open`` computed, without its time."""
        ...

    def open(self, deadline: Deadline) -> bool:
        """Prefill the context; ``False`` if time was up before the end."""
        ...

    def predict(self, slots: Sequence[int]) -> torch.Tensor:
        """Logits (n, V): row i is about slot i itself."""
        ...

    def settle(self, slots: Sequence[int]) -> None:
        """Append finished slots to the left context, before the next block."""
        ...


class CachedCanvas:
    """Slots after a causal context; each slot's own row predicts it."""

    def __init__(self, cache: PrefixCache, context: Sequence[int], network: Network | None = None) -> None:
        """``network``: runs the slots, on the cache's keys and values; ``None``: the cache's own."""
        self.cache = cache
        self.network = network or cache.network
        self.context = list(context)
        self._before = cache.forwards

    @property
    def forwards(self) -> int:
        return self.cache.forwards - self._before

    @property
    def prefilled(self) -> Prefill:
        return self.cache.prefilled

    def open(self, deadline: Deadline) -> bool:
        return self.cache.prefill(self.context, deadline, want_logits=False) is not None

    def predict(self, slots: Sequence[int]) -> torch.Tensor:
        start, count = len(self.context), len(slots)
        every = torch.arange(count, device=self.network.device)
        return self.cache.rows(slots, start, self.cache.block(start, count), every, self.network)

    def settle(self, slots: Sequence[int]) -> None:
        self.context += slots


class ShiftedCanvas:
    """Slots after a causal context, read by a network that keeps the next-token shift: the row before a slot predicts it.

    Slots with nothing masked to their left are text: causal rows. The rows from the first mask on see the context and each
    other. So the first masked slot is always predicted by text alone.
    """

    def __init__(self, cache: PrefixCache, context: Sequence[int], network: Network, mask_token: int) -> None:
        self.cache, self.network, self.mask_token = cache, network, mask_token
        self.context = list(context)
        self._before = cache.forwards
        self._first = torch.empty(0)

    @property
    def forwards(self) -> int:
        return self.cache.forwards - self._before

    @property
    def prefilled(self) -> Prefill:
        return self.cache.prefilled

    def open(self, deadline: Deadline) -> bool:
        logits = self.cache.prefill(self.context, deadline, want_logits=True)
        self._first = self._first if logits is None else logits
        return logits is not None

    def predict(self, slots: Sequence[int]) -> torch.Tensor:
        start, count = len(self.context), len(slots)
        known = next((i for i, token in enumerate(slots) if token == self.mask_token), count)
        mask = self.cache.causal(start, count).clone()  # with its extent, so that text has the bits of plain decoding
        mask[known:, : start + count] = True
        rows = torch.arange(count - 1, device=self.network.device)
        return torch.cat([self._first[None], self.cache.rows(slots, start, mask, rows, self.network)])

    def settle(self, slots: Sequence[int]) -> None:
        self.context += slots


class FullCanvas:
    """Slots between left and right context, all attending to all. With ``shift``, row i - 1 predicts position i."""

    def __init__(self, network: Network, left: Sequence[int], right: Sequence[int], *, shift: bool) -> None:
        self.network = network
        self.left, self.right, self.shift = list(left), list(right), shift
        self.forwards = 0
        self.prefilled = Prefill()

    def open(self, deadline: Deadline) -> bool:
        return deadline.spent() is None

    @torch.inference_mode()
    def predict(self, slots: Sequence[int]) -> torch.Tensor:
        self.forwards += 1
        ids = torch.tensor([*self.left, *slots, *self.right], device=self.network.device)
        first = len(self.left) - int(self.shift)
        # Row 0 stands in for the missing row before it (Dream).
        rows = torch.arange(first, first + len(slots), device=self.network.device).clamp(min=0)
        return self.network.full(ids, rows)

    def settle(self, slots: Sequence[int]) -> None:
        self.left += slots
