"""Interface of a network, from token ids to logits.

Implementations: ``NativeNetwork`` runs any decoder-only class of transformers, ``FusedModel`` (``fused.py``)
runs the same weights in fewer kernels, and ``FakeNetwork`` returns scripted logits for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from fimserver.engine.forward.kv import KVBuffer


class Network(Protocol):
    """A decoder-only network with ``vocab_size`` logits, on ``device``.

    ``hidden`` (B, R, d): input of the head in the last pass, for the rows that have logits. ``embed`` (ids
    (…) -> (…, d)) and ``head`` ((N, d) -> (N, V)) are for drafters that share them.
    """

    vocab_size: int
    device: torch.device
    hidden: torch.Tensor
    dtype: torch.dtype  # of hidden states
    embed: Callable[[torch.Tensor], torch.Tensor]
    head: Callable[[torch.Tensor], torch.Tensor]

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, kv: KVBuffer, logits_of: torch.Tensor
    ) -> torch.Tensor:
        """Run ids (B, M) from position ``kv.start`` on; return logits (B, R, V) of rows ``logits_of`` (R,).

        ``mask`` (M, extent) is true for the keys that a row attends to.
        """
        ...

    def forward_bidirectional(self, ids: torch.Tensor, logits_of: torch.Tensor) -> torch.Tensor:
        """Run ids (T,) with full attention and no cache; return logits (R, V) of rows ``logits_of`` (R,)."""
        ...


class NativeNetwork:
    """Any ``…ForCausalLM`` of transformers, also one that accelerate split over devices or offloaded.

    ``device``: where the ids go.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        # Imported here, as the fused network needs no transformers, whose import takes half a second.
        from fimserver.engine.forward.native_kv import NativeKV  # noqa: PLC0415

        self.model = model
        self._native_kv = NativeKV
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.device = device
        self.hidden = torch.empty(0)
        self.embed = model.get_input_embeddings()
        self.dtype = self.embed.weight.dtype
        self.head = model.get_output_embeddings()
        model.get_output_embeddings().register_forward_pre_hook(self._see)
        self.spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values of one token, in most classes."""
        size: int = self.dtype.itemsize
        return size * kv_numbers(self.model.config)

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, kv: KVBuffer, logits_of: torch.Tensor
    ) -> torch.Tensor:
        count, rows = ids.shape
        positions = torch.arange(kv.start, kv.start + rows, device=ids.device)
        output = self.model(
            input_ids=ids,
            position_ids=positions.expand(count, -1),
            attention_mask=mask.expand(count, 1, -1, -1),
            past_key_values=self._native_kv(kv),
            use_cache=True,
            logits_to_keep=self._keep(logits_of),
        )
        logits: torch.Tensor = output.logits
        if logits.shape[1] == len(logits_of):
            return logits
        self.hidden = self.hidden[:, logits_of]
        return logits[:, logits_of]

    def forward_bidirectional(self, ids: torch.Tensor, logits_of: torch.Tensor) -> torch.Tensor:
        output = self.model(input_ids=ids[None], use_cache=False, logits_to_keep=self._keep(logits_of))
        logits: torch.Tensor = output.logits[0]
        if len(logits) == len(logits_of):
            return logits
        self.hidden = self.hidden[:, logits_of]
        return logits[logits_of]

    def _see(self, _head: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self.hidden = inputs[0]

    def _keep(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the row numbers on a device where they can index the last layer, which may be elsewhere."""
        return rows.cpu() if self.spread else rows


def kv_numbers(config: Any) -> int:
    """Return the number of elements in the keys and values of one token, over all layers."""
    heads = int(config.num_attention_heads)
    size = getattr(config, "head_dim", None) or int(config.hidden_size) // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return 2 * int(config.num_hidden_layers) * int(kv_heads) * int(size)


class FakeNetwork:
    """Returns logits from a function of (id, position): for tests of loops without weights."""

    def __init__(self, size: int, logits: Callable[[int, int], torch.Tensor]) -> None:
        self.vocab_size = size
        self.device = torch.device("cpu")
        self.hidden = torch.empty(0)
        self.dtype = torch.float32
        self.embed = lambda ids: torch.zeros(*ids.shape, 1)
        self.head = lambda hidden: torch.zeros(len(hidden), size)
        self.logits = logits

    def forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,  # noqa: ARG002 - the protocol
        kv: KVBuffer,
        logits_of: torch.Tensor,
    ) -> torch.Tensor:
        self.hidden = torch.zeros(len(ids), len(logits_of), 1)
        return torch.stack([self._rows(branch, kv.start, logits_of) for branch in ids])

    def forward_bidirectional(self, ids: torch.Tensor, logits_of: torch.Tensor) -> torch.Tensor:
        return self._rows(ids, 0, logits_of)

    def _rows(self, ids: torch.Tensor, start: int, logits_of: torch.Tensor) -> torch.Tensor:
        rows = [self.logits(int(ids[i]), start + int(i)) for i in logits_of]
        return torch.stack(rows) if rows else torch.empty(0, self.vocab_size)
