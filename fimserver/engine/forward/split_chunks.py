"""Checks on two layers of a network whether prefill may run pieces other than whole chunks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fimserver.engine.forward.fused import FusedModel
from fimserver.engine.forward.layers import Stack
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.types import Deadline

LAYERS = 2  # the inputs of the second one depend on attention and all products


@torch.inference_mode()
def chunks_split(network: FusedModel, chunk: int) -> bool:
    """Whether rows have the same bits in passes of a few rows and of two chunks as in those of one chunk."""
    weights = network.weights
    stack = weights.stack
    some = Stack(stack.layers[:LAYERS], stack.sizes, bf16_attention=stack.bf16_attention)
    small = FusedModel(weights._replace(stack=some), 3 * chunk)
    count = 3 * chunk - 3
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(network.vocab_size, (count,), generator=generator).tolist()
    whole = _rows(PrefixCache(small, 3 * chunk, chunk), ids, [count])
    pieces = _rows(PrefixCache(small, 3 * chunk, chunk, splits=True), ids, [7, 8, chunk + 1, count])
    return all(torch.equal(*pair) for pair in zip(whole, pieces, strict=True))


def _rows(cache: PrefixCache, ids: Sequence[int], ends: Sequence[int]) -> list[torch.Tensor]:
    """Prefill the ids up to each of ``ends`` in turn; return keys and values of all layers."""
    for end in ends:
        cache.prefill(ids[:end], Deadline(), want_logits=False)
    return [rows[:, : len(ids)] for index in range(LAYERS) for rows in cache.kv.layer(index)]
