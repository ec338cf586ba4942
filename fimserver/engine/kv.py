"""Knows the fixed-capacity key/value buffer and which tokens it holds. Knows nothing of what the tokens mean.

Row counts and read extents that depend on nothing but the position make every stored number a function of the tokens
before it, so reuse never changes a bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache


class KVBuffer(Cache):
    """Keys and values of every layer over ``capacity`` positions; rows are written at ``start``, ``extent`` are read.

    transformers' models call ``update`` once a layer; buffers take their shape from the first call.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(layers=[])
        self.capacity = capacity
        self.start = 0
        self.extent = capacity
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store (1, heads, M, D) rows at ``start`` and give back the first ``extent`` of them."""
        if layer_idx not in self._layers:
            self._layers[layer_idx] = (self._empty(key_states), self._empty(value_states))
        keys, values = self._layers[layer_idx]
        rows = slice(self.start, self.start + key_states.shape[2])
        keys[:, :, rows] = key_states
        values[:, :, rows] = value_states
        return keys[:, :, : self.extent], values[:, :, : self.extent]

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - transformers' signature
        return self.start

    def _empty(self, rows: torch.Tensor) -> torch.Tensor:
        shape = (*rows.shape[:2], self.capacity, rows.shape[3])
        return torch.zeros(shape, dtype=rows.dtype, device=rows.device)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading ids are equal."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
