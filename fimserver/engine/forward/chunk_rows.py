"""Attention of a prompt's rows chunk by chunk, with the bits of passes that each run one whole chunk.

A pass may then run two chunks at once, for faster products, or the few rows of a chunk that are new. Each
chunk attends in the shape of a whole one: the places of rows that are not in the pass are filled up, and the
keys end with the chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from fimserver.engine.forward.attention import fold_bias
from fimserver.engine.forward.kv import KVBuffer

# Queries (B, M, heads, D), keys, values (B, kv heads, extent, D), folded bias, scale: (B, M, heads * D).
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


class ChunkRows(NamedTuple):
    """Rows of a pass that are of one chunk: how many of the chunk are before and after them, and its bias."""

    rows: slice
    before: int
    after: int
    bias: torch.Tensor  # folded (chunk * groups, extent)


def chunk_rows(bias: torch.Tensor, kv: KVBuffer, groups: int, *, bf16: bool) -> list[ChunkRows]:
    """The rows of a pass by chunk, for a bias (M, extent) of rows from ``kv.start`` on."""
    found = []
    first = kv.start
    end = kv.start + len(bias)
    while first < end:
        start = first // kv.chunk * kv.chunk
        stop = start + kv.chunk
        rows = slice(first - kv.start, min(end, stop) - kv.start)
        before, after = first - start, max(0, stop - end)
        own = F.pad(bias[rows, :stop], (0, 0, before, after))
        found.append(ChunkRows(rows, before, after, fold_bias(own, groups, bf16=bf16)))
        first = stop
    return found


def attend_by_chunk(
    attention: Attention,
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    chunks: Sequence[ChunkRows],
    scale: float,
) -> torch.Tensor:
    """Attention (1, M, heads * D) of queries (1, M, heads, D)."""
    found = []
    for rows, before, after, bias in chunks:
        here = F.pad(q[:, rows], (0, 0, 0, 0, before, after)) if before or after else q[:, rows]
        extent = bias.shape[-1]
        out = attention(here, keys[:, :, :extent], values[:, :, :extent], bias, scale)
        found.append(out[:, before : out.shape[1] - after])
    return found[0] if len(found) == 1 else torch.cat(found, 1)
