"""Attention of prompt rows chunk by chunk, bitwise equal to passes of one whole chunk each.

A pass can therefore run two chunks at once, which makes the matrix products faster, or only the new rows of a
chunk. Each chunk attends in the shape of a whole one: missing rows are padded, and the keys end with the
chunk.
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
    """The rows of a pass that are in one chunk.

    ``before`` and ``after``: rows of the chunk that are not in the pass, on either side.
    """

    rows: slice
    before: int
    after: int
    bias: torch.Tensor  # folded (chunk * groups, extent)


def chunk_rows(bias: torch.Tensor, kv: KVBuffer, groups: int, *, bf16: bool) -> list[ChunkRows]:
    """Split the rows of a pass by chunk; ``bias`` (M, extent) is that of rows from ``kv.start`` on."""
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
    """Attend chunk by chunk with queries (1, M, heads, D): (1, M, heads * D)."""
    found = []
    for rows, before, after, bias in chunks:
        here = F.pad(q[:, rows], (0, 0, 0, 0, before, after)) if before or after else q[:, rows]
        extent = bias.shape[-1]
        out = attention(here, keys[:, :, :extent], values[:, :, :extent], bias, scale)
        found.append(out[:, before : out.shape[1] - after])
    return found[0] if len(found) == 1 else torch.cat(found, 1)
