"""Adapter that gives a KV buffer the cache interface of transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache

from fimserver.engine.forward.kv import KVBuffer


class NativeKV(Cache):
    """Forwards keys and values of transformers' layers to a ``KVBuffer``."""

    def __init__(self, kv: KVBuffer) -> None:
        super().__init__(layers=[])
        self.kv = kv

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_args: Any,
        **_kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store rows (B, heads, M, D); return the keys and values that the pass reads."""
        return self.kv.update(key_states, value_states, layer_idx)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - transformers' signature
        return self.kv.start
