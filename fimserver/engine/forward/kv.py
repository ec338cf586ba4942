"""KV buffer of fixed capacity.

Row counts and read extents depend on the position alone, so that every stored number is a function of the
tokens before it, and reuse never changes a bit. Branches are entries of the batch dimension, each a copy of
the prompt with its own tokens after it: a key has the same position in every branch as in the text, and
attention sums in the same order. (With one buffer and a tree mask the order would differ, and with it the low
bits.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch


class KVPool:
    """The tensors of one or several KV buffers: one per layer, with ``entries`` entries of ``capacity`` rows.

    Captured graphs hold the addresses of tensors, so that one set of graphs serves all buffers of a pool.
    """

    def __init__(self, capacity: int, entries: int) -> None:
        self.capacity = capacity
        self.entries = entries
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def tensors(
        self, index: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values (entries, heads, capacity + 1, D) of one layer.

        If new, they are allocated for rows like ``keys`` and ``values`` (B, heads, M, D), whose D may differ
        (MLA). The last row is never read: padding rows of a pass are written there.
        """
        if index not in self.layers:
            self.layers[index] = (self._empty(keys), self._empty(values))
        return self.layers[index]

    def _empty(self, rows: torch.Tensor) -> torch.Tensor:
        shape = (self.entries, rows.shape[1], self.capacity + 1, rows.shape[3])
        return torch.zeros(shape, dtype=rows.dtype, device=rows.device)


class KVBuffer:
    """Keys and values of every layer over ``capacity`` positions.

    A pass writes its rows at ``start`` and reads the first ``extent`` rows. It calls ``update`` once per
    layer; buffers are allocated in the first call, with its shapes. A pass over B branches uses the first B
    of ``branches`` copies; branch 0 is the text.
    """

    def __init__(self, capacity: int, branches: int = 1, pool: KVPool | None = None, first: int = 0) -> None:
        """``pool``: its tensors are used, from entry ``first`` on; ``None``: a pool of its own."""
        self.pool = pool or KVPool(capacity, branches)
        self.first = first
        self.capacity = capacity
        self.branches = branches
        self.start = 0
        self.extent = capacity
        self.chunk = 0  # rows attend in chunks of this size (``chunk_rows.py``); 0: all at once
        self._equal = 0  # number of leading rows that are the same in all branches
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def place(self, start: int, extent: int, chunk: int = 0) -> None:
        """Set where the next pass writes, how many rows it reads, and in which chunks its rows attend."""
        self.start = start
        self.extent = extent
        self.chunk = chunk

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, index: int, /
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store rows (B, heads, M, D) at ``start``; return the first ``extent`` keys and values."""
        count = len(key_states)
        keys, values = (buffer[:count] for buffer in self.buffers(index, key_states, value_states))
        rows = slice(self.start, self.start + key_states.shape[2])
        keys[:, :, rows] = key_states
        values[:, :, rows] = value_states
        self.wrote_from(self.start)
        return keys[:, :, : self.extent], values[:, :, : self.extent]

    def buffers(
        self, index: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values (branches, heads, capacity + 1, D) of one layer (``KVPool.tensors``)."""
        if index not in self._layers:
            self._layers[index] = self._own(*self.pool.tensors(index, keys, values))
        return self._layers[index]

    def wrote_from(self, start: int) -> None:
        """Note that rows from ``start`` on may differ between branches."""
        self._equal = min(self._equal, start)

    def wipe(self) -> None:
        """Set all rows to zero: a masked row that holds NaN would still make the output NaN."""
        for buffer in self._buffers():
            buffer.zero_()
        self._equal = 0

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values (heads, capacity, D) of the text in one layer, keys rotated."""
        keys, values = self._all()[index]
        return keys[0, :, : self.capacity], values[0, :, : self.capacity]

    def broadcast_to_branches(self, end: int) -> None:
        """Copy the text's rows before ``end`` into the other branches."""
        rows = slice(self._equal, end)
        for buffer in self._buffers() if self._equal < end else ():
            buffer[1:, :, rows] = buffer[:1, :, rows]
        self._equal = max(self._equal, end)

    @torch.inference_mode()
    def copy_text(self, other: KVBuffer, end: int) -> None:
        """Copy the rows before ``end`` from the text of another buffer."""
        for index, (keys, values) in other._all().items():
            for mine, theirs in zip(self.buffers(index, keys, values), (keys, values), strict=True):
                mine[0, :, :end] = theirs[0, :, :end]
        self.wrote_from(0)

    def keep_branch(self, branch: int, start: int, end: int) -> None:
        """Copy the rows of a branch from ``start`` to ``end`` into the text."""
        for buffer in self._buffers() if branch else ():
            buffer[0, :, start:end] = buffer[branch, :, start:end]

    def move(self, start: int, count: int, by: int, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """Move ``count`` rows of the text ``by`` positions.

        ``cos``, ``sin`` (D / 2,): of the angles by which keys are rotated.
        """
        here = slice(start, start + count)
        there = slice(start + by, start + by + count)
        for keys, values in self._all().values():
            keys[0, :, there] = turned(keys[0, :, here], cos, sin)
            values[0, :, there] = values[0, :, here].clone()
        self._equal = min(self._equal, there.start)

    def _buffers(self) -> Iterator[torch.Tensor]:
        return itertools.chain.from_iterable(self._all().values())

    def _all(self) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Return keys and values of all layers, also of those that a pass over the pool has made."""
        for index in self.pool.layers.keys() - self._layers.keys():
            self._layers[index] = self._own(*self.pool.layers[index])
        return self._layers

    def _own(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own = slice(self.first, self.first + self.branches)
        return keys[own], values[own]


def make_buffers(capacity: int, branches: int, most: int, *, pooled: bool) -> Callable[[], KVBuffer]:
    """Return a function that makes KV buffers; the first ``most`` are in one pool if they are ``pooled``."""
    if not pooled or most == 1:
        return lambda: KVBuffer(capacity, branches)
    pool = KVPool(capacity, most * branches)
    free = iter(range(most))

    def make() -> KVBuffer:
        number = next(free, None)
        if number is None:
            return KVBuffer(capacity, branches)
        return KVBuffer(capacity, branches, pool, number * branches)

    return make


class UnkeptKV:
    """Keys and values of one pass over a whole text, none of which are kept."""

    start = 0
    extent = 0

    def place(self, start: int, extent: int, chunk: int = 0) -> None:
        """Take what ``KVBuffer.place`` does: every row is written and read."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, _index: int, /
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give back the rows (B, heads, M, D) of a layer."""
        return key_states, value_states


def turned(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate keys (…, D) to other positions (rotary embedding, half-split convention), in fp32."""
    low, high = keys.float().chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(keys.dtype)
