"""Passes over static buffers: the same tensors at every call, so that a device can replay the kernels.

A pass is keyed by its shape: branches, rows, extent, rows with logits. Row counts and extents are rounded up
to a few sizes; padding rows write to a row of the KV buffer that is never read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fimserver.engine.forward.graphs import Graphs
from fimserver.engine.forward.kv import KVBuffer
from fimserver.engine.forward.layers import LayerKV

ROWS = (1, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # of a branch; larger passes are multiples of the last
EXTENT = 512  # keys of the smallest pass; larger ones double it, up to the buffer's capacity

# Ids (B, M), positions (M,), mask (M, extent), keys and values, rows with logits (R,) -> hidden states of
# these rows (B, R, d) and their logits (B, R, V).
Compute = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, LayerKV, torch.Tensor], tuple[torch.Tensor, torch.Tensor]
]


class PassShape(NamedTuple):
    """The shape for which a graph is captured."""

    branches: int
    rows: int
    extent: int
    wanted: int  # rows with logits


def shape_of(branches: int, rows: int, extent: int, wanted: int, capacity: int) -> PassShape:
    """Return the padded shape in which a pass runs.

    To keep the number of shapes small, passes with wanted rows compute the logits of all their rows, or of a
    multiple of the last size in ``ROWS`` if that is less. So the last row of a prompt has the same bits with
    and without masks after it.
    """
    padded = next((size for size in ROWS if size >= rows), _in_steps(rows))
    keys = next(keys for keys in extents(capacity) if keys >= extent)
    return PassShape(branches, padded, keys, min(padded, _in_steps(wanted)))


def _in_steps(rows: int) -> int:
    return -(-rows // ROWS[-1]) * ROWS[-1]


def extents(capacity: int) -> tuple[int, ...]:
    """Return the numbers of keys that passes over a buffer of ``capacity`` rows may read, smallest first."""
    sizes = [EXTENT]
    while sizes[-1] < capacity:
        sizes.append(2 * sizes[-1])
    return (*sizes[:-1], capacity)


class StaticRows:
    """Keys and values of one buffer, written at positions given by a tensor."""

    def __init__(self, kv: KVBuffer, branches: int, extent: int, places: torch.Tensor) -> None:
        self.kv = kv
        self.branches = branches
        self.extent = extent
        self.places = places  # (M,)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, index: int, /
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stored = [buffer[: self.branches] for buffer in self.kv.buffers(index, keys, values)]
        for buffer, rows in zip(stored, (keys, values), strict=True):
            buffer.index_copy_(2, self.places, rows)
        return stored[0][:, :, : self.extent], stored[1][:, :, : self.extent]


@dataclass
class Buffers:
    """Static input and output tensors of one shape."""

    ids: torch.Tensor  # (B, M)
    start: torch.Tensor  # () row of the KV buffer that the first row is written to
    positions: torch.Tensor  # (M,) in the text
    count: torch.Tensor  # () rows that are not padding
    mask: torch.Tensor  # (M, extent)
    wanted: torch.Tensor  # (R,)
    hidden: torch.Tensor  # (B, R, d)
    logits: torch.Tensor  # (B, R, V)


class StaticPasses:
    """Runs passes of one network through ``graphs``, with static buffers for each shape."""

    def __init__(self, compute: Compute, vocab_size: int, like: torch.Tensor, graphs: Graphs) -> None:
        """``like``: a vector (d,) with the dtype and device of hidden states."""
        self.compute = compute
        self.vocab_size = vocab_size
        self.like = like
        self.graphs = graphs
        self._buffers: dict[tuple[int, int, PassShape], Buffers] = {}
        self._numbers = torch.empty(0, dtype=torch.long)
        self._outputs: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._kv: dict[int, KVBuffer] = {}  # kept alive: graphs hold their addresses

    def forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        kv: KVBuffer,
        logits_of: torch.Tensor,
        positions: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden states (B, R, d) and logits (B, R, V), without waiting for the device.

        ``positions`` (M,): positions in the text, if they are not consecutive from ``kv.start`` on.
        """
        branches, rows = ids.shape
        shape = shape_of(branches, rows, mask.shape[1], len(logits_of), kv.capacity)
        self._kv[id(kv)] = kv
        key = (id(self), id(kv), shape)  # networks over one buffer may share ``graphs``
        if key not in self._buffers:
            self._buffers[key] = self._make(shape)
        buffers = self._buffers[key]
        if positions is None:
            positions = self._range(kv)[kv.start : kv.start + rows]
        _fill(buffers, ids, positions, mask, logits_of)
        buffers.start.fill_(kv.start)
        kv.wrote_from(kv.start)
        self.graphs.run(key, lambda: self._run(buffers, kv, shape))
        wanted = len(logits_of)
        return buffers.hidden[:, :wanted].clone(), buffers.logits[:, :wanted].clone()

    def _run(self, buffers: Buffers, kv: KVBuffer, shape: PassShape) -> None:
        rows = torch.arange(shape.rows, device=self.like.device)
        # Padding goes to the unread row.
        places = (buffers.start + rows).masked_fill(rows >= buffers.count, kv.capacity)
        stored = StaticRows(kv, shape.branches, shape.extent, places)
        hidden, logits = self.compute(buffers.ids, buffers.positions, buffers.mask, stored, buffers.wanted)
        buffers.hidden.copy_(hidden)
        buffers.logits.copy_(logits)

    def _range(self, kv: KVBuffer) -> torch.Tensor:
        """Return all positions in a buffer."""
        if len(self._numbers) < kv.capacity:
            self._numbers = torch.arange(kv.capacity, device=self.like.device)
        return self._numbers

    def _make(self, shape: PassShape) -> Buffers:
        branches, rows, extent, wanted = shape
        device = self.like.device
        return Buffers(
            torch.zeros(branches, rows, dtype=torch.long, device=device),
            torch.zeros((), dtype=torch.long, device=device),
            torch.zeros(rows, dtype=torch.long, device=device),
            torch.zeros((), dtype=torch.long, device=device),
            torch.zeros(rows, extent, dtype=torch.bool, device=device),
            torch.zeros(wanted, dtype=torch.long, device=device),
            *self._output(branches, wanted),
        )

    def _output(self, branches: int, wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tensors for hidden states and logits, shared by all extents, as results are copied out."""
        if (branches, wanted) not in self._outputs:
            sizes = (len(self.like), self.vocab_size)
            hidden, logits = (self.like.new_zeros(branches, wanted, size) for size in sizes)
            self._outputs[branches, wanted] = hidden, logits
        return self._outputs[branches, wanted]


def _fill(
    buffers: Buffers,
    ids: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor,
    logits_of: torch.Tensor,
) -> None:
    rows, extent = mask.shape
    if mask.shape != buffers.mask.shape:
        buffers.mask.zero_()
        buffers.mask[rows:, :1].fill_(1)  # a padding row that sees no key would give NaN
    buffers.mask[:rows, :extent].copy_(mask)
    buffers.ids[:, :rows].copy_(ids)
    buffers.wanted[: len(logits_of)].copy_(logits_of)
    buffers.positions[:rows].copy_(positions)
    buffers.count.fill_(rows)
