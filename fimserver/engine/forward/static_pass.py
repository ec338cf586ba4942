"""Passes over static buffers: the same tensors at every call, so that a device can replay the kernels.

A pass is keyed by its shape: entries, rows, extent, rows with logits. An entry is a branch of a text; the
entries of one pass may be branches of one text, or several texts whose buffers are in one pool. Row counts
and extents are rounded up to a few sizes; padding rows write to a row of the KV buffer that is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fimserver.engine.device import to_device
from fimserver.engine.forward.graphs import Graphs
from fimserver.engine.forward.kv import KVBuffer, KVPool
from fimserver.engine.forward.layers import LayerKV, Part

ROWS = (1, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # of a branch; larger passes are multiples of the last
EXTENT = 512  # keys of the smallest pass; larger ones double it, up to the buffer's capacity

# Ids (B, M), positions (B, M), mask (B, 1, M, extent), keys and values, rows with logits (R,) -> hidden
# states of these rows (B, R, d) and their logits (B, R, V).
Compute = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, LayerKV, torch.Tensor], tuple[torch.Tensor, torch.Tensor]
]


class PassShape(NamedTuple):
    """The shape for which a graph is captured."""

    entries: int
    rows: int
    extent: int
    wanted: int  # rows with logits


def shape_of(entries: int, rows: int, extent: int, wanted: int, capacity: int) -> PassShape:
    """Return the padded shape in which a pass runs.

    To keep the number of shapes small, passes with wanted rows compute the logits of all their rows, or of a
    multiple of the last size in ``ROWS`` if that is less. So the last row of a prompt has the same bits with
    and without masks after it.
    """
    padded = _padded(rows)
    keys = next(keys for keys in extents(capacity) if keys >= extent)
    return PassShape(entries, padded, keys, min(padded, _in_steps(wanted)))


def _padded(rows: int) -> int:
    return next((size for size in ROWS if size >= rows), _in_steps(rows))


def _in_steps(rows: int) -> int:
    return -(-rows // ROWS[-1]) * ROWS[-1]


def extents(capacity: int) -> tuple[int, ...]:
    """Return the numbers of keys that passes over a buffer of ``capacity`` rows may read, smallest first."""
    sizes = [EXTENT]
    while sizes[-1] < capacity:
        sizes.append(2 * sizes[-1])
    return (*sizes[:-1], capacity)


class StaticRows:
    """Keys and values of the entries of a pool that a pass is about, written at places given by a tensor."""

    def __init__(
        self,
        pool: KVPool,
        entries: torch.Tensor,
        extent: int,
        places: torch.Tensor,
        *,
        alone: bool,
        apart: bool,
    ) -> None:
        """``alone``: the pool is of one buffer, whose first entries are read where they are.

        ``apart``: entries attend one by one.
        """
        self.pool = pool
        self.entries = entries  # (B,)
        self.extent = extent
        self.places = places  # (B, M)
        self.alone = alone
        self.apart = apart

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, index: int, /
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stored = self.pool.tensors(index, keys, values)
        for buffer, rows in zip(stored, (keys, values), strict=True):
            buffer[self.entries[:, None], :, self.places] = rows.transpose(1, 2)
        return self._read(stored[0]), self._read(stored[1])

    def _read(self, buffer: torch.Tensor) -> torch.Tensor:
        if self.alone:
            return buffer[: len(self.entries), :, : self.extent]
        return buffer[:, :, : self.extent].index_select(0, self.entries)


@dataclass
class Buffers:
    """Static input and output tensors of one shape; each entry is a branch of a text."""

    ids: torch.Tensor  # (B, M)
    numbers: torch.Tensor  # (3, B) entry of the pool, its first row that is written, rows that are no padding
    positions: torch.Tensor  # (B, M) in the text
    mask: torch.Tensor  # (B, M, extent)
    wanted: torch.Tensor  # (R,)
    hidden: torch.Tensor  # (B, R, d)
    logits: torch.Tensor  # (B, R, V)


class StaticPasses:
    """Runs passes of one network through ``graphs``, with static buffers for each shape.

    ``product_rows``: rows of every product, if there are fewer; 0: as many as the pass has. ``alike``: shapes
    (entries, rows) in which a text has the bits of plain decoding, beside others or alone; passes in these
    shapes may run as one. ``mixes``: also passes that read different numbers of keys. ``apart``: texts of one
    pass attend one by one.
    """

    def __init__(self, compute: Compute, vocab_size: int, like: torch.Tensor, graphs: Graphs) -> None:
        """``like``: a vector (d,) with the dtype and device of hidden states."""
        self.compute = compute
        self.vocab_size = vocab_size
        self.like = like
        self.graphs = graphs
        self.product_rows = 0
        self.alike: frozenset[tuple[int, int]] = frozenset()
        self.mixes = True
        self.apart = False
        self._buffers: dict[tuple[int, int, PassShape, bool], Buffers] = {}
        self._numbers = torch.arange(ROWS[-1], device=like.device)
        self._outputs: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._pools: dict[int, KVPool] = {}  # kept alive: graphs hold their addresses

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
        wanted = len(logits_of)
        shape = shape_of(len(ids), ids.shape[1], mask.shape[1], wanted, kv.capacity)
        buffers = self._through([Part(ids, mask, kv, kv.start, logits_of, positions)], shape, logits_of)
        return buffers.hidden[:, :wanted].clone(), buffers.logits[:, :wanted].clone()

    @property
    def joins_any(self) -> bool:
        """Whether there is a shape for several texts."""
        return any(entries > 1 for entries, _ in self.alike)

    def joins(self, ids: torch.Tensor) -> bool:
        """Whether a pass over ids (B, M) may run with others."""
        return (len(ids), _padded(ids.shape[1])) in self.alike

    def joined_shape(self, entries: int, rows: int) -> tuple[int, int] | None:
        """Return the smallest shape for so many entries of up to ``rows`` rows; ``None``: there is none."""
        room = [shape for shape in self.alike if shape[0] >= entries and shape[1] >= rows]
        return min(room, key=lambda shape: (shape[0] * shape[1], shape), default=None)

    def company(self, mask: torch.Tensor, kv: KVBuffer) -> tuple[int, int]:
        """Return a key that is equal for passes that may run as one, by their pool and number of keys."""
        extent = 0 if self.mixes else shape_of(1, 1, mask.shape[1], 1, kv.capacity).extent
        return id(kv.pool), extent

    def together(
        self, parts: Sequence[Part], shape: tuple[int, int]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Run parts over buffers of one pool as one pass; return what ``forward`` does, for each."""
        pool = _kv_of(parts[0]).pool
        entries, rows = shape
        extent = max(part.mask.shape[1] for part in parts)
        shape_ = shape_of(entries, rows, extent, rows, pool.capacity)
        buffers = self._through(parts, shape_, self._range(rows))
        found = []
        first = 0
        for part in parts:
            own = slice(first, first + len(part.ids))
            # Indexing copies, so that results outlive the next pass.
            found.append((buffers.hidden[own][:, part.logits_of], buffers.logits[own][:, part.logits_of]))
            first = own.stop
        return found

    def _through(self, parts: Sequence[Part], shape: PassShape, logits_of: torch.Tensor) -> Buffers:
        """Run a pass over its static buffers; return them, with the results."""
        pool = _kv_of(parts[0]).pool
        self._pools[id(pool)] = pool
        apart = self.apart and len(parts) > 1
        key = (id(self), id(pool), shape, apart)  # networks over one pool may share ``graphs``
        if key not in self._buffers:
            self._buffers[key] = self._make(shape)
        buffers = self._buffers[key]
        buffers.wanted[: len(logits_of)].copy_(logits_of)
        _fill(buffers, parts)
        _place(buffers, parts, self._range(shape.rows), pool.capacity)
        for part in parts:
            _kv_of(part).wrote_from(part.start)
        alone = pool.entries == _kv_of(parts[0]).branches
        self.graphs.run(key, lambda: self._run(buffers, pool, shape, alone=alone, apart=apart))
        return buffers

    def _run(self, buffers: Buffers, pool: KVPool, shape: PassShape, *, alone: bool, apart: bool) -> None:
        entries, starts, counts = buffers.numbers
        rows = torch.arange(shape.rows, device=self.like.device)
        # Padding goes to the unread row.
        places = (starts[:, None] + rows).masked_fill(rows >= counts[:, None], pool.capacity)
        stored = StaticRows(pool, entries, shape.extent, places, alone=alone, apart=apart)
        mask = buffers.mask[:, None]
        hidden, logits = self.compute(buffers.ids, buffers.positions, mask, stored, buffers.wanted)
        buffers.hidden.copy_(hidden)
        buffers.logits.copy_(logits)

    def _range(self, count: int) -> torch.Tensor:
        """Return the numbers before ``count``."""
        if len(self._numbers) < count:
            self._numbers = torch.arange(count, device=self.like.device)
        return self._numbers[:count]

    def _make(self, shape: PassShape) -> Buffers:
        entries, rows, extent, wanted = shape
        device = self.like.device
        return Buffers(
            torch.zeros(entries, rows, dtype=torch.long, device=device),
            torch.zeros(3, entries, dtype=torch.long, device=device),
            torch.zeros(entries, rows, dtype=torch.long, device=device),
            torch.zeros(entries, rows, extent, dtype=torch.bool, device=device),
            torch.zeros(wanted, dtype=torch.long, device=device),
            *self._output(entries, wanted),
        )

    def _output(self, entries: int, wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tensors for hidden states and logits, shared by all extents, as results are copied out."""
        if (entries, wanted) not in self._outputs:
            sizes = (len(self.like), self.vocab_size)
            hidden, logits = (self.like.new_zeros(entries, wanted, size) for size in sizes)
            self._outputs[entries, wanted] = hidden, logits
        return self._outputs[entries, wanted]


def _kv_of(part: Part) -> KVBuffer:
    assert isinstance(part.kv, KVBuffer)
    return part.kv


def _fill(buffers: Buffers, parts: Sequence[Part]) -> None:
    """Copy the inputs of a pass; entries after those of the last part write to the unread row only."""
    entries, rows, extent = buffers.mask.shape
    alone = len(parts) == 1 and (len(parts[0].ids), *parts[0].mask.shape) == (entries, rows, extent)
    if not alone:
        buffers.mask.zero_()
        buffers.mask[:, :, :1].fill_(1)  # a padding row that sees no key would give NaN
    numbers: list[tuple[int, int, int]] = []
    for part in parts:
        own = slice(len(numbers), len(numbers) + len(part.ids))
        count, seen = part.mask.shape
        buffers.mask[own, :count, :seen].copy_(part.mask)
        buffers.ids[own, :count].copy_(part.ids)
        first = _kv_of(part).first
        numbers += [(first + branch, part.start, count) for branch in range(len(part.ids))]
    numbers += [(0, 0, 0)] * (entries - len(numbers))
    buffers.numbers.copy_(to_device(list(zip(*numbers, strict=True)), buffers.numbers.device))


def _place(buffers: Buffers, parts: Sequence[Part], rows: torch.Tensor, capacity: int) -> None:
    """Set the positions in the text: ``rows`` (M,) from the start of each entry on, or those of its part."""
    buffers.positions.copy_((buffers.numbers[1][:, None] + rows).clamp(max=capacity - 1))
    first = 0
    for part in parts:
        own = slice(first, first + len(part.ids))
        if part.positions is not None:
            buffers.positions[own, : len(part.positions)].copy_(part.positions)
        first = own.stop
